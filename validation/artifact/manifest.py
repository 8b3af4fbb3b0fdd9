"""What an artifact says of itself: `saeuron.json`. Needs neither torch nor diffusers."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ...editor.common.errors import SaeuronError
from ...editor.common.files import file_sha256, read_json
from ...editor.common.names import GATES, PRECISIONS, RESIDUALS
from . import shape
from .shape import Choice, Each, Either, Fields, Items, Maybe

NAME = "saeuron.json"
GOLDEN = "edit/golden.safetensors"
FORMAT = "saeuron-artifact-1"
SIGNATURE = "model.sig"
"""at the top of an artifact, on no record: it covers the manifest too"""
OWN_HASH = "manifest_sha256"
BACKENDS = {
    "checkpoint": "unet/diffusion_pytorch_model*.safetensors", "onnx": "unet/model.onnx", "trt": "tensorrt/local-*/unet.engine",
    "trt-rtx": "tensorrt/rtx*/unet.engine",
}  # fmt: skip
"""what an artifact may hold → the files that show it"""

_ADDED = ("validation/", "tensorrt/")
"""folders that may be written into a finished artifact"""

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
        "model": Fields({"source": str, "pipeline": str, "unet_sha256": str, "safety_checker": bool}, {"variant": Maybe(str)}),
        "saes": Each(Fields({"source": str, "sha256": str})), "activations": Items(dict), "edit": Fields({"sha256": str, "tensors_sha256": str}),
        "sampling": Fields({"steps": int, "guidance": float, "height": Maybe(int), "width": Maybe(int)}),
        "onnx": Fields({"seams": Each(Fields({"input": str, "output": str, "fires": str}, {"before": str, "members": str}))}), "files": Each(Fields({"sha256": str, "bytes": int})),
    },
    {
        # Not there yet while an export proves what it wrote.
        "validation": Maybe(Fields({
            "passed": bool, "scope": str, "precision": str, "seam": Each(Either((float, str))), "forwards": Each(Either((float, str))), "failures": Items(str),
        }, {"gpu": Maybe(str)})),
        "engines": ENGINES,
        "license": Maybe(Fields({"id": str, "name": Maybe(str), "link": Maybe(str), "source": str})),
        "published": Maybe(Fields({"repo": str})),
    },
)  # fmt: skip


def seam_tensor(hookpoint: str, part: str) -> str:
    """Name of a tensor at the edge of an edit in an exported graph.

    Args:
        hookpoint: where the edit sits.
        part: `input` (the block's output, as tokens `[B, L, d]`), `before` (the block's input, where the SAE reads what the block adds),
            `output` (the edited tokens), `fires` (the gate's decisions, bool `[B, L, U]`) or `members` (which latents are active, where the
            residual isn't `keep`: int64 `[B, L, k]`, or bool `[B, L, n]` with JumpReLU).
    """
    return f"saeuron/{hookpoint}/{part}"


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
    """`{path: {"sha256", "bytes"}}` of every file below `root`, except the manifest itself and a signature."""
    files = sorted(p for p in root.rglob("*") if p.is_file() and p.relative_to(root).as_posix() not in (NAME, SIGNATURE))
    return {p.relative_to(root).as_posix(): {"sha256": file_sha256(p), "bytes": p.stat().st_size} for p in files}


def content_sha256(manifest: dict[str, Any]) -> str:
    """Hash of the files that proof, evaluation and attack are about: model and edit.

    Card, reports and engines are left out: they are written afterwards, and what was measured before is still of these files then. So are
    golden vectors, which may be left out when the artifact is published: a proof compares with them, and they change nothing that the model does.
    """
    return _digest({n: e for n, e in manifest["files"].items() if n not in ("README.md", GOLDEN) and not n.startswith(_ADDED)})


def engines_sha256(manifest: dict[str, Any]) -> dict[str, str]:
    """Folder below `tensorrt/` → hash of its files."""
    files = {name: e for name, e in manifest["files"].items() if name.startswith("tensorrt/") and name.count("/") > 1}
    folders = sorted({name.split("/")[1] for name in files})
    return {folder: _digest({n: e for n, e in files.items() if n.split("/")[1] == folder}) for folder in folders}


def _digest(files: dict[str, dict[str, Any]]) -> str:
    said = [f"{entry['sha256']} {name}\n" for name, entry in sorted(files.items())]
    return hashlib.sha256("".join(said).encode()).hexdigest()


def write(root: Path, manifest: dict[str, Any]) -> None:
    """Hash every file and write the manifest last."""
    (root / NAME).write_bytes(encode({"format": FORMAT, **manifest, "files": hash_files(root)}))


def sealed(manifest: dict[str, Any]) -> dict[str, Any]:
    """The same with a hash of the rest, so that damage to the manifest itself shows; it is no signature."""
    content = {key: value for key, value in manifest.items() if key != OWN_HASH}
    return {**content, OWN_HASH: hashlib.sha256(strict_json(content).encode()).hexdigest()}


def encode(manifest: dict[str, Any]) -> bytes:
    """The bytes of `saeuron.json`."""
    return (strict_json(sealed(manifest)) + "\n").encode()


def read(root: str | Path, replacing: Sequence[str] = (), formats: bool = True) -> dict[str, Any]:
    """The manifest of an artifact folder.

    Args:
        root: the folder.
        replacing: patterns of folders below `tensorrt/` that are about to be written anew. What lies there, or is said of them, is passed
            over and left out, so that damaged engines can be replaced.
        formats: whether to compare `formats` with the files that are there.

    Raises:
        SaeuronError: no artifact there, of another format, or a field that is missing or holds something else.
    """
    root = Path(root)
    if not root.is_dir():
        raise SaeuronError(f"'{root}' is no artifact: {'it is a file; give its folder' if root.exists() else 'there is no such folder'}")
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
    if not formats:
        return manifest
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


def check_files(root: str | Path, manifest: dict[str, Any], replacing: Sequence[str] = (), rewriting: Sequence[str] = ()) -> None:
    """Compare every file with its recorded hash.

    Args:
        root: artifact folder.
        manifest: of it.
        replacing: as in `read`: folders below `tensorrt/` whose files don't count; where any is named, neither does the card, which is
            written anew with them.
        rewriting: patterns of other files that are about to be written anew, and don't count either.

    Raises:
        SaeuronError: the first of `faults`.
    """
    for fault in faults(root, manifest, replacing, rewriting):
        raise SaeuronError(fault)


def faults(
    root: str | Path, manifest: dict[str, Any], replacing: Sequence[str] = (), rewriting: Sequence[str] = ()
) -> Iterator[str]:  # fmt: skip
    """Compare every file with its recorded hash; arguments as of `check_files`.

    Yields:
        a line for each file that is missing, changed, or outside the folder; or that lies there and isn't on record (a signature, and hidden
        ones at the top, such as a download's cache, apart).
    """
    root = Path(root)
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        written_anew = _matches(name, replacing) or any(fnmatch.fnmatchcase(name, p) for p in rewriting)
        if written_anew or name in (NAME, SIGNATURE) or name in manifest["files"] or name.startswith("."):
            continue
        if path.is_symlink() or not path.is_dir():
            yield f"'{name}' in '{root}' is not on record in {NAME}; a loader could take it for part of the model: remove it"
    for name, record in manifest["files"].items():
        if not inside(root, name):
            yield f"{root / NAME} lists '{name}', which is outside the artifact, or no plain path"
        elif (replacing and name == "README.md") or any(fnmatch.fnmatchcase(name, p) for p in rewriting):
            continue
        elif not (root / name).is_file():
            yield f"'{name}' is missing from the artifact '{root}'; take it again from its source"
        elif (root / name).stat().st_size != record["bytes"] or file_sha256(root / name) != record["sha256"]:
            yield f"'{name}' in '{root}' is not the file that was written: size or SHA-256 differ; take it again from its source"


def inside(root: Path, name: str) -> bool:
    """Whether a path of a manifest stays in its folder, links followed. A download's cache links to its `blobs`, which count as inside."""
    path = PurePosixPath(name)
    # A name like `unet/./config.json` would be hashed, and passed over by checks that look for `unet/config.json`.
    if str(path) != name or not path.parts or path.is_absolute() or ".." in path.parts or any(c in name for c in "\\:\0"):
        return False
    folder = root.resolve()
    homes = [folder, *([folder.parents[1] / "blobs"] if folder.parent.name == "snapshots" else [])]
    try:
        return any((folder / name).resolve().is_relative_to(home) for home in homes)
    except (OSError, RuntimeError):  # a loop of links
        return False
