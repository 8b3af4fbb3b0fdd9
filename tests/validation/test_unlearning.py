"""Rates against a naive count."""

import random

from saeuron.validation.evidence.intervals import Rate
from saeuron.validation.evidence.unlearning import Picture, all_jobs, rates, without

OBJECTS, STYLES = ["House", "Car", "Star"], ["Neon", "Sepia", None]


def pictures(seed=0):
    pick = random.Random(seed)
    return [Picture(o, s, pick.choice([o, "Car"]), pick.choice([s, None, "Neon"])) for o, s, _ in all_jobs(OBJECTS, STYLES, range(4))]


def test_several_at_once_leave_out_each_other():
    made, removed = pictures(1), {"Neon": "style", "House": "object"}
    found = rates(made, removed)
    rest = [p for p in made if p.style != "Neon" and p.object != "House"]
    assert without(made, removed) == rest and len(rest) == 2 * 2 * 4
    neon, house = found["Neon"], found["House"]
    asked = [p for p in made if p.style == "Neon"]
    assert neon.ua == Rate.of(sum(p.seen_style != "Neon" for p in asked), 12), "its own pictures, those of House too"
    assert neon.ira == house.cra == Rate.of(sum(p.style == p.seen_style for p in rest), 16)
    assert neon.cra == house.ira == Rate.of(sum(p.object == p.seen_object for p in rest), 16)
    unstyled = [p for p in rest if p.style is None]
    assert neon.cra_unstyled == Rate.of(sum(p.object == p.seen_object for p in unstyled), 8) and house.cra_unstyled is None


def test_a_domain_that_nobody_judges_has_no_trials():
    found = rates(pictures(), {"Neon": "style"}, ["style"])["Neon"]
    assert found.ua.trials == 12 and found.ira.trials == 24
    assert found.cra.trials == found.cra_target.trials == found.cra_unstyled.trials == 0
