"""Errors that are the user's to mend: one line saying what is wrong, where, and what to do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class SaeuronError(ValueError):
    """Bad input or an impossible wish; the command line prints it and exits with 2."""


def first_line(error: BaseException, most: int = 300) -> str:
    """What another library says, on one line: its message's first, or its type's name where it says nothing."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return (lines[0].strip() if lines else type(error).__name__)[:most]


@contextlib.contextmanager
def panics_as_errors() -> Iterator[None]:
    """Turn a panic of a library in Rust (tokenizers, on some damaged files) into a `RuntimeError`.

    Such a `PanicException` derives from `BaseException` alone, so `except Exception` lets it by.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise RuntimeError(first_line(error)) from error
