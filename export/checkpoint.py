"""Writes the diffusers side of an artifact."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from ..editor.errors import SaeuronError


def edited_pipeline(pipeline: Any, unet: Any) -> StableDiffusionPipeline:
    """The same pipeline (safety checker and feature extractor included) around the edited UNet."""
    pipeline.vae.register_to_config(_name_or_path="")  # else the exporting machine's folder is written down
    parts = {**pipeline.components, "unet": unet}
    return StableDiffusionPipeline(**parts, requires_safety_checker=pipeline.config.requires_safety_checker)


def write(pipeline: StableDiffusionPipeline, root: Path, base_index: dict[str, Any], weights: bool = True) -> None:
    """Save a pipeline with an edited UNet.

    Args:
        pipeline: see `edited_pipeline`.
        root: artifact folder.
        base_index: the base model's `model_index.json`.
        weights: False leaves the tensors out and writes configs only, for an artifact that is ONNX alone; it then has no
            safety checker either.
    """
    if weights:
        pipeline.save_pretrained(root)
        _write_older_text_encoder_names(root / "text_encoder" / "model.safetensors")
    else:
        pipeline.save_config(root)
        pipeline.scheduler.save_pretrained(root / "scheduler")
        pipeline.tokenizer.save_pretrained(root / "tokenizer")
        for name in ("unet", "vae"):
            getattr(pipeline, name).save_config(root / name)
        pipeline.text_encoder.config.save_pretrained(root / "text_encoder")
    _mend_index(root / "model_index.json", base_index, weights)
    _write_older_tokenizer_files(pipeline.tokenizer, root / "tokenizer")


def small_files(model: Path) -> list[str]:
    """Files of the components without weights (index, scheduler, tokenizer, feature extractor), as `write` will leave them.

    Which ones there are differs between versions of transformers, so they are written to a temporary folder and looked at.

    Raises:
        SaeuronError: diffusers can't open the folder.
    """
    heavy = dict.fromkeys(("unet", "vae", "text_encoder", "safety_checker"))
    try:
        pipeline = StableDiffusionPipeline.from_pretrained(model, **heavy, local_files_only=True)
        with tempfile.TemporaryDirectory() as trial:
            pipeline.save_pretrained(trial)
            _write_older_tokenizer_files(pipeline.tokenizer, Path(trial) / "tokenizer")
            return [path.relative_to(trial).as_posix() for path in Path(trial).rglob("*") if path.is_file()]
    except Exception as error:  # diffusers and transformers raise many types
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise SaeuronError(f"'{model}' can't be loaded by diffusers: {lines[0][:300]}") from None


def _mend_index(path: Path, base: dict[str, Any], weights: bool) -> None:
    """Name component classes as the base model does.

    Without torchvision, transformers 5 loads another image processor class and diffusers records that, which an older
    transformers doesn't know.
    """
    index = json.loads(path.read_text())
    for name, entry in index.items():
        if name != "unet" and isinstance(entry, list) and entry[0] and isinstance(base.get(name), list):
            index[name] = base[name]
        if not weights and name in ("safety_checker", "feature_extractor"):
            index[name] = [None, None]
    if not weights:
        index["requires_safety_checker"] = False
    path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _write_older_tokenizer_files(tokenizer: Any, folder: Path) -> None:
    """`vocab.json` and `merges.txt`: transformers 5 writes only `tokenizer.json`, which older clients don't read."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    if not (folder / "vocab.json").exists():
        (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    if not (folder / "merges.txt").exists():
        merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
        (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")


def _write_older_text_encoder_names(path: Path) -> None:
    """Prefix a text encoder's tensors with `text_model.`, the names that every version of transformers reads.

    transformers 5 leaves the prefix out of a model that it made itself; version 4 then starts from random weights with only
    a warning.
    """
    tensors = load_file(path)
    if not any(name.startswith("text_model.") for name in tensors):
        partial = path.with_suffix(".partial")
        save_file({f"text_model.{n}": t for n, t in tensors.items()}, partial, metadata={"format": "pt"})
        os.replace(partial, path)
