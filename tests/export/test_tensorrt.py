"""Real engines for RTX GPUs, built without one; and the device's side on a stand-in."""

import json
import shutil

import onnx
import pytest
import torch
from msgspec.structs import replace
from tests.conftest import HOOKPOINT, make_sae, make_unet, refused, run
from tests.export.tensorrt_operators import SUPPORTED

from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.common.files import file_sha256
from saeuron.editor.common.names import dtype_of
from saeuron.editor.edit.bake import bake
from saeuron.export.formats import tensorrt
from saeuron.export.formats.engine_worker import build
from saeuron.export.formats.onnx import denoiser_component
from saeuron.export.formats.onnx import write as write_graph
from saeuron.export.formats.tensorrt import EngineSettings, Shapes, axes, check_precision, write
from saeuron.export.plan.resolve import resolve
from saeuron.export.plan.settings import Settings
from saeuron.export.ship.artifact import make_artifact
from saeuron.validation.artifact import contents, engines, manifest
from saeuron.validation.artifact.engines import Target

rtx = pytest.mark.usefixtures("rtx_library")


@pytest.fixture(scope="module")
def rtx_library():
    pytest.importorskip("tensorrt_rtx", reason="no tensorrt-rtx for this platform")


@pytest.fixture(scope="module")
def graphs(demo_artifact, tmp_path_factory):
    """The demo's artifact to add engines to."""
    folder = tmp_path_factory.mktemp("graphs") / "artifact"
    shutil.copytree(demo_artifact.path, folder)
    return folder


def operators(path):
    """Operators of a graph, those inside of branches included."""

    def inside(graph):
        for node in graph.node:
            yield node.op_type
            for attribute in node.attribute:
                for below in (attribute.g, *attribute.graphs):
                    yield from inside(below)

    return set(inside(onnx.load(path, load_external_data=False).graph))


def test_every_operator_of_the_exported_graphs_is_one_that_tensorrt_has(demo_artifact, xl_artifact):
    for artifact in (demo_artifact, xl_artifact):
        for path in artifact.path.glob("*/model.onnx"):
            assert not operators(path) - SUPPORTED, path


@pytest.mark.slow
@rtx
def test_build_adds_engines_to_an_artifact_and_leaves_the_rest_as_it_was(graphs):
    before = manifest.read(graphs)
    said = run("build", graphs, "--target", "rtx:sm89,sm86").stdout
    assert f"built, not yet run on a GPU; prove it there: saeuron validate {graphs} --backend trt-rtx" in said
    record = manifest.read(graphs)
    contents.check(graphs, record)
    assert record.formats == ["checkpoint", "onnx", "trt-rtx"]
    entry = record.engines["rtx-sm86-sm89"]
    assert entry.status == engines.NOT_RUN and entry.sms == ["sm86", "sm89"] and entry.precision == "fp32"
    assert list(entry.components) == ["text_encoder", "vae_decoder", "unet"]
    for name, part in entry.components.items():
        file = f"tensorrt/rtx-sm86-sm89/{name}.engine"
        assert record.files[file].bytes == part.bytes > 10_000 and set(part.types.get("convolution", {"FLOAT": 1})) == {"FLOAT"}
        assert part.onnx == {f: before.files[f].sha256 for f in part.onnx} and part.onnx
    assert entry.components["unet"].shapes["sample"] == [[2, 8, 8, 8]] * 3, "one picture, doubled by guidance"
    same = {n: e for n, e in record.files.items() if not n.startswith("tensorrt/") and n != "README.md"}
    assert same == {n: e for n, e in before.files.items() if n != "README.md"}
    assert "TensorRT engines lie in" in (graphs / "README.md").read_text()
    refused("--overwrite replaces them", "build", graphs, "--target", "rtx:sm86,sm89")


@pytest.mark.slow
@rtx
def test_sizes_may_vary_within_what_was_asked_for(graphs):
    made = json.loads(
        run("build", graphs, "--target", "rtx:sm120", "--shapes", "batch=1:2:4,height=32:32:48", "--optimization-level", 1, "--json").stdout
    )
    shapes = made["engines"]["rtx-sm120"]["components"]["unet"]["shapes"]
    assert shapes["sample"] == [[2, 8, 8, 8], [4, 8, 8, 8], [8, 8, 12, 8]] and shapes["timestep"] == [[], [], []]
    assert made["engines"]["rtx-sm120"]["components"]["vae_decoder"]["shapes"]["latent_sample"][2] == [4, 8, 12, 8]
    assert {"rtx-sm120", *json.loads((graphs / "saeuron.json").read_text())["engines"]} >= {"rtx-sm120"}
    contents.check(graphs, manifest.read(graphs))


