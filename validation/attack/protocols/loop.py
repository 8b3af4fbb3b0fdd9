"""The denoising loop from a given place on, for attacks that begin from a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ....editor.denoisers.denoiser import Text
from ....editor.denoisers.families import family_of, network_of
from ....editor.denoisers.sampling import check_finite, decode, initial_latents
from ..prompts import context, with_prefix

if TYPE_CHECKING:
    from ..settings import AttackSettings


class Shown(NamedTuple):
    """A part of a picture that is put in at each step, noised as far as the step is."""

    latents: torch.Tensor
    """`[N, C, h, w]`"""
    where: torch.Tensor
    """bool, broadcastable to them"""


def finish(
    pipeline: Any, contexts: Text, seeds: Sequence[int], s: AttackSettings, begin: int = 0, latents: torch.Tensor | None = None,
    shown: Shown | None = None,
) -> list[Any]:  # fmt: skip
    """Pictures by DDIM, with guidance.

    Args:
        pipeline: who draws.
        contexts: of the prompts.
        seeds: of the noise, one a picture.
        s: steps and guidance.
        begin: steps that are left out at the start.
        latents: clean ones to begin from, `[N, C, h, w]`, noised up to the first step; None: pure noise.
        shown: see there.
    """
    family, network = family_of(pipeline), network_of(pipeline)
    scheduler = family.calibrating(pipeline.scheduler)
    scheduler.set_timesteps(s.sampling.steps)
    steps, guidance = scheduler.timesteps, s.sampling.guidance
    empty = context(pipeline, [with_prefix(pipeline, "", 0)], None).states
    found: list[Any] = []
    for start in range(0, len(seeds), s.batch_size):
        part = slice(start, start + s.batch_size)
        noise = initial_latents(pipeline, seeds[part])
        text = contexts.of(part).states
        x = noise if latents is None else scheduler.add_noise(latents[part], noise, steps[begin : begin + 1].expand(len(noise)))
        for i in range(begin, len(steps)):
            rows = 2 if guidance > 1 else 1
            states = torch.cat([empty.expand(len(text), -1, -1), text]) if rows == 2 else text
            given = {
                "sample": x.repeat(rows, 1, 1, 1),
                "timestep": steps[i].to(x.device).expand(len(states)),
                "encoder_hidden_states": states,
            }
            predicted = family.denoiser.call(network, given)
            if rows == 2:
                without, with_text = predicted.chunk(2)
                predicted = without + guidance * (with_text - without)
            x = scheduler.step(predicted, steps[i], x).prev_sample
            if shown is not None:
                own = shown.latents[part]
                if i + 1 < len(steps):
                    own = scheduler.add_noise(own, noise, steps[i + 1 : i + 2].expand(len(own)))
                x = torch.where(shown.where, own, x)
        check_finite(x)
        found += pipeline.image_processor.numpy_to_pil(decode(pipeline, x, finite=True) / 255)
    return found
