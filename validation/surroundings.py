"""Tokenizer, scheduler and latent scaling: what an artifact's pipeline needs beside its networks, compared with the original's.

No edit touches them, but a proof on single forwards never runs them, and a tokenizer that splits words otherwise or a
scheduler with other timesteps gives other pictures from an equal UNet.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..editor.files import read_json

BAR = 1e-5
"""largest relative distance of a scheduler's steps; the same float32 arithmetic on both sides"""


def surroundings(
    tokenizer: Any, scheduler: Any, scaling_factor: float, tokens: int, prompts: list[str], steps: int
) -> dict[str, np.ndarray]:
    """What these parts give for fixed inputs.

    Args:
        tokenizer: a CLIP tokenizer.
        scheduler: any diffusers scheduler; a copy of it is stepped.
        scaling_factor: the autoencoder's.
        tokens: length that prompts are padded to.
        prompts: texts; the empty one, for the unconditional half, is added.
        steps: denoising steps.

    Returns:
        `input_ids [P, tokens]`, `timesteps [steps]`, `init_noise_sigma`, `trajectory [steps, 4, 4]` (the scheduler's own loop
        with a fixed field in place of the UNet), `scaling_factor`.
    """
    import torch

    ids = tokenizer([*prompts, ""], padding="max_length", max_length=tokens, truncation=True, return_tensors="np").input_ids
    own = type(scheduler).from_config(scheduler.config)
    own.set_timesteps(steps)
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(1, 1, 4, 4, generator=generator) * own.init_noise_sigma
    field = torch.randn(1, 1, 4, 4, generator=generator)
    trajectory = []
    for t in own.timesteps:
        seen = own.scale_model_input(sample, t)
        # Deterministic schedulers take no generator.
        accepts = "generator" in own.step.__code__.co_varnames
        sample = own.step(
            torch.tanh(seen + field), t, sample, **({"generator": torch.Generator().manual_seed(1)} if accepts else {})
        ).prev_sample
        trajectory.append(sample[0, 0].double().numpy())
    return {
        "input_ids": np.asarray(ids, dtype=np.int64), "timesteps": own.timesteps.double().numpy(), "trajectory": np.stack(trajectory),
        "init_noise_sigma": np.array([float(own.init_noise_sigma)]), "scaling_factor": np.array([float(scaling_factor)]),
    }  # fmt: skip


def of_pipeline(pipeline: Any, prompts: list[str], steps: int) -> dict[str, np.ndarray]:
    """`surroundings` of an open pipeline."""
    tokens = pipeline.text_encoder.config.max_position_embeddings
    return surroundings(pipeline.tokenizer, pipeline.scheduler, pipeline.vae.config.scaling_factor, tokens, prompts, steps)


def of_folder(root: Path, prompts: list[str], steps: int) -> dict[str, np.ndarray]:
    """`surroundings` of an artifact, from its files alone."""
    import diffusers
    from transformers import AutoTokenizer

    index = read_json(root / "model_index.json")
    scheduler = getattr(diffusers, index["scheduler"][1]).from_pretrained(root / "scheduler")
    vae = read_json(root / "vae" / "config.json")
    factor = vae["scaling_factor"] if "scaling_factor" in vae else diffusers.AutoencoderKL().config.scaling_factor
    tokens = read_json(root / "text_encoder" / "config.json")["max_position_embeddings"]
    return surroundings(AutoTokenizer.from_pretrained(root / "tokenizer"), scheduler, factor, tokens, prompts, steps)


def compare(found: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> dict[str, Any]:
    """Is every part equal?

    Returns:
        `{"passed", "bar", "relative": {name: distance}, "failures": [line, …]}`.
    """
    distances: dict[str, float] = {}
    failures = []
    for name, expected in reference.items():
        value = found[name]
        if value.shape != expected.shape:
            failures.append(f"{_ROOM[name]}: '{name}' has shape {list(value.shape)}, the original's has {list(expected.shape)}")
            continue
        scale = float(np.linalg.norm(expected.astype(np.float64))) or 1.0
        distances[name] = distance = float(np.linalg.norm(value.astype(np.float64) - expected.astype(np.float64))) / scale
        # Token ids are names, not quantities: none may differ.
        if not distance <= (0.0 if name == "input_ids" else BAR):
            failures.append(f"{_ROOM[name]}: '{name}' differs from the original's by {distance:.2g} (relative)")
    return {"passed": not failures, "bar": BAR, "relative": distances, "failures": failures}


_ROOM = {
    "input_ids": "tokenizer",
    "timesteps": "scheduler",
    "trajectory": "scheduler",
    "init_noise_sigma": "scheduler",
    "scaling_factor": "vae",
}
