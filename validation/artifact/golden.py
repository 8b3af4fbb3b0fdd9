"""Golden vectors: inputs, the hook's outputs, the unedited model's outputs and gate decisions, in one safetensors file.

Any holder of an artifact can check it again from this file alone. Values are float32 whatever the precision they were
computed at (widening is exact), so that no backend needs more than numpy to read them.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from ...editor.common.errors import SaeuronError, first_line
from ...editor.common.files import parse_json, read_header
from ...editor.common.names import PRECISIONS
from . import shape
from .seam import Seam
from .shape import Choice, Each, Fields, Items
from .weights import Digest

_FORMAT = "saeuron-golden-6"
_OF_CASE = ("inputs", "fires", "members")
_CASE = ("hook", "unedited", "neutral")
_SEAM = ("input", "output", "neutral", "fires", "near", "slack", "coefficients", "rows")
_RUN = ("initial", "hook", "unedited", "neutral", "hook_pictures", "unedited_pictures")

_CONTENT = Fields({
    "precision": Choice(PRECISIONS),
    "cases": Items(Fields({
        "kind": str, "timestep": float, "drift": float, "hook_drift": float, **dict.fromkeys(_CASE, str), **dict.fromkeys(_OF_CASE, Each(str)),
        "seams": Each(Fields(dict.fromkeys(_SEAM, str), {"before": str})),
    })),
    "runs": Items(Fields({"prompts": Items(str), "guidance": float, "steps": int, "drift": float, "hook_drift": float, **dict.fromkeys(_RUN, str)},
                         {"seeds": Items(int)})),
    "components": Each(Each(str)), "surroundings": Each(str), "weights": Each(Each(Items(str, 2))),
    "notes": Fields({"scope": Choice(("full", "short")), "prompts": Items(str), "steps": int}, {"configs": Each(dict), "against_topk": dict}),
})  # fmt: skip


@dataclass
class Case:
    """One forward of the denoiser."""

    kind: str
    """`step` (on the hook's own trajectory), `between` (halfway between calibrated timesteps) or `fractional`"""
    timestep: float
    """its noise level, 0 to 1000"""
    inputs: dict[str, np.ndarray]
    """what the denoiser's graph takes, by name and in its order; the first is the noised latents `[B, C, h, w]`"""
    hook: np.ndarray
    """`[B, C, h, w]`, as the next two"""
    unedited: np.ndarray
    neutral: np.ndarray
    """the hook with every gain at 1: the unedited output for `residual=keep`, else what the reconstruction error does alone"""
    fires: dict[str, np.ndarray] = field(default_factory=dict)
    """hookpoint → bool `[B, tokens, U]`"""
    members: dict[str, np.ndarray] = field(default_factory=dict)
    """hookpoint → `seam.digest` of the active latents, uint32 `[B, tokens]`; where all of them are decoded (`residual` not `keep`)"""
    seams: dict[str, Seam] = field(default_factory=dict)
    """hookpoint → some of its tokens, with what the hook makes of them"""
    drift: float = 0.0
    """distance of the unedited output to itself under this precision's rounding; 0 in fp32"""
    hook_drift: float = 0.0
    """distance of the hook's output to itself under this precision's rounding"""

    @property
    def sample(self) -> np.ndarray:
        """The noised latents."""
        return next(iter(self.inputs.values()))


@dataclass
class Run:
    """One free-running denoising loop."""

    prompts: list[str]
    guidance: float
    steps: int
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
    drift: float
    """relative distance of the unedited model's final latents to themselves under this precision's rounding"""
    hook_drift: float
    """relative distance of the hook's final latents to themselves when the initial ones move by one rounding unit"""
    seeds: list[int] = field(default_factory=list)
    """one a picture, of the noise that some schedulers draw at every step"""


@dataclass
class Golden:
    """All cases and runs, and the precision that they were computed at."""

    precision: str
    cases: list[Case]
    runs: list[Run]
    components: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    """component → tensor name → value, inputs and outputs of the other graphs"""
    notes: dict[str, Any] = field(default_factory=dict)
    surroundings: dict[str, np.ndarray] = field(default_factory=dict)
    """what tokenizers, scheduler and latent scaling give for fixed inputs, see `surroundings`"""
    weights: dict[str, dict[str, Digest]] = field(default_factory=dict)
    """component → tensor → digest of the original's, see `weights`"""

    def save(self, path: Path) -> None:
        """Write one safetensors file."""
        tensors: dict[str, np.ndarray] = {}
        shared: dict[bytes, str] = {}

        def put(name: str, value: np.ndarray) -> str:
            value = np.require(value.astype(np.uint8) if value.dtype == bool else value, requirements="C")
            known = shared.setdefault(value.tobytes() + str(value.shape).encode(), name)
            if known == name:
                tensors[name] = value
            return known

        cases = [
            {"kind": c.kind, "timestep": c.timestep, **{k: put(f"case/{i}/{k}", getattr(c, k)) for k in _CASE},
             **{k: {h: put(f"case/{i}/{k}/{h}", v) for h, v in getattr(c, k).items()} for k in _OF_CASE},
             "seams": {h: {k: put(f"case/{i}/seam/{h}/{k}", v) for k, v in vars(s).items() if v is not None} for h, s in c.seams.items()},
             "drift": c.drift, "hook_drift": c.hook_drift}
            for i, c in enumerate(self.cases)
        ]  # fmt: skip
        runs = [
            {**{k: v for k, v in asdict(r).items() if not isinstance(v, np.ndarray)},
             **{k: put(f"run/{i}/{k}", getattr(r, k)) for k in _RUN}}
            for i, r in enumerate(self.runs)
        ]  # fmt: skip
        parts = {c: {k: put(f"component/{c}/{k}", v) for k, v in values.items()} for c, values in self.components.items()}
        around = {k: put(f"surroundings/{k}", v) for k, v in self.surroundings.items()}
        content = {
            "precision": self.precision, "cases": cases, "runs": runs, "components": parts, "notes": self.notes, "surroundings": around, "weights": self.weights,
        }  # fmt: skip
        header = {"format": _FORMAT, "content": json.dumps(content)}
        save_file(tensors, path, metadata=header)

    @classmethod
    def load(cls, path: Path) -> Golden:
        """Read a file written by `save`.

        Raises:
            SaeuronError: missing, damaged, or of another form.
        """
        content = _content_of(path)
        try:
            tensors = load_file(path)
            cases = [
                Case(**{**c, **{k: tensors[c[k]] for k in _CASE},
                        **{k: {h: tensors[n].astype(bool) if k == "fires" else tensors[n] for h, n in c[k].items()} for k in _OF_CASE},
                        "seams": {h: Seam(**{k: tensors[n].astype(bool) if k in ("fires", "near") else tensors[n] for k, n in s.items()}) for h, s in c["seams"].items()}})
                for c in content["cases"]
            ]  # fmt: skip
            filled: list[dict[str, Any]] = [{k: tensors[v] if k in _RUN else v for k, v in r.items()} for r in content["runs"]]
            runs = [Run(**r) for r in filled]
            parts = {c: {k: tensors[n] for k, n in values.items()} for c, values in content["components"].items()}
            around = {k: tensors[n] for k, n in content["surroundings"].items()}
            weights = {c: {k: Digest(*d) for k, d in found.items()} for c, found in content["weights"].items()}
            return cls(content["precision"], cases, runs, parts, content["notes"], around, weights)
        except SaeuronError:
            raise
        except Exception as error:  # numpy and safetensors raise many types, e.g. for a type of numbers that numpy lacks
            raise SaeuronError(f"{path}: damaged golden vectors ({first_line(error)})") from None


@dataclass
class Shown:
    """Pictures of one free run."""

    prompts: list[str]
    guidance: float
    steps: int
    unedited: np.ndarray
    """uint8 `[B, H, W, 3]`"""
    hook: np.ndarray
    """made by the dynamic hook"""


def _content_of(path: Path) -> dict[str, Any]:
    """What the file's header says, checked."""
    header, _ = read_header(path)
    if header.get("format") != _FORMAT:
        raise SaeuronError(f"{path} holds no golden vectors (format {header.get('format')!r}, expected {_FORMAT!r})")
    try:
        content = parse_json(header["content"])
    except (KeyError, ValueError, RecursionError) as error:
        raise SaeuronError(f"{path}: damaged golden vectors ({error})") from None
    shape.check(str(path), content, _CONTENT)
    for name in (*content["components"], *content["weights"]):
        if not shape.is_plain(name):  # they become names of folders
            raise SaeuronError(f"{path}: damaged golden vectors (a component of the name {name[:60]!r})")
    return content


def read_pictures(path: Path) -> list[Shown]:
    """The pictures of all free runs, without reading the rest of the file.

    Raises:
        SaeuronError: missing, damaged, or of another form.
    """
    content = _content_of(path)
    try:
        found = []
        with safe_open(path, "np") as handle:
            for run in content["runs"]:
                unedited, hook = (handle.get_tensor(run[f"{kind}_pictures"]) for kind in ("unedited", "hook"))
                for pictures in (unedited, hook):
                    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[3] != 3 or len(pictures) != len(run["prompts"]):
                        raise SaeuronError(f"{path}: damaged golden vectors (pictures of shape {list(pictures.shape)})")
                found.append(Shown(run["prompts"], run["guidance"], run["steps"], unedited, hook))
        return found
    except SaeuronError:
        raise
    except Exception as error:
        raise SaeuronError(f"{path}: damaged golden vectors ({first_line(error)})") from None
