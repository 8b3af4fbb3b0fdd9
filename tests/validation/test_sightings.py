"""Figures of what judges see, against a count by hand and a naive one."""

import random

import pytest

from saeuron.validation.evidence.intervals import Rate, wilson
from saeuron.validation.evidence.sightings import removal, trust


def test_counted_by_hand():
    asked = ["Neon", "Neon", "Sepia", "Sepia"]
    before = [frozenset({"Neon", "House"}), frozenset({"Neon"}), frozenset({"Sepia", "House"}), frozenset({"Sepia"})]
    after = [frozenset({"House"}), frozenset({"Neon"}), frozenset({"Sepia"}), frozenset({"Sepia", "Neon"})]
    found = removal("Neon", asked, before, after)
    assert found.removed == Rate.of(1, 2), "one of its two pictures shows it still"
    assert found.elsewhere == Rate.of(1, 2)
    assert found.kept == Rate.of(2, 3), "Sepia twice, House is lost"
    assert found.beside == Rate.of(1, 1)


def test_trust_is_the_mean_of_both_shares_with_an_interval_around_it():
    asked = ["Neon"] * 10 + ["Sepia"] * 20
    before = [frozenset({"Neon"})] * 9 + [frozenset()] + [frozenset({"Neon"})] * 2 + [frozenset()] * 18
    found = trust("Neon", asked, before)
    assert (found.shown, found.absent) == (Rate.of(9, 10), Rate.of(18, 20)) and found.balanced == pytest.approx(0.9)
    (a, b), (c, d) = wilson(9, 10), wilson(18, 20)
    assert found.low == pytest.approx(0.9 - ((0.9 - a) ** 2 + (0.9 - c) ** 2) ** 0.5 / 2)
    assert found.high == pytest.approx(min(1, 0.9 + ((b - 0.9) ** 2 + (d - 0.9) ** 2) ** 0.5 / 2))
    assert trust("Neon", ["Neon"], [frozenset({"Neon"})]).balanced is None


def test_a_naive_count_agrees():
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    pick = random.Random(seed)
    names = ["a", "b", "c", "d"]
    asked = [pick.choice(names) for _ in range(60)]
    before, after = ([frozenset(n for n in names if pick.random() < 0.5) for _ in asked] for _ in range(2))
    found = removal("a", asked, before, after)
    assert found.removed.hits == len([1 for n, s in zip(asked, after, strict=True) if n == "a" and "a" not in s])
    lost = total = 0
    for name, b, s in zip(asked, before, after, strict=True):
        for other in ("b", "c", "d"):
            if name != "a" and other in b:
                total += 1
                lost += other not in s
    assert found.kept == Rate.of(total - lost, total)
