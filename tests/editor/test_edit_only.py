"""A part of an edit is the edit that had been made of that part, where concepts share no feature."""

import torch
from tests.conftest import HOOKPOINT, edit_of


def test_a_part_does_what_an_edit_of_its_own_does(activations):
    whole = edit_of(activations, ("A", "count:20", -3.0), ("B", "count:20", -2.0), ("C", "count:5", -1.0))
    for names in (["A"], ["B", "C"], ["A", "B", "C"]):
        wishes = {"A": ("A", "count:20", -3.0), "B": ("B", "count:20", -2.0), "C": ("C", "count:5", -1.0)}
        own = edit_of(activations, *(wishes[n] for n in names)).hookpoints[HOOKPOINT]
        part = whole.only(names)
        found = part.hookpoints[HOOKPOINT]
        found.check("part")
        assert part.concepts == names and found.chosen == own.chosen
        place = {f: i for i, f in enumerate(found.features.tolist())}
        columns = [place[f] for f in own.features.tolist()]
        others = [i for i in place.values() if i not in columns]
        assert bool((found.gains[:, others] == 1).all()) and bool(found.thresholds[:, others].isinf().all())
        differ = found.gains[:, columns] != own.gains
        # Where they differ, another concept chose the same feature at that step, and its suppression had won.
        assert int(differ.sum()) <= whole.shared(names) and bool((found.gains[:, columns][differ] < own.gains[differ]).all())
        assert torch.equal(found.thresholds[:, columns][~differ], own.thresholds[~differ])
    assert whole.only(["A", "B", "C"]).sha256() == whole.sha256() and whole.shared(["A", "B", "C"]) == 0
