"""numpy's DPM-Solver++ against diffusers' own: timesteps and noise levels bit by bit, steps to rounding; what is not implemented is refused."""

import json

import numpy as np
import pytest
from diffusers import DPMSolverMultistepScheduler
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.validation.lean_steps import both as step_by_step

from saeuron.editor.common.errors import SaeuronError
from saeuron.validation.backends.lean.dpm import DpmSolver

SETTINGS = st.fixed_dictionaries({}, optional={
    "num_train_timesteps": st.sampled_from([1000, 1000, 200]), "beta_schedule": st.sampled_from(["linear", "scaled_linear", "squaredcos_cap_v2"]),
    "prediction_type": st.sampled_from(["epsilon", "v_prediction", "sample"]), "solver_order": st.sampled_from([1, 2]), "lower_order_final": st.booleans(),
    "euler_at_final": st.booleans(), "final_sigmas_type": st.sampled_from(["zero", "sigma_min"]), "timestep_spacing": st.sampled_from(["linspace", "leading", "trailing"]),
    "steps_offset": st.sampled_from([0, 1]),
})  # fmt: skip
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(SETTINGS, st.sampled_from([None, 1.0, 3.0, 4.5]), st.integers(1, 40))
def test_steps_are_those_of_diffusers(config, flow_shift, steps):
    if flow_shift is not None:
        config = config | FLOW | {"flow_shift": flow_shift}
    theirs, ours = DPMSolverMultistepScheduler.from_config(config), DpmSolver(config)
    theirs.set_timesteps(steps)
    ours.set_timesteps(steps)
    assert np.array_equal(ours.timesteps, theirs.timesteps.numpy()) and ours.timesteps.dtype == np.int64
    # diffusers' betas are float32 by torch's own arithmetic.
    assert np.allclose(ours._sigmas, theirs.sigmas.numpy(), rtol=2e-6) and ours._sigmas.dtype == np.float32
    for found, following in step_by_step(ours, theirs, steps):
        assert found.dtype == np.float32
        assert np.allclose(found, following.numpy(), rtol=1e-4, atol=1e-4 * float(following.abs().max()), equal_nan=True)


def test_a_loop_starts_anew():
    """What the last step of one loop predicted is nothing to the next."""
    made, other = DpmSolver({}), DpmSolver({})
    for scheduler in (made, other):
        scheduler.set_timesteps(4)
    sample = np.ones((1, 1, 2, 2), np.float32)
    for i in range(4):
        made.step(sample * i, i, sample)
    assert np.array_equal(made.step(sample, 0, sample), other.step(sample, 0, sample))


def test_a_saved_config():
    saved = json.loads(DPMSolverMultistepScheduler(**FLOW, flow_shift=3.0).to_json_string())
    made = DpmSolver(saved)
    assert made.kind == "dpm" and made._c["flow_shift"] == 3.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"algorithm_type": "sde-dpmsolver++"}, "'algorithm_type' is 'sde-dpmsolver\\+\\+', which needs diffusers"),
        ({"solver_type": "heun"}, "'solver_type' is 'heun'"),
        ({"solver_order": 3}, "'solver_order' is '3'"),
        ({"variance_type": "learned_range"}, "'variance_type' is 'learned_range'"),
        ({"use_karras_sigmas": True}, "'use_karras_sigmas' is 'True'"),
        ({"use_lu_lambdas": True}, "'use_lu_lambdas' is 'True'"),
        ({"lambda_min_clipped": -5.1}, "'lambda_min_clipped' is '-5.1'"),
        ({"thresholding": True}, "'thresholding' is 'True'"),
        ({"flow_shift": 0}, "'flow_shift' is 0; it must be above 0"),
        ({"made_up": 1}, "the setting 'made_up' is not known here"),
    ],
)
def test_what_is_not_implemented_is_refused(change, message):
    with pytest.raises(SaeuronError, match=message):
        DpmSolver(change)
