"""What a proof found, as types; `report.json` and `saeuron validate --json` hold a `Proof`. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from ...editor.common.typed import Record
from ..artifact.quantised import Quantisation, Removal
from ..artifact.seam import Comparison
from .forwards import Forwards


class Seam(Record, kw_only=True):
    """The edit, compared at the seam."""

    passed: bool | None
    """None where a backend hides its inner tensors, or wasn't asked"""
    golden_tokens: Comparison | None = None
    """the edit cut out of the graph and fed with the golden vectors' tokens"""
    own_tokens: Comparison | None = None
    """whole maps of the backend's own forwards, where the SAE is at hand"""
    turned: int = 0
    """decisions that came out otherwise in whole forwards, where rounding upstream moves the tokens themselves"""
    decisions: int = 0
    alone: bool = False
    """the edit is in the weights alone, so there is no seam to compare at"""
    not_checked: str = ""
    """why not, where it wasn't"""
    failures: list[str] = []

    @property
    def parts(self) -> list[Comparison]:
        """The comparisons that were made."""
        return [part for part in (self.golden_tokens, self.own_tokens) if part is not None]


class Components(Record, kw_only=True):
    """Text encoders and autoencoder halves beside the original's."""

    passed: bool | None
    bar: float = math.nan
    relative: dict[str, float] = {}
    """`component.output` → relative distance"""
    outside: list[str] = []
    """of shapes that an engine wasn't built for"""
    not_checked: str = ""
    failures: list[str] = []


class FreeRun(Record, kw_only=True):
    """One free-running loop beside the hook's."""

    prompts: list[str]
    guidance: float
    height: int
    width: int
    """pixels"""
    steps: int
    latents: float
    """distance of the final latents, as a share of the unedited model's"""
    effect: float
    """what the edit does to them"""
    drift: float
    hook_drift: float
    """what rounding alone does to the unedited model's and to the hook's"""
    allowed: float
    conclusive: bool
    """whether less is allowed than the edit does; else it isn't judged"""
    decoder_psnr: float
    """dB: the hook's final latents, decoded by the artifact and by the original"""
    psnr: float
    psnr_unedited: float
    """dB, from the hook's pictures"""


class Runs(Record, kw_only=True):
    """All free runs of a backend."""

    passed: bool | None
    rows: list[FreeRun] = []
    outside: int = 0
    """runs of shapes that an engine wasn't built for"""
    loop: str = ""
    """whose denoising loop ran: `diffusers` or `lean`"""
    not_checked: str = ""
    failures: list[str] = []


class Backend(Record, kw_only=True):
    """All that was compared of one backend."""

    passed: bool = False
    """nothing in it failed"""
    seam: Seam
    forwards: Forwards
    components: Components
    runs: Runs
    provider: str = ""
    """of ONNX Runtime"""


class Control(Record, kw_only=True):
    """The same comparisons of a model without the edit, which must fail."""

    passed: bool
    residual_alone: float
    """what the residual mode does to the UNet's output where nothing is suppressed"""
    seams_caught: int
    seams: int
    forwards_caught: int
    forwards: int
    runs_caught: int
    runs_judged: int
    runs: int
    failures: list[str] = []


class Check(Record, kw_only=True):
    """Files compared with what is on record."""

    passed: bool
    failures: list[str] = []


class Surroundings(Check, kw_only=True):
    """Tokenizers, scheduler and settings beside the original's."""

    bar: float = math.nan
    relative: dict[str, float] = {}
    """part → relative distance"""


class NotChecked(Record, kw_only=True):
    """A check that wasn't made."""

    check: str
    reason: str
    backend: str = ""
    """empty where it is no single backend's"""


class Judged(Record, kw_only=True):
    """Which artifact was judged."""

    edit_sha256: str
    content_sha256: str
    engines_sha256: dict[str, str]


class Proof(Record, kw_only=True):
    """A whole proof."""

    passed: bool
    precision: str
    scope: str
    prompts: list[str] = []
    against_topk: dict[str, Any] = {}
    """decisions beside torch.topk's own pick, see `reference`"""
    control: Control
    backends: dict[str, Backend]
    record: Check | None = None
    """weights, tables and configs against the record; None where it can't be compared without torch"""
    said: Check | None = None
    """what the files say of one another, where `record` isn't compared"""
    surroundings: Surroundings | None = None
    engines: Check | None = None
    """what is on record of engines, where it isn't so"""
    not_checked: list[NotChecked] = []
    artifact: Judged | None = None
    scheme: str = ""
    """of a quantised graph; empty: in floats"""
    removal: list[Removal] | None = None
    """of a quantised graph, as it was judged when it was made; None: not judged"""
    failures: list[str] = []

    def judge(self, quantised: Quantisation, concepts: Collection[str]) -> None:
        """Take in what is known of how a graph was quantised from which these concepts are removed."""
        self.scheme, self.removal = quantised.scheme, quantised.removal or None
        self.failures += quantised.faults(concepts)
        self.passed = not self.failures
