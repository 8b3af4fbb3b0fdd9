"""Files that others wrote."""

import pytest

from saeuron.editor.common.errors import SaeuronError, first_line
from saeuron.editor.common.files import read_json
from saeuron.editor.features.concepts import load_presets
from saeuron.editor.features.prompt_sets import lines_of
from saeuron.export.plan.resolve import _with_file
from saeuron.export.plan.settings import Settings
from saeuron.validation.attack.run import _lines
from saeuron.validation.evidence.prompt_file import read_prompts
from saeuron.validation.judges.onnx_graphs import _label_lines


def _settings(path):
    return _with_file(Settings(("A",), path.with_name("out"), settings=path))


@pytest.mark.parametrize("reader", [load_presets, lines_of, _lines, _label_lines, _settings, lambda p: read_prompts(p, 1, 3.0)])
def test_lfs_pointers_are_no_text(tmp_path, reader):
    path = tmp_path / "a.txt"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(SaeuronError, match="Git LFS pointer"):
        reader(path)


def test_a_byte_order_mark_is_called_that(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf{}")
    with pytest.raises(SaeuronError, match="byte order mark; save it as UTF-8 without one$"):
        read_json(tmp_path / "a.json")


def test_an_empty_file_is_called_that():
    assert first_line(EOFError()) == "it is empty, or ends too early"
