"""numpy's DDIM and Euler against diffusers' own, setting by setting and step by step; what is not implemented is refused."""

import json

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, LCMScheduler, PNDMScheduler
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from saeuron.editor.common.errors import SaeuronError
from saeuron.validation.backends.lean import schedulers
from saeuron.validation.backends.lean.schedulers import _OF_OTHERS, make_scheduler

CLASSES = {"ddim": DDIMScheduler, "euler": EulerDiscreteScheduler}
SHARED = {
    "num_train_timesteps": st.sampled_from([1000, 1000, 200, 37]),
    "beta_start": st.sampled_from([0.0001, 0.00085]),
    "beta_end": st.sampled_from([0.012, 0.02]),
    "beta_schedule": st.sampled_from(["linear", "scaled_linear", "squaredcos_cap_v2"]),
    "steps_offset": st.sampled_from([0, 1]),
    "prediction_type": st.sampled_from(["epsilon", "v_prediction", "sample"]),
    "rescale_betas_zero_snr": st.booleans(),
    "timestep_spacing": st.sampled_from(["leading", "trailing", "linspace"]),
}
DDIM = st.fixed_dictionaries({}, optional={
    **SHARED, "clip_sample": st.booleans(), "clip_sample_range": st.sampled_from([1.0, 2.5]), "set_alpha_to_one": st.booleans(),
    "thresholding": st.booleans(), "dynamic_thresholding_ratio": st.sampled_from([0.995, 0.8]), "sample_max_value": st.sampled_from([1.0, 3.0]),
})  # fmt: skip
EULER = st.fixed_dictionaries({}, optional={
    **SHARED, "interpolation_type": st.sampled_from(["linear", "log_linear"]), "use_karras_sigmas": st.booleans(),
    "use_exponential_sigmas": st.booleans(), "sigma_min": st.sampled_from([None, 0.03]), "sigma_max": st.sampled_from([None, 10.0]),
    "timestep_type": st.sampled_from(["discrete", "continuous"]), "final_sigmas_type": st.sampled_from(["zero", "sigma_min"]),
})  # fmt: skip
MANY = settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def made(config, kind, reference):
    """Ours; where the last cumulative product is made zero, with the reference's own products.

    That takes differences of neighbours, in which torch's square root shows: it is not rounded correctly, and not alike on all
    processors. The products themselves are compared as they are.
    """
    lean = make_scheduler(config, kind)
    if not config.get("rescale_betas_zero_snr"):
        return lean
    theirs = reference.alphas_cumprod.numpy()
    own = schedulers.alphas_cumprod(lean._c)
    if kind == "euler":
        own[-1] = 2**-24
    np.testing.assert_allclose(own, theirs, rtol=0, atol=2e-6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedulers, "alphas_cumprod", lambda c: theirs.copy())
        return make_scheduler(config, kind)


def compare(config, kind, steps, seed=0):
    """The largest relative distance of a step, both given the same sample and output of the network."""
    reference = CLASSES[kind].from_config(config)
    lean = made(config, kind, reference)
    reference.set_timesteps(steps)
    if hasattr(reference, "set_begin_index"):
        reference.set_begin_index(0)  # as SDXL's pipeline does
    lean.set_timesteps(steps)
    assert len(lean.timesteps) == len(reference.timesteps)
    np.testing.assert_allclose(lean.timesteps, reference.timesteps.numpy(), rtol=1e-6, atol=1e-3)
    assert lean.init_noise_sigma == pytest.approx(float(reference.init_noise_sigma), rel=1e-6)
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randn(2, 4, 8, 8, generator=generator) * reference.init_noise_sigma
    worst = 0.0
    for i, t in enumerate(reference.timesteps):
        worst = max(worst, distance(lean.scale_model_input(sample.numpy(), i), reference.scale_model_input(sample, t).numpy()))
        output = torch.randn(sample.shape, generator=generator)
        following = reference.step(output, t, sample).prev_sample
        found = lean.step(output.numpy(), i, sample.numpy())
        assert found.dtype == np.float32
        if not torch.isfinite(following).all():  # a zero terminal SNR with epsilon divides by zero on both sides
            assert (np.isfinite(found) == torch.isfinite(following).numpy()).all()
            break
        # Against the larger of both ends: from a sigma of 4096 a step cancels most digits, on both sides.
        worst = max(worst, distance(found, following.numpy(), float(sample.norm())))
        sample = following
    return worst


def distance(a, b, least=1e-30):
    return float(np.linalg.norm(a.astype(np.float64) - b)) / max(float(np.linalg.norm(b.astype(np.float64))), least)


