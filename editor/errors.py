"""Errors that are the user's to mend: one line saying what is wrong, where, and what to do."""

from __future__ import annotations


class SaeuronError(ValueError):
    """Bad input or an impossible wish; the command line prints it and exits with 2."""
