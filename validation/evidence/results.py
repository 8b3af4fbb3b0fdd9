"""What an evaluation measured, as types; `evaluation.json` and `saeuron evaluate --json` hold an `Evaluation`. Needs no torch."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import field

from ...editor.common.typed import Number, Record, Whole
from ...editor.denoisers.weights_file import Overlay
from .intervals import Mean, Rate
from .picture_backends import UNEDITED
from .sightings import Removal, Trust
from .smears import Calibrated, Outside
from .unlearning import Rates

FORMAT = "saeuron-evaluation-2"


class PipelineRecord(Record, kw_only=True, omit_defaults=True):
    """Which pipeline it was, where it is no artifact."""

    sha256: str
    """of its files: configs, tokenizers, scheduler, weights"""
    unet: Overlay | None = None
    """what a file of weights changed in it"""
    original: str = ""
    """name of what was drawn as the unedited model"""
    original_sha256: str = ""
    """of its files"""


class JudgeRecord(Record, omit_defaults=True):
    """Who looked at the pictures."""

    name: str
    sha256: str
    judged: list[str] | None = None
    """domains that a judge of objects and styles looks at"""
    concepts: list[str] | None = None
    """that it can see; by the protocol `concepts`"""


class SettingsRecord(Record, kw_only=True, omit_defaults=True):
    """What all pictures of an evaluation have in common; a run with other ones is another evaluation."""

    artifact: str
    """name of its folder, or of the pipeline's"""
    manifest_sha256: str = ""
    edit_sha256: str = ""
    """of an artifact"""
    pipeline: PipelineRecord | None = None
    """of what is no artifact"""
    content_sha256: str | None = None
    engines_sha256: dict[str, str] | None = None
    concepts: list[str] = []
    precision: str = ""
    steps: Whole
    guidance: Number
    height: Whole | None = None
    width: Whole | None = None
    """pixels; None: the model's"""
    protocol: Literal["unlearncanvas", "concepts", "nudity", "utility"]
    judges: list[JudgeRecord] = []
    """several by the protocol `concepts` alone"""
    seeds: list[Whole]
    objects: list[str] | None = None
    styles: list[str] | None = None
    """of a judge of objects and styles"""
    sets: dict[str, Whole] | None = None
    """set of test prompts → how many; by the protocol `concepts`"""
    compared: dict[str, list[str]] | None = None
    """removed concept → the sets that it is compared with"""
    prompts_sha256: str | None = None

    @property
    def judge(self) -> JudgeRecord:
        """The only one."""
        return self.judges[0] if self.judges else JudgeRecord("none", "")


class Figures(Record, kw_only=True, omit_defaults=True):
    """What is counted on the pictures of one backend; each protocol has its own."""

    accuracy: dict[str, Rate] = {}
    """domain → on all pictures"""
    concepts: dict[str, Rates] = {}
    mean: dict[str, Number | None] = {}
    """one of `FIGURES` → mean over concepts"""
    kept: dict[str, Rate] | None = None
    """of a part of the concepts: the artifact's other ones → accuracy on their pictures; None where all are removed"""
    retained: dict[str, Rate] = {}
    """of a part: domain → accuracy on pictures that ask for none of the removed"""
    sightings: dict[str, dict[str, Removal]] = {}
    """judge → concept → what it sees"""
    outside: dict[str, Outside] = {}
    """block → share of tokens outside of the unedited model's distribution; empty where this backend shows none"""
    nothing_seen: dict[str, Rate] = {}
    """judge, and domain → pictures of which it is less sure than of 99 % of the unedited model's; empty where it names nothing"""
    nude: Rate | None = None
    detections: dict[str, Whole] | None = None
    """NudeNet's, by class"""
    clip_score: Mean | None = None
    clip_change: Mean | None = None
    """from the unedited model"""
    prompts_cut: Whole | None = None
    """prompts longer than CLIP reads"""


