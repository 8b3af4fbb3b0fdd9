"""What an artifact says of itself: `saeuron.json`. Needs neither torch nor diffusers."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ..editor.errors import SaeuronError
from ..editor.files import file_sha256, read_json

NAME = "saeuron.json"
FORMAT = "saeuron-artifact-1"
BACKENDS = {
    "checkpoint": "unet/diffusion_pytorch_model*.safetensors", "onnx": "unet/model.onnx", "trt": "tensorrt/local-*/unet.engine",
    "trt-rtx": "tensorrt/rtx*/unet.engine",
}  # fmt: skip
"""what an artifact may hold → the files that show it"""


def gate_tensor(hookpoint: str) -> str:
    """Name of the tensor with a gate's decisions in an exported graph."""
    return f"ablations.{hookpoint}.fires"


def strict_json(value: Any) -> str:
    """JSON that strict readers open: infinities and NaN, which JSON lacks, are written as text."""

    def finite(item: Any) -> Any:
        if isinstance(item, float) and not math.isfinite(item):
            return str(item)
        if isinstance(item, dict):
            return {k: finite(v) for k, v in item.items()}
        return [finite(v) for v in item] if isinstance(item, list | tuple) else item

    return json.dumps(finite(value), indent=1, allow_nan=False)


def hash_files(root: Path) -> dict[str, dict[str, Any]]:
    """`{path: {"sha256", "bytes"}}` of every file below `root`, except the manifest itself."""
    files = sorted(p for p in root.rglob("*") if p.is_file() and p.relative_to(root).as_posix() != NAME)
    return {p.relative_to(root).as_posix(): {"sha256": file_sha256(p), "bytes": p.stat().st_size} for p in files}


def write(root: Path, manifest: dict[str, Any]) -> None:
    """Hash every file and write the manifest last."""
    (root / NAME).write_text(strict_json({"format": FORMAT, **manifest, "files": hash_files(root)}) + "\n")


def extend(root: Path, manifest: dict[str, Any], folder: str) -> dict[str, Any]:
    """Add or replace what lies below `folder`, and the card, in a manifest whose other files are as they were; written at once or not.

    Args:
        root: artifact folder.
        manifest: what it is to say, `files` of before included.
        folder: below the root, e.g. `tensorrt`.

    Returns:
        the manifest as written.
    """
    kept = {name: entry for name, entry in manifest["files"].items() if not name.startswith(f"{folder}/") and name != "README.md"}
    # Files of other targets are hashed again: few, and cheaper than trusting.
    added = {f"{folder}/{name}": entry for name, entry in hash_files(root / folder).items()}
    card = root / "README.md"
    added["README.md"] = {"sha256": file_sha256(card), "bytes": card.stat().st_size}
    written = {**manifest, "files": dict(sorted({**kept, **added}.items()))}
    partial = root / f".{NAME}.partial"
    partial.write_text(strict_json(written) + "\n")
    os.replace(partial, root / NAME)
    return written


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
    held = [name for name, pattern in BACKENDS.items() if any(root.glob(pattern))]
    if not held or sorted(manifest.get("formats") or []) != held:
        raise SaeuronError(
            f"{root / NAME} says formats {manifest.get('formats')}, the folder holds {held}; take the artifact again from its source"
        )
    return manifest


def check_backends(root: str | Path, manifest: dict[str, Any], backends: Sequence[str]) -> None:
    """Raise `SaeuronError` unless every backend is known and in the artifact."""
    for name in backends:
        if name not in BACKENDS:
            raise SaeuronError(f"backend '{name}' is not known; it is one of {', '.join(BACKENDS)}")
        if name not in manifest["formats"]:
            raise SaeuronError(f"'{root}' holds no '{name}' (formats: {', '.join(manifest['formats'])})")


def check_files(root: str | Path, manifest: dict[str, Any]) -> None:
    """Compare every file with its recorded hash.

    Raises:
        SaeuronError: a file is missing, changed, or outside the folder; or one lies there that isn't on record (hidden ones
            at the top, such as a download's cache, apart).
    """
    root = Path(root)
    for path in root.rglob("*"):
        name = path.relative_to(root).as_posix()
        if (path.is_file() or path.is_symlink()) and name != NAME and name not in manifest["files"] and not name.startswith("."):
            raise SaeuronError(f"'{name}' in '{root}' is not on record in {NAME}; a loader could take it for part of the model: remove it")
    for name, record in manifest["files"].items():
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise SaeuronError(f"{root / NAME} lists '{name}', which is outside the artifact")
        path = root / name
        if not path.is_file():
            raise SaeuronError(f"'{name}' is missing from the artifact '{root}'; take it again from its source")
        if path.stat().st_size != record["bytes"] or file_sha256(path) != record["sha256"]:
            raise SaeuronError(
                f"'{name}' in '{root}' is not the file that was written: size or SHA-256 differ; take it again from its source"
            )
