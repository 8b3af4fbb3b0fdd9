"""Wilson's interval against published values and at its ends."""

import pytest

from saeuron.validation.intervals import wilson


def test_wilson():
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(10, 10)[1] == pytest.approx(1.0)
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(5, 10, 0.5)[0] > wilson(5, 10)[0]
