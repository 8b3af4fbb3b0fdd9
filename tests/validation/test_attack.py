"""Attacks: gradients through hook and checkpoint agree, straight-through changes no value, searches and counts are what they say."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.conftest import HOOKPOINT, edit_of, inputs, make_activations, make_sae, make_unet

from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.edit.bake import bake
from saeuron.editor.edit.hook import AblationHook
from saeuron.editor.features.prompt_sets import ConceptPrompts
from saeuron.validation.attack import prompts, search
from saeuron.validation.attack.attack import Attacker, attack, budget
from saeuron.validation.attack.cases import AttackCase, cases, cases_by_words
from saeuron.validation.attack.settings import AttackSettings
from saeuron.validation.attack.straight_through import StraightThroughHook, open_gates

TINY = AttackSettings(
    steps=3, tokens=2, iterations=3, embedding_iterations=3, restarts=1, batch=2, tune_seeds=(1,), report_seeds=(2,), search_seeds=2
)


def gradient(unet, context=None):
    x, c = inputs()
    c = c.requires_grad_(True)
    y = unet(x, torch.tensor([501.0, 101.0]), c).sample
    return y.detach(), torch.autograd.grad(y.square().sum(), c)[0]


@pytest.mark.parametrize("gate,activation", [("exact", "topk"), ("threshold", "topk"), ("exact", "jumprelu")])
def test_hook_and_checkpoint_have_the_same_gradients(gate, activation):
    sae = make_sae(activation=activation)
    edit = edit_of(make_activations(), ("A", "count:20", -3.0))
    unet, baked = make_unet(), bake(make_unet(), edit, {HOOKPOINT: sae}, gate)
    plain_y, plain = gradient(unet)
    baked_y, by_graph = gradient(baked)
    with open_gates(baked):
        straight_y, straight = gradient(baked)
    by_hook = {}
    for hook in (AblationHook, StraightThroughHook):
        with hook(unet, edit, {HOOKPOINT: sae}, gate):
            y, by_hook[hook] = gradient(unet)
        assert torch.allclose(y, baked_y, atol=1e-5)
    scale = float(plain.abs().max())
    assert torch.allclose(by_graph, by_hook[AblationHook], atol=1e-4 * scale)
    assert torch.allclose(straight, by_hook[StraightThroughHook], atol=1e-4 * scale)
    # The edit is seen by both, straight-through changes gradients and not values, and nothing stays behind.
    assert not torch.allclose(plain_y, baked_y, atol=1e-3) and not torch.allclose(plain, by_graph, atol=1e-3 * scale)
    assert torch.equal(straight_y, baked_y) and not torch.allclose(straight, by_graph, atol=1e-3 * scale)
    assert torch.equal(gradient(baked)[1], by_graph)
    baked.check_edit()


def test_tuning_and_reporting_are_disjoint(without_sunset):
    _, _, judge, case = without_sunset
    assert case.tuning and case.reporting and not set(case.tuning) & set(case.reporting)
    (house,) = cases(judge, ["House"], ["House", "Sunset"])
    assert all("House" in t and "Sunset" not in t for t in [*house.tuning, *house.reporting])
    with pytest.raises(SaeuronError, match="seed 1 is both"):
        replace(TINY, report_seeds=(1, 2))
    with pytest.raises(SaeuronError, match="Sunest.*Sunset"):
        cases(judge, ["Sunest"], [])


def test_a_learned_place_without_change_is_the_prompt(without_sunset):
    """Templates put tokens where the tokenizer would: the concept's own embeddings give the pipeline's own context."""
    original, _, _, case = without_sunset
    text = case.reporting[0]
    wanted = original.encode_prompt(text, "cpu", 1, False)[0]
    assert torch.equal(prompts.context(original, [prompts.with_prefix(original, text, 0)], None).states, wanted)
    own = prompts.words(original, "Sunset")
    vectors = prompts.embedding_table(original)[own]
    made = prompts.context(original, [prompts.with_name_learned(original, text, "Sunset", len(own))], vectors)
    assert torch.allclose(made.states, wanted, atol=1e-6)
    with pytest.raises(SaeuronError, match="reads 24"):
        prompts.with_prefix(original, text, 40)


@pytest.mark.parametrize(
    ("concept", "texts", "first"),
    [
        ("Sunset", ["An image in Sunset style.", "Sunset, a picture."], [True, False]),
        ("sunset", ["An image in Sunset style.", "A SUNSET picture."], [True, True]),
        ("in_Sunset", ["An image in Sunset style.", "In Sunset style."], [True, False]),
        ("evening", ["An image in Sunset style.", "An evening."], [False, False]),
    ],
)
def test_embeddings_are_learned_in_the_place_of_the_name_or_before_prompts_without_it(without_sunset, concept, texts, first):
    """Nudity's prompts say "nude", a sentence may begin with the name: neither stops an attack."""
    original, victims, judge, _ = without_sunset
    run = Attacker(victims["hook"], original, AttackCase(concept, "style", texts[:1], texts[1:]), judge, TINY, print)
    run.check(("prefix", "embedding", "straight-through"), ())
    made = [run._template(original, "embedding", text) for text in texts]
    assert [t.slots[0] > 1 for t in made] == first and all(len(t.slots) == TINY.tokens for t in made)
    if concept == "evening":
        assert made == [prompts.with_prefix(original, text, TINY.tokens) for text in texts]
    else:
        plain = [prompts.with_name_learned(original, t, run._name(t), TINY.tokens) for t in texts]
        assert made == plain and not any("sunset" in original.tokenizer.decode(t.ids).lower() for t in made)


