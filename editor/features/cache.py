"""The cache of fetched and collected files. A file is named by a hash of everything that it depends on."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from ..common.errors import SaeuronError
from ..common.files import file_sha256, read_json


def root() -> Path:
    """`$SAEURON_CACHE`, else `$XDG_CACHE_HOME/saeuron`, else `~/.cache/saeuron`.

    Raises:
        SaeuronError: none of them is known.
    """
    own, shared = os.environ.get("SAEURON_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if own or shared:
        return Path(own) if own else Path(str(shared)) / "saeuron"
    try:
        return Path.home() / ".cache" / "saeuron"
    except RuntimeError:
        raise SaeuronError(
            "no home folder is known, so there is no place to keep activations; set SAEURON_CACHE, or HOME, to a folder"
        ) from None


def key(**content: Any) -> str:
    """Hash of JSON values, 32 hexadecimal digits."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def model_sha256(folder: Path, pictures: bool = False, variant: str | None = None) -> str:
    """Hash of what a pipeline's activations depend on, or with `pictures` its pictures, which takes the autoencoder in.

    Denoiser, text encoders, tokenizers and scheduler by their files; the scheduler's class too, which `model_index.json` chooses; and
    the variant of the weight files, where one is chosen.
    """
    parts = ("unet", "transformer", "text_encoder", "tokenizer", "scheduler", *(("vae",) if pictures else ()))
    digest = hashlib.sha256(json.dumps(read_json(folder / "model_index.json").get("scheduler")).encode())
    if variant is not None:
        digest.update(f"variant {variant}\n".encode())
    for part in sorted(p for p in folder.iterdir() if p.is_dir() and p.name.startswith(parts)):
        for path in sorted(p for p in part.rglob("*") if p.is_file()):
            digest.update(f"{path.relative_to(folder)}:{file_sha256(path)}\n".encode())
    return digest.hexdigest()
