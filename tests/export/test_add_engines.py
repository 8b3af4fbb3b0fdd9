"""Adding engines to an artifact: all or nothing, one build at a time, and whatever is damaged can be replaced. The builder is stood in for."""

import json
import os
import shutil
from pathlib import Path

import pytest
from tests.conftest import refused, run

from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.common.writing import locked
from saeuron.export.formats import tensorrt
from saeuron.export.formats.tensorrt import EngineSettings
from saeuron.export.ship.add_engines import add_engines
from saeuron.validation.artifact import contents, manifest
from saeuron.validation.artifact.engines import Target

pytestmark = pytest.mark.slow

SETTINGS = EngineSettings()
A, B = Target("trt-rtx", ("sm80",)), Target("trt-rtx", ("sm86",))


@pytest.fixture
def root(demo_artifact, tmp_path, monkeypatch):
    folder = tmp_path / "artifact"
    shutil.copytree(demo_artifact.path, folder)

    def built(job, say):
        Path(job["engine"]).write_bytes(os.urandom(8))
        return {"shapes": {}, "types": {}, "bytes": 8, "seconds": 1.0, "peak_bytes": None}

    monkeypatch.setattr(tensorrt, "run_worker", built)
    monkeypatch.setattr(tensorrt, "tensorrt_module", lambda backend: type("Library", (), {"__version__": "1.7"}))
    return folder


def whole(root):
    record = manifest.read(root)
    contents.check(root, record)
    return record


def test_a_second_target_leaves_the_first(root):
    add_engines(root, SETTINGS, [A])
    before = whole(root)
    after, names = add_engines(root, SETTINGS, [B])
    assert names == ["rtx-sm86"] and whole(root) == after and set(after.engines) == {"rtx-sm80", "rtx-sm86"}
    assert after.engines["rtx-sm80"] == before.engines["rtx-sm80"] and after.engines["rtx-sm86"].built


def test_one_build_at_a_time(root):
    with locked(root, "another build is writing into it"), pytest.raises(SaeuronError, match="another build is writing into"):
        add_engines(root, SETTINGS, [A])
    add_engines(root, SETTINGS, [A])
    whole(root)


@pytest.mark.parametrize("failing", range(5))
def test_a_switch_that_fails_is_taken_back(root, monkeypatch, failing):
    add_engines(root, SETTINGS, [A])
    before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    rename, calls = os.rename, []

    def fails(old, new):
        calls.append(new)
        if len(calls) == failing + 1:
            raise OSError(28, "No space left on device", str(new))
        rename(old, new)

    with monkeypatch.context() as patch:
        patch.setattr("saeuron.export.ship.switch.exchange", lambda *_: False)
        patch.setattr("saeuron.export.ship.switch.os.rename", fails)
        if failing == 4:
            patch.setattr("saeuron.export.ship.switch.os.replace", lambda *_: fails("", root / "x"))
        with pytest.raises(SaeuronError, match="No space left"):
            add_engines(root, SETTINGS, [A], overwrite=True)
    assert {p: p.read_bytes() for p in root.rglob("*") if p.is_file()} == before
    whole(root)


def damage(root):
    (root / "tensorrt" / "rtx-sm80" / "unet.engine").write_bytes(b"x")


def lose(root):
    shutil.rmtree(root / "tensorrt")


def forget(root):
    record = json.loads((root / manifest.NAME).read_text())
    record["engines"] = {}
    record["files"] = {n: e for n, e in record["files"].items() if not n.startswith("tensorrt/")}
    (root / manifest.NAME).write_text(json.dumps(record))


def mistype(root):
    record = json.loads((root / manifest.NAME).read_text())
    record["engines"]["rtx-sm80"] = 3
    (root / manifest.NAME).write_text(json.dumps(record))


def other_card(root):
    (root / "README.md").write_text("of a build that was killed")