@pytest.mark.slow
@rtx
@pytest.mark.parametrize(("gate", "precision", "types"), [("exact", "fp16", "HALF"), ("threshold", "bf16", "BF16")])
def test_every_gate_and_precision_becomes_an_engine(edit, tmp_path, gate, precision, types):
    baked = bake(make_unet().to(dtype_of(precision)), edit, {HOOKPOINT: make_sae()}, gate)
    write_graph(denoiser_component(baked, 6), tmp_path)
    assert not operators(tmp_path / "unet" / "model.onnx") - SUPPORTED
    sizes = {"batch_size": [2, 2, 2], "latent_height": [8, 8, 8], "latent_width": [8, 8, 8], "sequence_length": [6, 6, 6]}
    job = {
        "backend": "trt-rtx", "sms": ["sm86"], "graph": str(tmp_path / "unet" / "model.onnx"), "engine": str(tmp_path / "unet.engine"), "axes": sizes,
        "precision": precision, "options": {},
    }  # fmt: skip
    heard: list[str] = []
    made = build(job, heard.append)
    assert set(made["types"]["convolution"]) == {types} and (tmp_path / "unet.engine").stat().st_size == made["bytes"] > 10_000
    assert heard, "the builder says how far it is"


@pytest.mark.slow
@rtx
@pytest.mark.parametrize(
    ("intervention", "told", "precision"),
    [
        ("probe", {}, "fp16"),
        ("replace", {}, "fp16"),
        ("replace", {"replace_by": "mean", "spread": 1}, "fp16"),
        ("replace", {"replace_by": "mean", "spread": 1}, "fp32"),
        ("multiply", {"gain": "token"}, "fp16"),
        ("project", {"norm": "kept"}, "fp16"),
    ],
)
def test_every_intervention_becomes_an_engine(intervention, told, precision, tmp_path):
    """Of the demo, for a GPU that isn't here: built, and never run."""
    settings = Settings(
        ("Star",), tmp_path / "out", intervention=intervention, **told, formats=("onnx",), precision=precision, validate=False, steps=4
    )
    root = make_artifact(resolve(settings)).path
    assert not operators(root / "unet" / "model.onnx") - SUPPORTED
    run("build", root, "--target", "rtx:sm89", "--optimization-level", 1)
    entry = manifest.read(root).engines["rtx-sm89"]
    contents.check(root, manifest.read(root))
    assert entry.status == engines.NOT_RUN and entry.sms == ["sm89"] and entry.precision == precision
    unet = entry.components["unet"]
    assert set(unet.types["convolution"]) == {"FLOAT" if precision == "fp32" else "HALF"} and unet.bytes > 10_000


@pytest.mark.slow
@rtx
def test_the_main_job_builds_what_it_proved_and_says_that_no_gpu_has_run_it(tiny, tmp_path):
    options = [
        "export", "--concepts", "A", "--model", tiny["model"], "--sae", tiny["sae"], "--activations", tiny["activations"], "--hookpoint",
        HOOKPOINT, "--select", "count:20", "--multiplier", "-3", "--steps", 2, "--format", "trt", "--target", "rtx:sm86,sm89",
        "--precision", "fp32", "--proof", "short", "--output", tmp_path / "out",
    ]  # fmt: skip
    said = run(*options)
    assert "proven equal to the dynamic hook" in said.stdout and "built, not yet run on a GPU" in said.stdout
    record = manifest.read(tmp_path / "out")
    contents.check(tmp_path / "out", record)
    assert record.validation.passed and record.engines["rtx-sm86-sm89"].status == engines.NOT_RUN
    assert list(json.loads((tmp_path / "out" / "validation" / "report.json").read_text())["backends"]) == ["onnx"]
    planned = json.loads(run(*options, "--overwrite", "--dry-run", "--json").stdout)
    written = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert planned["targets"] == ["rtx:sm86,sm89"] and {f for f in written if f.startswith("tensorrt/")} <= set(planned["files"])


@rtx
def test_what_cannot_be_built_is_one_line_and_leaves_nothing(graphs, tiny):
    files = {p: file_sha256(p) for p in graphs.rglob("*") if p.is_file()}
    refused("sm75 computes in fp16 only", "build", graphs, "--target", "rtx:sm75")
    refused("too large for TensorRT", "build", graphs, "--target", "rtx:sm80", "--shapes", "height=65536,width=65536")
    refused("multiples of 16", "build", graphs, "--target", "rtx:sm80", "--shapes", "height=33")
    refused("must ascend", "build", graphs, "--target", "rtx:sm80", "--shapes", "batch=3:2:1")
    refused("'depth=3' is not one of", "build", graphs, "--target", "rtx:sm80", "--shapes", "depth=3")
    refused("neither batch=N", "build", graphs, "--target", "rtx:sm80", "--shapes", "batch=1:2")
    refused("is not known", "build", graphs, "--target", "rtx:sm90")
    refused("named twice", "build", graphs, "--target", "rtx:sm80", "--target", "rtx:sm80")
    refused("are for --target local", "build", graphs, "--target", "rtx:sm80", "--version-compatible")
    refused("--optimization-level is 6; it must be 0 to 5", "build", graphs, "--target", "rtx:sm80", "--optimization-level", 6)
    refused("is no artifact", "build", tiny["model"], "--target", "rtx:sm80")
    assert files == {p: file_sha256(p) for p in graphs.rglob("*") if p.is_file()}


