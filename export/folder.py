"""The artifact's folder: whether it may be written, whether it fits, and its atomic making. Needs no torch."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..editor.errors import SaeuronError
from ..validation import manifest


def check_output(output: Path, overwrite: bool, marker: str = manifest.NAME, what: str = "artifact") -> None:
    """Raise unless a folder can be put at `output`; `marker` is the file by which one of this kind (`what`) is known."""
    try:
        _check_target(output, overwrite, marker, what)
    except OSError as error:  # a name too long, a folder that may not be looked into
        raise SaeuronError(f"'{output}' can't be written: {error.strerror}; choose another --output") from None


def _check_target(output: Path, overwrite: bool, marker: str, what: str) -> None:
    if output.exists() or output.is_symlink():
        if not overwrite:
            raise SaeuronError(f"'{output}' exists; choose another --output, or --overwrite to replace it")
        if output.is_symlink() or not output.is_dir() or (any(output.iterdir()) and not (output / marker).is_file()):
            raise SaeuronError(f"'{output}' is no {what} ({marker} is missing), so --overwrite leaves it alone; choose another --output")
    check_parent(output)


def check_parent(output: Path) -> None:
    """Raise unless something may be written beside `output`."""
    parent = output.absolute().parent
    existing = next(p for p in (parent, *parent.parents) if p.exists())
    if not existing.is_dir():
        raise SaeuronError(f"'{existing}' is a file, so nothing can be written into it; choose another --output")
    if not os.access(existing, os.W_OK):
        raise SaeuronError(f"no permission to write into '{existing}'; choose another --output")
    for folder in (existing.resolve(), *existing.resolve().parents):
        if (folder / manifest.NAME).is_file():
            raise SaeuronError(f"'{output}' lies inside the artifact '{folder}', which nothing would open then; choose another --output")


def check_with_pictures(files: Sequence[Path], pictures: Path, overwrite: bool) -> None:
    """Raise unless files and a folder of pictures may be written, or replaced: the folder only where it holds nothing but pictures."""
    check_parent(files[0])
    for path in (*files, pictures):
        if (path.exists() or path.is_symlink()) and not overwrite:
            raise SaeuronError(f"'{path}' exists; choose another --output, or --overwrite to replace it")
    for path in files:
        if path.is_dir():
            raise SaeuronError(f"'{path}' is a folder, so --overwrite leaves it alone; choose another --output")
    if pictures.is_symlink() or (pictures.exists() and (not pictures.is_dir() or any(p.suffix != ".png" for p in pictures.iterdir()))):
        raise SaeuronError(f"'{pictures}' holds other things than pictures, so --overwrite leaves it alone; choose another --output")


def check_space(output: Path, needed: int) -> None:
    """Raise unless the disk has room for the artifact."""
    parent = output.absolute().parent
    existing = next(p for p in (parent, *parent.parents) if p.exists())
    free = shutil.disk_usage(existing).free
    # The golden vectors, tokenizer and report come on top.
    wanted = int(needed * 1.05) + 64 * 2**20
    if free < wanted:
        raise SaeuronError(
            f"the artifact needs about {wanted / 2**30:.1f} GiB, '{existing}' has {free / 2**30:.1f} GiB free; choose another --output"
        )


@contextlib.contextmanager
def building(output: Path, overwrite: bool, marker: str = manifest.NAME, what: str = "artifact") -> Iterator[Path]:
    """A folder beside `output` that becomes `output` if the block ends without an error, and vanishes otherwise."""
    output = output.absolute()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        _sweep(output)
        partial = output.with_name(f".{output.name}.partial-{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
    except OSError as error:
        raise SaeuronError(f"'{output}' can't be written: {error.strerror}") from None
    try:
        yield partial
        _open_to_readers(partial)
        if output.exists():
            check_output(output, overwrite, marker, what)
            old = output.with_name(f".{output.name}.old-{os.getpid()}")
            output.rename(old)
            partial.rename(output)
            shutil.rmtree(old, ignore_errors=True)
        else:
            partial.rename(output)
    except OSError as error:
        raise SaeuronError(f"'{output}' can't be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time changes a folder. The folder itself is locked, so no file is left in it, and a kill frees it.

    Raises:
        SaeuronError: another process holds it.
    """
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SaeuronError(f"another build is writing into '{folder}'; wait until it has ended") from None
        except OSError as error:
            raise SaeuronError(f"'{folder}' can't be locked against other builds: {error.strerror}") from None
        yield
    finally:
        os.close(handle)


def switch(root: Path, place: Path, names: Sequence[str]) -> None:
    """Put new files and folders into an artifact, its manifest last. Nothing but renames; if one fails the others are taken back.

    A file is replaced by name, never written into: in a download's cache it is a link to one that other snapshots share.

    Args:
        root: artifact folder.
        place: folder on the same disk that holds the new manifest, and for each name its last part; where that is missing, what lies under
            the name goes. What was replaced ends up in it.
        names: paths within the artifact.
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


def _open_to_readers(folder: Path) -> None:
    """Files as readable as their folder: safetensors writes its files for the owner alone, and an artifact is made to be served."""
    mode = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def _sweep(output: Path) -> None:
    """Remove what killed exports of the same name left behind."""
    for kind in ("partial", "old"):
        sweep(output.parent, f".{output.name}.{kind}-")


def sweep(folder: Path, prefix: str) -> None:
    """Remove folders `<prefix><process id>` whose process has ended."""
    for leftover in folder.iterdir():
        pid = leftover.name.removeprefix(prefix)
        if leftover.name.startswith(prefix) and pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(leftover, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
