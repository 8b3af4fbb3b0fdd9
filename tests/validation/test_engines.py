"""Engines without a GPU: targets, shapes, rows, conversions, and the runner on a stand-in for TensorRT and CUDA."""

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from tests import made_up
from tests.validation.stand_in import StandInCuda, StandInTensorRT

from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.common.files import file_sha256
from saeuron.editor.common.typed import plain, read_as
from saeuron.validation.artifact import engines, manifest
from saeuron.validation.artifact.engines import Gpu, OutsideShapes, Target, check_shape, runs_on
from saeuron.validation.artifact.golden import Golden
from saeuron.validation.artifact.manifest import Engines
from saeuron.validation.backends import tensorrt_runner
from saeuron.validation.backends.choose import Way, choose_networks
from saeuron.validation.backends.tensorrt_runner import Cuda, TensorRTRunner, from_bf16, in_rows, to_bf16
from saeuron.validation.proof.parity import prove
from saeuron.validation.proof.validate import _outside, _runnable


def test_targets_are_read_and_named():
    assert Target.parse("rtx:sm89, SM86") == Target("trt-rtx", ("sm86", "sm89")) and Target.parse("rtx:sm89,sm86").folder == "rtx-sm86-sm89"
    assert Target.parse("rtx").folder == "rtx" and str(Target.parse("rtx:sm120")) == "rtx:sm120" and Target.parse("local").backend == "trt"
    for text, message in (("gpu", "is not known"), ("rtx:", "names no architecture"), ("rtx:sm90", "'sm90' is not known"), ("local:sm86", "is not known"), ("rtx:sm75,sm86", "alone")):  # fmt: skip
        with pytest.raises(SaeuronError, match=message):
            Target.parse(text)


ENTRY = {
    "backend": "trt-rtx",
    "module": "tensorrt_rtx",
    "version": "1.7.1.116",
    "sms": ["sm86", "sm89"],
    "options": {},
    "precision": "fp32",
    "components": {},
    "status": engines.NOT_RUN,
}


@pytest.mark.parametrize(
    ("entry", "sm", "version", "reason"),
    [
        (ENTRY, "sm86", "1.7.1.116", None),
        (ENTRY, "sm120", "1.7.1.116", "this GPU .* is sm120"),
        (ENTRY, "sm86", "1.8.0.1", "built with tensorrt_rtx 1.7.1.116, here is 1.8.0.1"),
        (ENTRY | {"sms": []}, "sm120", "1.7.1.116", None),
        (ENTRY | {"sms": []}, "sm75", "1.7.1.116", "sm80 and later"),
        (ENTRY | {"backend": "trt", "sms": ["sm90"]}, "sm86", "1.7.1.116", "built for sm90"),
        (ENTRY | {"backend": "trt", "sms": ["sm90"], "options": {"hardware_compatible": True}}, "sm86", "1.7.1.116", None),
        (ENTRY | {"options": {"version_compatible": True}}, "sm86", "1.9.0.1", None),
        (ENTRY | {"options": {"version_compatible": True}}, "sm86", "1.6.0.1", "built with"),
        (ENTRY | {"options": {"version_compatible": True}}, "sm86", "2.0.0", "built with"),
    ],
)
def test_what_runs_where(entry, sm, version, reason):
    import re

    found = runs_on(read_as(Engines, entry, "made up"), Gpu("a GPU", sm), version)
    assert found is None if reason is None else found is not None and re.search(reason, found)


