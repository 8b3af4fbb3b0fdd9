"""A straight-through hook for attacks: the same decisions, with a gradient as if the gate were linear.

A step has derivative 0, so a gradient doesn't say that a latent could be brought below its bar, where the edit leaves it alone.
Straight-through (arXiv 1308.3432) puts the slope `1 / bar` in its place. No value changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ...editor.edit.feature_ablation import FeatureAblation, FireGate
from ...editor.edit.hook import AblationHook, Encoded

# Bars near zero would drown every other gradient.
_SMALLEST_BAR = 1e-3


def straight_through(fires: torch.Tensor, latents: torch.Tensor, thresholds: torch.Tensor, kth: torch.Tensor | None) -> torch.Tensor:
    """Decisions as numbers that let gradients through.

    Args:
        fires: bool `[B, tokens, U]`.
        latents: what was compared, same shape.
        thresholds: broadcastable; no gradient where one is infinite.
        kth: the k-th largest latent, broadcastable, if it decides too.

    Returns:
        float32, exactly 0 or 1; its derivative by `latents` is `1 / bar`, of the larger of the bars.
    """
    bar = thresholds if kth is None else torch.maximum(thresholds, kth.float())
    slope = 1 / bar.detach().float().clamp_min(_SMALLEST_BAR)
    line = latents.float()
    return fires.float() + (line - line.detach()) * slope


class StraightThroughGate(FireGate):
    """In the place of a `FireGate`; numbers instead of bools."""

    def forward(self, latents: torch.Tensor, thresholds: torch.Tensor, kth: torch.Tensor | None) -> torch.Tensor:
        """Decide as `FireGate` does."""
        return straight_through(super().forward(latents, thresholds, kth), latents, thresholds, kth)


class StraightThroughHook(AblationHook):
    """The dynamic hook; gradients also pass through its decisions."""

    def fires(self, encoded: Encoded) -> torch.Tensor:
        """The same decisions as numbers."""
        return straight_through(encoded.decision.fires, encoded.chosen, encoded.thresholds, encoded.kth)


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
