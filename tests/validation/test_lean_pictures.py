"""Loops without torch that begin from a picture: equal to diffusers' img2img and inpainting pipelines, by real pipelines of the same artifact."""

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from PIL import Image
from tests.export.test_fail_closed import artifact  # noqa: F401
from tests.validation.test_lean import DEMO_SETTINGS, SD, TEXTS
from tests.validation.test_schedulers import with_scheduler

from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.denoisers.families import FAMILIES
from saeuron.validation.backends.lean import LeanPipeline
from saeuron.validation.backends.lean.begin import left_out
from saeuron.validation.backends.lean.dpm import DpmSolver
from saeuron.validation.backends.lean.flow import FlowEuler
from saeuron.validation.backends.lean.noise import torch_draws
from saeuron.validation.backends.lean.schedulers import make_scheduler
from saeuron.validation.backends.load import load
from saeuron.validation.backends.onnx_runner import OnnxRunner
from saeuron.validation.backends.torch_runner import TorchRunner
from saeuron.validation.proof.parity import psnr

SEEDS = [5, 2**32 - 1]
STEPS = 7


def picture(width, height):
    """Waves of different length in each colour, so that turned, mirrored or swapped colours show."""
    y, x = np.mgrid[:height, :width] / 8
    return Image.fromarray((127 + 120 * np.stack([np.sin(x), np.sin(1.7 * y), np.cos(x + 2 * y)], -1)).astype(np.uint8))


