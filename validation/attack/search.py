"""Learning tokens that bring a concept back: the diffusion loss on the unedited model's pictures (arXiv 2310.11868).

Of a pipeline with several text encoders, tokens are learned in all of them at once: each has vectors and a vocabulary of its own, the loss is one.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from ...editor.denoisers.families import family_of, network_of
from .prompts import Template, context, nearest, readers

# The best iterate is chosen on a fixed batch, looked at this often.
_EVERY = 10
_CHECKED = 8


class Found(NamedTuple):
    """What a search ended with."""

    vectors: tuple[torch.Tensor, ...]
    """`[k, D]` of each text encoder"""
    ids: tuple[list[int], ...] | None
    """of the tokens, where `vectors` are rows of the vocabularies"""
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
    """Distance between what the edited denoiser says of noised targets and what it was trained to say (the noise, or the velocity).

    Noise, timesteps and pictures are drawn from a generator of its own, so equal seeds give equal searches. Timesteps are those
    of the denoising loop, spread over it within each batch.
    """

    def __init__(self, pipeline: Any, targets: Targets, steps: int, seed: int, guidance: float = 1.0) -> None:
        self.pipeline, self.targets, self._guidance = pipeline, targets, guidance
        self.denoiser = family_of(pipeline).denoiser
        self.scheduler = copy.deepcopy(family_of(pipeline).calibrating(pipeline.scheduler))
        height, width = targets.latents.shape[-2:]
        self.scheduler.set_timesteps(steps, **self.denoiser.told(self.scheduler.config, steps, (height, width)))
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

    def predicted(
        self, vectors: torch.Tensor | Sequence[torch.Tensor] | None, which: torch.Tensor, steps: torch.Tensor, noise: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Prediction and what was wanted, of one shape, batch first.

        Args:
            vectors: as `context` takes them.
            which: numbers of the pictures, `[B]`.
            steps: timesteps up to which they are noised, `[B]`.
            noise: `[B, C, h, w]`.
        """
        latents = self.targets.latents[which]
        steps, noise = steps.to(latents.device), noise.to(latents)
        text = context(self.pipeline, [self.targets.templates[i] for i in which.tolist()], vectors)
        found, wanted = self.denoiser.learning(network_of(self.pipeline), self.scheduler, latents, noise, steps, text, self._guidance)
        return found.float(), wanted.float()

    def drawn(self, vectors: Sequence[torch.Tensor], size: int) -> torch.Tensor:
        """On a new batch."""
        return F.mse_loss(*self.predicted(vectors, *self._draw(size, self._generator)))

    @torch.no_grad()
    def fixed(self, vectors: Sequence[torch.Tensor]) -> float:
        """On the fixed batch."""
        return float(F.mse_loss(*self.predicted(vectors, *self._fixed)))


def learn_prefix(loss: DiffusionLoss, slots: int, iterations: int, batch: int, rate: float, seed: int) -> Found:
    """Tokens of the vocabulary.

    Free embeddings are moved by Adam; each forward reads the nearest rows of the vocabulary in their place, and the gradient there
    moves the free ones (arXiv 2302.03668). So whatever is evaluated is a real prompt.
    """
    generator = torch.Generator().manual_seed(seed)
    every = readers(loss.pipeline)
    allowed = [reader.vocabulary() for reader in every]
    rows = [reader.table[ids.to(reader.table.device)].detach() for reader, ids in zip(every, allowed, strict=True)]
    free = [own[torch.randint(len(own), (slots,), generator=generator).to(own.device)].clone() for own in rows]
    optimiser = torch.optim.Adam([{"params": [one], "lr": rate * float(own.std())} for one, own in zip(free, rows, strict=True)])
    best: tuple[float, list[torch.Tensor]] | None = None
    for i in range(iterations + 1):
        places = [nearest(one, own) for one, own in zip(free, rows, strict=True)]
        hard = [own[place] for own, place in zip(rows, places, strict=True)]
        if i % _EVERY == 0 or i == iterations:
            value = loss.fixed(hard)
            if best is None or value < best[0]:
                best = value, places
        if i == iterations:
            break
        with torch.enable_grad():
            hard = [one.clone().requires_grad_(True) for one in hard]
            for one, moved in zip(free, torch.autograd.grad(loss.drawn(hard, batch), hard), strict=True):
                one.grad = moved
        optimiser.step()
    assert best is not None
    found = zip(allowed, rows, best[1], strict=True)
    vectors, ids = zip(*((own[place].clone(), tokens[place.cpu()].tolist()) for tokens, own, place in found), strict=True)
    return Found(vectors, ids, best[0])


def learn_embedding(loss: DiffusionLoss, start: Sequence[torch.Tensor], iterations: int, batch: int, rate: float) -> Found:
    """Any vectors, moved by Adam from `start`, `[k, D]` of each text encoder (Textual Inversion, arXiv 2208.01618, as in arXiv 2308.01508)."""
    vectors = [one.detach().clone().requires_grad_(True) for one in start]
    steps = [rate * float(reader.table.std()) for reader in readers(loss.pipeline)]
    optimiser = torch.optim.Adam([{"params": [one], "lr": step} for one, step in zip(vectors, steps, strict=True)])
    best: tuple[float, tuple[torch.Tensor, ...]] | None = None
    for i in range(iterations + 1):
        if i % _EVERY == 0 or i == iterations:
            value = loss.fixed(vectors)
            if best is None or value < best[0]:
                best = value, tuple(one.detach().clone() for one in vectors)
        if i == iterations:
            break
        with torch.enable_grad():
            for one, moved in zip(vectors, torch.autograd.grad(loss.drawn(vectors, batch), vectors), strict=True):
                one.grad = moved
        optimiser.step()
    assert best is not None
    return Found(best[1], None, best[0])


def starts(pipeline: Any, name: str, slots: int, seed: int, restart: int) -> list[torch.Tensor]:
    """Where a search by embeddings begins: at the concept's own tokens, repeated; restarts at random rows of the vocabulary."""
    generator, found = torch.Generator().manual_seed(seed + restart), []
    for reader in readers(pipeline):
        own, table = reader.words(name), reader.table
        if restart == 0 and own:
            ids = torch.tensor([own[i % len(own)] for i in range(slots)])
        else:
            allowed = reader.vocabulary()
            ids = allowed[torch.randint(len(allowed), (slots,), generator=generator)]
        found.append(table[ids.to(table.device)].detach())
    return found
