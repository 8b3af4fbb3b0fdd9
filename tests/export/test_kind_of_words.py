"""Concepts without a preset, from the command line: `--kind`, `--instead`, `saeuron concepts new`."""

import json
import tomllib

import pytest
from tests.conftest import refused, run
from tests.export.test_cli import command

from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.features.concepts import load_presets
from saeuron.editor.features.prompt_sets import prompts_of
from saeuron.editor.features.words import concept_of
from saeuron.export.plan.concepts import prompts_on_record
from saeuron.export.plan.resolve import resolve
from saeuron.export.plan.settings import Settings
from saeuron.validation.artifact.concepts import read_concepts


def plan(concepts, **options):
    return resolve(Settings(concepts, "unused", **options))


def test_kind_makes_a_concept_of_every_name_without_a_preset():
    found = plan("Grumpy Cat,Fog", kind="object", instead="Grumpy Cat=a cat")
    assert found.concepts == {"Grumpy Cat": concept_of("Grumpy Cat", "object", "a cat"), "Fog": concept_of("Fog", "object")}
    assert (found.model, found.saes) == ("CompVis/stable-diffusion-v1-4", {"up_blocks.1.attentions.1": "bcywinski/SAeUron_coco"})
    assert [w.collecting.prompts for w in found.wishes] == [c.compared for c in found.concepts.values()]
    assert {w.status for w in found.wishes} == {"untuned"}
    assert prompts_on_record(found)["Fog"] == prompts_of(concept_of("Fog", "object"))
    mixed = plan("Neon,Fog,a=b", kind=["Fog=style", "a=b=text"], model="demo", intervention="multiply")
    assert [c.kind for c in mixed.concepts.values()] == ["style", "style", "text"] and mixed.concepts["Neon"].status == "tuned"
    assert mixed.concepts["Fog"] == concept_of("Fog", "style", model="demo")


def test_options_win_over_what_is_made():
    found = plan(
        "Fog", kind="style", model="a/b", sae="c/d", hookpoint="mid_block.attentions.0", select="count:3", multiplier=-9.0, steps=7
    )
    assert (found.model, found.saes, found.steps) == ("a/b", {"mid_block.attentions.0": "c/d"}, 7)
    assert [(str(w.rule), w.multiplier) for w in found.wishes] == [("count:3", -9.0)]


