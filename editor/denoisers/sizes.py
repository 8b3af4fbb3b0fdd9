"""Which sizes of pictures a model takes: one rule for loops, proofs and engines. Needs no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..common.errors import SaeuronError


def multiple_of(factor: int, unit: int) -> int:
    """Sides of pictures are multiples of this many pixels; diffusers wants multiples of 8.

    Args:
        factor: pixels a latent, along each side.
        unit: sides of latents are multiples of this.
    """
    return math.lcm(8, factor * unit)


@dataclass(frozen=True)
class Sizes:
    """Of a pipeline's pictures."""

    channels: int
    """of the latents"""
    own: tuple[int, int] | None
    """rows and columns of the latents that the model was made for; None: its config doesn't say"""
    factor: int
    """pixels a latent, along each side"""
    multiple: int
    """sides of pictures are multiples of this many pixels"""
    most: int | None = None
    """pixels of the longest side; None: any"""

    def latents(self, height: int | None = None, width: int | None = None) -> tuple[int, int]:
        """Rows and columns of a picture's latents.

        Args:
            height: pixels; None: the model's own.
            width: pixels.

        Raises:
            SaeuronError: the model names no size of its own, and none is given.
        """
        if self.own is None and (height is None or width is None):
            raise SaeuronError("the model's config names no size of its own ('sample_size' is null); give --height and --width")
        rows, columns = self.own or (0, 0)
        return (rows if height is None else height // self.factor), (columns if width is None else width // self.factor)

    def noise(self, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        """Shape `[C, h, w]` of one picture's noise; see `latents`."""
        return self.channels, *self.latents(height, width)

    def check_side(self, pixels: int, name: str) -> None:
        """Raise `SaeuronError` unless a picture can have this side."""
        if pixels < 1 or pixels % self.multiple:
            raise SaeuronError(f"{name} {pixels}: this model's pictures have sides that are multiples of {self.multiple} pixels")
        if self.most is not None and pixels > self.most:
            raise SaeuronError(f"{name} {pixels}: this model's pictures have sides of at most {self.most} pixels")


def grid(tokens: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of the tokens of a picture of this many pixels: whole numbers, as near to its shape as can be."""
    sides = [(rows, tokens // rows) for rows in range(1, tokens + 1) if tokens % rows == 0]
    return min(sides, key=lambda s: abs(math.log(s[0] * width / (s[1] * height))))
