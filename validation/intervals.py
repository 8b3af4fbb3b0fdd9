"""Intervals of shares. Needs no torch."""

from __future__ import annotations

from statistics import NormalDist


def wilson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share; (0, 1) without trials."""
    if trials == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share, scale = successes / trials, 1 + z * z / trials
    middle = (share + z * z / (2 * trials)) / scale
    reach = z * (share * (1 - share) / trials + z * z / (4 * trials * trials)) ** 0.5 / scale
    return max(0.0, middle - reach), min(1.0, middle + reach)
