"""The files of an artifact against its manifest. Needs neither torch nor diffusers."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from ...editor.common.errors import SaeuronError
from ...editor.common.files import file_sha256
from .manifest import NAME, SIGNATURE, File, Manifest, encode, replaced


def hashes(root: Path) -> dict[str, File]:
    """Path → hash and size of every file below `root`, except the manifest itself and a signature."""
    files = sorted(p for p in root.rglob("*") if p.is_file() and p.relative_to(root).as_posix() not in (NAME, SIGNATURE))
    return {p.relative_to(root).as_posix(): File(sha256=file_sha256(p), bytes=p.stat().st_size) for p in files}


def write(root: Path, manifest: Manifest) -> None:
    """Hash every file and write the manifest last."""
    manifest.files = hashes(root)
    (root / NAME).write_bytes(encode(manifest))


def check(root: str | Path, manifest: Manifest, replacing: Sequence[str] = (), rewriting: Sequence[str] = ()) -> None:
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
    root: str | Path, manifest: Manifest, replacing: Sequence[str] = (), rewriting: Sequence[str] = ()
) -> Iterator[str]:  # fmt: skip
    """Compare every file with its recorded hash; arguments as of `check`.

    Yields:
        a line for each file that is missing, changed, or outside the folder; or that lies there and isn't on record (a signature, and hidden
        ones at the top, such as a download's cache, apart).
    """
    root = Path(root)
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        written_anew = replaced(name, replacing) or any(fnmatch.fnmatchcase(name, p) for p in rewriting)
        if written_anew or name in (NAME, SIGNATURE) or name in manifest.files or name.startswith("."):
            continue
        if path.is_symlink() or not path.is_dir():
            yield f"'{name}' in '{root}' is not on record in {NAME}; a loader could take it for part of the model: remove it"
    for name, file in manifest.files.items():
        if not inside(root, name):
            yield f"{root / NAME} lists '{name}', which is outside the artifact, or no plain path"
        elif (replacing and name == "README.md") or any(fnmatch.fnmatchcase(name, p) for p in rewriting):
            continue
        elif not (root / name).is_file():
            yield f"'{name}' is missing from the artifact '{root}'; take it again from its source"
        elif (root / name).stat().st_size != file.bytes or file_sha256(root / name) != file.sha256:
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
