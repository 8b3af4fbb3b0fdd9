"""Writing that a kill, a full disk or a second process can't leave half done. Needs no torch.

What is being made lies in a hidden folder beside its place, and is renamed at the end. The folder is locked (flock) as long as its process
lives, so whoever comes next knows without a process id, which another machine or container may use too, that a killed process left it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from .errors import SaeuronError

_NAME = 120
"""bytes of a file's name that go into the hidden folder's, whose own must not get too long"""
_OLD = "old"
_FULL = 16 << 10
"""bytes: a disk with less free room is full, where something failed"""
_PLACES = 8
"""hidden folders of one name that are looked for; more are there only if as many processes were killed at once"""


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A file to write to instead of `path`, on the same disk; it becomes `path` if the block ends without an error, and vanishes otherwise.

    It is on the disk before it gets its name, so after a power cut too `path` is the old file or the new one.

    Raises:
        SaeuronError: it can't be written.
    """
    path = Path(path)
    with written(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch(path.parent, path.name) as folder:
            made = folder / path.name
            yield made
            _sync(made)
            os.replace(made, path)


@contextlib.contextmanager
def written(path: Path) -> Iterator[None]:
    """What the system or a library says against writing `path`, as one line."""
    try:
        yield
    except OSError as error:
        raise SaeuronError(f"'{path}' can't be written: {error.strerror or error}") from None
    except Exception as error:
        if (reason := _of_writing(error)) is None:
            raise
        raise SaeuronError(f"'{path}' can't be written: {reason}") from None


@contextlib.contextmanager
def temporary() -> Iterator[Path]:
    """A folder for what isn't kept, where the system keeps such things (`TMPDIR`).

    Raises:
        SaeuronError: there is no such place, or it ran full: whatever failed inside, that was why.
    """
    try:
        place = tempfile.TemporaryDirectory(prefix="saeuron-", ignore_cleanup_errors=True)
    except OSError as error:
        raise SaeuronError(f"no temporary folder can be made ({error.strerror}); set TMPDIR to a folder that can be written") from None
    with place as folder:
        try:
            yield Path(folder)
        except SaeuronError:
            raise
        except Exception as error:
            free = shutil.disk_usage(folder).free
            if free < _FULL or (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)):
                where = Path(folder).parent
                raise SaeuronError(
                    f"the temporary folder '{where}' is full ({free >> 10} KiB free); set TMPDIR to one with more room"
                ) from None
            raise


