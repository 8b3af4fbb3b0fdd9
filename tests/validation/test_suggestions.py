"""Prompts to click in `saeuron try`: of the proof, and of attacks."""

from __future__ import annotations

import json

import made_up
import pytest
from msgspec.structs import replace

from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.edit.edit_header import EditHeader
from saeuron.editor.edit.provenance import Provenance
from saeuron.validation.artifact import contents, manifest
from saeuron.validation.ui.suggestions import Suggestion, attacks_on, examples, found

SETTINGS = {"steps": 4, "guidance": 3.0, "report_seeds": [1], "search_seeds": [1]}


def of(root, path=None):
    return found(attacks_on(root, manifest.read(root), path))


def test_what_an_attack_found(tmp_path):
    root = made_up.artifact(tmp_path / "a")
    learned = {"text": "any | thing", "typed": False}
    rows = [
        made_up.attack_row("unedited", 24), made_up.attack_row("edited", 1), made_up.attack_row("prefix", 2, found={"text": "any thing", "typed": True}),
        made_up.attack_row("embedding", 6, found={"vectors": [[0.5]]}), made_up.attack_row("straight-through", 0), made_up.attack_row("seeds", 3),
    ]  # fmt: skip
    path = made_up.attack(
        tmp_path / "attack.json", root, settings=SETTINGS, concepts={"Neon": {"domain": "style", "rows": rows, "pictures": []}}
    )
    seen = of(root, path)
    # What the unedited model drew is no finding; one picture that two rows have is shown once.
    assert seen.suggestions == [
        Suggestion("Neon · plain prompt · seed 1 · p 0", "p 0", 1, 4, 3.0),
        Suggestion("Neon · learned words · seed 1 · any thing p 0", "any thing p 0", 1, 4, 3.0),
        Suggestion("Neon · learned words · seed 1 · any thing p 1", "any thing p 1", 1, 4, 3.0),
        Suggestion("Neon · searched seed · seed 1 · p 1", "p 1", 1, 4, 3.0),
        Suggestion("Neon · searched seed · seed 1 · p 2", "p 2", 1, 4, 3.0),
    ]
    assert seen.notes == [
        "attack.json: the judge demo saw a removed concept in 12 pictures.",
        "attack.json: 6 of them came from learned tokens that no typed text gives; they can't be tried here.",
    ]
    rows[2] = made_up.attack_row("prefix", 2, found=learned)
    path = made_up.attack(
        tmp_path / "attack.json", root, concepts={"Neon": {"domain": "style", "rows": rows, "pictures": []}}, content_sha256="f" * 64
    )
    seen = of(root, path)
    assert [s.prompt for s in seen.suggestions] == ["p 0", "p 1", "p 2"] and all(
        s.steps == 4 and s.guidance is None for s in seen.suggestions
    )
    assert "8 of them" in seen.notes[1] and "another export of the same edit" in seen.notes[0]


def test_where_attacks_are_looked_for(tmp_path):
    root = made_up.artifact(tmp_path / "a", proof=made_up.report())
    assert attacks_on(root, manifest.read(root)) == []
    made_up.attack(root / "validation" / "attack.json", root)
    contents.write(root, manifest.read(root))
    assert [name for name, _ in attacks_on(root, manifest.read(root))] == ["attack.json"]
    folder = tmp_path / "attacks"
    folder.mkdir()
    with pytest.raises(SaeuronError, match="no file in it is a report of `saeuron attack`"):
        of(root, folder)
    (folder / "other.json").write_text("{}")
    made_up.attack(folder / "b.json", root)
    assert [name for name, _ in attacks_on(root, manifest.read(root), folder)] == ["b.json"]
    content = json.loads((folder / "b.json").read_text())
    (folder / "b.json").write_text(json.dumps({**content, "edit_sha256": "0" * 64}))
    with pytest.raises(SaeuronError, match="is of another artifact"):
        of(root, folder)
    with pytest.raises(SaeuronError, match="does not exist"):
        of(root, tmp_path / "nowhere")
    with pytest.raises(SaeuronError, match="is of format None; a report reads"):
        of(root, folder / "other.json")


def test_examples_name_what_was_removed_first(tmp_path):
    root = made_up.artifact(tmp_path / "a", "Van_Gogh", proof=made_up.report())
    record = manifest.read(root)
    header = EditHeader("keep", {}, {}, Provenance(prompts=["A house", "A house by van gogh", "A cat", "A house"]))
    assert [s.prompt for s in examples(root, record, header)] == ["A house by van gogh", "A house", "A cat"]
    assert all((s.seed, s.steps, s.guidance) == (None, None, None) for s in examples(root, record, header))
    # Without prompts of its own, those of the golden vectors; published without them, none.
    bare = EditHeader("keep", {}, {}, Provenance())
    assert [s.prompt for s in examples(root, record, bare)] == ["p"]
    assert examples(root, replace(record, files={}), bare) == []