class Backend(Figures, kw_only=True, omit_defaults=True):
    """One backend: what made its pictures, and what was counted on them."""

    runtime: str | None = None
    device: str | None = None
    loop: str | None = None
    """whose denoising loop"""
    target: str | None = None
    """of engines"""
    pictures: Whole | None = None
    made: Whole | None = None
    """pictures that were made the last time that any were"""
    seconds: Number | None = None
    """for these"""
    shared_table_entries: Whole | None = None
    """of a part of the concepts: entries of the edit's tables that a concept outside of it strengthened"""

    @property
    def figures(self) -> Figures:
        """Its figures alone."""
        return Figures(**{name: getattr(self, name) for name in Figures.__struct_fields__})

    def take(self, figures: Figures) -> None:
        """Put figures in the place of those that it has."""
        for name in Figures.__struct_fields__:
            setattr(self, name, getattr(figures, name))


class Distance(Record, kw_only=True):
    """A Fréchet distance; None for fewer than two pictures."""

    name: str
    backend: str
    against: str
    """`unedited` or `reference`"""
    all: Number | None
    all_pictures: Whole = 0
    rest: Number | None
    """on pictures that ask for none of the removed concepts"""
    rest_pictures: Whole = 0

    def __str__(self) -> str:
        rest = "" if self.rest is None else f", {self.rest:.3f} on the {self.rest_pictures} that ask for none of the removed"
        return f"{self.name}, {self.backend} from {self.against}: {'–' if self.all is None else f'{self.all:.3f}'} on all {self.all_pictures}{rest}"


class Reference(Record):
    """Pictures that distances are taken from."""

    folder: str
    pictures: Whole
    sha256: str


class Likeness(Record, kw_only=True, omit_defaults=True):
    """One picture beside the other backend's."""

    file: str
    max_abs: Whole
    """of 255"""
    psnr: Number | Literal["inf"]
    """dB"""
    same_verdict: bool | None = None
    clip_difference: Number | None = None


class Comparison(Record, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """All pictures of a backend beside those of another, of the same prompts and seeds."""

    backend: str
    beside: str = field(name="with")
    pictures: Whole
    identical: Whole
    max_abs: Whole
    """of 255"""
    least_psnr: Number | None
    """dB; None where all are identical"""
    same_verdicts: Whole | None = None
    largest_clip_difference: Number | None = None
    each: list[Likeness] = []

    def __str__(self) -> str:
        near = "" if self.least_psnr is None else f", least PSNR {self.least_psnr:.1f} dB"
        seen = "" if self.same_verdicts is None else f"; same verdict on {self.same_verdicts}"
        if self.largest_clip_difference is not None:
            seen = f"; CLIP scores at most {self.largest_clip_difference:.4f} apart"
        return f"{self.backend} beside {self.beside}: {self.identical} of {self.pictures} pictures identical, largest difference {self.max_abs} of 255{near}{seen}"


class Begun(Record):
    """What an evaluation's file says as soon as there is a picture."""

    settings: dict[str, Any]
    format: str = ""
    finished: bool = True


class Evaluation(Record, kw_only=True):
    """A whole evaluation."""

    format: str
    finished: bool = True
    settings: SettingsRecord
    batch_size: Whole | None = None
    version: str | None = None
    backends: dict[str, Backend]
    left_out: list[str] = []
    """backends that have pictures in the folder, but not all of them"""
    nude_classes: list[str] = []
    threshold: Number | None = None
    """least score of NudeNet's detections that were counted"""
    fid_weights_sha256: str | None = None
    reference: Reference | None = None
    distances: list[Distance] = []
    trust: dict[str, dict[str, Trust]] = {}
    """judge → concept → how well it tells the unedited model's pictures apart; by the protocol `concepts`, where these were judged"""
    tokens: Calibrated | None = None
    """what the unedited model's own tokens were taken from; None: they were not looked at"""
    counting: dict[str, str] = {}
    """figure → its rule, in words"""
    comparison: list[Comparison] = []

    @property
    def edited(self) -> dict[str, Backend]:
        """Those of the whole edit: neither the unedited model nor a part of the concepts."""
        return {name: b for name, b in self.backends.items() if name != UNEDITED and not b.kept}
