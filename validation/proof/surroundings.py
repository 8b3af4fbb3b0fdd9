"""Compares an artifact's tokenizers and scheduler with the original's, by what they return.

No edit touches them, but a proof on single forwards never runs them, and a tokenizer that splits words otherwise or a
scheduler with other timesteps gives other pictures from an equal UNet.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...editor.common.files import read_json
from ...editor.denoisers.families import Family, family_of
from .results import Surroundings

BAR = 1e-5
"""largest relative distance of a scheduler's steps; the same float32 arithmetic on both sides"""


_SIDES = (64, 64)
"""latents of the pictures for which both schedulers are asked"""


def surroundings(
    family: Family, tokenizers: Mapping[str, Any], scheduler: Any, settings: Mapping[str, Any], prompts: list[str], steps: int
) -> dict[str, np.ndarray]:
    """What these parts give for fixed inputs.

    Args:
        family: of the pipeline.
        tokenizers: component → tokenizer.
        scheduler: any diffusers scheduler; a copy of it is stepped.
        settings: numbers and switches of the pipeline.
        prompts: texts; the empty one, for the unconditional half, is added.
        steps: denoising steps.

    Returns:
        a tokenizer's `input_ids [P, tokens]`, `max_length` and digests of `vocabulary` and `merges` (of the second
        `input_ids_2` and so on), `timesteps [steps]`, `init_noise_sigma`, `trajectory
        [steps, 4, 4]` (the scheduler's own loop with a fixed field in place of the network), and the settings.
    """
    from ...editor.denoisers.schedulers import walk

    ids: dict[str, np.ndarray] = {}
    for text in family.text_encoders:
        name, tokenizer = text.tokenizer, tokenizers[text.tokenizer]
        # The length that the pipeline pads to is the tokenizer's own.
        length = min(int(tokenizer.model_max_length), 100_000)
        ids[name.replace("tokenizer", "max_length")] = np.array([float(length)])
        ids[name.replace("tokenizer", "input_ids")] = text.tokenized(tokenizer, [*prompts, ""], min(length, 1024))["input_ids"]
        # The prompts exercise few of the words, so both lists are compared whole.
        ids[name.replace("tokenizer", "vocabulary")] = _digest(sorted(tokenizer.get_vocab().items()))
        ids[name.replace("tokenizer", "merges")] = _digest(_merges(tokenizer))
    own, trajectory = walk(scheduler, steps, family.telling(scheduler, _SIDES))
    return {
        **ids, "timesteps": own.timesteps.double().numpy(), "trajectory": trajectory.numpy(),
        "init_noise_sigma": np.array([float(getattr(own, "init_noise_sigma", 1.0))]),
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


def _settings(family: Family, index: Mapping[str, Any]) -> dict[str, Any]:
    """The pipeline's own settings that pictures depend on; those that aren't set are left out."""
    found = {name: index.get(name) for name in family.options if name in _ROOM}
    return {name: value for name, value in found.items() if value is not None}


def of_pipeline(pipeline: Any, prompts: list[str], steps: int) -> dict[str, np.ndarray]:
    """`surroundings` of an open pipeline."""
    family = family_of(pipeline)
    tokenizers = {t.tokenizer: getattr(pipeline, t.tokenizer) for t in family.text_encoders}
    return surroundings(family, tokenizers, pipeline.scheduler, _settings(family, pipeline.config), prompts, steps)


def of_folder(root: Path, prompts: list[str], steps: int) -> dict[str, np.ndarray]:
    """`surroundings` of an artifact, from its files alone."""
    import diffusers
    from transformers import AutoTokenizer

    index = read_json(root / "model_index.json")
    family = family_of(index)
    # As the file has it: not every client's pipeline mends it, as diffusers' does.
    scheduler = getattr(diffusers, index["scheduler"][1]).from_pretrained(root / "scheduler")
    tokenizers = {t.tokenizer: AutoTokenizer.from_pretrained(root / t.tokenizer) for t in family.text_encoders}
    return surroundings(family, tokenizers, scheduler, _settings(family, index), prompts, steps)


def compare(found: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> Surroundings:
    """Is every part equal?"""
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
    return Surroundings(passed=not failures, bar=BAR, relative=distances, failures=failures)


def _room(name: str) -> str:
    """Which part of the artifact a name speaks of."""
    return _ROOM.get(name, name)


_EXACT = ("input_ids", "vocabulary", "merges", "max_length")
_NEEDED = {"input_ids", "vocabulary", "merges", "max_length", "timesteps", "trajectory", "init_noise_sigma"}
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
    "force_zeros_for_empty_prompt": "model_index.json",
}