def test_no_gpu_is_one_line():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(SaeuronError, match="no GPU can be used here"):
        engines.gpu()


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 4))
def test_any_number_of_rows_goes_through_an_engine_that_takes_some(count, low, more):
    seen = []

    class Doubling:
        shapes = {"x": [[low, 3], [low, 3], [low + more, 3]], "t": [[], [], []]}

        def __call__(self, inputs):
            check_shape("x", inputs["x"].shape, self.shapes["x"])
            seen.append(len(inputs["x"]))
            return {"y": inputs["x"] * 2 + inputs["t"]}

    x = np.random.default_rng(count).normal(size=(count, 3)).astype(np.float32)
    assert np.array_equal(in_rows(Doubling(), {"x": x, "t": np.float32(1)})["y"], x * 2 + 1)
    assert len(seen) == -(-count // (low + more))


def test_what_is_the_same_for_all_rows_is_not_cut_into_parts():
    """Positions of a FLUX's tokens have a first axis that is no batch."""
    seen = []

    class Placing:
        shapes = {"x": [[2, 3], [2, 3], [2, 3]], "ids": [[5, 3]] * 3}

        def __call__(self, inputs):
            check_shape("x", inputs["x"].shape, self.shapes["x"])
            check_shape("ids", inputs["ids"].shape, self.shapes["ids"])
            seen.append(len(inputs["x"]))
            return {"y": inputs["x"] + inputs["ids"].sum()}

    x, ids = np.ones((3, 3), np.float32), np.ones((5, 3), np.float32)
    assert np.array_equal(in_rows(Placing(), {"x": x, "ids": ids}, ["ids"])["y"], x + 15) and seen == [2, 2]


@pytest.mark.parametrize(
    ("convolutions", "products", "refused"),
    [
        ([], {"HALF": 8, "FLOAT": 1}, False), (["HALF"], {"HALF": 59, "FLOAT": 1}, False), ([], {"HALF": 4, "FLOAT": 4}, True), ([], {"FLOAT": 9}, True),
        (["FLOAT"], {"HALF": 9}, True), (["HALF"], {"FLOAT": 9}, True), ([], {"HALF": 8, "BF16": 1}, True),
    ],
)  # fmt: skip
def test_an_engine_computes_in_what_was_asked_for(convolutions, products, refused):
    """A T5 and an edit keep single products in float32; a network that is half in it is another."""
    from contextlib import nullcontext
    from types import SimpleNamespace as Made

    from saeuron.export.formats.engine_worker import _check_types

    kinds = [("conv", t) for t in convolutions] + [("product", t) for t, n in products.items() for _ in range(n)]
    layers = [Made(type=kind, get_output=lambda i, t=t: Made(dtype=Made(name=t))) for kind, t in kinds]
    trt = Made(LayerType=Made(CONVOLUTION="conv", MATRIX_MULTIPLY="product"))
    with pytest.raises(SaeuronError, match="not in fp16 as asked") if refused else nullcontext():
        _check_types(trt, Made(num_layers=len(layers), get_layer=layers.__getitem__), "fp16")


def test_shapes_outside_are_refused():
    sizes = [[2, 4, 8, 8], [2, 4, 8, 8], [4, 4, 16, 8]]
    check_shape("x", (3, 4, 12, 8), sizes)
    for shape in ((1, 4, 8, 8), (5, 4, 8, 8), (2, 4, 17, 8), (2, 4, 8, 9), (2, 4, 8)):
        with pytest.raises(OutsideShapes, match="other --shapes"):
            check_shape("x", shape, sizes)


@settings(deadline=None)
@given(st.lists(st.floats(width=32), min_size=1, max_size=40))
def test_bf16_is_torchs(values):
    array = np.array(values, dtype=np.float32)
    ours, theirs = from_bf16(to_bf16(array)), torch.from_numpy(array).bfloat16().float().numpy()
    assert np.array_equal(ours, theirs, equal_nan=True)


# -- the runner on a stand-in for TensorRT and CUDA -------------------------------------------------------------------


@pytest.fixture
def device(demo_artifact, tmp_path, monkeypatch):
    """The demo's artifact with "engines", on a "GPU"; `device(**changes)` changes their entry in the manifest and opens the runner."""
    folder = tmp_path / "artifact"
    shutil.copytree(demo_artifact.path, folder)
    place = folder / "tensorrt" / "rtx-sm86"
    place.mkdir(parents=True)
    graphs, parts = {}, {}
    shapes = {
        "text_encoder": {"input_ids": [[1, 24], [1, 24], [2, 24]]}, "vae_decoder": {"latent_sample": [[1, 8, 8, 8]] * 3},
        "unet": {"sample": [[2, 8, 8, 8]] * 3, "timestep": [[]] * 3, "encoder_hidden_states": [[2, 24, 128]] * 3},
    }  # fmt: skip
    for name, sizes in shapes.items():
        content = f"engine of {name}".encode()
        (place / f"{name}.engine").write_bytes(content)
        graphs[content] = folder / name / "model.onnx"
        parts[name] = {
            "precision": "fp32", "types": {}, "bytes": len(content), "seconds": 1.0, "peak_bytes": None,
            "shapes": sizes, "onnx": {f"{name}/model.onnx": file_sha256(folder / name / "model.onnx")},
        }  # fmt: skip
    record = json.loads((folder / "saeuron.json").read_text())
    record["formats"] = [*record["formats"], "trt-rtx"]
    made = [StandInCuda()]

    def open_runner(break_outputs=lambda name, value: value, gpu=Gpu("a GPU", "sm86"), **changes):  # noqa: B008
        entry = {**ENTRY, "sms": ["sm86"], "precision": "fp32", "status": engines.NOT_RUN, "components": parts, **changes}
        made_up.rewrite(folder, formats=record["formats"], engines={"rtx-sm86": entry})
        trt = StandInTensorRT(made[0], graphs, ENTRY["version"], break_outputs)
        monkeypatch.setattr(engines, "tensorrt_module", lambda backend: trt)
        monkeypatch.setattr(engines, "gpu", lambda: gpu)
        monkeypatch.setattr(tensorrt_runner, "Cuda", lambda: _cuda(made[0]))
        return TensorRTRunner(folder, "trt-rtx")

    open_runner.folder, open_runner.cuda = folder, made[0]
    return open_runner


def _cuda(stand_in):
    found = Cuda.__new__(Cuda)
    found._runtime = stand_in
    return found


def test_engines_are_proven_like_any_backend(device):
    runner = device()
    golden = Golden.load(device.folder / "edit" / "golden.safetensors")
    report = prove(golden, [runner])
    found = report.backends["trt-rtx/rtx-sm86"]
    assert report.passed, report.failures
    assert found.forwards.pooled < 1e-3 and found.forwards.outside > 0, "shapes that the engine wasn't built for are counted"
    assert found.forwards.fired > 0 and found.seam.golden_tokens is None
    assert found.seam.passed is None and "hides" in found.seam.not_checked
    assert found.runs.rows and found.runs.outside > 0 and "vae_decoder.sample" in found.components.relative
    left = _outside(report.backends)
    assert {entry.check for entry in left} >= {"forwards", "runs"}, "what was left out is said, not passed over"
    calls = device.cuda.calls
    assert calls.count("cudaGraphLaunch") > calls.count("cudaGraphInstantiate") > 0, "steps of fixed shape run as one graph"
    assert not device.cuda.memory and calls.count("cudaFree") == calls.count("cudaMalloc"), "a proof gives all memory back"


def test_an_engine_without_the_edit_is_not_proven(device):
    runner = device(break_outputs=lambda name, value: value * 0.9 if name == "out_sample" else value)
    report = prove(Golden.load(device.folder / "edit" / "golden.safetensors"), [runner])
    assert not report.passed and any("the network differs from the hook" in line for line in report.failures)


def test_engines_that_fit_no_golden_input_prove_nothing(device):
    small = {
        "text_encoder": {"input_ids": [[1, 24]] * 3}, "vae_decoder": {"latent_sample": [[1, 8, 12, 12]] * 3},
        "unet": {"sample": [[2, 8, 12, 12]] * 3, "timestep": [[]] * 3, "encoder_hidden_states": [[2, 24, 128]] * 3},
    }  # fmt: skip
    runner = device()
    for name, sizes in small.items():
        runner.entry.components[name].shapes = sizes
    report = prove(Golden.load(device.folder / "edit" / "golden.safetensors"), [runner])
    assert any("fits this engine, so nothing was proven" in line for line in report.failures)


def test_the_record_is_checked_before_an_engine_is_opened(device):
    with pytest.raises(SaeuronError, match="no engine .* fits .*this GPU .a GPU. is sm75.*saeuron build"):
        device(gpu=Gpu("a GPU", "sm75"))
    with pytest.raises(SaeuronError, match="built with tensorrt_rtx 1.6"):
        device(version="1.6.0.0")
    device()
    (device.folder / "tensorrt" / "rtx-sm86" / "unet.engine").write_bytes(b"another")
    with pytest.raises(SaeuronError, match="engine of unet .* is not the one on record"):
        TensorRTRunner(device.folder, "trt-rtx")
    runner = device()
    parts = {name: {**plain(part), "onnx": dict.fromkeys(part.onnx, "0" * 64)} for name, part in runner.entry.components.items()}
    with pytest.raises(SaeuronError, match="built from other ONNX graphs"):
        device(components=parts)
    assert "cudaMalloc" not in device.cuda.calls


def test_an_engine_that_the_library_refuses_is_named(device):
    runner = device()
    engines.tensorrt_module("trt-rtx").graphs.clear()
    with pytest.raises(SaeuronError, match="can't be opened by tensorrt_rtx"):
        runner.engine("unet")


def test_every_fitting_target_is_found_best_first_and_chosen(device):
    device()
    record = manifest.read(device.folder)
    entry = record.engines["rtx-sm86"]
    record.engines |= {
        "rtx": replace(entry, sms=[], built="2030"),
        "rtx-sm86-sm89": replace(entry, sms=["sm86", "sm89"]),
        "rtx-sm120": replace(entry, sms=["sm120"]),
    }
    fit, reasons = engines.fitting(record, "trt-rtx")
    assert fit == ["rtx-sm86", "rtx-sm86-sm89", "rtx"] and list(reasons) == ["rtx-sm120"]
    assert choose_networks(device.folder, record) == Way("trt-rtx", "rtx-sm86"), "engines go before the graphs"
    assert choose_networks(device.folder, record, target="rtx").target == "rtx"
    with pytest.raises(SaeuronError, match="target 'rtx-sm89' is not known"):
        choose_networks(device.folder, record, target="rtx-sm89")
    parts, left = _runnable(device.folder, record, (), None, ["torch"])
    assert [name for name, _, _ in parts] == ["onnx", "trt-rtx/rtx-sm86", "trt-rtx/rtx-sm86-sm89", "trt-rtx/rtx"]
    assert [e.check for e in left] == ["checkpoint", "trt-rtx/rtx-sm120"]
    assert [name for name, _, _ in _runnable(device.folder, record, (), "rtx", [])[0]] == ["trt-rtx/rtx"]


def test_a_gpu_that_no_engine_fits_leaves_the_graphs(device, monkeypatch):
    device()
    record = manifest.read(device.folder)
    monkeypatch.setattr(engines, "gpu", lambda: Gpu("another", "sm75"))
    parts, left = _runnable(device.folder, record, (), None, [])
    assert [name for name, _, _ in parts] == ["checkpoint", "onnx"] and "another" in left[0].reason
    way = choose_networks(device.folder, record)
    assert way.backend == "onnx" and "another" in way.passed_over[0]
    with pytest.raises(SaeuronError, match="no engine .* fits"):
        _runnable(device.folder, record, ("trt-rtx",), None, [])


def test_engines_run_where_onnx_runtime_is_missing(device, monkeypatch):
    device()
    record = manifest.read(device.folder)
    monkeypatch.setattr("saeuron.validation.backends.sessions.missing", list)
    parts, left = _runnable(device.folder, record, (), None, ["torch"])
    assert [name for name, _, _ in parts] == ["trt-rtx/rtx-sm86"] and "ONNX Runtime is not installed" in left[1].reason
    assert choose_networks(device.folder, record).backend == "trt-rtx"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"status": "run"}, "status"), ({"sms": ["sm80"]}, "on record for"), ({"precision": "fp16"}, "on record as fp16"),
        ({"components": {}}, "needed are"), ({"module": "tensorrt"}, "built by tensorrt"),
    ],
)  # fmt: skip
def test_a_wrong_record_of_engines_is_seen_without_a_gpu(device, change, message):
    device()
    record = manifest.read(device.folder)
    assert engines.check_entries(device.folder, record) == []
    entry = record.engines["rtx-sm86"]
    wrong = replace(record, engines={"rtx-sm86": replace(entry, **change)})
    assert any(message in line for line in engines.check_entries(device.folder, wrong))
    assert any("not on record" in line for line in engines.check_entries(device.folder, replace(record, engines={})))
    entry.components["unet"].onnx = {}
    assert any("built from other ONNX graphs" in line for line in engines.check_entries(device.folder, record))


