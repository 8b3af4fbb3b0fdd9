"""Hardening: what is compared and what is reported never overlap, the choice is what it says, and its figures are those of an attack."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import astuple
from tests.conftest import edit_of

from saeuron.editor import demo
from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.denoisers.pipelines import load_pipeline
from saeuron.editor.features.activations import ConceptActivations
from saeuron.editor.features.rule import Rule
from saeuron.editor.features.selection import select
from saeuron.editor.sae.sae import SparseAutoencoder
from saeuron.validation.attack.attack import attack, cases
from saeuron.validation.attack.hardening import Hardening, Measured, widened
from saeuron.validation.attack.settings import AttackSettings, HardenSettings
from saeuron.validation.attack.victims import Hooked, bare
from saeuron.validation.evidence.intervals import Rate
from saeuron.validation.evidence.judges import open_judge
from saeuron.validation.evidence.sweep import Trial

PLACE = "up_blocks.1.attentions.1"
BUDGET = AttackSettings(steps=3, tokens=2, embedding_iterations=2, restarts=2, batch=2, tune_seeds=(1,), report_seeds=(2, 3))
TINY = HardenSettings(BUDGET, trial_seeds=(4,), report_searches=2, rest_seeds=1)
BEFORE = Trial("Sunset", "style", (PLACE,), "count:2", -1.0)


@pytest.fixture
def bench(tmp_path):
    """The demo's own model, SAE, activations and judge."""
    activations = ConceptActivations.load(demo.resolve(f"demo:style-{PLACE}.safetensors"))
    sae = SparseAutoencoder.load(demo.SAES, PLACE)
    return Hardening(bare(load_pipeline("demo")), {PLACE: sae}, {("style", PLACE): activations}, open_judge("demo"), TINY, tmp_path, "demo")


class Scripted(Hardening):
    """Figures from a list, in the place of pictures."""

    def __init__(self, figures: dict[tuple[str, float], tuple[int, int, int]]) -> None:
        self.hardening, self.figures, self.asked = TINY, figures, []

    def compare(self, trial: Trial) -> Measured:
        self.asked.append((trial.select, trial.multiplier))
        hits, ira, cra = self.figures[trial.select, trial.multiplier]
        return Measured(
            *astuple(trial), Rule.parse(trial.select).value, Rate.of(hits, 100), Rate.of(50, 50), Rate.of(ira, 100), Rate.of(cra, 100)
        )


def chosen(figures, factors=(2, 4, 8), multipliers=(-1.0,)):
    bench = Scripted(figures)
    found = bench.choose(BEFORE, widened(BEFORE, factors, multipliers))
    return (found[0].trial.select, found[0].trial.multiplier), bench.asked


def test_the_one_that_holds_best_at_the_allowed_cost_is_chosen():
    figures = {
        ("count:2", -1.0): (40, 100, 99),
        ("count:4", -1.0): (20, 98, 99),
        ("count:8", -1.0): (9, 97, 99),
        ("count:16", -1.0): (0, 50, 50),
    }
    best, asked = chosen(figures)
    # count:8 costs three points: not taken, and what is wider isn't tried.
    assert best == ("count:4", -1.0) and asked == [("count:2", -1.0), ("count:4", -1.0), ("count:8", -1.0)]
    assert chosen(figures | {("count:8", -1.0): (0, 98, 97)})[0] == ("count:8", -1.0)
    # None shows it: wider ones have nothing to add. No candidate holds better: it stays. Nothing to begin with: none is tried.
    best, asked = chosen(figures | {("count:4", -1.0): (0, 100, 99)})
    assert best == ("count:4", -1.0) and len(asked) == 2
    assert chosen(figures | {("count:4", -1.0): (41, 100, 99)}, (2,))[0] == ("count:2", -1.0)
    assert chosen(figures | {("count:2", -1.0): (0, 100, 99)})[1] == [("count:2", -1.0)]
    # Of equal ones the narrower; another multiplier goes on where this one stopped.
    assert chosen(figures | {("count:8", -1.0): (20, 98, 99)}, (2, 4))[0] == ("count:4", -1.0)
    stronger = {("count:4", -2.0): (3, 100, 99), ("count:8", -2.0): (30, 100, 99)}
    best, asked = chosen(figures | stronger, (2, 4), (-1.0, -2.0))
    assert best == ("count:4", -2.0) and asked[-1] == ("count:8", -2.0)


def test_what_is_reported_was_not_compared_on(bench):
    compared, reported = (bench.rest(BEFORE, tuning, (7,)) for tuning in (True, False))
    pairs = {(o, s) for o in bench.judge.objects for s in (*bench.judge.styles, None) if s != "Sunset"}
    assert {j[:2] for j in compared} | {j[:2] for j in reported} == pairs and not set(compared) & set(reported)
    for half in (compared, reported):
        assert {o for o, _, _ in half} == set(bench.judge.objects) and {s for _, s, _ in half} == {*bench.judge.styles, None} - {"Sunset"}
    with pytest.raises(SaeuronError, match="seed 2 is used twice"):
        replace(TINY, trial_seeds=(2, 9)).check()
    with pytest.raises(SaeuronError, match="--attack 'seeds' is not known"):
        replace(TINY, row="seeds")


@pytest.mark.slow
def test_reported_figures_are_those_of_attacks(bench):
    found = bench.report_on(BEFORE)
    edit = edit_of(bench.activations["style", PLACE], ("Sunset", "count:2", -1.0), hookpoint=PLACE)
    (case,) = cases(bench.judge, ["Sunset"], ["Sunset"])
    rows = [
        attack(Hooked(bench.pipeline, edit, bench.saes), bench.pipeline, case, bench.judge, replace(BUDGET, seed=s), ["embedding"])[0]
        for s in (1, 2)
    ]
    said, plain = [r[2] for r in rows], rows[0][1]
    assert found.attack == Rate.of(sum(r.successes for r in said), sum(r.trials for r in said)) and found.attack.trials == 2 * 4 * 2
    assert found.ua == Rate.of(plain.trials - plain.successes, plain.trials)
    assert found.features == len(edit.hookpoints[PLACE].features)
    compared = bench.compare(BEFORE)
    assert compared.attack.trials == 2 * len(case.tuning) and compared.ua.trials == len(case.tuning)
    # Read again, not measured again; another budget is.
    assert bench.measured == 2 and bench.compare(BEFORE) == compared and bench.report_on(BEFORE) == found and bench.measured == 2
    bench.hardening = replace(TINY, trial_seeds=(5,))
    bench.compare(BEFORE)
    assert bench.measured == 3


@given(st.sampled_from(["count:1", "count:7", "percentile:99", "percentile:99.999"]), st.floats(1, 50), st.integers(0, 2**31))
def test_a_widened_rule_takes_more_of_the_same(text, factor, seed):
    rule = Rule.parse(text)
    wide = rule.widened(factor)
    assert Rule.parse(str(wide)) == wide and rule.widened(1) == rule
    score = torch.randn(3, 500, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    before, after = select(score, rule), select(score, wide)
    assert bool((before <= after).all())
    if rule.kind == "count":
        assert int(wide.value) == round(rule.value * factor)
