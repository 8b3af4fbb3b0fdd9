"""Golden vectors: inputs, the hook's outputs, the unedited model's outputs and gate decisions, in one safetensors file.

Any holder of an artifact can check it again from this file alone. Values are float32 whatever the precision they were
computed at (widening is exact), so that no backend needs more than numpy to read them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from msgspec import Struct
from safetensors import safe_open
from safetensors.numpy import save_file

from ...editor.common.errors import SaeuronError, first_line
from ...editor.common.files import parse_json, read_header
from ...editor.common.names import Precision
from ...editor.common.typed import Number, Record, Whole, is_plain, read_as
from .seam import Seam
from .weights import Digest

T = TypeVar("T")
_FORMAT = "saeuron-golden-10"


class Case(Record):
    """One forward of the denoiser."""

    kind: str
    """`step` (on the hook's own trajectory), `between` (halfway between calibrated timesteps) or `fractional`"""
    timestep: Number
    """its noise level, 0 to 1000"""
    inputs: dict[str, np.ndarray]
    """what the denoiser's graph takes, by name and in its order; the first is the noised latents `[B, C, h, w]`"""
    hook: np.ndarray
    """`[B, C, h, w]`, as the next two"""
    unedited: np.ndarray
    neutral: np.ndarray
    """the hook with every gain at 1: the unedited output for `residual=keep`, else what the reconstruction error does alone"""
    fires: dict[str, np.ndarray] = {}
    """hookpoint → bool `[B, tokens, U]`"""
    members: dict[str, np.ndarray] = {}
    """hookpoint → `seam.digest` of the active latents, uint32 `[B, tokens]`; where all of them are decoded (`residual` not `keep`)"""
    seams: dict[str, Seam] = {}
    """hookpoint → some of its tokens, with what the hook makes of them"""
    drift: Number = 0.0
    """distance of the unedited output to itself under this precision's rounding; 0 in fp32"""
    hook_drift: Number = 0.0
    """distance of the hook's output to itself under this precision's rounding"""
    quiet: np.ndarray | None = None
    """the hook's weights without its edit at blocks, where it has both: what `neutral` is to an edit at blocks alone"""

    @property
    def sample(self) -> np.ndarray:
        """The noised latents."""
        return next(iter(self.inputs.values()))


class Run(Record):
    """One free-running denoising loop."""

    prompts: list[str]
    guidance: Number
    steps: Whole
    initial: np.ndarray
    """`[B, C, h, w]`"""
    hook: np.ndarray
    """final latents"""
    unedited: np.ndarray
    neutral: np.ndarray
    """final latents of the hook with every gain at 1"""
    hook_pictures: np.ndarray
    """uint8 `[B, H, W, 3]`"""
    unedited_pictures: np.ndarray
    drift: Number
    """relative distance of the unedited model's final latents to themselves under this precision's rounding"""
    hook_drift: Number
    """relative distance of the hook's final latents to themselves when the initial ones move by one rounding unit"""
    seeds: list[Whole] = []
    """one a picture, of the noise that some schedulers draw at every step"""


class Notes(Record):
    """How the golden vectors were made."""

    scope: Literal["full", "short", "seam"]
    """short: a few forwards, and no free runs; seam: up to the last edited block, and `hook`, `unedited`, `neutral` of a case are the tokens of all
    hookpoints side by side `[B, N]`"""
    prompts: list[str]
    steps: Whole
    seed: Whole = 0
    against_topk: dict[str, Whole] = {}
    """decisions beside torch.topk's own pick: `decisions`, `differ`, `fired`, `fired_topk`"""
    configs: dict[str, dict[str, Any]] = {}
    """file → the original's config"""
    edits_weights: bool = False
    """whether the hook runs with other weights than the unedited model: then every forward shows the edit, and the seam's tokens are those of the hook
    without them, since where they remove a concept no feature of it would fire"""


class Golden(Record):
    """All cases and runs, and the precision that they were computed at."""

    precision: Precision
    cases: list[Case]
    runs: list[Run]
    components: dict[str, dict[str, np.ndarray]]
    """component → tensor name → value, inputs and outputs of the other graphs"""
    notes: Notes
    surroundings: dict[str, np.ndarray]
    """what tokenizers, scheduler and latent scaling give for fixed inputs, see `surroundings`"""
    weights: dict[str, dict[str, Digest]]
    """component → tensor → digest of the original's, see `weights`"""

    @property
    def weights_alone(self) -> bool:
        """Whether the edit is in the weights, and at no hookpoint."""
        return self.notes.edits_weights and not any(case.fires for case in self.cases)

    def save(self, path: Path) -> None:
        """Write one safetensors file: all arrays as tensors, equal ones once, and the rest as JSON in its header, with a tensor's name for each array."""
        tensors: dict[str, np.ndarray] = {}
        shared: dict[bytes, str] = {}

        def packed(value: Any, name: str) -> Any:
            if isinstance(value, np.ndarray):
                known = shared.setdefault(value.tobytes() + str((value.shape, value.dtype)).encode(), name)
                if known == name:
                    tensors[name] = np.require(value, requirements="C")
                return known
            if isinstance(value, Struct):
                value = {key: getattr(value, key) for key in value.__struct_fields__}
            if isinstance(value, dict):
                return {key: packed(item, f"{name}/{key}".lstrip("/")) for key, item in value.items()}
            return [packed(item, f"{name}/{i}") for i, item in enumerate(value)] if isinstance(value, list | tuple) else value

        header = {"format": _FORMAT, "content": json.dumps(packed(self, ""))}
        save_file(tensors, path, metadata=header)

    @classmethod
    def load(cls, path: Path) -> Golden:
        """Read a file written by `save`.

        Raises:
            SaeuronError: missing, damaged, or of another form.
        """
        golden = _read(path, cls, lambda content: content)
        for name in (*golden.components, *golden.weights):
            if not is_plain(name):  # they become names of folders
                raise SaeuronError(f"{path}: damaged golden vectors (a component of the name {name[:60]!r})")
        return golden


class Shown(Record):
    """Pictures of one free run."""

    prompts: list[str]
    guidance: Number
    steps: Whole
    unedited_pictures: np.ndarray
    """uint8 `[B, H, W, 3]`"""
    hook_pictures: np.ndarray
    """made by the dynamic hook"""


def read_pictures(path: Path) -> list[Shown]:
    """The pictures of all free runs, without reading the rest of the file.

    Raises:
        SaeuronError: missing, damaged, or of another form.
    """
    runs = _read(path, list[Shown], lambda content: content.get("runs"))
    for run in runs:
        for pictures in (run.unedited_pictures, run.hook_pictures):
            if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[3] != 3 or len(pictures) != len(run.prompts):
                raise SaeuronError(f"{path}: damaged golden vectors (pictures of shape {list(pictures.shape)})")
    return runs


def read_prompts(path: Path) -> list[str]:
    """The prompts that golden vectors were made with, without reading the rest of the file.

    Raises:
        SaeuronError: missing, damaged, or of another form.
    """
    return _read(path, list[str], lambda content: content.get("notes", {}).get("prompts"))


def _read(path: Path, kind: type[T], part: Callable[[dict[str, Any]], Any]) -> T:
    """A part of the header's content as a type, with the tensors that it names."""
    header, _ = read_header(path)
    if header.get("format") != _FORMAT:
        raise SaeuronError(f"{path} holds no golden vectors (format {header.get('format')!r}, expected {_FORMAT!r})")
    try:
        with safe_open(path, "np") as handle:
            return read_as(kind, part(parse_json(header["content"])), path, tensors=handle.get_tensor)
    except SaeuronError:
        raise
    except Exception as error:  # numpy and safetensors raise many types, e.g. for a type of numbers that numpy lacks
        raise SaeuronError(f"{path}: damaged golden vectors ({first_line(error)})") from None
