"""Several processes that share one job. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Process:
    """This process among those that share the work."""

    rank: int = 0
    count: int = 1
    barrier: Callable[[], None] = lambda: None
    """returns once every process has called it"""
