"""Where single features are active, by picture, token and timestep: what a feature answers to, for people to look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from PIL import Image

from ..common.errors import SaeuronError
from ..common.names import normalise
from ..denoisers.families import network_of
from ..denoisers.sampling import generate, observe, scheduler_of
from ..denoisers.sampling_settings import Sampling
from ..denoisers.sizes import grid
from ..sae.sae import SparseAutoencoder

_DEFAULT = Sampling(steps=50, guidance=7.5)


class FeaturePicture(NamedTuple):
    """One picture in which a feature is active."""

    number: int
    """among all pictures made, from 0"""
    prompt: str
    seed: int
    picture: Image.Image
    maps: torch.Tensor
    """float32 `[T, h, w]`, the latent at each step and token; 0 where it isn't active"""
    score: float
    """the largest, over steps, of its mean over tokens"""


@dataclass
class FeatureRecord:
    """One feature over all pictures; maps are kept of the best only."""

    hookpoint: str
    feature: int
    timesteps: list[float]
    """those of the denoising steps, `T`"""
    top: list[FeaturePicture] = field(default_factory=list)
    """the pictures with the highest scores, best first; of equal ones the earlier"""
    pictures: int = 0
    """how many were made"""
    active: int = 0
    """in how many it was active, at any step and token"""
    mean: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    """float64 `[T]`, over tokens of all pictures"""
    peak: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    """float64 `[T]`, largest over tokens of all pictures"""
    share: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    """float64 `[T]`, share of tokens of all pictures at which it is active"""


def draw_prompts(prompts: Sequence[str], count: int, seed: int) -> list[str]:
    """`count` prompts in an order drawn by `seed`: no prompt comes again before all of them came."""
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(seed)).tolist()
    return [prompts[order[i % len(order)]] for i in range(count)]


@torch.no_grad()
def record_features(
    pipeline: Any, saes: Mapping[str, SparseAutoencoder], features: Mapping[str, Sequence[int]], prompts: Sequence[str],
    sampling: Sampling = _DEFAULT, top: int = 8, progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[FeatureRecord]:  # fmt: skip
    """Run the unedited pipeline and keep, for each feature, the pictures in which it is most active.

    Memory doesn't grow with the number of pictures: maps of one batch and of the kept pictures lie in it, the rest are sums.

    Args:
        pipeline: the unedited text-to-image pipeline.
        saes: hookpoint → SAE.
        features: hookpoint → features.
        prompts: one a picture; picture j starts from the noise of `sampling.seed + j`.
        sampling: how the pipeline is run; latents are those of the conditional half.
        top: most pictures kept a feature.
        progress: told pictures done and pictures in all.

    Returns:
        one record a feature, in the order given.

    Raises:
        SaeuronError: a feature that the SAE doesn't have.
    """
    wanted = {normalise(name): list(dict.fromkeys(numbers)) for name, numbers in features.items()}
    known = {normalise(name): sae for name, sae in saes.items()}
    opened = {name: known[name].to(network_of(pipeline).device) for name in wanted}
    for name, numbers in wanted.items():
        for number in numbers:
            if not 0 <= number < (n := opened[name].config.num_latents):
                raise SaeuronError(f"feature {number}: the SAE at '{name}' has features 0 to {n - 1}")
    records = {name: [FeatureRecord(name, number, []) for number in numbers] for name, numbers in wanted.items()}
    with scheduler_of(pipeline, sampling.scheduler):
        for start in range(0, len(prompts), sampling.batch_size):
            progress(start, len(prompts))
            texts = prompts[start : start + sampling.batch_size]
            _run_batch(pipeline, opened, wanted, records, texts, start, sampling, top)
    progress(len(prompts), len(prompts))
    return [record for by in records.values() for record in by]


def _run_batch(
    pipeline: Any, saes: Mapping[str, SparseAutoencoder], features: Mapping[str, list[int]], records: Mapping[str, list[FeatureRecord]],
    texts: Sequence[str], start: int, sampling: Sampling, top: int,
) -> None:  # fmt: skip
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in saes}
    timesteps: list[float] = []
    count = len(texts)

    def look(timestep: float, tokens: dict[str, torch.Tensor]) -> None:
        timesteps.append(timestep)
        for name, sae in saes.items():
            seen[name].append(sae.encode(tokens[name].float())[..., features[name]].transpose(1, 2).cpu())

    seeds = range(sampling.seed + start, sampling.seed + start + count)
    with observe(network_of(pipeline), {name: sae.config.reads for name, sae in saes.items()}, look, count, sampling.guided):
        pictures: Any = generate(pipeline, texts, seeds, sampling.steps, sampling.guidance, sampling.height, sampling.width, "pil", count)
    for name, by in records.items():
        z = torch.stack(seen[name], 2)  # [count, features, T, tokens]
        z = z.unflatten(-1, grid(z.shape[-1], pictures[0].height, pictures[0].width))
        for column, record in enumerate(by):
            record.timesteps = timesteps
            _add(record, z[:, column], pictures, texts, seeds, start, top)


def _add(record: FeatureRecord, z: torch.Tensor, pictures: Any, texts: Sequence[str], seeds: Sequence[int], start: int, top: int) -> None:
    """Take in the maps `[B, T, h, w]` of a batch of pictures."""
    wide = z.double()
    means = wide.mean((2, 3))
    # Running averages over pictures, each weighing the same.
    before, now = record.pictures, record.pictures + len(z)
    found = means.sum(0), (z > 0).double().mean((2, 3)).sum(0)
    record.mean, record.share = (
        new / now if not before else (old * before + new) / now for old, new in zip((record.mean, record.share), found, strict=True)
    )
    peak = wide.amax((0, 2, 3))
    record.peak = torch.maximum(record.peak, peak) if before else peak
    record.pictures, record.active = now, record.active + int((peak_of := wide.amax((1, 2, 3)) > 0).sum())
    for j in range(len(z)):
        if bool(peak_of[j]):
            entry = FeaturePicture(start + j, texts[j], seeds[j], pictures[j], z[j].clone(), float(means[j].max()))
            record.top = sorted([*record.top, entry], key=lambda p: (-p.score, p.number))[:top]
