"""Concept activations on demand: found in the cache by a hash of all that they depend on, else collected and put there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..common.writing import alone, whole_file
from ..denoisers.sampling_settings import Sampling
from ..sae.sae import SparseAutoencoder
from . import cache
from .collect import METHOD, PARTS, Process, clear, collect

Prompts = Mapping[str, tuple[str, ...]]


def cached_file(model: str, hookpoint: str, sae: SparseAutoencoder, prompts: Prompts, sampling: Sampling, within: bool = False) -> Path:
    """Where the activations of these prompts belong, there or not.

    Args:
        model: `cache.model_sha256` of the pipeline's folder.
        hookpoint: block name.
        sae: its SAE.
        prompts: concept or contrast set → prompts, of one domain.
        sampling: how the pipeline is run.
        within: see `collect`.
    """
    name = cache.key(
        model=model,
        hookpoint=hookpoint,
        sae=sae.sha256(),
        prompts=[[n, list(p)] for n, p in prompts.items()],
        sampling=asdict(sampling),
        precision="fp32",
        method=METHOD,
        **({"within": PARTS} if within else {}),
    )
    return cache.root() / "activations" / f"{name}.safetensors"


def ensure(
    pipeline: Callable[[], Any], model: str, saes: Mapping[str, SparseAutoencoder], prompts: Prompts, sampling: Sampling, domain: str, within: bool = False,
    progress: Callable[[int, int, str], None] = lambda done, total, concept: None,
) -> dict[str, Path]:  # fmt: skip
    """Files of concept activations at every hookpoint, collected where they are missing.

    Args:
        pipeline: opens the unedited pipeline in float32; called only if something is missing.
        model: see `cached_file`.
        saes: hookpoint → SAE.
        prompts: see `cached_file`.
        sampling: how the pipeline is run.
        domain: recorded in the file.
        within: see `collect`.
        progress: see `collect`.
    """
    files = {h: cached_file(model, h, sae, prompts, sampling, within) for h, sae in saes.items()}
    missing = {h: saes[h] for h, path in files.items() if not path.is_file()}
    if missing:
        state = cache.root() / "collecting" / cache.key(files=sorted(files[h].name for h in missing))
        # Two exports may share the cache: the second waits here, and takes what the first has collected.
        with alone(state):
            if not all(files[h].is_file() for h in missing):
                found = collect(
                    pipeline(), missing, prompts, sampling, {"domain": domain, "model_sha256": model}, state, Process(), within, progress
                )
                for hookpoint, activations in (found or {}).items():
                    put(activations, files[hookpoint])
            clear(state)
    return files


def put(activations: Any, path: Path) -> None:
    """Write a file that is there whole or not at all."""
    with whole_file(path) as made:
        activations.save(made)
