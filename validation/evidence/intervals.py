"""Confidence intervals of shares and means. Shares have Wilson's score interval, which stays within [0, 1]."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from ...editor.common.typed import Number, Record, Whole

_Z = 1.959963984540054  # the 97.5 % quantile of the normal distribution


class Rate(Record, forbid_unknown_fields=True):
    """A share of trials, with Wilson's 95 % interval; without trials all three are None. What doesn't follow from the counts is refused."""

    rate: Number | None
    low: Number | None
    high: Number | None
    hits: Whole
    trials: Whole

    @classmethod
    def of(cls, hits: int, trials: int) -> Rate:
        """From counts."""
        return cls(*_shares(hits, trials), hits, trials)

    @property
    def value(self) -> float:
        """The share; NaN without trials."""
        return math.nan if self.rate is None else self.rate

    def __post_init__(self) -> None:
        for key, wanted in zip(("rate", "low", "high"), _shares(self.hits, self.trials), strict=True):
            said = getattr(self, key)
            if said != wanted and (said is None or wanted is None or not math.isclose(said, wanted, abs_tol=1e-6)):
                raise ValueError(f"{self.hits} of {self.trials} has the {key} {wanted}, not {said}")


class Mean(Record, forbid_unknown_fields=True):
    """A mean of values with its 95 % interval, `mean ± 1.96 s / √n`; None where there are too few values.

    It takes the values for independent and the mean for normal, so below some 30 values it is too narrow.
    """

    mean: Number | None
    low: Number | None
    high: Number | None
    count: Whole

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        """From the values."""
        if len(values) < 2:
            return cls(values[0] if values else None, None, None, len(values))
        centre = statistics.fmean(values)
        half = _Z * statistics.stdev(values) / math.sqrt(len(values))
        return cls(centre, centre - half, centre + half, len(values))


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


def _shares(hits: int, trials: int) -> tuple[float | None, float | None, float | None]:
    """Share, lower and upper end; None without trials."""
    low, high = wilson(hits, trials)
    return (hits / trials, low, high) if trials else (None, None, None)