@MANY
@given(DDIM, st.integers(1, 60))
def test_ddim_is_that_of_diffusers(config, steps):
    assume(steps <= config.get("num_train_timesteps", 1000))
    trained = config.get("num_train_timesteps", 1000)
    if (
        config.get("timestep_spacing", "leading") == "leading"
        and (steps - 1) * (trained // steps) + config.get("steps_offset", 0) >= trained
    ):
        with pytest.raises(SaeuronError, match="was never trained"):
            make_scheduler(config, "ddim").set_timesteps(steps)
        return
    assert compare(config, "ddim", steps) <= 1e-6


@MANY
@given(EULER, st.integers(1, 60))
def test_euler_is_that_of_diffusers(config, steps):
    assume(steps <= config.get("num_train_timesteps", 1000))
    assume(not (config.get("use_karras_sigmas") and config.get("use_exponential_sigmas")))
    assert compare(config, "euler", steps) <= 1e-6


@pytest.mark.parametrize("kind", ["ddim", "euler"])
@pytest.mark.parametrize(
    "other",
    [PNDMScheduler(beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1), LCMScheduler(), DPMSolverMultistepScheduler(use_karras_sigmas=True),
     DDIMScheduler(clip_sample=False), EulerDiscreteScheduler(timestep_spacing="leading")],
)  # fmt: skip
def test_from_another_schedulers_config(other, kind):
    """As `from_config` makes it: own defaults for what the file lacks, other classes' settings passed over."""
    saved = json.loads(other.to_json_string())
    assert compare(saved, kind, 10) <= 1e-6
    assert make_scheduler({**saved, "_use_default_values": ["timestep_spacing"]}, kind).kind == kind


def test_values_that_diffusers_does_not_read():
    config = {"_class_name": "DDIMScheduler", "timestep_spacing": "trailing", "_use_default_values": ["timestep_spacing"]}
    assert compare(config, "ddim", 7) <= 1e-6
    scheduler = make_scheduler(config)
    scheduler.set_timesteps(7)
    assert scheduler.timesteps[-1] == 0, "leading, the default"


def test_trained_betas():
    betas = np.linspace(1e-4, 0.03, 50).tolist()
    for kind in CLASSES:
        assert compare({"trained_betas": betas, "num_train_timesteps": 50}, kind, 9) <= 1e-6
    with pytest.raises(SaeuronError, match="50 'trained_betas' for 1000 timesteps"):
        make_scheduler({"trained_betas": betas}, "ddim")


@pytest.mark.parametrize("steps", [1, 2, 20, 999, 1000])
@pytest.mark.parametrize("kind", ["ddim", "euler"])
def test_few_and_all_steps(kind, steps):
    assert compare({"timestep_spacing": "trailing", "beta_schedule": "scaled_linear", "clip_sample": False}, kind, steps) <= 1e-6


@pytest.mark.parametrize(
    ("config", "kind", "message"),
    [
        ({"_class_name": "PNDMScheduler"}, None, "PNDMScheduler, which only diffusers runs; --scheduler ddim or --scheduler euler"),
        ({}, None, "is a None"),
        ({}, "heun", "it is ddim or euler"),
        ({"use_beta_sigmas": True}, "euler", "'use_beta_sigmas' is True; without diffusers it must be False"),
        ({"prediction_type": "flow_prediction"}, "euler", "'prediction_type' is 'flow_prediction'"),
        ({"beta_schedule": "sigmoid"}, "ddim", "'beta_schedule' is 'sigmoid'"),
        ({"timestep_spacing": "middle"}, "ddim", "'timestep_spacing'"),
        ({"a_new_setting": 1}, "ddim", "'a_new_setting' is not known here"),
        ({"clip_sample": 1}, "ddim", "true or false"),
        ({"num_train_timesteps": 0}, "ddim", "a whole number from 1"),
        ({"num_train_timesteps": 10**9}, "ddim", "a whole number from 1"),
        ({"beta_end": "0.02"}, "ddim", "a number"),
        ({"beta_end": float("nan")}, "ddim", "a number"),
        ({"trained_betas": "many"}, "ddim", "a list of numbers"),
        ({"use_karras_sigmas": True, "use_exponential_sigmas": True}, "euler", "only one of"),
        ({"final_sigmas_type": "one"}, "euler", "'final_sigmas_type'"),
    ],
)
def test_what_is_refused(config, kind, message):
    with pytest.raises(SaeuronError, match=message) as caught:
        make_scheduler(config, kind)
    assert "\n" not in str(caught.value)


def test_steps_that_can_not_be():
    for steps in (0, 1001):
        with pytest.raises(SaeuronError, match="takes 1 to 1000"):
            make_scheduler({}, "euler").set_timesteps(steps)
    with pytest.raises(SaeuronError, match="must fall and stay above 0"):
        make_scheduler({"use_karras_sigmas": True, "sigma_min": 20.0, "sigma_max": 10.0}, "euler").set_timesteps(5)


def test_settings_of_other_schedulers_are_those_of_diffusers():
    """A key that only we think another scheduler's would be passed over without cause."""
    import inspect

    import diffusers

    kinds = [c for c in DDIMScheduler()._get_compatibles() if hasattr(c, "__init__")] + [
        diffusers.TCDScheduler,
        diffusers.LCMScheduler,
        diffusers.SASolverScheduler,
    ]
    known = {name for c in kinds for name in inspect.signature(c.__init__).parameters}
    # The last one's class can't be looked into without torchsde.
    assert _OF_OTHERS - known <= {"quantization_config", "noise_sampler_seed"}
