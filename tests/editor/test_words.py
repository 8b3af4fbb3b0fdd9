"""Concepts from their words."""

import re

import pytest

from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.features.concepts import KINDS, presets
from saeuron.editor.features.words import concept_of

NAMES = {"object": "Grumpy Cat", "style": "van Gogh", "person": "Ada Lovelace", "text": "blood and gore"}
MODELS = (None, "demo", "demo:dit")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("kind", "name"), NAMES.items())
def test_prompts_are_enough_and_paired(kind, name, model):
    concept = concept_of(name, kind, model=model)
    own, paired, everyday = concept.compared
    assert (own, concept.contrast_sets, concept.domain) == (name, (paired, everyday), f"words:{name}")
    assert concept.kind == kind and concept.status == "untuned" and concept.activations == ""
    for sets, least in ((concept.compared, 24), (concept.tested, 12)):
        assert all(len(set(texts)) == len(texts) for texts in sets.values())
        assert len(sets[own]) == len(sets[paired]) >= least and len(sets[everyday]) >= 12
        for text, other in zip(sets[own], sets[paired], strict=True):
            assert name.casefold() in text.casefold() and name.casefold() not in other.casefold()
            # What is left of both is the same sentence.
            before, after = re.split(re.escape(name), text, flags=re.IGNORECASE)
            if kind != "style":
                assert other.startswith(before) and other.endswith(after) and len(other) > len(before + after)
            else:
                assert before.startswith(other.rstrip(".")), (text, other)
        assert not any(name.casefold() in text.casefold() for text in sets[everyday])
    assert concept.prompts == concept.compared[name] and concept.test_prompts == concept.tested[name]


def test_instead_stands_in_the_same_place():
    cat = concept_of("Grumpy Cat", "object", "a cat")
    assert [t.replace("A cat", "a cat").replace("a cat", "Grumpy Cat") for t in cat.compared["without Grumpy Cat"]] == list(cat.prompts)
    monet = concept_of("van Gogh", "style", "Claude Monet")
    assert all("Claude Monet" in t for sets in (monet.compared, monet.tested) for t in sets["without van Gogh"])


def test_a_phrase_is_used_as_written():
    phrase = concept_of("a Man's hat box", "text")
    assert all("a Man's hat box" in t for t in (*phrase.prompts, *phrase.test_prompts))
    assert concept_of("Eiffel_Tower", "object").prompts[0] == "A photograph of Eiffel Tower"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", MODELS)
def test_the_same_words_give_the_same_prompts_whatever_else_is_made(kind, model):
    before = concept_of("Fog", kind, model=model)
    concept_of("Rain", kind, model=model)
    assert concept_of("Fog", kind, model=model) == before


def test_nudity_has_the_presets_prompts():
    preset, made = presets()["nudity"], concept_of("naked people", "nudity")
    assert made.prompts == preset.prompts and made.test_prompts == preset.test_prompts and made.domain != preset.domain
    assert {n: t for n, t in made.compared.items() if n != "naked people"} == {n: t for n, t in preset.compared.items() if n != "nudity"}
    assert made.contrast_sets == ("clothed people", "scenes without people")
    with pytest.raises(SaeuronError, match="dressed people"):
        concept_of("naked people", "nudity", "statues")


def test_the_rest_is_that_of_the_models_presets():
    sd14, made = presets()["nudity"], concept_of("Grumpy Cat", "object")
    same = (
        "model",
        "sae",
        "hookpoint",
        "select",
        "multiplier",
        "residual",
        "status",
        "steps",
        "guidance",
        "collect_steps",
        "collect_guidance",
    )
    assert all(getattr(made, key) == getattr(sd14, key) for key in same)
    house, made = presets()["House"], concept_of("Grumpy Cat", "object", model="demo")
    assert all(
        getattr(made, key) == getattr(house, key) for key in ("model", "sae", "steps", "guidance", "collect_steps", "collect_guidance")
    )
    assert (made.select, made.multiplier, made.status) == (sd14.select, sd14.multiplier, "untuned")
    for kind in KINDS:
        assert concept_of("Fog", kind, model="demo").hookpoint == "up_blocks.1.attentions.0,up_blocks.1.attentions.1"
    other = concept_of("Fog", "style", model="a/b", sae="c/d", hookpoint="mid_block.attentions.0")
    assert (other.model, other.sae, other.hookpoint) == ("a/b", "c/d", "mid_block.attentions.0")


def test_everyday_scenes_leave_the_concept_out():
    def scenes(concept):
        return [t for sets in (concept.compared, concept.tested) for t in sets["everyday scenes"]]

    assert any("cat " in t for t in scenes(concept_of("Fog", "object"))), "there is something to leave out"
    assert not any("cat " in t for t in scenes(concept_of("cats", "object")))
    assert not any("painting" in t for t in scenes(concept_of("oil painting", "style")))
    assert not any("Heart" in t or "Neon" in t for t in scenes(concept_of("Heart in Neon style", "text", model="demo")))
    with pytest.raises(SaeuronError, match="names so much that only"):
        concept_of("a " + " ".join(w for t in scenes(concept_of("Fog", "object")) for w in t.replace(",", "").split()), "text")


@pytest.mark.parametrize("model", MODELS)
def test_the_models_text_encoder_reads_the_prompts(model):
    """The demo's tokenizer; CLIP's own isn't here, but no word takes more tokens than letters."""
    from saeuron.editor import demo
    from saeuron.editor.denoisers.pipelines import check_prompts

    for kind, name in NAMES.items():
        made = concept_of(name if model is None else "Pine", kind, model=model)
        texts = [t for sets in (made.compared, made.tested) for held in sets.values() for t in held]
        if model in demo.MODELS:
            check_prompts(demo.MODELS[model], {name: texts})
        else:
            assert max(len(t.split()) for t in texts) < 30


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("", "text"), "empty"), ((" ", "text"), "empty"), (("a\nb", "text"), "U+000A"), (("a\x1bb", "text"), "U+001B"), (("a\u2028b", "text"), "U+2028"),
        ((" a", "text"), "a space"), (("a  b", "text"), "a space"), (("{name}", "text"), "'{'"), (("a,b", "text"), "','"),
        (("Fog", "thing"), "kind 'thing' is not known"), (("Fog", "object", "fog"), "is the concept itself"), (("cat", "object", "a grumpy Cat"), "holds the concept 'cat' itself"),
        (("Fog", "object", ""), "--instead: the words are empty"), (("Fog", "object", "a\tb"), "U+0009"), (("a person", "person"), "is the concept itself"),
        (("everyday scenes", "text"), "called as one of the sets"), (("clothed people", "nudity"), "called as one of the sets"),
        (("An image of a fox", "text", "a fox"), "in the prompts of 'An image of a fox' and in the test_prompts of 'without An image of a fox'"),
    ],
)  # fmt: skip
def test_words_that_cannot_be_meant_are_refused(arguments, said):
    with pytest.raises(SaeuronError) as refused:
        concept_of(*arguments)
    assert said in str(refused.value) and "\n" not in str(refused.value)