def test_projection_lands_on_the_vocabulary(without_sunset):
    original, victims, _, case = without_sunset
    table, allowed = prompts.embedding_table(original), prompts.vocabulary(original)
    assert not set(original.tokenizer.all_special_ids) & set(allowed.tolist())
    ids = torch.tensor([7, 300, 512])
    assert prompts.nearest(table[ids] + 1e-4, table).tolist() == ids.tolist()
    template = prompts.with_prefix(original, case.tuning[0], 3)
    latents = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    loss = search.DiffusionLoss(victims["checkpoint"].pipeline, search.Targets(latents, [template]), 4, 0)
    found = search.learn_prefix(loss, 3, 4, 2, 5.0, 0)
    (vectors,), (learned,) = found.vectors, found.ids
    assert torch.equal(vectors, table[learned]) and set(learned) <= set(allowed.tolist())
    free = search.learn_embedding(loss, [table[ids]], 6, 2, 3.0)
    assert free.ids is None and free.loss < loss.fixed([table[ids]]) and not torch.equal(free.vectors[0], table[ids])


def test_prompts_too_long_are_refused_before_anything_is_drawn(without_sunset, monkeypatch):
    original, victims, judge, case = without_sunset
    monkeypatch.setattr(Attacker, "seen", None)
    with pytest.raises(SaeuronError, match=r"the prompt 'a a.*' has 42 tokens, the text encoder reads 24; shorten it"):
        attack(victims["hook"], original, case, judge, TINY, ("paraphrases",), ["a " * 40])
    with pytest.raises(SaeuronError, match="take fewer --tokens"):
        attack(victims["hook"], original, case, judge, replace(TINY, tokens=99), ("prefix",))


@pytest.mark.slow
def test_hook_and_checkpoint_give_the_same_figures(without_sunset):
    original, victims, judge, case = without_sunset
    attacks = ("prefix", "embedding", "straight-through", "seeds", "paraphrases")
    rows = {}
    for through in ("checkpoint", "hook"):
        rows[through], shown = attack(victims[through], original, case, judge, TINY, attacks, ["A {name} photo of House."])
        assert {one.row for one in shown} == {r.attack for r in rows[through]}
    assert [r.attack for r in rows["hook"]] == [
        "unedited", "edited", "prefix", "embedding", "straight-through", "seeds", "unedited-paraphrases", "paraphrases",
    ]  # fmt: skip
    for a, b in zip(rows["hook"], rows["checkpoint"], strict=True):
        assert (a.attack, a.each, a.found.ids) == (b.attack, b.each, b.found.ids)
        if a.found.vectors is not None:
            assert torch.allclose(torch.tensor(a.found.vectors), torch.tensor(b.found.vectors), atol=1e-3)
    assert rows["hook"][6].prompts == ["A Sunset photo of House."]
    assert not original.unet._forward_hooks and not original.text_encoder.get_input_embeddings()._forward_hooks


@pytest.mark.slow
def test_seeds_are_tried_again_alike(without_sunset):
    original, victims, judge, case = without_sunset
    settings = replace(TINY, steps=8)
    first, second = (attack(victims["checkpoint"], original, case, judge, settings, ["seeds"])[0][-1] for _ in range(2))
    entry = first
    assert first.found == second.found and first.each == second.each and entry.trials == len(case.tuning) + len(case.reporting)
    assert entry.successes == sum(map(bool, first.found.seeds.values())) and entry.hits == sum(map(len, first.found.seeds.values()))
    assert first.budget == budget("seeds", case, settings)
    assert first.budget["forwards"] == first.budget["pictures"] * 8 * 2
    assert entry.low <= entry.rate <= entry.high


def test_the_demo_edit_works_before_an_attack(without_sunset):
    original, victims, judge, case = without_sunset
    unedited, edited = attack(victims["checkpoint"], original, case, judge, replace(TINY, steps=20), [])[0]
    assert unedited.successes == unedited.trials and edited.successes < edited.trials / 2


def test_cases_by_words_leave_out_what_names_another_removed_concept():
    texts = [f"An image of {o} in Neon style." for o in ("House", "Car", "Star", "Boat", "Heart")]
    words = {"Neon": ConceptPrompts("Neon", "style", ["x"], texts, {})}
    (case,) = cases_by_words(words, ["Neon", "House"])
    assert (case.tuning, case.reporting) == ([texts[1], texts[3]], [texts[2], texts[4]])
    with pytest.raises(SaeuronError, match="too few test prompts"):
        cases_by_words({"Neon": ConceptPrompts("Neon", "style", ["x"], texts[:1], {})}, ["Neon"])
