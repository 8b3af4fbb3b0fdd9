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

from ..editor.ablated_unet import SENTINEL
from ..editor.families import Family, family_of
from ..editor.files import read_json

BAR = 1e-5
"""largest relative distance of a scheduler's steps; the same float32 arithmetic on both sides"""


def token_ids(tokenizer: Any, prompts: Sequence[str], tokens: int) -> np.ndarray:
    """Padded ids, int64 `[P, tokens]`."""
    ids = tokenizer(list(prompts), padding="max_length", max_length=tokens, truncation=True, return_tensors="np").input_ids
    return np.asarray(ids, dtype=np.int64)


def surroundings(
    tokenizers: Mapping[str, Any], scheduler: Any, settings: Mapping[str, Any], prompts: list[str], steps: int
) -> dict[str, np.ndarray]:
    """What these parts give for fixed inputs.

    Args:
        tokenizers: component → CLIP tokenizer.
        scheduler: any diffusers scheduler; a copy of it is stepped.
        settings: numbers, lists of numbers and switches of the pipeline and its autoencoder.
        prompts: texts; the empty one, for the unconditional half, is added.
        steps: denoising steps.

    Returns:
        a tokenizer's `input_ids [P, tokens]`, `max_length` and digests of `vocabulary` and `merges` (of the second
        `input_ids_2` and so on), `timesteps [steps]`, `init_noise_sigma`, `trajectory
        [steps, 4, 4]` (the scheduler's own loop with a fixed field in place of the UNet), and the settings.
    """
    import torch

    ids: dict[str, np.ndarray] = {}
    for name, tokenizer in tokenizers.items():
        # The length that the pipeline pads to is the tokenizer's own.
        length = min(int(tokenizer.model_max_length), 100_000)
        ids[name.replace("tokenizer", "max_length")] = np.array([float(length)])
        ids[name.replace("tokenizer", "input_ids")] = token_ids(tokenizer, [*prompts, ""], min(length, 1024))
        # The prompts exercise few of the words, so both lists are compared whole.
        ids[name.replace("tokenizer", "vocabulary")] = _digest(sorted(tokenizer.get_vocab().items()))
        ids[name.replace("tokenizer", "merges")] = _digest(_merges(tokenizer))
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


def _merges(tokenizer: Any) -> list[str]:
    """Byte-pair merges in order of their rank, `left right` each."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # a slow tokenizer of transformers 4
        return [" ".join(pair) for pair, _ in sorted(tokenizer.bpe_ranks.items(), key=lambda item: item[1])]
    return [m if isinstance(m, str) else " ".join(m) for m in json.loads(backend.to_str())["model"].get("merges", [])]


def _digest(value: Any) -> np.ndarray:
    return np.frombuffer(hashlib.sha256(json.dumps(value).encode()).digest(), np.uint8)


def _settings(family: Family, vae: Mapping[str, Any], index: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that pictures depend on; those that aren't set are left out."""
    names = ["scaling_factor", *(["latents_mean", "latents_std"] if family.normalises_latents else [])]
    names += ["force_upcast"] if family.upcasts_vae else []
    found = {name: vae.get(name) for name in names} | {name: index.get(name) for name in family.options if name in _ROOM}
    return {name: value for name, value in found.items() if value is not None}


def of_pipeline(pipeline: Any, prompts: list[str], steps: int) -> dict[str, np.ndarray]:
    """`surroundings` of an open pipeline."""
    family = family_of(pipeline)
    tokenizers = {t.tokenizer: getattr(pipeline, t.tokenizer) for t in family.text_encoders}
    return surroundings(tokenizers, pipeline.scheduler, _settings(family, pipeline.vae.config, pipeline.config), prompts, steps)


_FILES = {"scheduler": "scheduler/scheduler_config.json", "unet": "unet/config.json", "vae": "vae/config.json"}


_CLASS = "class"
"""key under which a config's class is kept beside its settings"""
_STOCK_UNET = "UNet2DConditionModel"
_NOTES = (_CLASS, "ablation", "dtype", "torch_dtype")
"""keys of a config that are no settings of the model, like those with an underscore"""


def configs_of(pipeline: Any) -> dict[str, dict[str, Any]]:
    """Stock configs of an open pipeline, in JSON's types, each with its `class`."""
    parts = {name: getattr(pipeline, name) for name in _FILES}
    kinds = {name: _STOCK_UNET if name == "unet" else type(part).__name__ for name, part in parts.items()}
    return {name: {**_plain(_stock(dict(part.config))), _CLASS: kinds[name]} for name, part in parts.items()}


def _plain(value: Any) -> Any:
    """In JSON's types, as a saver would write it."""
    return json.loads(json.dumps(value, default=lambda v: v.tolist() if hasattr(v, "tolist") else str(v)))


