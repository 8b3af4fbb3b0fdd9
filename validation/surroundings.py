"""Tokenizers, scheduler and latent scaling: what an artifact's pipeline needs beside its networks, compared with the original's.

No edit touches them, but a proof on single forwards never runs them, and a tokenizer that splits words otherwise or a
scheduler with other timesteps gives other pictures from an equal UNet.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..editor.families import Family, family_of
from ..editor.files import read_json

BAR = 1e-5
"""largest relative distance of a scheduler's steps; the same float32 arithmetic on both sides"""


def token_ids(tokenizer: Any, prompts: Sequence[str], tokens: int) -> np.ndarray:
    """Padded ids, int64 `[P, tokens]`."""
    ids = tokenizer(list(prompts), padding="max_length", max_length=tokens, truncation=True, return_tensors="np").input_ids
    return np.asarray(ids, dtype=np.int64)


def surroundings(
    tokenizers: Mapping[str, tuple[Any, int]], scheduler: Any, settings: Mapping[str, Any], prompts: list[str], steps: int
) -> dict[str, np.ndarray]:
    """What these parts give for fixed inputs.

    Args:
        tokenizers: component → CLIP tokenizer and the length that prompts are padded to.
        scheduler: any diffusers scheduler; a copy of it is stepped.
        settings: numbers, lists of numbers and switches of the pipeline and its autoencoder.
        prompts: texts; the empty one, for the unconditional half, is added.
        steps: denoising steps.

    Returns:
        `input_ids [P, tokens]` a tokenizer (of the second `input_ids_2`), `timesteps [steps]`, `init_noise_sigma`, `trajectory
        [steps, 4, 4]` (the scheduler's own loop with a fixed field in place of the UNet), and the settings.
    """
    import torch

    ids: dict[str, np.ndarray] = {}
    for name, (tokenizer, _) in tokenizers.items():
        # The length that the pipeline pads to is the tokenizer's own.
        length = min(int(tokenizer.model_max_length), 100_000)
        ids[name.replace("tokenizer", "max_length")] = np.array([float(length)])
        ids[name.replace("tokenizer", "input_ids")] = token_ids(tokenizer, [*prompts, ""], min(length, 1024))
        vocabulary = json.dumps(sorted(tokenizer.get_vocab().items())).encode()
        ids[name.replace("tokenizer", "vocabulary")] = np.frombuffer(hashlib.sha256(vocabulary).digest(), np.uint8)
    own = type(scheduler).from_config(scheduler.config)
    own.set_timesteps(steps)
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(1, 1, 4, 4, generator=generator) * own.init_noise_sigma
    field = torch.randn(1, 1, 4, 4, generator=generator)
    trajectory = []
    for t in own.timesteps:
        seen = own.scale_model_input(sample, t)
        # Deterministic schedulers take no generator.
        accepts = "generator" in inspect.signature(own.step).parameters
        sample = own.step(
            torch.tanh(seen + field), t, sample, **({"generator": torch.Generator().manual_seed(1)} if accepts else {})
        ).prev_sample
        trajectory.append(sample[0, 0].double().numpy())
    return {
        **ids, "timesteps": own.timesteps.double().numpy(), "trajectory": np.stack(trajectory),
        "init_noise_sigma": np.array([float(own.init_noise_sigma)]),
        **{name: np.atleast_1d(np.asarray(value, dtype=np.float64)) for name, value in settings.items()},
    }  # fmt: skip