def mask_of(width, height):
    """An uneven shape with grey levels on both sides of the middle; a latent's upper left pixel isn't its mean."""
    grey = np.zeros((height, width), np.uint8)
    grey[height // 4 :, : width // 2 + 3] = 200
    grey[0, :] = 127
    grey[1, :] = 128
    return Image.fromarray(grey)


def theirs(root, kind, texts, seeds, strength, guidance, size, mask=None, negative=None):
    """diffusers' pictures by its pipeline of that kind, every picture from a generator of its own."""
    opened = load(root, check_files=False)
    cls = getattr(diffusers, type(opened).__name__.replace("Pipeline", f"{kind}Pipeline"))
    parts = {k: v for k, v in opened.components.items() if k in cls.__init__.__annotations__ or k in cls._optional_components or k in ("vae", "unet", "scheduler", "tokenizer", "text_encoder")}  # fmt: skip
    options = {"requires_safety_checker": False} if cls.__name__.startswith("StableDiffusion" + kind) else {}
    pipeline = cls(**parts, **options)
    pipeline.set_progress_bar_config(disable=True)
    given = {} if mask is None else {"mask_image": [mask] * len(texts), "width": size[0], "height": size[1]}
    return pipeline(
        texts, image=[picture(*size)] * len(texts), strength=strength, num_inference_steps=STEPS, guidance_scale=guidance, output_type="np",
        generator=[torch.Generator().manual_seed(s) for s in seeds], negative_prompt=negative, **given,
    ).images  # fmt: skip


def ours(root, texts, seeds, strength, guidance, size, mask=None, negative=None, runner=None):
    lean = LeanPipeline(root, runner or OnnxRunner(root))
    pixels = np.asarray(picture(*size)).transpose(2, 0, 1).astype(np.float32) / 255 * 2 - 1
    noise, begin = lean.begin(lean.look(pixels), seeds, strength, None if mask is None else np.asarray(mask) >= 128)
    told = []
    found = lean.denoise(texts, noise, STEPS, guidance, negative, lambda done, total: told.append((done, total)), begin)
    taken = STEPS - left_out(STEPS, strength)
    assert told == [(i + 1, taken) for i in range(taken)]
    return lean.decode(found)


def equal(found, wanted, other=None):
    """And different from `other`, or nothing is shown."""
    near = psnr(found, (wanted * 255).round().astype(np.uint8))
    far = None if other is None else psnr(found, other)
    print(f"{near:.1f} dB to diffusers' pictures{'' if far is None else f', {far:.1f} dB to others'}")
    assert near >= 50 and (far is None or far < 45)


KINDS = {
    "ddim": None, "euler": EulerDiscreteScheduler(**DEMO_SETTINGS), "dpm": DPMSolverMultistepScheduler(**SD, prediction_type="v_prediction", use_karras_sigmas=False),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("strength", "guidance"), [(0.6, 3.0), (1.0, 1.0)])
@pytest.mark.parametrize("kind", KINDS)
def test_img2img_of_the_demo(demo_artifact, tmp_path, kind, strength, guidance):
    root = demo_artifact.path if KINDS[kind] is None else with_scheduler(demo_artifact.path, tmp_path / "a", KINDS[kind])
    given = (TEXTS, SEEDS, strength, guidance, (48, 32))
    found = ours(root, *given)
    assert found.shape == (2, 32, 48, 3)
    equal(found, theirs(root, "Img2Img", *given), ours(root, TEXTS, SEEDS[::-1], *given[2:]))


@pytest.mark.slow
@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize("scheduler", [None, DDIMScheduler(**SD, clip_sample=False)], ids=["euler", "ddim"])
def test_img2img_and_inpainting_of_sdxl(xl_artifact, tmp_path, scheduler, strength):
    root = xl_artifact.path if scheduler is None else with_scheduler(xl_artifact.path, tmp_path / "a", scheduler)
    size = (32, 16)
    given, mask = (TEXTS, SEEDS, strength, 4.0, size), mask_of(*size)
    whole, part = ours(root, *given), ours(root, *given, mask)
    equal(whole, theirs(root, "Img2Img", *given), part)
    equal(part, theirs(root, "Inpaint", *given, mask), whole)


@pytest.mark.slow
@pytest.mark.parametrize(("strength", "guidance"), [(0.6, 3.0), (1.0, 1.0)])
@pytest.mark.parametrize("kind", ["ddim", "euler", "dpm"])
def test_img2img_and_inpainting_of_a_small_sd(artifact, tmp_path, kind, strength, guidance):  # noqa: F811
    """By torch as the runner: the loop is the same, and this artifact needs no graphs."""
    schedulers = {"ddim": None, "euler": EulerDiscreteScheduler(**SD), "dpm": DPMSolverMultistepScheduler(**SD)}
    root = artifact if schedulers[kind] is None else with_scheduler(artifact, tmp_path / "a", schedulers[kind])
    size, runner = (16, 24), TorchRunner(load(root, check_files=False))
    given, mask = (TEXTS, SEEDS, strength, guidance, size), mask_of(16, 24)
    negative = ["a dog", ""]
    whole, part = (ours(root, *given, m, negative, runner) for m in (None, mask))
    equal(whole, theirs(root, "Img2Img", *given, None, negative), part)
    equal(part, theirs(root, "Inpaint", *given, mask, negative), whole)


@pytest.mark.slow
def test_latents_of_a_mean_and_a_deviation(xl_artifact):
    lean = LeanPipeline(xl_artifact.path, OnnxRunner(xl_artifact.path))
    denoiser, latents = lean.family.denoiser, np.random.default_rng(0).normal(size=(2, 4, 3, 3)).astype(np.float32)
    vae = {"scaling_factor": 0.13, "latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [0.5, 1.5, 2.0, 1.0]}
    assert np.allclose(denoiser.unscaled(denoiser.scaled(latents, vae), vae), latents, atol=1e-5)
    assert np.allclose(denoiser.scaled(latents, vae)[:, 1], (latents[:, 1] + 0.2) * 0.13 / 1.5, atol=1e-6)


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 4), (16,), (17,), (4, 9, 7), (4, 8, 8)])
def test_draws_follow_one_another_as_torchs(shape):
    generator = torch.Generator().manual_seed(11)
    wanted = [torch.randn(shape, generator=generator).numpy() for _ in range(3)]
    np.testing.assert_allclose(torch_draws(11, shape, 3), np.stack(wanted), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (make_scheduler(dict(SD), "ddim"), DDIMScheduler(**SD)), (make_scheduler(dict(SD), "euler"), EulerDiscreteScheduler(**SD)),
        (DpmSolver(SD), DPMSolverMultistepScheduler(**SD)), (FlowEuler({"shift": 3.0}, lambda *_: {}), FlowMatchEulerDiscreteScheduler(shift=3.0)),
    ],
)  # fmt: skip
def test_noise_is_added_as_by_diffusers(ours, theirs):
    ours.set_timesteps(STEPS)
    theirs.set_timesteps(STEPS)
    clean, noise = (torch.from_numpy(a) for a in np.random.default_rng(1).normal(size=(2, 2, 4, 3, 3)).astype(np.float32))
    add = theirs.scale_noise if hasattr(theirs, "scale_noise") else None
    for i, t in enumerate(theirs.timesteps):
        wanted = add(clean, t[None], noise) if add else theirs.add_noise(clean, noise, t[None])
        found = ours.noised(clean.numpy(), noise.numpy(), i)
        assert found.dtype == np.float32 and np.allclose(found, wanted.numpy(), rtol=1e-5, atol=1e-5)


def test_steps_that_a_strength_leaves():
    assert [left_out(20, s) for s in (1.0, 0.6, 0.05)] == [0, 8, 19]
    with pytest.raises(SaeuronError, match=r"strength 0.04 leaves none of 20 steps"):
        left_out(20, 0.04)


def test_only_unets_begin_from_a_picture():
    assert {family.pipeline for family in FAMILIES if family.denoiser.begins} == {"StableDiffusionPipeline", "StableDiffusionXLPipeline"}
