"""Which sizes of pictures a model takes, from its configs alone: one rule for loops, proofs and engines. Needs no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from .errors import SaeuronError
from .files import read_json


def multiple_of(factor: int, levels: int) -> int:
    """Sides of pictures are multiples of this many pixels.

    diffusers wants multiples of 8; whole down-sampling keeps the sizes of a UNet's skip connections equal.

    Args:
        factor: pixels a latent, along each side.
        levels: of the UNet.
    """
    return math.lcm(8, factor * 2 ** (levels - 1))


@dataclass(frozen=True)
class Sizes:
    """Of a pipeline's pictures."""

    channels: int
    """of the latents"""
    own: tuple[int, int]
    """rows and columns of the latents that the model was made for"""
    factor: int
    """pixels a latent, along each side"""
    multiple: int
    """sides of pictures are multiples of this many pixels"""

    @classmethod
    def of(cls, root: Path) -> Sizes:
        """Read them from a pipeline's folder.

        Raises:
            SaeuronError: the UNet's or the autoencoder's config lacks them.
        """
        unet, vae = read_json(root / "unet" / "config.json"), read_json(root / "vae" / "config.json")
        try:
            size = unet["sample_size"]
            rows, columns = size if isinstance(size, list) else (size, size)
            factor = 2 ** (len(vae["block_out_channels"]) - 1)
            return cls(int(unet["in_channels"]), (int(rows), int(columns)), factor, multiple_of(factor, len(unet["block_out_channels"])))
        except (KeyError, TypeError, ValueError) as error:
            raise SaeuronError(f"'{root}': the UNet's or the autoencoder's config lacks {error}, or holds something else there") from None

    def check_side(self, pixels: int, name: str) -> None:
        """Raise `SaeuronError` unless a picture can have this side."""
        if pixels < 1 or pixels % self.multiple:
            raise SaeuronError(f"{name} {pixels}: this model's pictures have sides that are multiples of {self.multiple} pixels")
