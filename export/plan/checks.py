"""What several commands check before they compute: bounds of what they take, and packages. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...editor.common.errors import SaeuronError
from ...editor.common.seeds import LARGEST_SEED
from ...validation.artifact.installed import missing

_STEPS = 1000  # every scheduler's training steps


def check_seed(seed: int, option: str) -> None:
    """Raise unless torch's generator tells this seed from every other."""
    if not 0 <= seed <= LARGEST_SEED:
        raise SaeuronError(f"{option} {str(seed)[:20]}: a seed lies between 0 and {LARGEST_SEED}")


def check_steps(steps: int, option: str) -> None:
    """Raise unless a scheduler can take as many steps."""
    if not 1 <= steps <= _STEPS:
        raise SaeuronError(f"{option} {str(steps)[:20]}: a scheduler takes 1 to {_STEPS} steps")


def check_scheduler(kind: str) -> None:
    """Raise unless this is one of the two ways to sample; `editor.collect.scheduler_of` makes them."""
    if kind not in ("ddim", "model"):
        raise SaeuronError(f"scheduler '{kind}' is not known; it is ddim or model")


def check_guidance(guidance: float) -> None:
    """Raise unless the guidance scale is a number."""
    if not math.isfinite(guidance):
        raise SaeuronError(f"--guidance {guidance:g} is no finite number")


def check_packages(formats: Sequence[str], validate: bool) -> None:
    """Raise unless the packages are there that graphs are written by, and proven by; they are needed only at the very end."""
    if "onnx" in formats:
        needed = ("onnx", "onnxscript", *(("onnxruntime",) if validate else ()))
        for name in missing(needed):
            extra = "cpu" if name == "onnxruntime" else "export"
            raise SaeuronError(
                f"'{name}' is not installed, which ONNX graphs {'are proven by' if extra == 'cpu' else 'need'}; pip install 'saeuron-export[{extra}]', or leave onnx out of --format"
            )


def check_pixels(height: int | None, width: int | None) -> None:
    """Raise unless both can be the size of a picture."""
    for pixels, option in ((height, "--height"), (width, "--width")):
        if pixels is not None and (pixels < 8 or pixels % 8):
            raise SaeuronError(f"{option} is {pixels}; it must be a positive multiple of 8")
