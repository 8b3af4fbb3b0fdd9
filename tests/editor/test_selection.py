import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import HOOKPOINT, edit_of, make_activations

from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.edit.edit import Suppression, make_edit
from saeuron.editor.edit.provenance import Provenance, SamplingUsed
from saeuron.editor.features.rule import Rule
from saeuron.editor.features.selection import scores, select


def naive_scores(means, prompts, index):
    """METHOD §3 in plain loops."""
    concepts, steps, n = means.shape
    out = np.zeros((steps, n))
    for t in range(steps):
        own = means[index, t].astype(np.float64)
        pooled = np.zeros(n)
        count = 0
        for c in range(concepts):
            if c != index:
                pooled += prompts[c] * means[c, t].astype(np.float64)
                count += prompts[c]
        rest = pooled / count
        out[t] = own / (own.sum() + 1e-8) - rest / (rest.sum() + 1e-8)
    return out


@pytest.mark.parametrize("concept", ["A", "B", "C"])
def test_scores_equal_the_formula(concept):
    activations = make_activations(seed=3)
    expected = naive_scores(activations.means.numpy(), activations.prompts, activations.concepts.index(concept))
    assert np.allclose(scores(activations, concept).numpy(), expected, atol=1e-12)


def test_percentile_counts_of_the_paper():
    score = torch.rand(3, 20480, dtype=torch.float64)
    for p, count in ((99.999, 1), (99.995, 2), (99.99, 3)):
        assert select(score, Rule("percentile", p)).sum(-1).tolist() == [count] * 3


def test_count_takes_only_positive_scores():
    score = torch.tensor([[0.5, -0.1, 0.2, -0.3]], dtype=torch.float64)
    assert select(score, Rule("count", 3)).tolist() == [[True, False, True, False]]


@pytest.mark.parametrize(
    "text",
    ["percentile:0", "percentile:100", "percentile:x", "percentile:nan", "count:0", "count:1.5", "count:-1", "top:3", "3", "count:inf"],
)
def test_bad_rules_are_refused(text):
    with pytest.raises(SaeuronError):
        Rule.parse(text)


def naive_edit(activations, wishes, n):
    """METHOD §4's tables in plain loops: the stronger suppression wins."""
    table = {}
    for concept, rule, gamma in wishes:
        mask = select(scores(activations, concept), Rule.parse(rule))
        for t, i in mask.nonzero().tolist():
            gain = gamma * float(activations.means[activations.concepts.index(concept), t, i])
            table[t, i] = min(gain, table.get((t, i), float("inf")))
    return table


def test_what_is_done_to_a_feature_and_which_of_two_wins():
    activations = make_activations(latents=64, steps=4)
    mean = activations.means.mean(0)

    def part_of(*wishes):
        made = [Suppression(c, HOOKPOINT, Rule.parse(rule), gamma, how) for c, rule, gamma, how in wishes]
        return make_edit(made, {(c, HOOKPOINT): activations for c in activations.concepts}).hookpoints[HOOKPOINT]

    zero, clamp = part_of(("A", "count:9", -1.0, "zero")), part_of(("A", "count:9", -1.0, "clamp"))
    on = zero.thresholds.isfinite()
    assert bool((zero.gains[on] == 0).all()) and not bool(zero.offsets.any()) and torch.equal(zero.thresholds, clamp.thresholds)
    assert bool((clamp.gains[on] == 0).all()) and torch.equal(clamp.offsets[on], mean[:, clamp.features][on])
    for part in (zero, clamp):
        assert bool((part.gains[~on] == 1).all()) and not bool(part.offsets[~on].any())
    # Every latent is chosen by both: negative beats nought, and that beats the bar.
    for weaker, stronger in (("clamp", "zero"), ("zero", "multiply"), ("clamp", "multiply")):
        both = part_of(("A", "count:64", -2.0, weaker), ("B", "count:64", -2.0, stronger))
        alone = part_of(("B", "count:64", -2.0, stronger))
        for t, row in enumerate(alone.chosen["B"]):
            here, there = torch.isin(both.features, torch.tensor(row)), torch.isin(alone.features, torch.tensor(row))
            assert torch.equal(both.gains[t][here], alone.gains[t][there]) and torch.equal(both.offsets[t][here], alone.offsets[t][there])


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    counts=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    gammas=st.tuples(st.floats(-30, 0), st.floats(-30, 0)),
)
def test_tables_equal_the_rule_and_ignore_order(seed, counts, gammas):
    activations = make_activations(latents=64, steps=4, seed=seed)
    wishes = [("A", f"count:{counts[0]}", gammas[0]), ("C", f"count:{counts[1]}", gammas[1])]
    edit = edit_of(activations, *wishes)
    part = edit.hookpoints[HOOKPOINT]
    expected = naive_edit(activations, wishes, 64)
    assert part.features.tolist() == sorted({i for _, i in expected})
    mean = activations.means.mean(0)
    for t in range(4):
        for u, i in enumerate(part.features.tolist()):
            if (t, i) in expected:
                assert part.gains[t, u].item() == pytest.approx(expected[t, i], rel=1e-6, abs=1e-12)
                assert part.thresholds[t, u] == mean[t, i]
            else:
                assert part.gains[t, u] == 1 and part.thresholds[t, u] == float("inf")
    assert edit_of(activations, *wishes[::-1]).sha256() == edit.sha256()