@pytest.mark.parametrize("spoil", [damage, lose, forget, mistype, other_card])
def test_what_is_damaged_can_be_replaced(root, spoil):
    add_engines(root, SETTINGS, [A])
    spoil(root)
    with pytest.raises(SaeuronError):
        whole(root)
    with pytest.raises(SaeuronError, match="--overwrite replaces them"):
        add_engines(root, SETTINGS, [A])
    add_engines(root, SETTINGS, [A], overwrite=True)
    assert set(whole(root).engines) == {"rtx-sm80"}


def test_a_link_of_a_cache_is_replaced_not_written_through(root, tmp_path):
    blobs = tmp_path / "models--me--x" / "blobs"
    blobs.mkdir(parents=True)
    (blobs.parent / "snapshots").mkdir()
    root = shutil.move(root, blobs.parent / "snapshots" / ("a" * 40))
    for name in ("README.md", manifest.NAME):
        shutil.move(root / name, blobs / name)
        (root / name).symlink_to(blobs / name)
    before = {p.name: p.read_bytes() for p in blobs.iterdir()}
    add_engines(root, SETTINGS, [A])
    assert {p.name: p.read_bytes() for p in blobs.iterdir()} == before and "trt-rtx" in whole(root).formats


def test_sizes_are_refused_before_an_export_begins(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(tensorrt, "tensorrt_module", lambda backend: None)
    options = ("export", "--concepts", "A", "--model", tiny["model"], "--sae", tiny["sae"], "--activations", tiny["activations"], "--hookpoint",
               "up_blocks.0.attentions.1", "--format", "trt", "--output", tmp_path / "out")  # fmt: skip
    for more in ([], ["--dry-run"]):
        for shapes, message in (("height=30", "multiples of 8"), ("batch=999999,height=64,width=64", "too large for TensorRT")):
            refused(message, *options, *more, "--shapes", shapes)
    assert not list(tmp_path.iterdir())


def test_a_dry_run_shows_what_a_graph_has(root):
    said = json.loads(run("build", root, "--target", "rtx:sm86", "--dry-run", "--json").stdout)
    assert set(said["axes"]["text_encoder"]) == {"batch_size"} and set(said["axes"]["vae_decoder"]) == {
        "batch_size",
        "latent_height",
        "latent_width",
    }
    assert "at least" in run("build", root, "--target", "rtx:sm86", "--dry-run").stdout
    refused("multiples of 16", "build", root, "--target", "rtx:sm86", "--shapes", "height=36", "--dry-run")
    refused("--target is empty", "build", root, "--target", "", "--dry-run")


def test_no_picture_is_put_into_an_artifact(root):
    refused("lies inside the artifact", "generate", root, "--prompt", "x", "-o", root / "z.png")
    refused("lies inside the artifact", "generate", root, "--prompt", "x", "-o", root / "unet" / "new" / "z.png")
    whole(root)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampling": None}, "'sampling' must be object, not null"), ({"gate": "wide"}, "'gate' is 'wide', which is none of its values"), ({"precision": "int8"}, "'precision' is 'int8'"),
        ({"files": {"a": {}}}, "'files.*.sha256' is missing"), ({"files": {"a": 3}}, "'files.*' must be object, not int"), ({"onnx": "-"}, "'onnx' is missing"),
        ({"edit": "-"}, "'edit' is missing"), ({"engines": []}, "'engines' must be object, not array"), ({"engines": {"rtx": {}}}, "'engines.*.backend' is missing"),
        ({"formats": [{}]}, "'formats[0]' must be str, not object"),
    ],
)  # fmt: skip
def test_a_manifest_that_lacks_something_is_one_line(root, change, message):
    record = json.loads((root / manifest.NAME).read_text()) | change
    (root / manifest.NAME).write_text(json.dumps({k: v for k, v in record.items() if v != "-"}))
    for command in (("validate", root), ("generate", root, "--prompt", "x", "-o", root.parent / "z.png")):
        refused(message, *command)


def test_a_config_that_lacks_sizes_is_one_line(root):
    (root / "unet" / "config.json").write_text("{}")
    refused("config lacks 'sample_size'", "build", root, "--target", "rtx:sm86", "--dry-run")
