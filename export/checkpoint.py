"""Writes the diffusers side of an artifact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffusers import StableDiffusionPipeline


def edited_pipeline(pipeline: Any, unet: Any) -> StableDiffusionPipeline:
    """The same pipeline (safety checker and feature extractor included) around the edited UNet."""
    parts = {**pipeline.components, "unet": unet}
    return StableDiffusionPipeline(**parts, requires_safety_checker=pipeline.config.requires_safety_checker)


def write(pipeline: StableDiffusionPipeline, root: Path, weights: bool = True) -> None:
    """Save a pipeline with an edited UNet.

    Args:
        pipeline: see `edited_pipeline`.
        root: artifact folder.
        weights: False leaves the tensors out and writes configs only, for an artifact that is ONNX alone.
    """
    if weights:
        pipeline.save_pretrained(root)
    else:
        pipeline.save_config(root)
        pipeline.scheduler.save_pretrained(root / "scheduler")
        pipeline.tokenizer.save_pretrained(root / "tokenizer")
        for name in ("unet", "vae"):
            getattr(pipeline, name).save_config(root / name)
        pipeline.text_encoder.config.save_pretrained(root / "text_encoder")
        if pipeline.feature_extractor is not None:
            pipeline.feature_extractor.save_pretrained(root / "feature_extractor")
    _write_older_tokenizer_files(pipeline.tokenizer, root / "tokenizer")


def _write_older_tokenizer_files(tokenizer: Any, folder: Path) -> None:
    """`vocab.json` and `merges.txt`: transformers 5 writes only `tokenizer.json`, which older clients don't read."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    if not (folder / "vocab.json").exists():
        (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    if not (folder / "merges.txt").exists():
        merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
        (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
