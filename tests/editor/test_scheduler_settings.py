"""Schedulers as the pipeline really uses them, whatever a config leaves out; ones that an edit's tables don't hold for."""

import json
import shutil

import diffusers
import pytest
import torch
from tests.conftest import HOOKPOINT, make_sae

from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.denoisers.families import FAMILIES, family_of
from saeuron.editor.denoisers.pipelines import load_pipeline, open_folder, scheduler_in
from saeuron.editor.denoisers.sampling_settings import Sampling
from saeuron.editor.denoisers.schedulers import check_loop, check_reach, timesteps, walk
from saeuron.editor.features.activations import ddim_timesteps
from saeuron.editor.features.collect import collect
from saeuron.validation.backends.lean.pipeline import scheduler_of
from saeuron.validation.proof.surroundings import compare, of_folder, of_pipeline

BETAS = {"beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085}
MENDED = {"clip_sample": False, "steps_offset": 1}
NAMES = ("DDIM", "DDPM", "PNDM", "LMSDiscrete", "EulerDiscrete", "HeunDiscrete", "EulerAncestralDiscrete", "DPMSolverMultistep", "DEISMultistep", "UniPCMultistep", "KDPM2Discrete", "LCM")  # fmt: skip


def with_scheduler(model, folder, name, **config):
    """A copy of a pipeline's folder with another scheduler's config."""
    shutil.copytree(model, folder, dirs_exist_ok=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": name, **config}))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", name]}))
    return folder


def said(config):
    return {key: value for key, value in config.items() if not key.startswith("_")}


@pytest.mark.parametrize("name", NAMES)
def test_ddim_samples_as_the_pipeline_whatever_its_config_leaves_out(tiny, tmp_path, name):
    made = []
    for number, extra in enumerate(({}, MENDED)):
        folder = with_scheduler(tiny["model"], tmp_path / str(number), f"{name}Scheduler", **BETAS, **extra)
        scheduler = scheduler_in(folder)
        made.append(FAMILIES[0].calibrating(scheduler))
        scheduler.save_pretrained(folder / "scheduler")  # as an artifact has it
        lean = scheduler_of(folder, "ddim")
        lean.set_timesteps(7)
        own, samples = walk(made[-1], 7)
        assert lean.timesteps.tolist() == own.timesteps.tolist()
        generator = torch.Generator().manual_seed(0)
        sample, field = (torch.randn(1, 1, 4, 4, generator=generator) for _ in range(2))
        sample = sample.numpy()
        for index, wanted in enumerate(samples):
            sample = lean.step(torch.tanh(torch.from_numpy(sample) + field).numpy(), index, sample)
            assert torch.allclose(torch.from_numpy(sample[0, 0]).double(), wanted, atol=1e-5)
    assert said(made[0].config) == said(made[1].config)
    assert made[0].config.clip_sample is False and made[0].config.steps_offset == 1


def test_only_what_the_pipeline_mends_is_mended(tiny_xl, tmp_path):
    family = FAMILIES[1]
    own = scheduler_in(with_scheduler(tiny_xl["model"], tmp_path, "DDIMScheduler", **BETAS))
    assert own.config.clip_sample and family.calibrating(own).config.clip_sample, "SDXL's pipeline clips with such a config"
    own = scheduler_in(with_scheduler(tiny_xl["model"], tmp_path, "UniPCMultistepScheduler", **BETAS))
    assert not family.calibrating(own).config.clip_sample, "UniPC never clips"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.pipeline)
def test_the_table_of_mends_is_diffusers_own(family):
    before = diffusers.DDIMScheduler(steps_offset=3, clip_sample=True)
    wanted = {**said(before.config), **family.mends}
    assert said(family.mended(before).config) == wanted


