"""numpy's flow-match Euler against diffusers' own, bit by bit: every shift, curve and size; what is not implemented is refused."""

import json

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tests.validation.lean_steps import both as step_by_step

from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.denoisers.flux import Flux
from saeuron.editor.denoisers.sd3 import SD3
from saeuron.validation.backends.lean.flow import FlowEuler

SETTINGS = st.fixed_dictionaries({}, optional={
    "num_train_timesteps": st.sampled_from([1000, 1000, 200]), "shift": st.sampled_from([1.0, 3.0, 3.1, 1.15, 0.4]), "use_dynamic_shifting": st.booleans(),
    "base_shift": st.sampled_from([0.5, 0.3]), "max_shift": st.sampled_from([1.15, 1.6]), "base_image_seq_len": st.sampled_from([256, 100]),
    "max_image_seq_len": st.sampled_from([4096, 6400]), "shift_terminal": st.sampled_from([None, 0.0, 0.02, 0.1]), "use_karras_sigmas": st.booleans(),
    "use_exponential_sigmas": st.booleans(), "time_shift_type": st.sampled_from(["exponential", "linear"]), "sigma_min": st.sampled_from([None, 0.01]),
    "sigma_max": st.sampled_from([None, 0.9]), "use_flow_sigmas": st.booleans(),
})  # fmt: skip
SIDES = st.tuples(*[st.sampled_from([2, 8, 16, 64, 90, 128, 256])] * 2)


def both(kind, config, steps, sides):
    """Ours and diffusers', as the pipeline of that kind runs it."""
    reference = FlowMatchEulerDiscreteScheduler.from_config(config)
    reference.set_timesteps(steps, **kind.told(reference.config, steps, sides))
    ours = FlowEuler(config, kind.told)
    ours.set_timesteps(steps, sides)
    return ours, reference


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.sampled_from([SD3(), Flux()]), SETTINGS, st.integers(1, 60), SIDES)
def test_noise_levels_are_those_of_diffusers(kind, config, steps, sides):
    assume(not (config.get("use_karras_sigmas") and config.get("use_exponential_sigmas")))
    try:
        ours, theirs = both(kind, config, steps, sides)
    except SaeuronError:
        reference = FlowMatchEulerDiscreteScheduler.from_config(config)
        reference.set_timesteps(steps, **kind.told(reference.config, steps, sides))
        levels = reference.sigmas[:-1]
        assert not torch.isfinite(levels).all() or (levels.diff() >= 0).any() or levels[-1] <= 0, "refused without cause"
        return
    assert np.array_equal(ours.timesteps, theirs.timesteps.numpy()) and np.array_equal(ours._sigmas, theirs.sigmas.numpy())
    assert ours.timesteps.dtype == ours._sigmas.dtype == np.float32
    for found, following in step_by_step(ours, theirs, steps):
        # torch may join the product and the sum.
        assert found.dtype == np.float32 and np.abs(found - following.numpy()).max() <= 1e-6


@pytest.mark.parametrize("steps", [1, 2, 999, 1000])
@pytest.mark.parametrize("kind", [SD3(), Flux()])
def test_few_and_all_steps(kind, steps):
    ours, theirs = both(kind, {"shift": 3.0, "use_dynamic_shifting": steps % 2 == 0}, steps, (128, 128))
    assert np.array_equal(ours._sigmas, theirs.sigmas.numpy())


def test_a_saved_config_and_what_diffusers_does_not_read():
    saved = json.loads(FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True, shift_terminal=0.02).to_json_string())
    for config in (saved, {**saved, "_use_default_values": ["shift_terminal"]}):
        ours, theirs = both(Flux(), config, 7, (64, 96))
        assert np.array_equal(ours._sigmas, theirs.sigmas.numpy())
    assert theirs.sigmas[-2] != 0.02


def test_the_size_moves_the_noise():
    made = FlowEuler({"use_dynamic_shifting": True}, Flux().told)
    levels = []
    for sides in ((32, 32), (128, 128)):
        made.set_timesteps(5, sides)
        levels.append(made.timesteps)
    assert (levels[1][1:] > levels[0][1:]).all()


@pytest.mark.parametrize(
    "mutant", [{"shift": 3.0}, {"time_shift_type": "linear"}, {"max_shift": 1.16}, {"shift_terminal": 0.01}, {"base_image_seq_len": 255}]
)
def test_another_setting_is_another_path(mutant):
    """The comparison of these tests would see it."""
    config = {"use_dynamic_shifting": "shift" not in mutant}
    found = [FlowEuler(c, Flux().told) for c in (config, config | mutant)]
    for each in found:
        each.set_timesteps(8, (48, 64))
    assert not np.array_equal(found[0]._sigmas, found[1]._sigmas)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_beta_sigmas": True}, "'use_beta_sigmas' is True; without diffusers it must be False"),
        ({"stochastic_sampling": True}, "'stochastic_sampling' is True"),
        ({"invert_sigmas": True}, "'invert_sigmas' is True"),
        ({"time_shift_type": "cubic"}, "'time_shift_type' is 'cubic'"),
        ({"use_karras_sigmas": True, "use_exponential_sigmas": True}, "only one of"),
        ({"a_new_setting": 1}, "'a_new_setting' is not known here"),
        ({"shift": 0}, "'shift' is 0; it must be above 0"),
        ({"shift": "3"}, "a number"),
        ({"base_shift": None}, "a number"),
        ({"shift_terminal": 1.0}, "from 0 to less than 1"),
        ({"use_dynamic_shifting": 1}, "true or false"),
        ({"use_dynamic_shifting": True, "base_image_seq_len": 4096}, "are equal"),
        ({"num_train_timesteps": 10**9}, "a whole number from 1"),
    ],
)
def test_what_is_refused(config, message):
    with pytest.raises(SaeuronError, match=message) as caught:
        FlowEuler(config, SD3().told)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "steps", "message"),
    [
        ({}, 0, "takes 1 to 1000"),
        ({}, 1001, "takes 1 to 1000"),
        ({"shift_terminal": 0.1}, 1, "no noise levels that fall for 1 steps"),
        ({"use_dynamic_shifting": True, "max_shift": 1e6}, 8, "no noise levels that fall"),
        (
            {"use_dynamic_shifting": True, "base_shift": -3.0, "max_shift": -4.0, "time_shift_type": "linear"},
            8,
            "no noise levels that fall",
        ),
        ({"use_karras_sigmas": True, "sigma_min": 2.0}, 8, "must fall and stay above 0"),
    ],
)
def test_steps_that_can_not_be(config, steps, message):
    with pytest.raises(SaeuronError, match=message):
        FlowEuler(config, SD3().told).set_timesteps(steps, (128, 128))
