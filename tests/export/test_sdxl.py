"""SDXL: two text encoders and added conditions, from the plan to an artifact that others open; few-step folders too."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, EulerAncestralDiscreteScheduler
from tests.conftest import XL_HOOKPOINT, check_plan, xl_settings
from typer.testing import CliRunner

import saeuron
from saeuron.editor.denoisers.families import family_of
from saeuron.editor.denoisers.pipelines import load_pipeline
from saeuron.editor.denoisers.sampling import autoencoder, decode, denoise
from saeuron.export.cli import app
from saeuron.export.formats import onnx
from saeuron.export.ship.stages import export_artifact
from saeuron.validation.artifact.golden import Golden
from saeuron.validation.backends.torch_runner import TorchRunner
from saeuron.validation.proof.forwards import compare_forwards
from saeuron.validation.proof.parity import run_forwards

pytestmark = pytest.mark.slow

runner = CliRunner()


@pytest.fixture
def golden(xl_artifact):
    return Golden.load(xl_artifact.path / "edit" / "golden.safetensors")


def test_both_formats_are_proven(xl_artifact, tiny_xl, golden):
    assert xl_artifact.report.passed, xl_artifact.report.failures
    for parts in xl_artifact.report.backends.values():
        assert parts.forwards.worst < 1e-4 and parts.seam.own_tokens.fired > 0
        assert {name.split(".")[0] for name in parts.components.relative} == {
            "text_encoder",
            "text_encoder_2",
            "vae_decoder",
            "vae_encoder",
        }
    check_plan(xl_artifact, xl_settings(tiny_xl, xl_artifact.path))
    for case in golden.cases:
        rows = len(case.sample)
        assert {n: v.shape for n, v in list(case.inputs.items())[3:]} == {"text_embeds": (rows, 20), "time_ids": (rows, 6)}
    # Guided rows get zeros for the empty prompt; the picture's own size is among the time ids.
    assert not golden.cases[0].inputs["text_embeds"][:2].any() and golden.cases[0].inputs["text_embeds"][2:].any()
    assert {tuple(c.inputs["time_ids"][0, -2:]) for c in golden.cases} == {(16.0, 16.0), (8, 24)}


def test_a_backend_that_ignores_the_conditions_fails(xl_artifact, golden):
    torch_runner = TorchRunner(saeuron.load(xl_artifact.path))
    calm = [0] * len(golden.cases)
    assert compare_forwards(golden, run_forwards(golden, torch_runner.denoise), calm).passed

    def without(name):
        return lambda inputs: torch_runner.denoise({**inputs, name: 0 * inputs[name]})

    for name in ("text_embeds", "time_ids"):
        assert not compare_forwards(golden, run_forwards(golden, without(name)), calm).passed, name


def test_opens_in_diffusers(xl_artifact, golden):
    pipeline = DiffusionPipeline.from_pretrained(xl_artifact.path, trust_remote_code=True, add_watermarker=False)
    assert type(pipeline).__name__ == "StableDiffusionXLPipeline" and type(pipeline.unet).__name__ == "AblatedUNet2DConditionModel"
    run = golden.runs[0]
    found = denoise(pipeline, run.prompts, torch.from_numpy(run.initial), run.seeds, run.steps, run.guidance).numpy()
    assert np.linalg.norm(found - run.hook) < 1e-3 * np.linalg.norm(run.hook - run.unedited)


def test_load_keeps_the_pipelines_own_settings(xl_artifact):
    pipeline = saeuron.load(xl_artifact.path)
    assert pipeline.watermark is None and pipeline.config.force_zeros_for_empty_prompt
    assert pipeline.tokenizer_2.pad_token == "!" != pipeline.tokenizer.pad_token


def test_older_clients_find_their_tokenizer_files(xl_artifact):
    for folder in ("tokenizer", "tokenizer_2"):
        assert {"vocab.json", "merges.txt", "tokenizer.json"} <= {p.name for p in (xl_artifact.path / folder).iterdir()}
    assert "ORTStableDiffusionXLPipeline" in (xl_artifact.path / "README.md").read_text()


def test_names_are_those_of_optimum(xl_artifact):
    import onnxruntime

    def tensors(folder):
        session = onnxruntime.InferenceSession(xl_artifact.path / folder / "model.onnx", providers=["CPUExecutionProvider"])
        return [i.name for i in session.get_inputs()], [o.name for o in session.get_outputs()]

    assert tensors("unet") == (["sample", "timestep", "encoder_hidden_states", "text_embeds", "time_ids"], ["out_sample"])
    assert tensors("text_encoder")[1] == ["last_hidden_state", "pooler_output", *(f"hidden_states.{i}" for i in range(2))]
    assert tensors("text_encoder_2")[1] == ["text_embeds", "last_hidden_state", *(f"hidden_states.{i}" for i in range(3))]


def test_validate_afresh(xl_artifact, tiny_xl):
    command = ["validate", xl_artifact.path, "--model", tiny_xl["model"], "--sae", tiny_xl["sae"], "--json"]
    result = runner.invoke(app, [str(part) for part in command])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert set(report["backends"]) == {"checkpoint", "onnx"} and report["passed"]


def test_fp16_autoencoder_runs_in_float32(tiny_xl, tmp_path):
    """As SDXL's pipeline runs it: in the reference, in the checkpoint and in the graphs."""
    folder = shutil.copytree(tiny_xl["model"], tmp_path / "model")
    pipeline = load_pipeline(str(folder))
    # Values beyond float16's range inside, as in SDXL's own autoencoder; its weights stay within it.
    pipeline.vae.decoder.mid_block.resnets[0].conv2.weight.data.mul_(6e5)
    pipeline.vae.save_pretrained(folder / "vae")
    half = load_pipeline(str(folder), torch.float16)
    with torch.no_grad():
        assert not torch.isfinite(half.vae.decode(torch.randn(1, 4, 8, 8).half()).sample).all(), "this autoencoder doesn't overflow"
    with autoencoder(half) as vae:
        assert vae.dtype == torch.float32
    assert half.vae.dtype == torch.float16
    assert decode(half, torch.randn(1, 4, 8, 8).half()).std() > 0
    types = {c.folder: next(iter(c.inputs.values())).dtype for c in onnx.components(half)}
    assert types["vae_decoder"] == types["vae_encoder"] == torch.float32 and types["unet"] == torch.float16

    result = export_artifact(xl_settings(tiny_xl, tmp_path / "out", model=str(folder), precision="fp16", formats=("checkpoint",), steps=2))
    assert result.report.passed, result.report.failures


