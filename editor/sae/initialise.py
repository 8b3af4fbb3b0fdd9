"""The start of training: `b_dec` at the geometric median, directions from random tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .sae import SparseAutoencoder


def geometric_median(tokens: Tensor, rounds: int = 100, tolerance: float = 1e-6) -> Tensor:
    """The point with the least sum of distances to tokens `[N, d]`, by Weiszfeld's iteration: `[d]`, float32 or wider.

    Stops after `rounds`, or when a round moves it by less than `tolerance` of the mean distance.
    """
    points = tokens if tokens.dtype == torch.float64 else tokens.float()
    centre = points.mean(0)
    for _ in range(rounds):
        # The matrix product's way to distances cancels badly for tokens far from the origin.
        distance = torch.cdist(points, centre[None], compute_mode="donot_use_mm_for_euclid_dist")[:, 0]
        # A token under the centre would weigh infinitely much.
        weight = 1 / distance.clamp_min(1e-6 * distance.mean()).clamp_min(torch.finfo(points.dtype).tiny)
        moved = (weight / weight.sum()) @ points
        done = torch.linalg.vector_norm(moved - centre) <= tolerance * distance.mean()
        centre = moved
        if bool(done):
            break
    return centre


def _as_seen(sae: SparseAutoencoder, tokens: Tensor) -> Tensor:
    """Tokens `[N, d]` in the weights' dtype and, with `input_unit_norm`, each centred and divided by its standard deviation."""
    tokens = tokens.detach().to(sae.W_enc.dtype)
    if sae.config.input_unit_norm:
        mean, scale = sae._scale(tokens)
        tokens = (tokens - mean) / scale
    return tokens


@torch.no_grad()
def initialise(sae: SparseAutoencoder, tokens: Tensor, generator: torch.Generator | None = None) -> None:
    """Set the weights to start training from: random unit decoder rows, the same encoder, `b_dec` the median of tokens `[N, d]`.

    `generator` must live on the CPU, so that a seed means the same on every device.
    """
    rows = F.normalize(torch.randn(sae.W_dec.shape, generator=generator), dim=1)
    sae.W_dec.copy_(rows)
    sae.W_enc.copy_(rows)
    sae.b_enc.zero_()
    sae.b_dec.copy_(geometric_median(_as_seen(sae, tokens)))
