"""Intervals against their definition, published values and their coverage."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saeuron.editor.common.typed import plain
from saeuron.validation.evidence.intervals import Rate, wilson


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_ends_solve_the_score_equation(counts):
    hits, trials = counts
    low, high = wilson(hits, trials)
    share = hits / trials
    assert 0 <= low <= share <= high <= 1
    for end in (low, high):
        # |share − p| = z · sqrt(p (1 − p) / n), but at the ends of [0, 1], where both sides are 0.
        assert math.isclose(abs(share - end), 1.959963984540054 * math.sqrt(end * (1 - end) / trials), rel_tol=1e-6, abs_tol=1e-9)
    mirrored = wilson(trials - hits, trials)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_published_values():
    # Newcombe (1998), table I: 81/263, 15/148, 0/20, 1/29.
    for (hits, trials), ends in {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }.items():
        assert wilson(hits, trials) == pytest.approx(ends, abs=5e-5)


def test_coverage_is_near_95_percent():
    random = np.random.default_rng(0)
    for share in (0.1, 0.5, 0.97):
        ends = np.array([wilson(int(k), 200) for k in random.binomial(200, share, 4000)])
        assert 0.93 < ((ends[:, 0] <= share) & (share <= ends[:, 1])).mean() < 0.975


def test_no_trials_is_no_number():
    assert plain(Rate.of(0, 0)) == {"rate": None, "low": None, "high": None, "hits": 0, "trials": 0}
    with pytest.raises(ValueError, match="3 hits of 2"):
        wilson(3, 2)