def test_adding_a_concept_does_not_change_anothers_features():
    activations = make_activations()
    alone = edit_of(activations, ("A", "count:5", -1.0)).hookpoints[HOOKPOINT].chosen["A"]
    together = edit_of(activations, ("A", "count:5", -1.0), ("B", "count:5", -1.0)).hookpoints[HOOKPOINT].chosen["A"]
    assert alone == together


def test_positive_multiplier_needs_consent():
    activations = make_activations()
    with pytest.raises(SaeuronError, match="allow-amplify"):
        edit_of(activations, ("A", "count:5", 1.0))
    wish = Suppression("A", HOOKPOINT, Rule("count", 5), 1.0)
    assert make_edit([wish], {("A", HOOKPOINT): activations}, allow_amplify=True).concepts == ["A"]


def test_a_concept_without_features_is_refused():
    activations = make_activations()
    activations.means[:] = 0.1
    with pytest.raises(SaeuronError, match="no latent"):
        edit_of(activations, ("A", "count:5", -1.0))


def test_unknown_concept_suggests():
    activations = make_activations(concepts=("Neon", "Sepia"))
    with pytest.raises(SaeuronError, match="did you mean Neon"):
        edit_of(activations, ("Neom", "count:5", -1.0))


def test_edit_file_round_trip(tmp_path):
    from saeuron.editor.edit.edit import Edit

    edit = edit_of(make_activations(), ("A", "count:5", -2.0))
    edit.provenance = Provenance(model="x")
    edit.save(tmp_path / "edit.safetensors")
    again = Edit.load(tmp_path / "edit.safetensors")
    assert again.sha256() == edit.sha256() and again.provenance == Provenance(model="x") and again.concepts == ["A"]
    edit.provenance = Provenance(sampling=SamplingUsed(0, 7.5))
    edit.save(tmp_path / "no-steps.safetensors")
    with pytest.raises(SaeuronError, match="'sampling.steps' must be int >= 1"):
        Edit.load(tmp_path / "no-steps.safetensors")
    data = (tmp_path / "edit.safetensors").read_bytes()
    (tmp_path / "edit.safetensors").write_bytes(data[:-8])
    with pytest.raises(SaeuronError):
        Edit.load(tmp_path / "edit.safetensors")


def test_one_concept_with_two_rules_chooses_their_union(activations):
    both = edit_of(activations, ("A", "count:2", -1.0), ("A", "count:5", -3.0))
    one = edit_of(activations, ("A", "count:5", -3.0))
    assert both.hookpoints[HOOKPOINT].chosen == one.hookpoints[HOOKPOINT].chosen and both.sha256() == one.sha256()


@pytest.mark.parametrize("text", ["percentile:99.956578", "percentile:99.999", "percentile:50", "count:3", "count:1234567"])
def test_a_rule_is_written_as_it_was_read(text):
    assert str(Rule.parse(text)) == text
