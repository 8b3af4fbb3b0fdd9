"""Adds engines to a finished artifact: built apart, put in place together with the record of them. Needs no torch."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..editor.errors import SaeuronError
from ..editor.writing import exchange, locked, scratch, written
from ..validation import engines, manifest
from ..validation.engines import Target
from .card import model_card
from .tensorrt import PLACE, EngineSettings, build_targets


def add_engines(
    root: Path, settings: EngineSettings, targets: Sequence[Target], overwrite: bool = False, progress: Callable[[str], None] = lambda text: None
) -> tuple[dict[str, Any], list[str]]:  # fmt: skip
    """Build engines into an artifact.

    Args:
        root: artifact folder.
        settings: what is asked for.
        targets: from `tensorrt.ready`.
        overwrite: replace engines of the same targets, whatever state they are in.
        progress: told what is being done.

    Returns:
        the manifest as written; names of the targets' folders.

    Raises:
        SaeuronError: another build is at work there, engines that are there already, a changed file, a failed build. Then the artifact is
            as it was.
    """
    names = [t.folder for t in targets]
    with locked(root, f"another build is writing into '{root}'; wait until it has ended"):
        # Read under the lock: what another build has just added stays.
        record = manifest.read(root, replacing=names)
        check_free(root, names, overwrite)
        progress("checking files")
        manifest.check_files(root, record, replacing=names)
        with written(root), scratch(root, PLACE) as place:
            made = build_targets(root, record, settings, targets, place, progress)
            formats = sorted({*record["formats"], *(entry["backend"] for entry in made.values())})
            record |= {"engines": {**record.get("engines", {}), **made}, "formats": formats}
            card = model_card(record).encode()
            added = {f"{engines.FOLDER}/{n}/{file}": entry for n in names for file, entry in manifest.hash_files(place / n).items()}
            added["README.md"] = {"sha256": hashlib.sha256(card).hexdigest(), "bytes": len(card)}
            record["files"] = dict(sorted({**record["files"], **added}.items()))
            (place / "README.md").write_bytes(card)
            (place / manifest.NAME).write_text(manifest.strict_json(record) + "\n")
            if not _switch_at_once(root, place, names):
                _switch(root, place, names)
    return record, names


def check_free(root: Path, names: Sequence[str], overwrite: bool) -> None:
    """Raise `SaeuronError` if engines of these targets lie there, or are on record, and mustn't be replaced."""
    known = manifest.said_engines(root)
    for name in names:
        if not overwrite and (name in known or (root / engines.FOLDER / name).exists()):
            raise SaeuronError(f"'{root}' holds engines for {name} already; --overwrite replaces them")


def _switch_at_once(root: Path, place: Path, names: Sequence[str]) -> bool:
    """Make the whole new artifact of hard links beside the old one, and let the two change places: a kill leaves one or the other.

    Returns:
        False where that can't be done (nothing has changed then): a file system without it, a folder that is a mount of its own or somebody
        else's, or one that this process was started in, whose shell would stay in the removed folder.
    """
    root = root.resolve()
    if Path.cwd().is_relative_to(root) or root.stat().st_uid != os.geteuid():
        return False
    new = {"README.md", manifest.NAME, *(f"{engines.FOLDER}/{n}" for n in names)}
    try:
        with scratch(root.parent, root.name) as twin:
            _link(root, twin, lambda path: path.as_posix() in new or path.parts[0].startswith(f".{PLACE}."))
            (twin / engines.FOLDER).mkdir(exist_ok=True)
            for name in new:
                made = place / Path(name).name
                _link(made, twin / name) if made.is_dir() else os.link(made, twin / name)
            return exchange(root, twin)
    except OSError:
        return False


def _link(folder: Path, twin: Path, left_out: Callable[[Path], bool] = lambda path: False) -> None:
    """The same folder once more, its files hard links; symbolic links stay what they are."""
    twin.mkdir(exist_ok=True)
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if any(left_out(part) for part in (inside, *inside.parents) if part.parts):
            continue
        if path.is_dir() and not path.is_symlink():
            (twin / inside).mkdir()
            shutil.copystat(path, twin / inside)
        else:
            os.link(path, twin / inside, follow_symlinks=False)
    shutil.copystat(folder, twin)


def _switch(root: Path, place: Path, names: Sequence[str]) -> None:
    """Where it can't be done at once: nothing but renames. If one fails the others are taken back; after a kill in between,
    `build --overwrite` mends it.

    A file is replaced by name, never written into: in a download's cache it is a link to one that other snapshots share.
    """
    (root / engines.FOLDER).mkdir(exist_ok=True)
    with contextlib.ExitStack() as undo:
        undo.callback(_remove_if_empty, root / engines.FOLDER)
        for name in [*(f"{engines.FOLDER}/{n}" for n in names), "README.md"]:
            old, new, there = place / f"old-{Path(name).name}", place / Path(name).name, root / name
            if there.exists() or there.is_symlink():
                os.rename(there, old)
                undo.callback(os.rename, old, there)
            os.rename(new, there)
            undo.callback(os.rename, there, new)
        os.replace(place / manifest.NAME, root / manifest.NAME)
        undo.pop_all()


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()