def test_a_turbo_folder(tiny_xl, tmp_path):
    """One step, no guidance, a scheduler that draws noise."""
    folder = shutil.copytree(tiny_xl["model"], tmp_path / "model")
    pipeline = load_pipeline(str(folder))
    pipeline.scheduler = EulerAncestralDiscreteScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    pipeline.save_pretrained(folder)
    wanted = xl_settings(tiny_xl, tmp_path / "out", model=str(folder), formats=("checkpoint",), steps=1, guidance=0.0)
    result = export_artifact(wanted)
    assert result.report.passed, result.report.failures
    assert all(row.conclusive for row in result.report.backends["checkpoint"].runs.rows)


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda f: change(f / "model_index.json", _class_name="StableDiffusionXLImg2ImgPipeline", requires_aesthetics_score=True),
            "holds an SDXL refiner",
        ),
        (lambda f: change(f / "model_index.json", text_encoder=[None, None]), "has no text_encoder, as SDXL's refiner"),
        (lambda f: shutil.rmtree(f / "text_encoder_2"), "'text_encoder_2' folder is missing"),
        (lambda f: (f / "text_encoder_2" / "model.safetensors").unlink(), "'text_encoder_2' has no weights"),
        (lambda f: change(f / "unet" / "config.json", addition_embed_type="text_image"), "type 'text_image'"),
        (lambda f: change(f / "unet" / "config.json", class_embed_type="projection"), "'class_embed_type' = 'projection'"),
    ],
)
def test_what_is_refused(tiny_xl, tmp_path, spoil, message):
    folder = shutil.copytree(tiny_xl["model"], tmp_path / "model")
    spoil(folder)
    command = ["--concepts", "A", "--model", folder, "--sae", tiny_xl["sae"], "--activations", tiny_xl["activations"], "--hookpoint", XL_HOOKPOINT,
               "--output", tmp_path / "out"]  # fmt: skip
    result = runner.invoke(app, ["export", *map(str, command)])
    assert result.exit_code == 2 and message in re.sub(r"\s+", " ", result.stderr), result.stderr
    assert not (tmp_path / "out").exists()


def test_every_family_names_a_class_of_diffusers(tiny, tiny_xl):
    for folder, count in ((tiny["model"], 1), (tiny_xl["model"], 2)):
        family = family_of(load_pipeline(str(folder)))
        assert len(family.text_encoders) == count and family.cls.__name__ == family.pipeline
