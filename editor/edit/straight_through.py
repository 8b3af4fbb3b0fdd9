"""Gates that hide nothing from a gradient: the same decisions, but their derivative is a line's and not a step's.

A step has derivative 0, so a gradient doesn't say that a latent could be brought below its bar, where the edit leaves it alone.
Straight-through (arXiv 1308.3432) puts the slope `1 / bar` in its place. Only for attacks: no value changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .ablated_unet import FeatureAblation, FireGate

# Bars near zero would drown every other gradient.
_SMALLEST_BAR = 1e-3


def straight_through(fires: torch.Tensor, latents: torch.Tensor, bar: torch.Tensor) -> torch.Tensor:
    """Decisions as numbers that let gradients through.

    Args:
        fires: bool `[B, tokens, U]`.
        latents: what was compared with the bar, same shape.
        bar: the larger of a latent's bars, broadcastable; no gradient where it is infinite.

    Returns:
        float32, exactly 0 or 1; its derivative by `latents` is `1 / bar`.
    """
    slope = 1 / bar.detach().float().clamp_min(_SMALLEST_BAR)
    line = latents.float()
    return fires.float() + (line - line.detach()) * slope


class StraightThroughGate(FireGate):
    """In the place of a `FireGate`; numbers instead of bools."""

    def forward(self, latents: torch.Tensor, thresholds: torch.Tensor, kth: torch.Tensor | None) -> torch.Tensor:
        """Decide as `FireGate` does."""
        fires = super().forward(latents, thresholds, kth)
        return straight_through(fires, latents, thresholds if kth is None else torch.maximum(thresholds, kth.float()))


@contextmanager
def open_gates(unet: nn.Module) -> Iterator[Any]:
    """The edited UNet with straight-through gates while the context is open; as before afterwards."""
    modules = [m for m in unet.modules() if isinstance(m, FeatureAblation)]
    kept = [m.gate for m in modules]
    try:
        for module in modules:
            module.gate = StraightThroughGate()
        yield unet
    finally:
        for module, gate in zip(modules, kept, strict=True):
            module.gate = gate