def _settings(family: Family, vae: Mapping[str, Any], index: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that pictures depend on; those that aren't set are left out."""
    names = ["scaling_factor", *(["latents_mean", "latents_std"] if family.normalises_latents else [])]
    names += ["force_upcast"] if family.upcasts_vae else []
    found = {name: vae.get(name) for name in names} | {name: index.get(name) for name in family.options if name in _ROOM}
    return {name: value for name, value in found.items() if value is not None}


def of_pipeline(pipeline: Any, prompts: list[str], steps: int) -> dict[str, np.ndarray]:
    """`surroundings` of an open pipeline."""
    family = family_of(pipeline)
    tokenizers = {
        t.tokenizer: (getattr(pipeline, t.tokenizer), getattr(pipeline, t.name).config.max_position_embeddings)
        for t in family.text_encoders
    }
    return surroundings(tokenizers, pipeline.scheduler, _settings(family, pipeline.vae.config, pipeline.config), prompts, steps)


_FILES = {"scheduler": "scheduler/scheduler_config.json", "unet": "unet/config.json", "vae": "vae/config.json"}


def configs_of(pipeline: Any) -> dict[str, dict[str, Any]]:
    """Stock configs of an open pipeline, in JSON's types."""
    return {name: json.loads(json.dumps(_stock(dict(getattr(pipeline, name).config)), default=str)) for name in _FILES}


def _stock(config: Mapping[str, Any]) -> dict[str, Any]:
    """Without notes of the saver, and without the sentinel that an edited UNet has in place of its mid block's type."""
    edited = config.get("ablation") or {}
    own = {**config, "mid_block_type": edited["mid_block_type"]} if edited else config
    return {k: v for k, v in own.items() if not k.startswith("_") and k != "ablation"}


def compare_configs(root: Path, reference: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Compare an artifact's config files with the original's, key by key.

    A key on one side only is no difference: versions of diffusers differ in the defaults that they write down.

    Returns:
        one line a difference.
    """
    found = [f"the golden vectors hold no config of the original's {name}" for name in _FILES if not reference.get(name)]
    for name, expected in reference.items():
        held = _stock(read_json(root / _FILES[name]))
        for key in sorted(set(held) & set(expected)):
            if held[key] != expected[key]:
                found.append(f"{_FILES[name]}: '{key}' is {held[key]!r}, the original's is {expected[key]!r}")
    return found


def of_folder(root: Path, prompts: list[str], steps: int) -> dict[str, np.ndarray]:
    """`surroundings` of an artifact, from its files alone."""
    import diffusers
    from transformers import AutoTokenizer

    index = read_json(root / "model_index.json")
    family = family_of(index)
    scheduler = getattr(diffusers, index["scheduler"][1]).from_pretrained(root / "scheduler")
    vae = {**diffusers.AutoencoderKL().config, **read_json(root / "vae" / "config.json")}
    tokenizers = {
        t.tokenizer: (
            AutoTokenizer.from_pretrained(root / t.tokenizer),
            read_json(root / t.name / "config.json")["max_position_embeddings"],
        )
        for t in family.text_encoders
    }
    return surroundings(tokenizers, scheduler, _settings(family, vae, index), prompts, steps)


def compare(found: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> dict[str, Any]:
    """Is every part equal?

    Returns:
        `{"passed", "bar", "relative": {name: distance}, "failures": [line, …]}`.
    """
    distances: dict[str, float] = {}
    failures = []
    for name in sorted(_NEEDED - set(reference)):
        failures.append(f"the golden vectors hold no '{name}' of the original, so nothing was proven of its {_ROOM[name]}")
    for name in found:
        if name not in reference:
            failures.append(f"{_ROOM[name]}: has '{name}', which the original has not")
    for name, expected in reference.items():
        value = found.get(name)
        if value is None:
            failures.append(f"{_ROOM[name]}: '{name}' is missing")
            continue
        if value.shape != expected.shape:
            failures.append(f"{_ROOM[name]}: '{name}' has shape {list(value.shape)}, the original's has {list(expected.shape)}")
            continue
        scale = float(np.linalg.norm(expected.astype(np.float64))) or 1.0
        distances[name] = distance = float(np.linalg.norm(value.astype(np.float64) - expected.astype(np.float64))) / scale
        # Token ids are names, not quantities: none may differ.
        if not distance <= (0.0 if name.startswith(("input_ids", "vocabulary", "max_length")) else BAR):
            failures.append(f"{_ROOM[name]}: '{name}' differs from the original's by {distance:.2g} (relative)")
    return {"passed": not failures, "bar": BAR, "relative": distances, "failures": failures}


_NEEDED = {"input_ids", "vocabulary", "max_length", "timesteps", "trajectory", "init_noise_sigma", "scaling_factor"}
_ROOM = {
    "vocabulary": "tokenizer",
    "vocabulary_2": "tokenizer_2",
    "max_length": "tokenizer",
    "max_length_2": "tokenizer_2",
    "input_ids": "tokenizer",
    "input_ids_2": "tokenizer_2",
    "timesteps": "scheduler",
    "trajectory": "scheduler",
    "init_noise_sigma": "scheduler",
    "scaling_factor": "vae",
    "latents_mean": "vae",
    "latents_std": "vae",
    "force_upcast": "vae",
    "force_zeros_for_empty_prompt": "model_index.json",
}