def test_a_range_without_a_golden_vector_between_its_points_is_said(demo_artifact):
    """An engine that is right at the points that its builder knew may be wrong between them."""
    from saeuron.editor.denoisers.families import sizes_in
    from saeuron.validation.proof.validate import _between

    root = demo_artifact.path
    golden, sizes = Golden.load(root / "edit" / "golden.safetensors"), sizes_in(root)
    side, held = sizes.multiple // sizes.factor, {case.sample.shape for case in golden.cases}
    channels = sizes.channels

    def said(*points):
        shapes = {"sample": [[rows, channels, height, width] for rows, height, width in points]}
        unet = {"precision": "fp32", "onnx": {}, "shapes": shapes, "types": {}, "bytes": 1, "seconds": 1.0, "peak_bytes": None}
        record = replace(manifest.read(root), engines={"T": read_as(Engines, {**ENTRY, "components": {"unet": unet}}, "made up")})
        return [entry.reason for entry in _between(root, record, golden, [("trt-rtx/T", "trt-rtx", "T"), ("onnx", "onnx", None)])]

    assert said(*[(2, 8, 8)] * 3) == [], "fixed sizes"
    assert said((2, 8, 8), (2, 8, 8), (4, 8 + side, 8)) == [], "nothing lies between"
    high = 8 + 100 * side
    assert said((2, 8 + 90 * side, 8), (2, 8 + 90 * side, 8), (2, high, 8)) == [
        f"no golden vector has heights between {8 + 90 * side} and {high}"
    ]
    rows = max(shape[0] for shape in held)
    assert said((rows, 8, 8), (rows, 8, 8), (rows + 40, 8, 8)) == [f"no golden vector has rows between {rows} and {rows + 40}"]
    odd = next(shape for shape in held if shape[2] != shape[3])
    assert said((1, odd[2] - side, odd[3] - side), (1, odd[2] - side, odd[3] - side), (rows, odd[2] + side, odd[3] + side))[1:] == []
