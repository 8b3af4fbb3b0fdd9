"""`edit/concepts.json`: the prompts that an artifact keeps."""

import json

import pytest

from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.features.concepts import presets
from saeuron.editor.features.prompt_sets import prompts_of
from saeuron.validation.artifact.concepts import NAME, read_concepts, write_concepts


@pytest.fixture
def root(tmp_path):
    (tmp_path / "edit").mkdir()
    known = presets()
    write_concepts(tmp_path, {name: prompts_of(known[name]) for name in ("nudity", "Neon")})
    return tmp_path


def test_what_is_written_is_read(root):
    known = presets()
    found = read_concepts(root)
    assert found == {name: prompts_of(known[name]) for name in ("nudity", "Neon")}
    assert found["nudity"].kind == "nudity" and not found["nudity"].contrast["clothed people"].concept
    assert found["Neon"].contrast["Sepia"].concept


def test_no_prompts_no_file(tmp_path):
    write_concepts(tmp_path, {})
    assert list(tmp_path.iterdir()) == [] and read_concepts(tmp_path) == {}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.update(format="x"), "format 'x' is not known"), (lambda c: c.pop("concepts"), "'concepts' is missing"),
        (lambda c: c["concepts"]["Neon"].update(kind="thing"), "kind 'thing'"), (lambda c: c["concepts"]["Neon"].update(name="Sepia"), "says that it is 'Sepia'"),
        (lambda c: c["concepts"]["Neon"].update(prompts="a"), "'concepts.*.prompts' must be"), (lambda c: c["concepts"]["Neon"].pop("contrast"), "is missing"),
    ],
)  # fmt: skip
def test_another_file_is_refused(root, change, said):
    content = json.loads((root / NAME).read_text())
    change(content)
    (root / NAME).write_text(json.dumps(content))
    with pytest.raises(SaeuronError) as refused:
        read_concepts(root)
    assert said in str(refused.value) and "\n" not in str(refused.value)
