"""Readers of SAE folders, one file a family, in a registry."""

from __future__ import annotations

import os
from pathlib import Path

from ...common.errors import SaeuronError
from ...common.files import hub_folder
from ...common.names import folders_of
from . import finebooru, saelens, sdxl_unbox, sparsify  # noqa: F401 - importing a family registers it
from .common import READERS
from .config import SaeFile


def read(source: str | Path, hookpoint: str | None = None, revision: str | None = None) -> SaeFile:
    """Read `source` by the first reader that recognises it; see `SparseAutoencoder.load`."""
    names = [] if hookpoint is None else folders_of(hookpoint)
    root = Path(source)
    if not os.path.exists(root):  # False, not an error, where the name is too long to be one
        # sdxl-unbox names its folders after the hookpoint and the training's settings, with a `final` folder inside.
        patterns = [f"{n}{tail}" for n in names for tail in ("/*", "_k*/final/*")]
        root = hub_folder(str(source), ["cfg.json", "config.json", "*.safetensors", "state_dict.pth", *patterns], revision, "SAE")
    inside = sorted(f for n in names for f in root.glob(f"{n}_k*/final")) if root.is_dir() else []
    if len(inside) > 1:
        raise SaeuronError(f"'{source}' holds several SAEs of '{hookpoint}': {', '.join(f.parent.name for f in inside)}; name one folder")
    folders = [root, *(root / name for name in names), *inside]
    for folder in folders:
        for _, recognises, reader in READERS:
            if folder.is_dir() and recognises(folder):
                return reader(folder)
    if root.is_file():
        raise SaeuronError(f"SAE: '{source}' is a file; give the folder that holds it")
    seen = ", ".join(sorted(p.name for p in root.iterdir())[:8]) if root.is_dir() else "not a folder"
    raise SaeuronError(
        f"no SAE in '{source}' for hookpoint '{hookpoint}': expected the files of {_families()} there or in a folder of the hookpoint's name; found: {seen}"
    )


def _families() -> str:
    return ", ".join(name for name, _, _ in READERS)
