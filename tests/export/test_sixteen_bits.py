"""The embedded demo in 16 bits, where a proof is at its tightest: rounding is largest beside what the edit does."""

import pytest
from tests.conftest import check_plan, guard

import saeuron
from saeuron.editor import demo
from saeuron.editor.common.errors import SaeuronError
from saeuron.export.formats import onnx
from saeuron.export.plan.settings import Settings
from saeuron.export.ship.stages import export_artifact

pytestmark = pytest.mark.slow


def test_fp16_onnx_says_that_the_safety_checker_is_lost(tmp_path, monkeypatch):
    # As if the model were large: the weights go into files beside the graphs.
    monkeypatch.setattr(onnx, "_INLINE_LIMIT", 100)
    guard(demo.PIPELINE, tmp_path / "guarded")
    wanted = Settings(("Neon",), tmp_path / "fp16", ("onnx",), model=str(tmp_path / "guarded"), precision="fp16", steps=5)
    result = export_artifact(wanted)
    assert result.report.passed, result.report.failures
    check_plan(result, wanted)
    assert (tmp_path / "fp16" / "unet" / "model.onnx_data").is_file()
    assert not result.manifest.model.safety_checker and any("LOST" in w for w in result.manifest.warnings)
    assert not list((tmp_path / "fp16").rglob("diffusion_pytorch_model.safetensors"))
    with pytest.raises(SaeuronError, match="no checkpoint"):
        saeuron.load(tmp_path / "fp16")


def test_bf16_checkpoint(tmp_path):
    result = export_artifact(Settings(("House",), tmp_path / "bf16", ("checkpoint",), precision="bf16", steps=5))
    assert result.report.passed, result.report.failures