@pytest.mark.parametrize(
    ("concepts", "options", "said"),
    [
        ("Neon", {"kind": "style"}, "'Neon' has a preset"), ("Neon,Fog", {"kind": ["style", "Neon=style"]}, "'Neon' has a preset"),
        ("Neon", {"instead": "a"}, "'Neon' has a preset"), ("Fog", {"kind": "stile"}, "did you mean style"), ("Fog", {"kind": ""}, "say what it is (--kind object|style"),
        ("Fog", {"kind": "Rain=style"}, "no concept 'Rain' is asked for (--concepts: Fog)"), ("Fog", {"kind": ["style", "object"]}, "2 times for all concepts"),
        ("Fog", {"kind": ["Fog=style", "Fog=object"]}, "twice for 'Fog'"), ("Fog", {"instead": "a tree"}, "Give --kind too"),
        ("Fog,Rain", {"kind": "Fog=style"}, "concept 'Rain' is not known"), ("Fog", {"kind": "style", "instead": "FOG"}, "is the concept itself"),
        ("Fog", {}, "say what it is (--kind object|style|person|nudity|text)"), (["Fog", " "], {"kind": "style"}, "a name is empty"),
        (["a,b"], {"kind": "style"}, "holds ','"), (["a\nb"], {"kind": "style"}, "U+000A"), ("Neon,Fog", {"kind": "style"}, "different base models"),
        ((), {"kind": "style", "edit": "x.safetensors"}, "--edit and --kind both say"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(concepts, options, said):
    with pytest.raises(SaeuronError) as found:
        plan(concepts, **options)
    assert said in str(found.value) and "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["export", "--concepts", "Fog", "--kind", "stile", "--output", "OUT"], "did you mean style"),
        (["export", "--concepts", "Fog", "--kind", "style", "--instead", "fog", "--output", "OUT"], "the concept itself"),
        (["export", "--concepts", "Fog\nRain", "--kind", "style", "--output", "OUT"], "U+000A"),
        (["export", "--concepts", " ", "--kind", "style", "--output", "OUT"], "is empty"),
        (["select", "--concepts", "Neon", "--kind", "style"], "'Neon' has a preset"),
        (["collect", "--concepts", "Neon", "--kind", "style", "--output", "OUT"], "'Neon' has a preset"),
        (["concepts", "new", "Fog", "--output", "OUT"], "Give --kind (object, style, person, nudity, text)"),
        (["concepts", "new", "Fog", "--kind", "stile", "--output", "OUT"], "did you mean style"),
        (["concepts", "new", "", "--kind", "style", "--output", "OUT"], "empty"),
        (["concepts", "new", "Fog", "--kind", "style"], "no output"),
        (["concepts", "new", "Neon", "--kind", "style", "--output", "OUT"], "'Neon' has a preset"),
        (["concepts", "new", "Fog", "--kind", "style", "--kind", "text", "--output", "OUT"], "'--kind' is given 2 times"),
        (["concepts", "--domain", "style", "new", "Fog", "--kind", "style", "--output", "OUT"], "come after its name"),
    ],
)
def test_mistakes_are_refused_in_one_line_without_torch(tmp_path, arguments, said):
    code, stdout, stderr, torch_imported = command(*(str(tmp_path / "out") if a == "OUT" else a for a in arguments))
    assert code == 2 and stdout == "" and not torch_imported, stderr
    assert stderr.startswith("error: ") and stderr.count("\n") == 1 and said in stderr, stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Grumpy Cat", {"kind": "object", "instead": "a cat"}), ("van Gogh", {"kind": "style"}), ("naked people", {"kind": "nudity"}),
        ('the "Old" O\'Brien \\ é', {"kind": "person"}), ("Pine_tree", {"kind": "object", "model": "demo"}),
    ],
)  # fmt: skip
def test_the_written_preset_gives_the_very_same_concept(tmp_path, name, options):
    file = tmp_path / "p.toml"
    said = run("concepts", "new", name, *(part for key, value in options.items() for part in (f"--{key}", value)), "-o", file).stdout
    model = options.get("model")
    made = concept_of(name, options["kind"], options.get("instead"), model=model)
    read = load_presets(file)[name]
    # The order counts too: what is collected is looked for by it.
    assert read == made and list(read.compared) == list(made.compared) and list(read.tested) == list(made.tested)
    assert f"prompts    {name}: {len(made.prompts)} to collect with, {len(made.test_prompts)} to judge with" in said
    by_words, by_file = plan([name], **options), plan([name], preset_files=file)
    assert by_words.wishes == by_file.wishes and by_words.concepts == by_file.concepts
    refused("exists", "concepts", "new", name, "--kind", "text", "--output", file)
    assert load_presets(file)[name] == made
    run("concepts", "new", name, "--kind", "text", "--output", file, "--overwrite")
    assert load_presets(file)[name].kind == "text"
    refused("has a preset", "select", "--preset-file", file, "--concepts", name, "--kind", "text")


def test_the_list_stays_and_knows_the_written_preset(tmp_path):
    run("concepts", "new", "Fog", "--kind", "style", "--output", tmp_path / "p.toml")
    rows = json.loads(run("concepts", "--preset-file", tmp_path / "p.toml", "--json").stdout)
    assert [r["status"] for r in rows if r["domain"] == "words:Fog"] == ["untuned"] and len(rows) > 80


