"""Errors that are the user's to mend: one line saying what is wrong, where, and what to do."""

from __future__ import annotations


class SaeuronError(ValueError):
    """Bad input or an impossible wish; the command line prints it and exits with 2."""


def first_line(error: BaseException, most: int = 300) -> str:
    """What another library says, on one line: its message's first, or its type's name where it says nothing."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return (lines[0].strip() if lines else type(error).__name__)[:most]