def _stock(config: Mapping[str, Any]) -> dict[str, Any]:
    """Without notes of the saver, and without the sentinel that an edited UNet has in place of its mid block's type."""
    own = dict(config)
    if own.get("mid_block_type") == SENTINEL:
        own["mid_block_type"] = (own.get("ablation") or {}).get("mid_block_type")
    return {k: v for k, v in own.items() if not k.startswith("_") and k not in _NOTES}


def _defaults(kind: Any) -> dict[str, Any]:
    """What the installed diffusers takes for keys that a config leaves out."""
    import diffusers

    cls = getattr(diffusers, kind, None) if isinstance(kind, str) else None
    parameters = inspect.signature(cls.__init__).parameters if cls is not None else {}
    return _plain({name: p.default for name, p in parameters.items() if p.default is not p.empty and name not in _NOTES})


def compare_configs(root: Path, reference: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Compare an artifact's config files with the original's, key by key.

    A missing key stands for the class's default on either side: versions of diffusers differ in the defaults that they write
    down, but a setting that was taken out of a file is a changed one.

    Returns:
        one line a difference.
    """
    found = [f"the golden vectors hold no config of the original's {name}" for name in _FILES if not reference.get(name)]
    index = read_json(root / "model_index.json")
    for name, file in _FILES.items():
        if not reference.get(name):
            continue
        config = read_json(root / file)
        # Whatever the file says of these keys, diffusers' loader takes their defaults.
        ignored = config.get("_use_default_values")
        held = {k: v for k, v in _stock(config).items() if not (isinstance(ignored, list) and k in ignored)}
        entry = index.get(name)
        opened = entry[1] if isinstance(entry, list) and len(entry) == 2 else entry
        defaults = _defaults(reference[name].get(_CLASS))
        held = {**defaults, **held, _CLASS: _STOCK_UNET if name == "unet" else opened}
        expected = {**defaults, **reference[name]}
        for key in sorted({*held, *expected}):
            if key not in held or key not in expected or not _same(held[key], expected[key]):
                said = [_shown(side[key]) if key in side else "not set" for side in (held, expected)]
                found.append(f"{file}: '{key}' is {said[0]}, the original's is {said[1]}")
    return found


def _same(a: Any, b: Any) -> bool:
    """Equality of two JSON values; NaN equals itself, and 1 equals 1.0 but not true."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    return isinstance(a, bool) == isinstance(b, bool) and (a == b or (a != a and b != b))  # noqa: PLR0124


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def of_folder(root: Path, prompts: list[str], steps: int) -> dict[str, np.ndarray]:
    """`surroundings` of an artifact, from its files alone."""
    import diffusers
    from transformers import AutoTokenizer

    index = read_json(root / "model_index.json")
    family = family_of(index)
    scheduler = getattr(diffusers, index["scheduler"][1]).from_pretrained(root / "scheduler")
    vae = {**diffusers.AutoencoderKL().config, **read_json(root / "vae" / "config.json")}
    tokenizers = {t.tokenizer: AutoTokenizer.from_pretrained(root / t.tokenizer) for t in family.text_encoders}
    return surroundings(tokenizers, scheduler, _settings(family, vae, index), prompts, steps)


def compare(found: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> dict[str, Any]:
    """Is every part equal?

    Returns:
        `{"passed", "bar", "relative": {name: distance}, "failures": [line, …]}`.
    """
    distances: dict[str, float] = {}
    failures = []
    for name in sorted(_NEEDED - set(reference)):
        failures.append(f"the golden vectors hold no '{name}' of the original, so nothing was proven of its {_room(name)}")
    for name in found:
        if name not in reference:
            failures.append(f"{_room(name)}: has '{name}', which the original has not")
    for name, expected in reference.items():
        value = found.get(name)
        if value is None:
            failures.append(f"{_room(name)}: '{name}' is missing")
            continue
        if value.shape != expected.shape:
            failures.append(f"{_room(name)}: '{name}' has shape {list(value.shape)}, the original's has {list(expected.shape)}")
            continue
        scale = float(np.linalg.norm(expected.astype(np.float64))) or 1.0
        distances[name] = distance = float(np.linalg.norm(value.astype(np.float64) - expected.astype(np.float64))) / scale
        # Token ids and digests are names, not quantities: none may differ.
        if not distance <= (0.0 if name.startswith(_EXACT) else BAR):
            failures.append(f"{_room(name)}: '{name}' differs from the original's by {distance:.2g} (relative)")
    return {"passed": not failures, "bar": BAR, "relative": distances, "failures": failures}


def _room(name: str) -> str:
    """Which part of the artifact a name speaks of."""
    return _ROOM.get(name, name)


_EXACT = ("input_ids", "vocabulary", "merges", "max_length")
_NEEDED = {"input_ids", "vocabulary", "merges", "max_length", "timesteps", "trajectory", "init_noise_sigma", "scaling_factor"}
_ROOM = {
    "vocabulary": "tokenizer",
    "vocabulary_2": "tokenizer_2",
    "merges": "tokenizer",
    "merges_2": "tokenizer_2",
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