def test_a_phrase_that_the_text_encoder_cuts_is_refused_before_anything_is_made(tmp_path):
    phrase, tokens, long = "a very long phrase of many words", 24, "one two three four five six seven eight"
    for options in (
        ["export", "--format", "checkpoint", "--output", tmp_path / "out"], ["export", "--dry-run", "--output", tmp_path / "out"], ["select"],
        ["collect", "--output", tmp_path / "out"], ["collect", "--dry-run", "--output", tmp_path / "out"],
    ):  # fmt: skip
        refused(f"reads {tokens} (both with start and end)", *options, "--concepts", phrase, "--kind", "text", "--model", "demo")
    export = ["export", "--output", tmp_path / "out", "--concepts"]
    refused("--proof-prompt: the prompt 'one two three", *export, "Neon", "--proof-prompt", long)
    (tmp_path / "p.toml").write_text(
        '[[concepts]]\nname = "X"\nmodel = "demo"\ndomain = "d"\nsae = "demo:saes"\nhookpoint = "up_blocks.1.attentions.1"\nselect = "count:1"\n'
        'multiplier = -1.0\nprompts = ["a"]\n[[contrast]]\nname = "c"\ndomain = "d"\nprompts = ["b"]\n'
        f'test_prompts = ["{long}"]\n'
    )
    refused("concept 'X', 'c': the prompt 'one two", *export, "X", "--preset-file", tmp_path / "p.toml")
    assert [p.name for p in tmp_path.iterdir()] == ["p.toml"]


def test_a_settings_file_with_contrast_sets_says_all_of_a_concept(tmp_path):
    made = concept_of("Fog", "style")
    tables = {
        "name": "Fog",
        "domain": "d",
        "kind": "style",
        "model": "a/b",
        "sae": "c/d",
        "hookpoint": "x",
        "prompts": ["fog"],
        "test_prompts": ["the fog"],
    }
    text = "[[concepts]]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in tables.items())
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(SaeuronError, match="concept 'Fog' is not known"):
        plan((), settings=tmp_path / "s.toml")
    (tmp_path / "s.toml").write_text(f'{text}[[contrast]]\nname = "no"\ndomain = "d"\nprompts = ["rain"]\n')
    found = plan((), settings=tmp_path / "s.toml").concepts["Fog"]
    assert found.compared == {"Fog": ("fog",), "no": ("rain",)} and found.tested == {"Fog": ("the fog",), "no": ()}
    assert found.contrast_sets == ("no",) and found.kind == made.kind
    (tmp_path / "s.toml").write_text(f'{text}[[contrast]]\nname = "no"\ndomain = "d"\nprompts = ["The fog"]\n')
    with pytest.raises(SaeuronError, match="in the prompts of 'no' and in the test_prompts of 'Fog'"):
        plan((), settings=tmp_path / "s.toml")
    (tmp_path / "s.toml").write_text(f"{text}[contrast]\nx = 1\n")
    with pytest.raises(SaeuronError, match=r"\[\[contrast\]\] tables"):
        plan((), settings=tmp_path / "s.toml")


@pytest.mark.slow
def test_a_made_up_concept_runs_whole_from_its_words(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEURON_CACHE", str(tmp_path / "cache"))
    words = ["--concepts", "Pine tree", "--kind", "object", "--instead", "House", "--model", "demo"]
    made = concept_of("Pine tree", "object", "House", model="demo")
    result = run("export", *words, "--format", "checkpoint", "--proof", "short", "--output", tmp_path / "out", "--json")
    assert json.loads(result.stdout)["proven"] and "collecting activations of words:Pine tree: 72 of 72 prompts" in result.stderr
    assert read_concepts(tmp_path / "out") == {"Pine tree": prompts_of(made)}
    # The same words again, collected by now; and what `select` writes of them.
    run("select", *words, "--output", tmp_path / "s.toml")
    assert len(tomllib.loads((tmp_path / "s.toml").read_text())["contrast"]) == 2
    again = [
        json.loads(run("export", *options, "--output", tmp_path / "again", "--dry-run", "--json").stdout)
        for options in (words, ["--settings", tmp_path / "s.toml"])
    ]
    assert again[0]["features"] == again[1]["features"] and "to_collect" not in again[0]
    assert resolve(Settings(output="x", settings=tmp_path / "s.toml")).concepts["Pine tree"] == made