def test_collecting_with_a_config_that_says_nothing_of_clipping(tiny, tmp_path):
    found = []
    for number, extra in enumerate(({}, MENDED)):
        folder = with_scheduler(tiny["model"], tmp_path / str(number), "DPMSolverMultistepScheduler", **BETAS, **extra)
        got = collect(
            load_pipeline(str(folder)), {HOOKPOINT: make_sae()}, {"a": ["An image of House."], "b": ["A boat."]}, Sampling(3, 3.0)
        )
        found.append(got[HOOKPOINT])
    assert torch.equal(found[0].means, found[1].means) and torch.equal(found[0].timesteps, found[1].timesteps)
    assert found[0].timesteps.tolist() == ddim_timesteps(FAMILIES[0].calibrating(scheduler_in(folder)).config, 3).tolist()


def test_the_proofs_copy_is_the_mended_one(tiny, tmp_path):
    folder = with_scheduler(tiny["model"], tmp_path / "model", "PNDMScheduler", skip_prk_steps=True, **BETAS)
    pipeline = load_pipeline(str(folder))
    assert "steps_offset" in pipeline.scheduler.config["_use_default_values"], "the file doesn't say it"
    reference = of_pipeline(pipeline, ["a"], 5)
    pipeline.save_pretrained(tmp_path / "artifact")
    assert compare(of_folder(tmp_path / "artifact", ["a"], 5), reference).passed
    pipeline.scheduler.set_timesteps(5)
    assert reference["timesteps"].tolist() == pipeline.scheduler.timesteps.tolist() and reference["timesteps"][-1] == 1


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("FlowMatchEulerDiscreteScheduler", {}, "flow matching"),
        ("NoSuchScheduler", {}, "none of diffusers'"),
        ("DDIMScheduler", {"beta_schedule": "other"}, "can't be opened"),
        ("DDIMScheduler", {"beta_start": None}, "can't be opened"),
    ],
)
def test_schedulers_that_the_pipeline_can_not_run(tiny, tmp_path, name, config, message):
    folder = with_scheduler(tiny["model"], tmp_path, name, **config)
    with pytest.raises(SaeuronError, match=message) as error:
        open_folder(str(folder))
    assert "\n" not in str(error.value)


def test_a_loop_that_breaks_off_is_found_beforehand():
    with pytest.raises(SaeuronError, match="doesn't run through 4 steps"):
        check_loop(diffusers.DPMSolverMultistepScheduler(beta_schedule="squaredcos_cap_v2", use_karras_sigmas=True), 4)
    check_loop(diffusers.DPMSolverMultistepScheduler(beta_schedule="squaredcos_cap_v2", use_karras_sigmas=True), 3)


@pytest.mark.parametrize("steps", [1, 4, 50])
def test_timesteps_in_other_units_are_refused(steps):
    calibrated = torch.arange(99, -1, -1) * 10 + 1
    others = (
        diffusers.EDMEulerScheduler(),
        diffusers.EulerDiscreteScheduler(**BETAS, timestep_type="continuous", prediction_type="v_prediction"),
    )
    for scheduler in others:
        with pytest.raises(SaeuronError, match="calls the network at timesteps"):
            check_reach(scheduler, steps, calibrated, "X", ends=True)
        with pytest.raises(SaeuronError, match="DDIM can't sample in the place of"):
            FAMILIES[0].calibrating(scheduler)
    for spacing in ("leading", "trailing", "linspace"):
        for count in (1, 4, 20, 100):
            measured = timesteps(diffusers.DDIMScheduler(**BETAS, timestep_spacing=spacing, steps_offset=int(spacing == "leading")), count)
            for usual in ("DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "HeunDiscreteScheduler"):
                check_reach(getattr(diffusers, usual)(**BETAS), steps, measured, "X", ends=True)


def test_timesteps_further_outside_than_they_lie_apart_are_refused():
    scheduler, measured = diffusers.DDIMScheduler(**BETAS), torch.arange(500, 300, -10)
    with pytest.raises(SaeuronError, match="nothing was measured"):
        check_reach(scheduler, 50, measured, "X", ends=True)
    check_reach(scheduler, 50, measured, "X")  # an edit by hand may act in a range


def test_the_family_is_known_by_the_pipeline(tiny):
    pipeline = load_pipeline(str(tiny["model"]))
    assert family_of(pipeline).mended(pipeline.scheduler) is pipeline.scheduler
