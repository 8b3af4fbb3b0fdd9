"""Trains the demo's SAE on the demo pipeline's activations; a plain script, called by `build.py`.

BatchTopK training with an auxiliary loss on dead latents (METHOD: arXiv 2501.18052, section 3.1; arXiv 2412.06410).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..hookpoints import to_tokens
from ..sae import SaeConfig, SparseAutoencoder
from ..sampling import capture, generate
from . import GUIDANCE, STEPS
from .render import OBJECTS, STYLES
from .train_pipeline import TEMPLATES, prompt

_DEAD_AFTER = 300_000
_AUX_WEIGHT = 1 / 32


@torch.no_grad()
def gather(pipeline: Any, hookpoints: Sequence[str], pictures: int, seed: int, batch_size: int = 64) -> dict[str, torch.Tensor]:
    """Activations of the conditional half over whole trajectories.

    Returns:
        hookpoint → fp16 tokens `[pictures · steps · H·W, d]`, in random order of pictures.
    """
    rng = np.random.default_rng(seed)
    objects, styles = [*OBJECTS, None], [*STYLES, None]
    found: dict[str, list[torch.Tensor]] = {h: [] for h in hookpoints}
    start = time.time()
    for first in range(0, pictures, batch_size):
        texts = [
            prompt(objects[rng.integers(len(objects))], styles[rng.integers(len(styles))], TEMPLATES[rng.integers(len(TEMPLATES))])
            for _ in range(batch_size)
        ]
        with capture(pipeline.unet, hookpoints) as seen:
            generate(
                pipeline, texts, [seed + first + j for j in range(batch_size)], STEPS, GUIDANCE, output_type="latent", batch_size=batch_size
            )
        for item in seen:
            for h in hookpoints:
                found[h].append(to_tokens(item.outputs[h])[batch_size:].half().flatten(0, 1))
        if first % (batch_size * 8) == 0:
            print(f"[{time.time() - start:6.0f} s] gathered {first + batch_size} of {pictures} pictures", flush=True)
    return {h: torch.cat(parts) for h, parts in found.items()}


def _geometric_median(tokens: torch.Tensor, rounds: int = 50) -> torch.Tensor:
    """Weiszfeld's iteration on `[N, d]`."""
    centre = tokens.mean(0)
    for _ in range(rounds):
        weight = 1 / (tokens - centre).norm(dim=1, keepdim=True).clamp_min(1e-6)
        centre = (tokens * weight).sum(0) / weight.sum()
    return centre


def train(
    tokens: torch.Tensor, expansion: int, k: int, steps: int, seed: int, batch: int = 2048, rate: float = 1e-3
) -> tuple[SparseAutoencoder, float]:
    """Train an SAE.

    Args:
        tokens: fp16 `[N, d]`; the last 2 % are held out.
        expansion: n / d.
        k: active latents a token.
        steps: optimiser steps.
        seed: of initialisation and batches.
        batch: tokens a step.
        rate: Adam's learning rate, decaying linearly to zero over the last four fifths.

    Returns:
        the SAE, and its fraction of variance unexplained on held-out tokens with per-token top-k.
    """
    torch.manual_seed(seed)
    held = max(1, len(tokens) // 50)
    held_out, data = tokens[-held:].float(), tokens[:-held]
    d = tokens.shape[1]
    sae = SparseAutoencoder(SaeConfig(d, d * expansion, k))
    with torch.no_grad():
        sae.W_dec.copy_(F.normalize(torch.randn_like(sae.W_dec), dim=1))
        sae.W_enc.copy_(sae.W_dec)
        sae.b_dec.copy_(_geometric_median(data[torch.randint(len(data), (20_000,))].float()))
    optimizer = torch.optim.Adam(sae.parameters(), lr=rate, betas=(0.9, 0.999))
    silent = torch.zeros(sae.config.num_latents)
    start = time.time()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (steps - step) / (0.8 * steps), (step + 1) / 50)
        x = data[torch.randint(len(data), (batch,))].float()
        pre = F.linear(x - sae.b_dec, sae.W_enc, sae.b_enc)
        # The k · batch largest of the batch; three times k a token is more than any token keeps, and far less to sort.
        best = pre.relu().topk(3 * k, dim=1)
        bar = best.values.flatten().topk(k * batch).values[-1]
        z = torch.zeros_like(pre).scatter(1, best.indices, best.values * (best.values >= bar))
        error = x - (z @ sae.W_dec + sae.b_dec)
        variance = (x - x.mean(0)).square().sum()
        loss = error.square().sum() / variance
        silent += batch
        silent[best.indices[best.values.detach() >= bar]] = 0
        dead = silent > _DEAD_AFTER
        if bool(dead.any()):
            k_aux = min(d // 2, int(dead.sum()))
            top = pre[:, dead].topk(k_aux, dim=1)
            guess = torch.zeros(batch, int(dead.sum())).scatter(1, top.indices, top.values.relu()) @ sae.W_dec[dead]
            scale = min(1.0, int(dead.sum()) / (d // 2))
            loss = loss + _AUX_WEIGHT * scale * (guess - error.detach()).square().sum() / error.detach().square().sum()
        optimizer.zero_grad()
        loss.backward()
        with torch.no_grad():
            assert sae.W_dec.grad is not None
            parallel = (sae.W_dec.grad * sae.W_dec).sum(1, keepdim=True)
            sae.W_dec.grad -= parallel * sae.W_dec
        optimizer.step()
        with torch.no_grad():
            sae.W_dec.copy_(F.normalize(sae.W_dec, dim=1))
        if step % 200 == 0 or step == steps - 1:
            print(f"[{time.time() - start:6.0f} s] SAE step {step}: loss {loss.item():.4f}, dead {int(dead.sum())}", flush=True)
    sae.eval().requires_grad_(False)
    return sae, fvu(sae, held_out)


@torch.no_grad()
def fvu(sae: SparseAutoencoder, tokens: torch.Tensor) -> float:
    """Fraction of variance unexplained of tokens `[N, d]`, per-token top-k."""
    error = torch.cat([sae(b) - b for b in tokens.split(4096)])
    return float(error.square().sum() / (tokens - tokens.mean(0)).square().sum())
