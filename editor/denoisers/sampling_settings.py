"""How a pipeline is run where pictures are made: options that most commands share. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

from ..common.declared import HOW, Checked, option
from ..common.seeds import LARGEST_SEED


@dataclass(frozen=True)
class Sampling(Checked):
    """How the pipeline is run; METHOD's values for SD 1.x are the defaults.

    With guidance, latents that are collected are those of the conditional half. The batch size is part of the result, since a batch of
    another size rounds otherwise.
    """

    steps: int = option(100, "N", HOW, least=1, most=1000)
    """Denoising steps."""
    guidance: float = option(9.0, "SCALE", HOW)
    """Guidance scale."""
    seed: int = option(42, "N", HOW, least=0, most=LARGEST_SEED)
    """Of the noise (the first picture's; each next takes the next one), and of what else is drawn at random."""
    batch_size: int = option(8, "N", HOW, least=1, most=10_000)
    """Pictures at a time."""
    height: int | None = option(None, "PIXELS", HOW, least=8, multiple=8)
    """Picture height. Default: the model's."""
    width: int | None = option(None, "PIXELS", HOW, least=8, multiple=8)
    """Picture width. Default: the model's."""
    scheduler: str = option("ddim", "KIND", HOW, known=("ddim", "model"))
    """ddim (eta 0), or model (the pipeline's own)."""

    @property
    def guided(self) -> bool:
        """Whether classifier-free guidance is used."""
        return self.guidance > 1
