"""The proof runs on the pipeline's own scheduler: between integers, with memory, in few steps, with noise of its own."""

import json
import shutil

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
)
from tests.conftest import HOOKPOINT, XL_HOOKPOINT

from saeuron.editor.denoisers.pipelines import load_pipeline
from saeuron.editor.denoisers.sampling import denoise, generate, initial_latents, step_generators
from saeuron.editor.edit.edit import Edit
from saeuron.editor.sae.sae import SparseAutoencoder
from saeuron.export.plan.settings import Settings
from saeuron.export.ship.stages import export_artifact
from saeuron.validation.backends.load import load
from saeuron.validation.backends.onnx_runner import OnnxRunner
from saeuron.validation.backends.torch_runner import TorchRunner
from saeuron.validation.proof.parity import prove
from saeuron.validation.proof.reference import _draws_noise, make_golden

pytestmark = pytest.mark.slow

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
KINDS = {
    "euler": (EulerDiscreteScheduler(**SD, timestep_spacing="linspace"), 3, 3.0),
    "euler karras": (EulerDiscreteScheduler(**SD, use_karras_sigmas=True), 3, 3.0),
    "dpm++": (DPMSolverMultistepScheduler(**SD), 4, 3.0),
    "dpm++ sde": (DPMSolverMultistepScheduler(**SD, algorithm_type="sde-dpmsolver++"), 4, 3.0),
    "heun": (HeunDiscreteScheduler(**SD), 2, 3.0),
    "lcm": (LCMScheduler(**SD), 2, 1.0),
    "turbo": (EulerAncestralDiscreteScheduler(**SD, timestep_spacing="trailing"), 2, 0.0),
}
STOCHASTIC = ("dpm++ sde", "lcm", "turbo")


def with_scheduler(folder, target, scheduler):
    """A copy of a pipeline's folder with another scheduler."""
    shutil.copytree(folder, target)
    scheduler.save_pretrained(target / "scheduler")
    index = json.loads((target / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", type(scheduler).__name__]
    (target / "model_index.json").write_text(json.dumps(index))
    return target


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow) if kind != "euler" else kind for kind in ("euler", "dpm++", "heun", "lcm")]
)
def test_an_export_is_proven(tiny, tmp_path, kind):
    scheduler, steps, guidance = KINDS[kind]
    model = with_scheduler(tiny["model"], tmp_path / "model", scheduler)
    result = export_artifact(
        Settings(
            concepts=("A",), output=tmp_path / "out", formats=("checkpoint",), model=str(model), sae=(str(tiny["sae"]),), hookpoint=HOOKPOINT,
            activations=(str(tiny["activations"]),), select="count:20", multiplier=-3.0, steps=steps, guidance=guidance,
        )
    )  # fmt: skip
    assert result.report.passed, result.report.failures
    rows = result.report.backends["checkpoint"].runs.rows
    assert rows and all(row.conclusive and row.latents <= 1e-3 * row.effect for row in rows)
    forwards = result.report.backends["checkpoint"].forwards.rows
    if kind == "euler":
        assert any(row.timestep % 1 for row in forwards if row.kind == "step"), "no timestep lies between integers"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["euler karras", "dpm++ sde", "lcm", "turbo"])
def test_onnx_graphs_are_proven_with_any_scheduler(xl_artifact, tiny_xl, tmp_path, kind):
    """One artifact's graphs, opened beside another scheduler: nothing of a scheduler is in them."""
    scheduler, steps, guidance = KINDS[kind]
    root = with_scheduler(xl_artifact.path, tmp_path / "artifact", scheduler)
    original = load_pipeline(str(with_scheduler(tiny_xl["model"], tmp_path / "model", scheduler)))
    edit = Edit.load(root / "edit" / "edit.safetensors")
    saes = {XL_HOOKPOINT: SparseAutoencoder.load(str(tiny_xl["sae"]), XL_HOOKPOINT)}
    golden = make_golden(original, edit, saes, ["An image of House."], steps, guidance, "fp32")
    report = prove(golden, [TorchRunner(load(root, check_files=False)), OnnxRunner(root)])
    assert report.passed, report.failures


def test_which_schedulers_draw_noise():
    latents = torch.randn(1, 4, 8, 8)
    assert {name for name, (scheduler, *_) in KINDS.items() if _draws_noise(scheduler, latents)} == set(STOCHASTIC)
    assert not _draws_noise(DDIMScheduler(), latents), "it takes a generator but draws nothing at eta 0"


@pytest.mark.parametrize("kind", STOCHASTIC)
def test_noise_follows_the_seed_alone(tiny, kind):
    """Neither the batch nor what ran before changes a picture, and it is the one that diffusers makes of a seeded generator."""
    scheduler, steps, guidance = KINDS[kind]
    pipeline = load_pipeline(str(tiny["model"]))
    pipeline.scheduler = scheduler
    texts, seeds = ["An image of House.", "An image of Car."], [5, 6]
    together = generate(pipeline, texts, seeds, steps, guidance, output_type="latent")
    torch.manual_seed(99)
    alone = generate(pipeline, texts, seeds, steps, guidance, output_type="latent", batch_size=1)
    assert torch.allclose(together, alone, atol=1e-4 * float(together.std()))
    other = denoise(pipeline, texts, initial_latents(pipeline, seeds), [7, 8], steps, guidance)
    assert not torch.allclose(together, other, rtol=0.1)
    plain = pipeline(
        texts, num_inference_steps=steps, guidance_scale=guidance, generator=[torch.Generator().manual_seed(s) for s in seeds], output_type="latent"
    ).images  # fmt: skip
    assert torch.equal(plain, together)


def test_step_noise_is_not_the_initial_noise():
    generator = step_generators([3], (4, 8, 8))[0]
    first = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(3))
    assert not torch.allclose(torch.randn(4, 8, 8, generator=generator), first)


@pytest.mark.slow
def test_sixteen_bits_with_noise(tiny, tmp_path):
    scheduler, steps, guidance = KINDS["turbo"]
    model = with_scheduler(tiny["model"], tmp_path / "model", scheduler)
    result = export_artifact(
        Settings(
            concepts=("A",), output=tmp_path / "out", formats=("checkpoint",), model=str(model), sae=(str(tiny["sae"]),), hookpoint=HOOKPOINT,
            activations=(str(tiny["activations"]),), select="count:20", multiplier=-3.0, steps=steps, guidance=guidance, precision="fp16",
        )
    )  # fmt: skip
    assert result.report.passed, result.report.failures
    assert any(row.conclusive for row in result.report.backends["checkpoint"].runs.rows)
