"""Fréchet distance against closed forms and scipy's root of a matrix."""

import numpy as np
import pytest

from saeuron.editor.common.errors import SaeuronError
from saeuron.validation.evidence.frechet import Inception, frechet


def sample(seed, count, width, scale=1.0):
    random = np.random.default_rng(seed)
    return random.normal(size=(count, width)) @ random.normal(size=(width, width)) * scale + random.normal(size=width)


def test_in_one_dimension_it_is_means_and_spreads():
    a, b = np.array([[0.0], [2.0], [4.0]]), np.array([[1.0], [2.0], [3.0]])
    assert frechet(a, b) == pytest.approx((2 - 2) ** 2 + (2 - 1) ** 2)
    assert frechet(a, b + 5) == pytest.approx(25 + 1)


def test_equals_scipy():
    linalg = pytest.importorskip("scipy.linalg")
    a, b = sample(0, 200, 12), sample(1, 150, 12, 0.5)
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = linalg.sqrtm(first @ second).real
    wanted = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first + second - 2 * root)
    assert frechet(a, b) == pytest.approx(wanted, rel=1e-9) == pytest.approx(frechet(b, a), rel=1e-9)


def test_is_nothing_for_equal_sets_even_where_covariances_are_singular():
    a = sample(2, 5, 40)
    assert frechet(a, a) == pytest.approx(0, abs=1e-6)
    # A rotation of both changes nothing.
    b, turn = sample(3, 6, 40), np.linalg.qr(np.random.default_rng(4).normal(size=(40, 40)))[0]
    assert frechet(a @ turn, b @ turn) == pytest.approx(frechet(a, b), rel=1e-6)


def test_refuses_what_has_no_covariance(tmp_path):
    with pytest.raises(SaeuronError, match="at least two"):
        frechet(np.zeros((1, 3)), np.zeros((5, 3)))
    with pytest.raises(SaeuronError, match="not finite"):
        frechet(np.full((3, 3), np.nan), np.zeros((5, 3)))
    with pytest.raises(SaeuronError, match="is no file"):
        Inception(tmp_path / "weights.pth")
