"""Which sizes of pictures a model takes, from its configs alone: one rule for loops, proofs and engines. Needs no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.errors import SaeuronError
from ..common.files import read_json

_MOST, _MOST_LEVELS = 8192, 16


def multiple_of(factor: int, levels: int) -> int:
    """Sides of pictures are multiples of this many pixels.

    diffusers wants multiples of 8; whole down-sampling keeps the sizes of a UNet's skip connections equal.

    Args:
        factor: pixels a latent, along each side.
        levels: of the UNet.
    """
    return math.lcm(8, factor * 2 ** (levels - 1))


def latent_sides(sample_size: Any, factor: int, height: int | None, width: int | None) -> tuple[int, int]:
    """Rows and columns of a picture's latents.

    Args:
        sample_size: of the UNet's config: one side, both, or None.
        factor: pixels a latent, along each side.
        height: pixels; None: the model's own.
        width: pixels.

    Raises:
        SaeuronError: the model names no size of its own, and none is given.
    """
    if sample_size is None and (height is None or width is None):
        raise SaeuronError("the UNet's config names no size of its own ('sample_size' is null); give --height and --width")
    rows, columns = sample_size if isinstance(sample_size, list | tuple) else (sample_size, sample_size)
    return (rows if height is None else height // factor), (columns if width is None else width // factor)


def _levels(config: dict[str, Any]) -> int:
    channels = config["block_out_channels"]
    if not isinstance(channels, list) or len(channels) > _MOST_LEVELS:
        raise ValueError(f"'block_out_channels', a list of at most {_MOST_LEVELS}")
    return len(channels)


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

    @classmethod
    def of(cls, root: Path) -> Sizes:
        """Read them from a pipeline's folder.

        Raises:
            SaeuronError: the UNet's or the autoencoder's config lacks them.
        """
        unet, vae = read_json(root / "unet" / "config.json"), read_json(root / "vae" / "config.json")
        try:
            size = unet["sample_size"]
            own = None if size is None else tuple(size) if isinstance(size, list) else (size, size)
            if own is not None and len(own) != 2:
                raise ValueError("'sample_size', a number, two numbers or null")
            numbers = (unet["in_channels"], *(own or ()), _levels(unet), _levels(vae))
            # Arrays are made of these sizes: what no model has is refused before.
            if not all(type(n) is int and 1 <= n <= _MOST for n in numbers):
                raise ValueError(f"sizes from 1 to {_MOST}")
        except (KeyError, TypeError, ValueError) as error:
            raise SaeuronError(f"'{root}': the UNet's or the autoencoder's config lacks {error}, or holds something else there") from None
        channels, *_, levels, vae_levels = numbers
        factor = 2 ** (vae_levels - 1)
        return cls(channels, own, factor, multiple_of(factor, levels))

    def latents(self, height: int | None, width: int | None) -> tuple[int, int]:
        """Rows and columns of the latents of a picture of so many pixels; see `latent_sides`."""
        return latent_sides(self.own, self.factor, height, width)

    def check_side(self, pixels: int, name: str) -> None:
        """Raise `SaeuronError` unless a picture can have this side."""
        if pixels < 1 or pixels % self.multiple:
            raise SaeuronError(f"{name} {pixels}: this model's pictures have sides that are multiples of {self.multiple} pixels")
