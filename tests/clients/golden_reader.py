"""Reads an artifact's golden vectors with numpy and safetensors alone, and prints measured comparisons.

A stranger's client has nothing of ours, so this repeats the few lines of the file's form and of the proof's yardstick
instead of importing them: every distance is a share of what the edit does, `|found - hook| / |hook - unedited|`, on
which the unedited model scores 1.
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
"""a loop may leave the hook's by this many times the unedited model's own drift"""


class Case(NamedTuple):
    """One forward of the UNet."""

    kind: str
    timestep: float
    sample: np.ndarray
    context: np.ndarray
    hook: np.ndarray
    unedited: np.ndarray


class Run(NamedTuple):
    """One denoising loop."""

    prompts: list[str]
    guidance: float
    steps: int
    drift: float
    """of the unedited model's final latents, relative to them"""
    initial: np.ndarray
    hook: np.ndarray
    """final latents"""
    unedited: np.ndarray
    hook_pictures: np.ndarray
    unedited_pictures: np.ndarray


class Golden(NamedTuple):
    """What a client checks itself against."""

    precision: str
    cases: list[Case]
    runs: list[Run]


def read_golden(artifact: Path) -> Golden:
    """The golden vectors of an artifact folder."""
    with safe_open(artifact / "edit" / "golden.safetensors", "np") as file:
        content = json.loads(file.metadata()["content"])

        def load(kind: Any, entry: dict[str, Any]) -> Any:
            arrays = {name for name, annotation in kind.__annotations__.items() if "ndarray" in str(annotation)}
            return kind(**{name: file.get_tensor(entry[name]) if name in arrays else entry[name] for name in kind._fields})

        return Golden(content["precision"], [load(Case, c) for c in content["cases"]], [load(Run, r) for r in content["runs"]])


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
        self, what: str, found: np.ndarray, hook: np.ndarray, unedited: np.ndarray, *, drift: float = 0.0, floor: float = 0.0
    ) -> None:
        """Hold `found` to the hook, and see that the unedited model would fail.

        Args:
            what: shown in the line.
            found: the client's result.
            hook: the reference.
            unedited: the unedited model's result of the same input.
            drift: relative drift of the unedited model's loop.
            floor: stands in for the effect where the edit did nothing; such an input has no control.
        """
        size = norm(unedited)
        effect = distance(hook, unedited)
        scale = effect or floor
        if not scale:
            self.line(False, f"{what}: the edit does nothing here, so there is nothing to compare")
            return
        share, allowed = distance(found, hook) / scale, max(self.bar, DRIFT_FACTOR * drift * size / scale)
        moved = f"the edit moves it by {effect / size:.2%}" if effect else "the edit is silent here"
        self.line(
            bool(np.isfinite(found).all()) and share <= allowed,
            f"{what}: {share:.5%} of the edit's effect from the hook (allowed {allowed:.2%}; {moved})",
        )
        if effect and distance(unedited, hook) / scale <= allowed:
            self.line(False, f"{what}: control: the unedited model would pass too, so this comparison proves nothing")

    def line(self, ok: bool, text: str) -> None:
        """Print one check's verdict."""
        self.passed, self.failed = self.passed + ok, self.failed + (not ok)
        print(f"{'ok  ' if ok else 'FAIL'} {self.client}: {text}", flush=True)

    def exit_code(self) -> int:
        """0 only when something was compared and nothing failed."""
        return 0 if self.passed and not self.failed else 1