def _of_writing(error: BaseException) -> str | None:
    """Why a library could not write a file, where it says so in an exception of its own; None for any other error."""
    text = str(error)
    kind = type(error).__name__
    if kind == "SafetensorError" and "os error" in text:
        return text.partition("Error while serializing: ")[2] or text
    # torch.save tells that writing failed, not why.
    if isinstance(error, RuntimeError) and ("PytorchStreamWriter failed" in text or "unexpected pos" in text):
        return "the disk is full, or writing failed"
    return None


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def whole_folder(path: Path, check: Callable[[Path], None] = lambda folder: None, refusal: str | None = None) -> Iterator[Path]:
    """The same for a folder, which is made; it takes the place of a folder that is there. One that stays empty only removes that.

    Args:
        path: of the folder.
        check: called at the end, before anything is replaced.
        refusal: see `scratch`.

    Raises:
        SaeuronError: it can't be written.
    """
    with written(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch(path.parent, path.name, refusal) as made:
            yield made
            check(made)
            kept = any(made.iterdir())
            if not path.exists():
                if kept:
                    os.rename(made, path)
            elif not kept or not exchange(made, path):
                # A kill between the two renames leaves the old folder where `scratch` finds it and puts it back.
                os.rename(path, made.with_name(_OLD))
                if kept:
                    os.rename(made, path)


def put_back(path: Path) -> None:
    """Clean up after a process that was killed while it made `path`: a folder that it had just taken away comes back."""
    if path.parent.is_dir():
        with scratch(path.parent, path.name):
            pass


@contextlib.contextmanager
def scratch(parent: Path, name: str, refusal: str | None = None) -> Iterator[Path]:
    """An empty hidden folder below `parent` for making `name`, this process's alone, and gone at the end.

    Those that killed processes left are removed; where the file system has no locks they are left alone.

    Args:
        parent: folder that will hold `name`.
        name: what is made.
        refusal: said if another process is making the same; None: both may, and the last to end wins.

    Raises:
        SaeuronError: another process is making it, and mustn't.
    """
    place, handle = _own_place(parent, name, refusal)
    # A name of its own in there: what a killed process's children still write finds no folder.
    folder = place / secrets.token_hex(4)
    try:
        folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(place, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def _own_place(parent: Path, name: str, refusal: str | None) -> tuple[Path, int | None]:
    """The first hidden place for `name` that no living process holds, and its lock; None where there are no locks."""
    stem = f".{os.fsdecode(os.fsencode(name)[:_NAME])}.partial"
    number = 0
    while True:
        place = parent / (f"{stem}-{number}" if number else stem)
        made = False
        with contextlib.suppress(FileExistsError):
            place.mkdir()
            made = True
        try:
            handle = _lock(place)
        except FileNotFoundError:
            continue  # whoever held it has just removed it
        except OSError:
            if made:
                return place, None
        else:
            if handle is not None:
                _clear(place, parent / name)
                break
            if refusal is not None:
                raise SaeuronError(refusal)
        number += 1
    for further in range(number + 1, number + _PLACES):
        with contextlib.suppress(OSError):
            left = parent / f"{stem}-{further}"
            if (other := _lock(left)) is not None:
                _clear(left, parent / name)
                left.rmdir()
                os.close(other)
    return place, handle


def _clear(place: Path, path: Path) -> None:
    """Remove what a killed process left; a folder that it had just taken away from `path` comes back."""
    if (place / _OLD).is_dir() and not path.exists():
        os.rename(place / _OLD, path)
    for left in place.iterdir():
        shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()


def _lock(folder: Path, wait: bool = False) -> int | None:
    """The lock of a folder: an open handle, freed when it is closed or the process ends. None: another process holds it.

    Raises:
        FileNotFoundError: the folder is gone, or was while it was being locked.
        OSError: the file system has no locks.
    """
    import fcntl

    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        # Its holder may have removed it and another made one of the same name since it was opened.
        if not os.path.samestat(os.fstat(handle), os.stat(folder)):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
    except BlockingIOError:
        os.close(handle)
        return None
    except BaseException:
        os.close(handle)
        raise
    return handle


@contextlib.contextmanager
def locked(folder: Path, refusal: str) -> Iterator[None]:
    """One process at a time changes a folder. The folder itself is locked, so no file is left in it, and a kill frees it.

    Args:
        folder: it must exist.
        refusal: said if another process holds it.

    Raises:
        SaeuronError: another process holds it, or it can't be locked.
    """
    try:
        handle = _lock(folder)
    except OSError as error:
        raise SaeuronError(f"'{folder}' can't be locked against other processes: {error.strerror}") from None
    if handle is None:
        raise SaeuronError(refusal)
    try:
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def alone(folder: Path, refusal: str | None = None) -> Iterator[None]:
    """One process at a time works in a folder, which is made, and removed at the end if nothing is left in it.

    Args:
        folder: of the work.
        refusal: said if another process works there; None: wait until it has ended. Where there are no locks nobody is kept out.

    Raises:
        SaeuronError: another process works there, or the folder can't be made.
    """
    while True:
        with written(folder):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            handle = _lock(folder, wait=refusal is None)
        except FileNotFoundError:
            continue
        except OSError:
            yield
            return
        break
    if handle is None:
        raise SaeuronError(refusal or "")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()
        os.close(handle)


_AT_CWD, _EXCHANGE = -100, 2


def exchange(one: Path, other: Path) -> bool:
    """Let two paths of one file system change places, in one step that nobody sees half done (Linux's renameat2).

    Returns:
        False if the system or the file system can't.
    """
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    return call(_AT_CWD, os.fsencode(one), _AT_CWD, os.fsencode(other), _EXCHANGE) == 0
