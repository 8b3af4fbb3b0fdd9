"""The artifact's folder: whether it may be written, whether it fits, and its atomic making. Needs no torch."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from ...editor.common.errors import SaeuronError
from ...editor.common.writing import whole_folder
from ...validation.artifact import manifest


def check_output(output: Path, overwrite: bool, marker: str = manifest.NAME, what: str = "artifact") -> None:
    """Raise unless a folder can be put at `output`; `marker` is the file by which one of this kind (`what`) is known."""
    if output == Path():
        raise SaeuronError("no output folder: give --output DIR, one that isn't there yet")
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


def check_files(files: Sequence[Path], overwrite: bool) -> None:
    """Raise unless files may be written, or replaced."""
    for path in files:
        try:
            if path.is_dir():
                raise SaeuronError(f"'{path}' is a folder; choose another --output")
            if (path.exists() or path.is_symlink()) and not overwrite:
                raise SaeuronError(f"'{path}' exists; choose another --output, or --overwrite to replace it")
            check_parent(path)
        except OSError as error:  # a name too long, a folder that may not be looked into
            raise SaeuronError(f"'{path}' can't be written: {error.strerror}; choose another --output") from None


def check_with_pictures(files: Sequence[Path], pictures: Path, overwrite: bool) -> None:
    """Raise unless files and a folder of pictures may be written, or replaced: the folder only where it holds nothing but pictures."""
    check_files(files, overwrite)
    if (pictures.exists() or pictures.is_symlink()) and not overwrite:
        raise SaeuronError(f"'{pictures}' exists; choose another --output, or --overwrite to replace it")
    if pictures.is_symlink() or (pictures.exists() and (not pictures.is_dir() or any(p.suffix != ".png" for p in pictures.iterdir()))):
        raise SaeuronError(f"'{pictures}' holds other things than pictures, so --overwrite leaves it alone; choose another --output")


def check_attack_output(output: Path | None, overwrite: bool) -> None:
    """Raise unless an attack's report and pictures may be written; None: nothing is."""
    from ...validation.attack.run import examples_of, unfinished

    if output is None:
        return
    if output.is_dir():
        raise SaeuronError(f"--output '{output}' is a folder; give a file, e.g. attack.json")
    # What a killed run has written so far is gone on with, if it is of the same attack, and replaced if not.
    check_with_pictures([output], examples_of(output), overwrite or unfinished(output) is not None)


def check_work_folder(output: Path) -> None:
    """Raise unless a folder is, or can become, one that results may be written into."""
    if output.exists() and not output.is_dir():
        raise SaeuronError(f"--output '{output}' is a file; give a folder")
    check_parent(output / "x")


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
    """A folder beside `output` that becomes `output` if the block ends without an error, and vanishes otherwise.

    Raises:
        SaeuronError: another process is making the same, or it can't be written.
    """
    output = output.absolute()

    def check(folder: Path) -> None:
        if output.exists() or output.is_symlink():
            check_output(output, overwrite, marker, what)
        _open_to_readers(folder)

    busy = f"another process is making '{output}' just now; wait until it has ended, or choose another --output"
    with whole_folder(output, check, busy) as folder:
        if output.exists():  # put back after a kill
            check_output(output, overwrite, marker, what)
        yield folder


def _open_to_readers(folder: Path) -> None:
    """Files as readable as their folder: safetensors writes its files for the owner alone, and an artifact is made to be served."""
    mode = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)
