"""Learning tokens that bring a concept back: the diffusion loss on the unedited model's pictures (arXiv 2310.11868)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from ...editor.denoisers.families import family_of, network_of
from .prompts import Template, context, embedding_table, nearest, vocabulary

# The best iterate is chosen on a fixed batch, looked at this often.
_EVERY = 10
_CHECKED = 8


class Found(NamedTuple):
    """What a search ended with."""

    vectors: torch.Tensor
    """`[k, D]`"""
    ids: list[int] | None
    """of the tokens, where `vectors` are rows of the vocabulary"""
    loss: float
    """on the fixed batch"""


@dataclass(frozen=True)
class Targets:
    """Pictures of the concept by the unedited model, as latents."""

    latents: torch.Tensor
    """`[N, C, h, w]`"""
    templates: list[Template]
    """one a picture"""


class DiffusionLoss:
    """Distance between the edited UNet's prediction on noised targets and what was added (or the velocity, as the model predicts).

    Noise, timesteps and pictures are drawn from a generator of its own, so equal seeds give equal searches. Timesteps are those
    of the denoising loop, spread over it within each batch.
    """

    def __init__(self, pipeline: Any, targets: Targets, steps: int, seed: int) -> None:
        self.pipeline, self.targets = pipeline, targets
        self.denoiser = family_of(pipeline).denoiser
        self.scheduler = family_of(pipeline).calibrating(pipeline.scheduler)
        self.scheduler.set_timesteps(steps)
        self._generator = torch.Generator().manual_seed(seed)
        fixed = torch.Generator().manual_seed(seed + 1)
        self._fixed = self._draw(min(_CHECKED, 2 * len(targets.templates)), fixed)

    def _draw(self, size: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        which = torch.randperm(len(self.targets.templates), generator=generator).repeat(size)[:size]
        steps = self.scheduler.timesteps
        # One of each equal part of the loop.
        place = ((torch.arange(size) + torch.rand(size, generator=generator)) / size * len(steps)).long().clamp_max(len(steps) - 1)
        noise = torch.randn(size, *self.targets.latents.shape[1:], generator=generator)
        return which, steps.cpu()[place], noise

    def _value(self, vectors: torch.Tensor, batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> torch.Tensor:
        which, steps, noise = batch
        latents = self.targets.latents[which]
        steps, noise = steps.to(latents.device), noise.to(latents)
        noised = self.scheduler.add_noise(latents, noise, steps)
        wanted = self.scheduler.get_velocity(latents, noise, steps) if self.scheduler.config.prediction_type == "v_prediction" else noise
        if self.scheduler.config.prediction_type == "sample":
            wanted = latents
        text = context(self.pipeline, [self.targets.templates[i] for i in which.tolist()], vectors)
        given = {"sample": noised, "timestep": steps, "encoder_hidden_states": text}
        return F.mse_loss(self.denoiser.call(network_of(self.pipeline), given).float(), wanted.float())

    def drawn(self, vectors: torch.Tensor, size: int) -> torch.Tensor:
        """On a new batch."""
        return self._value(vectors, self._draw(size, self._generator))

    @torch.no_grad()
    def fixed(self, vectors: torch.Tensor) -> float:
        """On the fixed batch."""
        return float(self._value(vectors, self._fixed))


def learn_prefix(loss: DiffusionLoss, slots: int, iterations: int, batch: int, rate: float, seed: int) -> Found:
    """Tokens of the vocabulary.

    Free embeddings are moved by Adam; each forward reads the nearest rows of the vocabulary in their place, and the gradient there
    moves the free ones (arXiv 2302.03668). So whatever is evaluated is a real prompt.
    """
    pipeline = loss.pipeline
    allowed = vocabulary(pipeline)
    rows = embedding_table(pipeline)[allowed.to(embedding_table(pipeline).device)].detach()
    start = torch.randint(len(rows), (slots,), generator=torch.Generator().manual_seed(seed))
    free = rows[start.to(rows.device)].clone()
    optimiser = torch.optim.Adam([free], lr=rate * float(rows.std()))
    best: tuple[float, torch.Tensor] | None = None
    for i in range(iterations + 1):
        place = nearest(free, rows)
        if i % _EVERY == 0 or i == iterations:
            value = loss.fixed(rows[place])
            if best is None or value < best[0]:
                best = value, place
        if i == iterations:
            break
        with torch.enable_grad():
            hard = rows[place].clone().requires_grad_(True)
            (free.grad,) = torch.autograd.grad(loss.drawn(hard, batch), hard)
        optimiser.step()
    assert best is not None
    return Found(rows[best[1]].clone(), allowed[best[1].cpu()].tolist(), best[0])


def learn_embedding(loss: DiffusionLoss, start: torch.Tensor, iterations: int, batch: int, rate: float) -> Found:
    """Any vectors, moved by Adam from `start [k, D]` (Textual Inversion, arXiv 2208.01618, as in arXiv 2308.01508)."""
    vectors = start.detach().clone().requires_grad_(True)
    optimiser = torch.optim.Adam([vectors], lr=rate * float(embedding_table(loss.pipeline).std()))
    best: tuple[float, torch.Tensor] | None = None
    for i in range(iterations + 1):
        if i % _EVERY == 0 or i == iterations:
            value = loss.fixed(vectors)
            if best is None or value < best[0]:
                best = value, vectors.detach().clone()
        if i == iterations:
            break
        with torch.enable_grad():
            (vectors.grad,) = torch.autograd.grad(loss.drawn(vectors, batch), vectors)
        optimiser.step()
    assert best is not None
    return Found(best[1], None, best[0])


def starts(pipeline: Any, name: Sequence[int], slots: int, seed: int, restart: int) -> torch.Tensor:
    """Where a search by embeddings begins: at the concept's own tokens, repeated; restarts at random rows of the vocabulary."""
    table = embedding_table(pipeline)
    if restart == 0 and name:
        return table[torch.tensor([name[i % len(name)] for i in range(slots)], device=table.device)].detach()
    allowed = vocabulary(pipeline)
    pick = torch.randint(len(allowed), (slots,), generator=torch.Generator().manual_seed(seed + restart))
    return table[allowed[pick].to(table.device)].detach()
