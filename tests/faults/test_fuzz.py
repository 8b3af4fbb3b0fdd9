"""A few hundred damaged files for every reader, new ones each day; and paths that would leave their folder."""

import datetime
import json
import os
import pickle

import pytest
from tests.faults.fuzzing import run
from tests.faults.readers import _artifact, readers

from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.common.files import open_safetensors, parse_json, read_header, read_json
from saeuron.editor.features.activations import ConceptActivations
from saeuron.export.commands.console import escaped
from saeuron.validation.artifact import contents, manifest
from saeuron.validation.artifact.golden import Golden

SEED = datetime.date.today().toordinal()


@pytest.mark.parametrize("one", readers(), ids=lambda one: one.name.replace(" ", "-"))
def test_a_reader_refuses_in_one_line_or_reads(one):
    found = run(one, int(200 * min(one.share, 1)), SEED)
    assert not found.faults, f"seed {SEED}: {found.faults}"
    assert found.refused > 10 and found.accepted + found.refused == found.inputs, f"seed {SEED}"


def test_the_harness_sees_what_is_wrong():
    """A check that can't fail is none."""
    from tests.faults.mutations import raw
    from tests.faults.readers import Reader

    def reads(folder):
        content = (folder / "x").read_bytes()
        if content == b"abc":
            return
        kind = sum(content) % 5
        if kind == 0:
            raise ZeroDivisionError
        if kind == 1:
            os.kill(os.getpid(), 11)
        if kind == 2:
            (folder.parent.parent / "witness").touch()
        if kind == 3:
            (folder.parent.parent / "evil").touch()
        raise SaeuronError("\x1b[2J" if len(content) < 3 else "x")

    found = run(Reader("broken", {"x": raw}, lambda folder: (folder / "x").write_bytes(b"abc"), reads), 60, 0)
    said = " ".join(found.faults)
    for words in ("ZeroDivisionError", "died of signal 11", "code of the file was run", "outside the folder"):
        assert words in said
    assert escaped("\x1b[2J\ud800\n") == "\\x1b[2J\\ud800 "
    assert escaped("[red]x") == "\\[red]x"


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "artifact"
    folder.mkdir()
    _artifact(folder)
    contents.check(folder, manifest.read(folder))
    return folder


def changed(root, change):
    record = json.loads((root / manifest.NAME).read_text())
    change(record)
    (root / manifest.NAME).write_text(json.dumps(record))
    return record


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "..", "", ".", "..\\x", "C:\\x", "C:x", "a\0b", "//server/x"])
def test_no_path_in_a_manifest_leaves_its_folder(root, name):
    (root.parent / "x").write_bytes(b"x")
    changed(root, lambda r: r["files"].update({name: {"sha256": "0", "bytes": 1}}))
    with pytest.raises(SaeuronError, match="outside the artifact"):
        contents.check(root, manifest.read(root))


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", ".hidden", "a\\b", "a\0", ""])
def test_no_name_of_engines_leads_elsewhere(root, name):
    changed(root, lambda r: r["engines"].update({name: r["engines"].pop("rtx-sm86")}))
    with pytest.raises(SaeuronError, match="is no plain name"):
        manifest.read(root)


@pytest.mark.parametrize("whole", [True, False])
def test_a_link_that_leads_out_of_an_artifact_is_refused(root, whole):
    """Even where the content is the one on record."""
    name = "unet" if whole else "unet/config.json"
    (root / name).rename(root.parent / "elsewhere")
    (root / name).symlink_to(root.parent / "elsewhere")
    with pytest.raises(SaeuronError, match="outside the artifact|is not on record"):
        contents.check(root, manifest.read(root))


def test_the_links_of_a_downloads_cache_are_followed(root, tmp_path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "1"
    snapshot.parent.mkdir(parents=True)
    root.rename(snapshot)
    (tmp_path / "models--a--b" / "blobs").mkdir()
    for number, path in enumerate([p for p in snapshot.rglob("*") if p.is_file()]):
        blob = tmp_path / "models--a--b" / "blobs" / str(number)
        path.rename(blob)
        path.symlink_to(os.path.relpath(blob, path.parent))
    contents.check(snapshot, manifest.read(snapshot))
    (snapshot / "unet" / "config.json").unlink()
    (snapshot / "unet" / "config.json").symlink_to("/etc/passwd")
    with pytest.raises(SaeuronError, match="outside the artifact"):
        contents.check(snapshot, manifest.read(snapshot))


def test_a_component_of_golden_vectors_is_a_plain_name(root):
    path = root / "edit" / "golden.safetensors"
    golden = Golden.load(path)
    golden.weights["../../x"] = golden.weights["unet"]
    golden.save(path)
    with pytest.raises(SaeuronError, match="a component of the name"):
        Golden.load(path)


def test_external_data_of_a_graph_may_not_lie_elsewhere(tmp_path):
    import numpy as np
    import onnx
    from onnx import TensorProto, helper

    from saeuron.validation.artifact.weights import _used
    from saeuron.validation.backends.sessions import open_session

    (tmp_path / "secret").write_bytes(np.ones(4, np.float32).tobytes())
    (tmp_path / "a").mkdir()
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "../secret"), ("offset", "0"), ("length", "16")):
        weight.external_data.add(key=key, value=value)
    known, made = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [4]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [known], [made], [weight])
    (tmp_path / "a" / "model.onnx").write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()
    )
    for read in (open_session, lambda path: list(_used(path))):
        with pytest.raises(SaeuronError, match="escapes|outside"):
            read(tmp_path / "a" / "model.onnx")
    # The same graph with its weight beside it is read: what was refused is the place.
    weight.external_data[0].value = "secret"
    (tmp_path / "a" / "secret").write_bytes((tmp_path / "secret").read_bytes())
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [known], [made], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "a" / "model.onnx")
    assert open_session(tmp_path / "a" / "model.onnx").run(["y"], {"x": np.zeros(4, np.float32)})[0].tolist() == [1.0] * 4


@pytest.mark.parametrize("header", [
    {"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}, {"a": {"dtype": "F32", "shape": [2**63, 2**63], "data_offsets": [0, 4]}},
    {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}},
    {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
])  # fmt: skip
def test_a_hostile_header_is_refused_before_anything_is_allocated(tmp_path, header):
    text = json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    for read in (read_header, open_safetensors):
        with pytest.raises(SaeuronError, match="no whole safetensors file"):
            read(path)


def test_a_header_of_gigabytes_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write((2**30).to_bytes(8, "little"))
        file.truncate(2**31)  # sparse: it takes no room
    with pytest.raises(SaeuronError, match="header is larger"):
        read_header(path)
    with (tmp_path / "x.json").open("wb") as file:
        file.truncate(2**31)
    with pytest.raises(SaeuronError, match="larger than 16 MiB"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', "[" * 10**5, '{"a": ' + "9" * 5000 + "}", '"\\ud800"', '{"\\udc00": 1}', "{", ""])
def test_json_that_readers_take_differently_is_none(text):
    with pytest.raises(ValueError):
        parse_json(text)


def test_a_pickle_of_a_zip_runs_nothing(tmp_path):
    import zipfile

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'was-here'}",)

    with zipfile.ZipFile(tmp_path / "a.pth", "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps({"A": Evil()}, protocol=2))
        file.writestr("archive/version", "3\n")
        file.writestr("../../evil", "x")
    with pytest.raises(SaeuronError, match="neither .safetensors nor a pickle of plain tensors"):
        ConceptActivations.load(tmp_path / "a.pth")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pth"] and not (tmp_path.parent.parent / "evil").exists()
