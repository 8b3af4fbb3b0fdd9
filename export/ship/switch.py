"""Puts new files into a finished artifact: all at once where the system can, else by renames with the manifest last. Needs no torch."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from ...editor.common.writing import exchange, scratch
from ...validation.artifact import manifest


def switch(root: Path, place: Path, names: Sequence[str]) -> None:
    """Put new files and folders into an artifact together with the manifest that lists them. On an error it is as before.

    Args:
        root: artifact folder.
        place: folder below `root` that holds the new manifest, and for each name its last part; where that is missing, what lies under
            the name goes.
        names: paths within the artifact.
    """
    if not _at_once(root, place, names):
        _by_renames(root, place, names)


def _at_once(root: Path, place: Path, names: Sequence[str]) -> bool:
    """Make the whole new artifact of hard links beside the old one, and let the two change places: a kill leaves one or the other.

    Returns:
        False where that can't be done (nothing has changed then): a file system without it, a folder that is a mount of its own or somebody
        else's, or one that this process was started in, whose shell would stay in the removed folder.
    """
    place = place.resolve()
    root = root.resolve()
    if Path.cwd().is_relative_to(root) or root.stat().st_uid != os.geteuid():
        return False
    new, hidden = {*names, manifest.NAME}, place.relative_to(root).parts[0]
    try:
        with scratch(root.parent, root.name) as twin:
            _link(root, twin, lambda path: path.as_posix() in new or path.parts[0] == hidden)
            for name in new:
                made = place / Path(name).name
                (twin / name).parent.mkdir(exist_ok=True)
                if made.is_dir():
                    _link(made, twin / name)
                elif made.exists():
                    os.link(made, twin / name)
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


def _by_renames(root: Path, place: Path, names: Sequence[str]) -> None:
    """Nothing but renames, the manifest last; if one fails the others are taken back. What was replaced ends up in `place`.

    A file is replaced by name, never written into: in a download's cache it is a link to one that other snapshots share.
    """
    with contextlib.ExitStack() as undo:
        for name in names:
            old, new, there = place / f"old-{Path(name).name}", place / Path(name).name, root / name
            if not there.parent.is_dir():
                there.parent.mkdir()
                undo.callback(_remove_if_empty, there.parent)
            if there.exists() or there.is_symlink():
                os.rename(there, old)
                undo.callback(os.rename, old, there)
            if new.exists():
                os.rename(new, there)
                undo.callback(os.rename, there, new)
        os.replace(place / manifest.NAME, root / manifest.NAME)
        undo.pop_all()


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()
