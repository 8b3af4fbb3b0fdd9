"""Keeps stdout and stderr usable when they are closed, full, a broken pipe or of another encoding."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

from ...editor.common.errors import SaeuronError

BROKEN_PIPE = 141
"""exit code where the reader went away, as of a command that SIGPIPE ends"""


def prepare() -> None:
    """Make the standard streams safe to write to, best before anything else is opened; a second call changes nothing.

    A character that the encoding lacks is written as its escape. A closed stream swallows what it is given, and its number is taken, so
    that no file gets it and a library's notes with it. What stderr can't take is dropped; what stdout can't take ends the command.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, this one
    for name, kind in (("stdout", _Stdout), ("stderr", _Stderr)):
        stream = getattr(sys, name)
        if isinstance(stream, _Stream):
            continue
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - as long as the process lives
            continue
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, kind(stream))


class _Stream:
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Stderr(_Stream):
    """Progress and errors: a job doesn't end because nobody can read them."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


class _Stdout(_Stream):
    """Results: losing them is said."""

    def write(self, text: str) -> int:
        with self._failing():
            return int(self._stream.write(text))
        return 0

    def flush(self) -> None:
        with self._failing():
            self._stream.flush()

    @contextlib.contextmanager
    def _failing(self) -> Any:
        try:
            yield
        except OSError as error:
            # What is still held would fail once more when the process ends.
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            if isinstance(error, BrokenPipeError):
                raise SystemExit(BROKEN_PIPE) from None
            raise SaeuronError(f"stdout can't be written: {error.strerror}; files that the command made are in place") from None
