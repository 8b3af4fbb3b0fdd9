"""Finds out which packages are installed, without importing them."""

from __future__ import annotations

import importlib.util

TORCH = ("torch", "diffusers", "transformers")
"""what the checkpoint, diffusers' loops and the comparison of files with the original's need"""


def missing(names: tuple[str, ...] = TORCH) -> list[str]:
    """Those of `names` that can't be imported."""
    return [name for name in names if not _there(name)]


def _there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # switched off on purpose
        return False
