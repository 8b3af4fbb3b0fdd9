"""`SaeFile`: what a reader of SAE files returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class SaeConfig:
    """What a file says of its SAE; the names are those of SAeUron's `cfg.json`."""

    d_in: int
    """channels of the hookpoint"""
    num_latents: int
    """latents n"""
    k: int | None
    """active latents a token at inference; None for `jumprelu`, whose number varies"""
    input_unit_norm: bool = False
    """each token is centred and divided by its standard deviation before encoding"""
    activation: str = "topk"
    """`topk` (the k largest of a token) or `jumprelu` (each latent above a threshold of its own)"""
    subtract_bias: bool = True
    """`b_dec` is subtracted before encoding"""
    reads: str = "output"
    """`output` of the hookpoint, or `delta`: output minus input, what the block adds"""


class SaeFile(NamedTuple):
    """An SAE as it lies in a file, under this package's names."""

    config: SaeConfig
    tensors: dict[str, torch.Tensor]
    """`W_enc [n, d]`, `b_enc [n]`, `W_dec [n, d]`, `b_dec [d]`; `threshold [n]` of `jumprelu`"""
    where: str
    """file or folder, for messages"""
