"""Reads an artifact's golden vectors with numpy and safetensors alone, and prints measured comparisons.

A stranger's client has nothing of ours, so this repeats the few lines of the file's form and of the proof's yardstick
instead of importing them: every distance is a share of what the edit does, `|found - hook| / |hook - neutral|`, where
neutral is the hook with every gain at 1 (the unedited model, if the edit keeps the reconstruction error).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import safe_open

BARS = {"fp32": 0.01, "fp16": 0.10, "bf16": 0.10}
"""largest share of the edit's effect by precision"""
DRIFT_FACTOR = 2.0
"""a loop may leave the hook's by this many times the drift that rounding alone causes"""


class Case(NamedTuple):
    """One forward of the UNet."""

    kind: str
    timestep: float
    inputs: dict[str, np.ndarray]
    """of the UNet's graph by name; SDXL has further ones"""
    hook: np.ndarray
    neutral: np.ndarray
    unedited: np.ndarray
    fired: bool
    """whether any chosen feature fired"""

    @property
    def sample(self) -> np.ndarray:
        """Noised latents."""
        return self.inputs["sample"]

    @property
    def context(self) -> np.ndarray:
        """The encoded text."""
        return self.inputs["encoder_hidden_states"]

    @property
    def conditions(self) -> dict[str, np.ndarray]:
        """Further inputs by name; SDXL has some."""
        return {name: value for name, value in self.inputs.items() if name not in ("sample", "timestep", "encoder_hidden_states")}


class Run(NamedTuple):
    """One denoising loop; final latents and pictures."""

    prompts: list[str]
    guidance: float
    steps: int
    initial: np.ndarray
    hook: np.ndarray
    neutral: np.ndarray
    unedited: np.ndarray
    hook_pictures: np.ndarray
    unedited_pictures: np.ndarray
    drift: float
    """of final latents by rounding alone, relative to them: the unedited model's or the hook's, whichever is larger"""
    seeds: list[int]
    """of the noise that some schedulers draw"""


class Golden(NamedTuple):
    """What a client checks itself against."""

    precision: str
    cases: list[Case]
    runs: list[Run]


def read_golden(artifact: Path) -> Golden:
    """The golden vectors of an artifact folder."""
    with safe_open(artifact / "edit" / "golden.safetensors", "np") as file:
        content = json.loads(file.metadata()["content"])

        def fill(kind: Any, entry: dict[str, Any], **own: Any) -> Any:
            arrays = {name for name, annotation in kind.__annotations__.items() if "ndarray" in str(annotation)}
            values = {name: file.get_tensor(entry[name]) if name in arrays else entry[name] for name in kind._fields if name not in own}
            return kind(**values, **own)

        cases = [
            fill(
                Case,
                c,
                fired=any(file.get_tensor(name).any() for name in c["fires"].values()),
                inputs={key: file.get_tensor(name) for key, name in c["inputs"].items()},
            )
            for c in content["cases"]
        ]
        runs = [fill(Run, r, drift=max(r["drift"], r["hook_drift"]), seeds=r.get("seeds", [])) for r in content["runs"]]
        return Golden(content["precision"], cases, runs)


def norm(values: np.ndarray) -> float:
    """Euclidean, in float64."""
    return float(np.linalg.norm(values.astype(np.float64)))


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """`|a - b|`."""
    return norm(a.astype(np.float64) - b.astype(np.float64))


class Report:
    """Prints one line a comparison and remembers failures."""

    def __init__(self, client: str, precision: str) -> None:
        self.client, self.bar, self.passed, self.failed = client, BARS[precision], 0, 0

    def compare(
        self,
        what: str,
        found: np.ndarray,
        hook: np.ndarray,
        neutral: np.ndarray,
        unedited: np.ndarray,
        drift: float = 0.0,
        floor: float = 0.0,
    ) -> None:
        """Hold `found` to the hook, and see that the unedited model would fail.

        Args:
            what: shown in the line.
            found: the client's result.
            hook: the reference.
            neutral: the hook's result with every gain at 1.
            unedited: the unedited model's result.
            drift: by rounding alone, relative to the result.
            floor: stands in for the effect where the edit did nothing; such an input has no control.
        """
        size, effect = norm(unedited), distance(hook, neutral)
        scale = effect or floor
        if not scale:
            self.line(False, f"{what}: the edit does nothing here, so there is nothing to compare")
            return
        share, unedited_share = distance(found, hook) / scale, distance(unedited, hook) / scale
        allowed = max(self.bar, DRIFT_FACTOR * drift * size / scale)
        about = f"the edit moves it by {effect / size:.1%}" if effect else "the edit is silent here"
        ok = bool(np.isfinite(found).all()) and share <= allowed
        self.line(
            ok, f"{what}: {share:.5%} of the edit's effect from the hook (allowed {allowed:.2%}, unedited {unedited_share:.0%}; {about})"
        )
        if effect and unedited_share <= allowed:
            self.line(False, f"{what}: control: the unedited model would pass too, so this comparison proves nothing")

    def line(self, ok: bool, text: str) -> None:
        """Print one check's verdict."""
        self.passed, self.failed = self.passed + ok, self.failed + (not ok)
        print(f"{'ok  ' if ok else 'FAIL'} {self.client}: {text}", flush=True)

    def exit_code(self) -> int:
        """0 only when something was compared and nothing failed."""
        return 0 if self.passed and not self.failed else 1
