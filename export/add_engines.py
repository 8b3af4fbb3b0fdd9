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
from ..validation import engines, manifest
from ..validation.engines import Target
from .card import model_card
from .folder import locked, sweep
from .tensorrt import PARTIAL, EngineSettings, build_targets


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
    with locked(root):
        # Read under the lock: what another build has just added stays.
        record = manifest.read(root, replacing=names)
        check_free(root, names, overwrite)
        progress("checking files")
        manifest.check_files(root, record, replacing=names)
        sweep(root, PARTIAL)
        place = root / f"{PARTIAL}{os.getpid()}"
        try:
            made = build_targets(root, record, settings, targets, place, progress)
            formats = sorted({*record["formats"], *(entry["backend"] for entry in made.values())})
            record |= {"engines": {**record.get("engines", {}), **made}, "formats": formats}
            card = model_card(record).encode()
            added = {f"{engines.FOLDER}/{n}/{file}": entry for n in names for file, entry in manifest.hash_files(place / n).items()}
            added["README.md"] = {"sha256": hashlib.sha256(card).hexdigest(), "bytes": len(card)}
            record["files"] = dict(sorted({**record["files"], **added}.items()))
            record = manifest.sealed(record)
            (place / "README.md").write_bytes(card)
            (place / manifest.NAME).write_bytes(manifest.encode(record))
            _switch(root, place, names)
        finally:
            shutil.rmtree(place, ignore_errors=True)
    return record, names


def check_free(root: Path, names: Sequence[str], overwrite: bool) -> None:
    """Raise `SaeuronError` if engines of these targets lie there, or are on record, and mustn't be replaced."""
    known = manifest.said_engines(root)
    for name in names:
        if not overwrite and (name in known or (root / engines.FOLDER / name).exists()):
            raise SaeuronError(f"'{root}' holds engines for {name} already; --overwrite replaces them")


def _switch(root: Path, place: Path, names: Sequence[str]) -> None:
    """Nothing but renames. If one fails the others are taken back; after a kill in between, `build --overwrite` mends it.

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
