"""What an artifact says of itself: `saeuron.json`. Needs neither torch nor diffusers."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

from ..editor.errors import SaeuronError
from ..editor.files import file_sha256, read_json

NAME = "saeuron.json"
FORMAT = "saeuron-artifact-1"


def gate_tensor(hookpoint: str) -> str:
    """Name of the tensor with a gate's decisions in an exported graph."""
    return f"ablations.{hookpoint}.fires"


def hash_files(root: Path) -> dict[str, dict[str, Any]]:
    """`{path: {"sha256", "bytes"}}` of every file below `root`, except the manifest itself."""
    files = sorted(p for p in root.rglob("*") if p.is_file() and p.relative_to(root).as_posix() != NAME)
    return {p.relative_to(root).as_posix(): {"sha256": file_sha256(p), "bytes": p.stat().st_size} for p in files}


def write(root: Path, manifest: dict[str, Any]) -> None:
    """Hash every file and write the manifest last."""
    (root / NAME).write_text(json.dumps({"format": FORMAT, **manifest, "files": hash_files(root)}, indent=1) + "\n")


def read(root: str | Path) -> dict[str, Any]:
    """The manifest of an artifact folder.

    Raises:
        SaeuronError: no artifact there, or of another format.
    """
    root = Path(root)
    if not (root / NAME).is_file():
        raise SaeuronError(f"'{root}' is no artifact: it has no {NAME}")
    manifest = read_json(root / NAME)
    if manifest.get("format") != FORMAT or not isinstance(manifest.get("files"), dict):
        raise SaeuronError(f"{root / NAME}: format {manifest.get('format')!r} is not known; this version reads {FORMAT!r}")
    return manifest


def check_files(root: str | Path, manifest: dict[str, Any]) -> None:
    """Compare every file with its recorded hash.

    Raises:
        SaeuronError: a file is missing, changed, or outside the folder.
    """
    root = Path(root)
    for name, record in manifest["files"].items():
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise SaeuronError(f"{root / NAME} lists '{name}', which is outside the artifact")
        path = root / name
        if not path.is_file():
            raise SaeuronError(f"'{name}' is missing from the artifact '{root}'; take it again from its source")
        if path.stat().st_size != record["bytes"] or file_sha256(path) != record["sha256"]:
            raise SaeuronError(f"'{name}' in '{root}' is not the file that was written: size or SHA-256 differ; take it again from its source")
