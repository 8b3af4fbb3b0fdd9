"""What an artifact says of itself: `saeuron.json`. Needs neither torch nor diffusers."""

from __future__ import annotations

import fnmatch
import json
import math
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ..editor.edit_header import RESIDUALS
from ..editor.errors import SaeuronError
from ..editor.files import file_sha256, read_json
from . import shape
from .shape import Choice, Each, Either, Fields, Items, Maybe

NAME = "saeuron.json"
FORMAT = "saeuron-artifact-1"
BACKENDS = {
    "checkpoint": "unet/diffusion_pytorch_model*.safetensors", "onnx": "unet/model.onnx", "trt": "tensorrt/local-*/unet.engine",
    "trt-rtx": "tensorrt/rtx*/unet.engine",
}  # fmt: skip
"""what an artifact may hold → the files that show it"""

GATES = ("exact", "threshold", "screened")
PRECISIONS = ("fp32", "fp16", "bf16")
_ENGINE = Fields({
    "precision": Choice(PRECISIONS), "onnx": Each(str), "shapes": Each(Items(Items(int), 3)), "types": dict, "bytes": int, "seconds": float,
    "peak_bytes": Maybe(int),
})  # fmt: skip
ENGINES = Each(Fields(
    {
        "backend": Choice(("trt", "trt-rtx")), "library": str, "version": str, "sms": Items(str), "precision": Choice(PRECISIONS),
        "options": Fields({}, {"hardware_compatible": bool, "version_compatible": bool, "optimization_level": Maybe(int)}),
        "components": Each(_ENGINE), "status": str,
    }, {"built": str},
))  # fmt: skip
"""what `engines` holds: folder below `tensorrt/` → entry"""
_FIELDS = Fields(
    {
        "formats": Items(Choice(tuple(BACKENDS))), "concepts": Items(str), "residual": Choice(RESIDUALS), "gate": Choice(GATES),
        "precision": Choice(PRECISIONS), "warnings": Items(str),
        "settings": Items(Fields({"name": str, "hookpoint": str, "select": str, "multiplier": Maybe(float), "status": str})),
        "model": Fields({"source": str, "pipeline": str, "unet_sha256": str, "safety_checker": bool}),
        "saes": Each(Fields({"source": str, "sha256": str})), "activations": Items(dict), "edit": Fields({"sha256": str, "tensors_sha256": str}),
        "sampling": Fields({"steps": int, "guidance": float, "height": Maybe(int), "width": Maybe(int)}),
        "onnx": Fields({"gates": Each(str)}), "files": Each(Fields({"sha256": str, "bytes": int})),
    },
    {
        # Not there yet while an export proves what it wrote.
        "validation": Maybe(Fields({
            "passed": bool, "scope": str, "precision": str, "worst_share_of_effect": Each(Either((float, str))), "failures": Items(str),
        })),
        "engines": ENGINES,
    },
)  # fmt: skip


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


def read(root: str | Path, replacing: Sequence[str] = ()) -> dict[str, Any]:
    """The manifest of an artifact folder.

    Args:
        root: the folder.
        replacing: patterns of folders below `tensorrt/` that are about to be written anew. What lies there, or is said of them, is passed
            over and left out, so that damaged engines can be replaced.

    Raises:
        SaeuronError: no artifact there, of another format, or a field that is missing or holds something else.
    """
    root = Path(root)
    if not (root / NAME).is_file():
        raise SaeuronError(f"'{root}' is no artifact: it has no {NAME}")
    manifest = read_json(root / NAME)
    if manifest.get("format") != FORMAT:
        raise SaeuronError(f"{root / NAME}: format {manifest.get('format')!r} is not known; this version reads {FORMAT!r}")
    said = manifest
    if replacing:
        manifest = _without(manifest, replacing)
    shape.check(str(root / NAME), manifest, _FIELDS)
    for name, entry in manifest.get("engines", {}).items():
        for part in (name, *entry["components"]):
            # They become names of folders and files.
            if not shape.is_plain(part):
                raise SaeuronError(f"{root / NAME}: 'engines' names {part[:60]!r}, which is no plain name")
    held = [
        name for name, pattern in BACKENDS.items()
        if any(not _matches(p.relative_to(root).as_posix(), replacing) for p in root.glob(pattern))
    ]  # fmt: skip
    if replacing:
        manifest["formats"] = [name for name in manifest["formats"] if name in held or not BACKENDS[name].startswith("tensorrt/")]
    if not held or sorted(manifest["formats"]) != held:
        raise SaeuronError(
            f"{root / NAME} says formats {said.get('formats')}, the folder holds {held}; take the artifact again from its source"
        )
    return manifest


