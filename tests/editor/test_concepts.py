"""Presets: what is chosen by and what is judged with, by domain."""

import pytest

from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.features.concepts import KINDS, load_presets, presets
from saeuron.editor.features.prompt_sets import prompts_of

PRESET = """[defaults]
model = "a/b"
sae = "c/d"
hookpoint = "up_blocks.1.attentions.1"
select = "count:3"
multiplier = -2.0
domain = "d"
kind = "object"

[[concepts]]
name = "Old_Cat"
prompts = ["a {title}", "one {name}"]
test_prompts = ["the {title}"]

[[concepts]]
name = "Dog"
prompts = ["a dog"]

[[contrast]]
name = "plain"
domain = "d"
prompts = ["a thing"]
test_prompts = ["the thing"]
"""


def written(tmp_path, text=PRESET):
    (tmp_path / "p.toml").write_text(text)
    return load_presets(tmp_path / "p.toml")


def test_shipped_presets_can_be_judged_on_prompts_of_their_own():
    least = {"nudity": 12, "artist": 12, "unlearncanvas-object": 12, "unlearncanvas-style": 12, "object": 9, "style": 8}
    for concept in presets().values():
        assert concept.kind in KINDS and concept.kind != "text", concept.name
        assert set(concept.tested) == set(concept.compared) and concept.tested[concept.name] == concept.test_prompts
        assert all(len(texts) == len(set(texts)) >= least[concept.domain] for texts in concept.tested.values()), concept.name
        # `load_presets` refuses what meets; this holds whatever it does.
        assert not {p for texts in concept.compared.values() for p in texts} & {p for texts in concept.tested.values() for p in texts}


def test_demo_objects_and_styles_are_asked_for_as_the_judge_does():
    from saeuron.validation.judges.demo import DemoJudge

    _evaluation_prompt = DemoJudge().prompt

    known = presets()
    styles = [c.name for c in known.values() if c.domain == "style"]
    objects = [c.name for c in known.values() if c.domain == "object"]
    assert known["House"].test_prompts == tuple(_evaluation_prompt("House", s) for s in (None, *styles))
    assert known["Neon"].test_prompts == tuple(_evaluation_prompt(o, "Neon") for o in objects)
    benchmark = [c.name for c in known.values() if c.domain == "unlearncanvas-object"]
    assert known["Pop_Art"].test_prompts == tuple(_evaluation_prompt(o, "Pop_Art") for o in benchmark)
    partners = [known[o].test_prompts for o in benchmark]
    assert len({tuple(p.replace(o, "…") for p in texts) for o, texts in zip(benchmark, partners, strict=True)}) == 1
    assert all(_evaluation_prompt("Sea", s.name) in known["Sea"].test_prompts for s in (known["Pop_Art"], known["Mosaic"]))


@pytest.mark.parametrize(
    ("name", "paired", "word"),
    [("nudity", "clothed people", "nud"), ("vangogh", "other painters", "gogh"), ("vangogh", "photographs", "gogh")],
)
def test_contrast_sets_are_paired_line_by_line(name, paired, word):
    """Line j shows the same without the concept: it shares words with line j, more than with any other, and leaves the concept's out."""

    def words(text):
        return {w.strip(",.") for w in text.casefold().split()} - {
            "a",
            "an",
            "the",
            "of",
            "in",
            "and",
            "by",
            "with",
            "on",
            "style",
            "painting",
        }

    concept = presets()[name]
    for sets in (concept.compared, concept.tested):
        own, other = sets[name], sets[paired]
        assert len(own) == len(other) and not any(word in text.casefold() for text in other)
        for line, text in enumerate(own):
            shared = [len(words(text) & words(o)) for o in other]
            assert shared[line] == max(shared) > 0, text


def test_the_words_of_children_are_in_no_prompt():
    texts = [t for c in presets().values() if c.model for sets in (c.compared, c.tested) for ts in sets.values() for t in ts]
    assert not [
        t for t in texts if {"child", "children", "girl", "boy", "girls", "boys", "teenager", "baby", "young"} & set(t.casefold().split())
    ]


def test_a_preset_file_names_test_prompts_and_kind(tmp_path):
    cat = written(tmp_path)["Old_Cat"]
    assert cat.kind == "object" and cat.test_prompts == ("the Old Cat",)
    assert cat.tested == {"Old_Cat": ("the Old Cat",), "Dog": (), "plain": ("the thing",)} and cat.contrast_sets == ("plain",)
    found = prompts_of(cat)
    assert (found.name, found.kind, found.prompts, found.test_prompts) == (
        "Old_Cat",
        "object",
        ["a Old Cat", "one Old_Cat"],
        ["the Old Cat"],
    )
    assert {n: (c.prompts, c.test_prompts, c.concept) for n, c in found.contrast.items()} == {
        "Dog": (["a dog"], [], True),
        "plain": (["a thing"], ["the thing"], False),
    }


def test_a_preset_without_them_is_one_too(tmp_path):
    bare = "\n".join(line for line in PRESET.splitlines() if not line.startswith(("test_prompts", "kind")))
    cat = written(tmp_path, bare)["Old_Cat"]
    assert cat.kind == "text" and cat.test_prompts == () and cat.tested == {"Old_Cat": (), "Dog": (), "plain": ()}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('test_prompts = ["the {title}"]', 'test_prompts = ["A  Old Cat "]', "'A  Old Cat ' is in the prompts of 'Old_Cat' and in the test_prompts of 'Old_Cat'"),
        ('test_prompts = ["the thing"]', 'test_prompts = ["A DOG"]', "in the prompts of 'Dog' and in the test_prompts of 'plain'"),
        ('test_prompts = ["the {title}"]', 'test_prompts = ["a thing"]', "in the prompts of 'plain' and in the test_prompts of 'Old_Cat'"),
        ('test_prompts = ["the {title}"]', 'test_prompts = "the cat"', "'test_prompts' = 'the cat' has the wrong type"),
        ('test_prompts = ["the {title}"]', "test_prompts = [1]", "has the wrong type"),
        ('kind = "object"', 'kind = "thing"', "kind 'thing' is not known; known: object, style, person, nudity, text"),
        ('kind = "object"', "kind = 3", "'kind' = 3 has the wrong type"),
        ('prompts = ["a thing"]', 'prompts = ["a thing"]\nkind = "object"', "nothing else"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(tmp_path, old, new, said):
    assert old in PRESET
    with pytest.raises(SaeuronError) as refused:
        written(tmp_path, PRESET.replace(old, new))
    assert said in str(refused.value) and "\n" not in str(refused.value)
