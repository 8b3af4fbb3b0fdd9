"""Confidence intervals of shares and means. Shares have Wilson's score interval, which stays within [0, 1]."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

_Z = 1.959963984540054  # the 97.5 % quantile of the normal distribution


class Rate(NamedTuple):
    """A share of trials, with its 95 % interval."""

    hits: int
    trials: int

    @property
    def value(self) -> float:
        """The share; NaN without trials."""
        return self.hits / self.trials if self.trials else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval."""
        return wilson(self.hits, self.trials)

    def as_dict(self) -> dict[str, float | int | None]:
        """For JSON; None without trials."""
        low, high = self.interval
        found: dict[str, float | int | None] = {"rate": self.value, "low": low, "high": high, "hits": self.hits, "trials": self.trials}
        return found if self.trials else {**found, "rate": None, "low": None, "high": None}

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.1%} [{100 * low:.1f}, {100 * high:.1f}]" if self.trials else "-"


def wilson(hits: int, trials: int, z: float = _Z) -> tuple[float, float]:
    """Wilson's score interval (1927) of a share.

    Args:
        hits: successes.
        trials: all; the interval takes them for independent.
        z: quantile of the normal distribution; default: 95 %, two-sided.

    Returns:
        lower and upper end; NaN without trials.

    Raises:
        ValueError: more hits than trials, or a negative number.
    """
    if not 0 <= hits <= trials:
        raise ValueError(f"{hits} hits of {trials} trials")
    if not trials:
        return math.nan, math.nan
    share, spread = hits / trials, z * z / trials
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / trials + spread / (4 * trials))
    # Rounding alone would leave 1e-17 where the end is 0 exactly.
    return (0.0 if hits == 0 else centre - half), (1.0 if hits == trials else centre + half)


def mean(values: Sequence[float]) -> dict[str, float | int | None]:
    """Mean of values with its 95 % interval, `mean ± 1.96 s / √n`.

    It takes the values for independent and the mean for normal, so below some 30 values it is too narrow.

    Returns:
        `mean`, `low`, `high` and `count`; None where there are too few values.
    """
    if len(values) < 2:
        return {"mean": values[0] if values else None, "low": None, "high": None, "count": len(values)}
    centre = statistics.fmean(values)
    half = _Z * statistics.stdev(values) / math.sqrt(len(values))
    return {"mean": centre, "low": centre - half, "high": centre + half, "count": len(values)}
