"""Engines of SD3, FLUX.1, Sana and PixArt: built by TensorRT for RTX for a GPU that isn't here, never run; the runner on a stand-in."""

import shutil

import pytest
from msgspec.structs import replace
from tests.conftest import refused, run
from tests.export.tensorrt_operators import SUPPORTED
from tests.export.test_tensorrt import operators
from tests.transformer_pipelines import MAKERS, make, settings
from tests.validation.stand_in import StandInCuda, StandInTensorRT

from saeuron.editor.common.errors import SaeuronError
from saeuron.export.formats.tensorrt import Shapes, axes, between, check_shapes
from saeuron.export.ship.stages import export_artifact
from saeuron.validation.artifact import contents, engines, manifest
from saeuron.validation.artifact.engines import Gpu
from saeuron.validation.artifact.golden import Golden
from saeuron.validation.artifact.manifest import Engines, SamplingRecord
from saeuron.validation.backends import tensorrt_runner
from saeuron.validation.backends.tensorrt_runner import Cuda, TensorRTRunner
from saeuron.validation.proof.parity import prove
from saeuron.validation.proof.validate import _between, _skips

GUIDED = SamplingRecord(steps=4, guidance=3.0, height=32, width=48)
KINDS = ("sd3", "flux", "schnell", "sana", "pixart")
DOUBLED = ("sd3", "sana", "pixart")
"""kinds whose batch guidance doubles"""
WIDE = {"sd3": {}, "flux": {}, "schnell": {}, "sana": {"width": 64}, "pixart": {}}
"""settings of a picture that isn't square"""
WANTED = Shapes.parse("batch=1:2:3,height=32:32:64")


