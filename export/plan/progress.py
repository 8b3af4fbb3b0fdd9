"""How long something still takes, for people who wait."""

from __future__ import annotations

import time


class Remaining:
    """Time left, by the pace since it was made."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._before: float | None = None

    def text(self, done: float, total: float) -> str:
        """`, 3 min left`; empty before anything is done and at the end. What was done at the first call counts as done before."""
        if self._before is None:
            self._before, self._start = done, time.monotonic()
        if not self._before < done < total:
            return ""
        seconds = (time.monotonic() - self._start) * (total - done) / (done - self._before)
        return f", {duration(seconds)} left"


def duration(seconds: float) -> str:
    """`40 s`, `12 min` or `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"