@rtx
def test_a_graph_that_does_not_parse_is_named(demo_artifact, tmp_path):
    copy = tmp_path / "artifact"
    shutil.copytree(demo_artifact.path, copy)
    (copy / "unet" / "model.onnx").write_bytes(b"\x08\x07no graph")
    refused("is not the file that was written", "build", copy, "--target", "rtx:sm80")
    record = replace(manifest.read(copy), files={})
    with pytest.raises(SaeuronError, match="engine of unet: .* can't be parsed"):
        write(copy, record, EngineSettings((Target("trt-rtx", ("sm80",)),)), (Target("trt-rtx", ("sm80",)),))
    assert not (copy / "tensorrt").exists() and not list(copy.glob(".saeuron-build-*"))


@rtx
def test_all_targets_are_put_in_place_or_none(demo_artifact, tmp_path, monkeypatch):
    copy = tmp_path / "artifact"
    shutil.copytree(demo_artifact.path, copy)
    built = []

    def once(job, say):
        built.append(job["sms"])
        if len(built) > 3:
            raise SaeuronError("the second target fails")
        return {"shapes": {}, "types": {}, "bytes": 1, "seconds": 1.0, "peak_bytes": None}

    monkeypatch.setattr(tensorrt, "run_worker", once)
    refused("the second target fails", "build", copy, "--target", "rtx:sm80", "--target", "rtx:sm86")
    assert built[0] != built[-1] and not (copy / "tensorrt").exists()
    contents.check(copy, manifest.read(copy))


@rtx
def test_types_other_than_asked_for_stop_the_build(graphs, tmp_path):
    copy = tmp_path / "artifact"
    shutil.copytree(graphs, copy, ignore=shutil.ignore_patterns("tensorrt"))
    record = replace(manifest.read(graphs), precision="fp16")
    with pytest.raises(SaeuronError, match="it computes in FLOAT, not in fp16 as asked"):
        write(copy, record, EngineSettings(), (Target("trt-rtx"),))


def test_local_without_a_gpu_says_what_to_do(graphs):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    refused("or name RTX architectures", "build", graphs, "--target", "local")


def test_options_of_engines_without_engines_are_refused(tmp_path):
    for options in (
        ["--target", "rtx"],
        ["--shapes", "batch=2"],
        ["--optimization-level", 3],
        ["--hardware-compatible"],
        ["--version-compatible"],
    ):
        refused("add --format trt", "export", "--concepts", "Neon", "--output", tmp_path / "x", *options)
    refused("sm75 computes in fp16 only", "export", "--concepts", "Neon", "--output", tmp_path / "x", "--format", "trt", "--target", "rtx:sm75", "--precision", "fp32")  # fmt: skip
    refused("or --no-validate", "export", "--concepts", "Neon", "--output", tmp_path / "x", "--format", "trt", "--precision", "bf16")
    assert resolve(Settings(("Neon",), tmp_path / "x", ("tensorrt",))).settings.formats == ("onnx", "trt")
    assert resolve(Settings(("Neon",), tmp_path / "x", ("trt",))).settings.precision == "fp16"
    assert resolve(Settings(("Neon",), tmp_path / "x")).settings.precision == "fp32"
    check_precision([Target.parse("rtx:sm75")], "fp16")


def test_axes_are_counted_in_pictures_and_pixels(graphs):
    sampling = manifest.read(graphs).sampling
    wanted = Shapes.parse("batch=1:2:3,width=64")
    assert axes(graphs, sampling, wanted, "unet")["batch_size"] == (2, 4, 6)
    assert axes(graphs, sampling, wanted, "vae_decoder")["batch_size"] == (1, 2, 3)
    assert axes(graphs, sampling, wanted, "unet")["latent_width"] == (16, 16, 16) and axes(graphs, sampling, wanted, "unet")[
        "latent_height"
    ] == (8, 8, 8)
    single = replace(sampling, guidance=1.0)
    assert axes(graphs, single, wanted, "unet")["batch_size"] == (1, 2, 3)


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("", []),
        ("batch=1:1:2", []),
        ("batch=1:1:3", [(2, 64, 64)]),
        ("batch=1:3:7,height=64:96:160", [(2, 64, 64), (5, 128, 64)]),
        ("height=64:64:256,width=64:128:128", [(1, 64, 96), (1, 160, 128)]),
    ],
)
def test_sizes_between_a_profiles_points(tiny, text, sizes):
    """Of the tiny model, whose sides are multiples of 32 pixels or fewer: each size lies strictly between two points on some axis."""
    from saeuron.editor.denoisers.families import sizes_in

    unit = sizes_in(tiny["model"]).multiple
    found = tensorrt.between(tiny["model"], 64, 64, tensorrt.Shapes.parse(text))
    assert all(side % unit == 0 for size in found for side in size[1:])
    assert len(found) == len(sizes) and [f[0] for f in found] == [s[0] for s in sizes]