@pytest.fixture(scope="module", params=KINDS)
def made(request, tmp_path_factory):
    return request.param, make(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module", params=["sd3", "flux", "schnell"])
def joint(request, tmp_path_factory):
    return request.param, make(request.param, tmp_path_factory.mktemp(request.param))


def test_axes_of_one_text_encoder(tmp_path):
    """Sana's prompts are longer than its negative ones by an instruction; its network is given as many tokens of either."""
    for kind, factor in (("sana", 4), ("pixart", 2)):
        root = MAKERS[kind](tmp_path / kind)
        sampling = SamplingRecord(steps=4, guidance=3.0, height=32, width=64)
        network, text = (axes(root, sampling, WANTED, name) for name in ("transformer", "text_encoder"))
        assert network["batch_size"] == (2, 4, 6) and network["latent_height"] == (32 // factor, 32 // factor, 64 // factor)
        tokens = 24 if kind == "sana" else 300
        assert network["sequence_length"] == (tokens,) * 3
        low, usual, high = text["sequence_length"]
        assert low == tokens and usual == high and (high > tokens + 100) == (kind == "sana")


def test_axes_follow_from_pictures_pixels_and_each_encoders_text(joint):
    kind, parts = joint
    root = parts["model"]
    check_shapes(root, GUIDED, WANTED)
    network, decoder = (axes(root, GUIDED, WANTED, name) for name in ("transformer", "vae_decoder"))
    # Guidance doubles SD3's batch; a FLUX is told it.
    assert network["batch_size"] == ((2, 4, 6) if kind == "sd3" else (1, 2, 3)) and decoder["batch_size"] == (1, 2, 3)
    assert decoder["latent_height"] == (16, 16, 32) and decoder["latent_width"] == (24, 24, 24)
    texts = {name: axes(root, GUIDED, WANTED, name)["sequence_length"] for name in ("text_encoder", "text_encoder_2")}
    if kind == "sd3":
        assert network["sequence_length"] == (24 + 256,) * 3 and set(texts.values()) == {(24,) * 3}
        assert axes(root, GUIDED, WANTED, "text_encoder_3")["sequence_length"] == (256,) * 3
    else:
        assert network["packed_height_width"] == (16 * 24 // 4, 16 * 24 // 4, 32 * 24 // 4)
        assert network["sequence_length"] == (512,) * 3 and texts == {"text_encoder": (24,) * 3, "text_encoder_2": (512,) * 3}
    with pytest.raises(SaeuronError, match="multiples of"):
        check_shapes(root, GUIDED, Shapes.parse("height=33"))
    assert between(root, 32, 48, Shapes.parse("batch=1:1:3,height=32:32:64")) == [(2, 48, 48)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("made", "precision"), [("sd3", "fp32"), ("flux", "fp32"), *((kind, "fp16") for kind in KINDS)], indirect=["made"], ids="-".join
)
def test_they_are_built_from_what_was_proven(made, precision, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="no tensorrt-rtx for this platform")
    kind, parts = made
    found = export_artifact(
        settings(
            parts, tmp_path / "out", precision=precision, formats=("onnx", "trt"), target=("rtx:sm89",), proof="short", optimization_level=1,
            shapes="batch=1:1:3,height=32:32:64" if precision == "fp16" else "", **WIDE[kind],
        )
    )  # fmt: skip
    assert found.report.passed, found.report.failures
    for path in found.path.glob("*/model.onnx"):
        assert not operators(path) - SUPPORTED, path
    record = manifest.read(found.path)
    contents.check(found.path, record)
    assert engines.check_entries(found.path, record) == []
    entry = record.engines["rtx-sm89"]
    assert entry.status == engines.NOT_RUN and entry.precision == precision
    assert list(entry.components)[-2:] == ["vae_decoder", "transformer"] and len(entry.components) == {
        "sd3": 5,
        "sana": 3,
        "pixart": 3,
    }.get(kind, 4)
    counted = entry.components["transformer"].types["matrix product"]
    wanted = "FLOAT" if precision == "fp32" else "HALF"
    # The edit decodes in float32; Sana's linear attention takes its two products of each block in it, too.
    others = 2 + (6 if kind == "sana" else 0)
    assert counted[wanted] > 30 and sum(n for name, n in counted.items() if name != wanted) <= others
    shapes = entry.components["transformer"].shapes
    rows, (low, usual, high) = 2 if kind in DOUBLED else 1, shapes["hidden_states"]
    assert (low[0], usual[0], high[0]) == ((rows,) * 3 if precision == "fp32" else (rows, rows, 3 * rows))
    if kind not in DOUBLED:
        assert [s[0] for s in shapes["img_ids"]] == [s[1] for s in shapes["hidden_states"]] and shapes["txt_ids"] == [[512, 3]] * 3
        assert ("guidance" in shapes) == (kind == "flux")
    refused("--overwrite replaces them", "build", found.path, "--target", "rtx:sm89")
    assert "rtx" in run("build", found.path, "--target", "rtx:sm120", "--dry-run").stdout


@pytest.mark.slow
def test_the_runner_gives_whole_forwards_and_says_what_it_can_not_check(made, tmp_path, monkeypatch):
    """On a stand-in: ONNX Runtime behind the library's interface."""
    kind, parts = made
    root = export_artifact(settings(parts, tmp_path / "out", formats=("onnx",), proof="short")).path
    record = manifest.read(root)
    golden = Golden.load(root / "edit" / "golden.safetensors")
    place, graphs, components = root / "tensorrt" / "rtx-sm86", {}, {}
    place.mkdir(parents=True)
    names = [*(n for n in ("text_encoder", "text_encoder_2", "text_encoder_3") if (root / n).exists()), "vae_decoder", "transformer"]
    for name in names:
        content = f"engine of {name}".encode()
        (place / f"{name}.engine").write_bytes(content)
        graphs[content] = root / name / "model.onnx"
        components[name] = {
            "precision": "fp32", "types": {}, "bytes": len(content), "seconds": 1.0, "peak_bytes": None, "shapes": _shapes(golden, name),
            "onnx": {f: e.sha256 for f, e in record.files.items() if f.startswith(f"{name}/model.onnx")},
        }  # fmt: skip
    from saeuron.editor.common.typed import read_as

    entry = {
        "backend": "trt-rtx", "module": "tensorrt_rtx", "version": "1.7.1.116", "sms": ["sm86"], "options": {}, "precision": "fp32",
        "components": components, "status": engines.NOT_RUN,
    }  # fmt: skip
    record = replace(record, engines={"rtx-sm86": read_as(Engines, entry, "made up")}, formats=[*record.formats, "trt-rtx"])
    record.files |= {f"tensorrt/rtx-sm86/{n}": e for n, e in contents.hashes(place).items()}
    contents.write(root, record)
    cuda = StandInCuda()
    broken = []
    trt = StandInTensorRT(cuda, graphs, "1.7.1.116", lambda name, value: value * 0.9 if name in broken else value)
    monkeypatch.setattr(engines, "tensorrt_module", lambda backend: trt)
    monkeypatch.setattr(engines, "gpu", lambda: Gpu("a GPU", "sm86"))

    def opened():
        made = Cuda.__new__(Cuda)
        made._runtime = cuda
        return made

    monkeypatch.setattr(tensorrt_runner, "Cuda", opened)
    assert engines.check_entries(root, manifest.read(root)) == []
    for broken_now in ([], ["out_hidden_states"]):
        broken[:] = broken_now
        runner = TensorRTRunner(root, "trt-rtx")
        runner.skips = _skips(root, golden, True)
        report = prove(golden, [runner])
        found = report.backends["trt-rtx/rtx-sm86"]
        assert report.passed == (not broken_now), report.failures
        assert found.forwards.rows and found.forwards.outside > 0 and found.components.relative
    assert not cuda.memory
    said = [n.reason for n in _between(root, manifest.read(root), golden, [("trt-rtx/T", "trt-rtx", "rtx-sm86")])]
    assert said == []
    shutil.rmtree(tmp_path / "out")


def _shapes(golden, name):
    """The sizes of the first golden case alone, any batch up to its own."""
    if name == "transformer":
        return {
            n: [[v.shape[0] if n.endswith("_ids") else 1, *v.shape[1:]], list(v.shape), list(v.shape)] for n, v in golden.cases[0].inputs.items()
        }  # fmt: skip
    known = ("latent_sample",) if name == "vae_decoder" else ("input_ids", "attention_mask")
    shapes = {given: list(golden.components[name][given].shape) for given in known if given in golden.components[name]}
    return {given: [[1, *shape[1:]], shape, shape] for given, shape in shapes.items()}