def said_engines(root: Path) -> list[str]:
    """Folders below `tensorrt/` that the manifest speaks of, whatever it says."""
    said = read_json(root / NAME)
    files = said.get("files")
    names = {
        file.split("/")[1] for file in (files if isinstance(files, dict) else ()) if file.startswith("tensorrt/") and file.count("/") > 1
    }
    return sorted({*names, *(said["engines"] if isinstance(said.get("engines"), dict) else ())})


def _matches(file: str, patterns: Sequence[str]) -> bool:
    """Whether a file lies in a folder below `tensorrt/` of such a name."""
    parts = file.split("/")
    return len(parts) > 2 and parts[0] == "tensorrt" and any(fnmatch.fnmatchcase(parts[1], p) for p in patterns)


def _without(manifest: dict[str, Any], replacing: Sequence[str]) -> dict[str, Any]:
    """The same without what is said of some folders below `tensorrt/`."""
    found = dict(manifest)
    for key, below in (("engines", "tensorrt/{}/x"), ("files", "{}")):
        if isinstance(found.get(key), dict):
            found[key] = {name: entry for name, entry in found[key].items() if not _matches(below.format(name), replacing)}
    # A record of engines that can't be read goes with the last of them.
    if "engines" in found and not isinstance(found["engines"], dict) and "*" in replacing:
        del found["engines"]
    return found


def check_backends(root: str | Path, manifest: dict[str, Any], backends: Sequence[str]) -> None:
    """Raise `SaeuronError` unless every backend is known and in the artifact."""
    for name in backends:
        if name not in BACKENDS:
            raise SaeuronError(f"backend '{name}' is not known; it is one of {', '.join(BACKENDS)}")
        if name not in manifest["formats"]:
            raise SaeuronError(f"'{root}' holds no '{name}' (formats: {', '.join(manifest['formats'])})")


def _inside(name: str) -> bool:
    """Whether a path names something below the folder that it is relative to, on any system."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and not any(c in name for c in "\\:\0")


def check_files(root: str | Path, manifest: dict[str, Any], replacing: Sequence[str] = ()) -> None:
    """Compare every file with its recorded hash.

    Args:
        root: artifact folder.
        manifest: of it.
        replacing: as in `read`: folders below `tensorrt/` whose files don't count; where any is named, neither does the card, which is
            written anew with them.

    Raises:
        SaeuronError: a file is missing, changed, or outside the folder; or one lies there that isn't on record (hidden ones
            at the top, such as a download's cache, apart).
    """
    root = Path(root)
    home = root.resolve()
    # In a download's cache a snapshot's files are links to blobs beside the snapshots.
    home = home.parents[1] if home.parent.name == "snapshots" else home
    for path in root.rglob("*"):
        name = path.relative_to(root).as_posix()
        if _matches(name, replacing):
            continue
        if (path.is_file() or path.is_symlink()) and name != NAME and name not in manifest["files"] and not name.startswith("."):
            raise SaeuronError(f"'{name}' in '{root}' is not on record in {NAME}; a loader could take it for part of the model: remove it")
    for name, record in manifest["files"].items():
        if not _inside(name):
            raise SaeuronError(f"{root / NAME} lists '{name}', which is outside the artifact")
        if replacing and name == "README.md":
            continue
        path = root / name
        if not path.resolve().is_relative_to(home):
            raise SaeuronError(f"'{name}' in '{root}' is a link that leads out of the artifact; take it again from its source")
        if not path.is_file():
            raise SaeuronError(f"'{name}' is missing from the artifact '{root}'; take it again from its source")
        if path.stat().st_size != record["bytes"] or file_sha256(path) != record["sha256"]:
            raise SaeuronError(
                f"'{name}' in '{root}' is not the file that was written: size or SHA-256 differ; take it again from its source"
            )
