"""DPM-Solver++ (multistep, first and second order, without noise of its own) in numpy, read from a diffusers `scheduler_config.json`.

Sources: arXiv 2211.01095, and diffusers/schedulers/scheduling_dpmsolver_multistep.py (0.42) for settings, defaults and timesteps. What is not implemented
is refused, as in `schedulers.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ....editor.common.errors import SaeuronError
from .schedulers import NO_SIDES, SHARED, check_steps, settings_of, trained_sigmas

CLASS = "DPMSolverMultistepScheduler"
_DPM: dict[str, Any] = {
    **SHARED, "solver_order": 2, "thresholding": False, "lower_order_final": True, "euler_at_final": False, "use_karras_sigmas": False,
    "use_exponential_sigmas": False, "use_beta_sigmas": False, "use_lu_lambdas": False, "use_flow_sigmas": False, "flow_shift": 1.0,
    "final_sigmas_type": "zero", "timestep_spacing": "linspace", "use_dynamic_shifting": False,
}  # fmt: skip
_ONLY: dict[str, tuple[Any, ...]] = {
    "algorithm_type": ("dpmsolver++", "deis"), "solver_type": ("midpoint", "logrho", "bh1", "bh2"), "variance_type": (None,),
    "lambda_min_clipped": (None, -np.inf, "-Infinity"), "solver_order": (1, 2), "thresholding": (False,), "use_karras_sigmas": (False,),
    "use_exponential_sigmas": (False,), "use_beta_sigmas": (False,), "use_lu_lambdas": (False,), "use_dynamic_shifting": (False,),
}  # fmt: skip
_FLOW = "flow_prediction"
_FEW = 15
"""steps below which the last ones are of lower order"""


class DpmSolver:
    """Each step uses the clean latents that the last two forwards predict.

    Args:
        config: content of `scheduler_config.json`.

    Raises:
        SaeuronError: a setting that is not implemented.
    """

    kind = "dpm"
    init_noise_sigma = 1.0

    def __init__(self, config: Mapping[str, Any]) -> None:
        given = {key: value for key, value in config.items() if key not in (config.get("_use_default_values") or ())}
        for key, able in _ONLY.items():
            if key in given and not any(given[key] is value or given[key] == value for value in able):
                raise SaeuronError(
                    f"scheduler: '{key}' is {str(given[key])[:60]!r}, which needs diffusers; without it, it must be {able[0]!r}"
                )
        flow = given.get("prediction_type") == _FLOW
        own = {key: value for key, value in config.items() if key not in _ONLY or key in _DPM}
        self._c = c = settings_of({**own, **({"prediction_type": "epsilon"} if flow else {})}, _DPM)
        if flow:
            c["prediction_type"] = _FLOW
        if c["flow_shift"] <= 0:
            raise SaeuronError(f"scheduler: 'flow_shift' is {c['flow_shift']!r}; it must be above 0")
        self._trained = trained_sigmas(c)
        self._sigmas = np.zeros(0, np.float32)
        self.timesteps = np.zeros(0, np.int64)
        self._before: np.ndarray | None = None

    def set_timesteps(self, steps: int, sides: tuple[int, int] = NO_SIDES) -> None:
        c, count = self._c, self._c["num_train_timesteps"]
        check_steps(steps, c)
        if c["use_flow_sigmas"]:
            levels = 1.0 - np.linspace(1, 1 / count, steps + 1)
            sigmas = np.flip(c["flow_shift"] * levels / (1 + (c["flow_shift"] - 1) * levels))[:-1]
            found = sigmas * count
        else:
            found = self._spaced(steps)
            sigmas = np.interp(found, np.arange(count), self._trained)
        last = self._trained[0] if c["final_sigmas_type"] == "sigma_min" else 0
        self._sigmas = np.concatenate([sigmas, [last]]).astype(np.float32)
        self.timesteps, self._before = found.astype(np.int64), None

    def _spaced(self, steps: int) -> np.ndarray:
        c, count = self._c, self._c["num_train_timesteps"]
        if c["timestep_spacing"] == "linspace":
            return np.linspace(0, count - 1, steps + 1).round()[::-1][:-1].astype(np.int64)
        if c["timestep_spacing"] == "leading":
            return (np.arange(steps + 1) * (count // (steps + 1)))[::-1][:-1].astype(np.int64) + c["steps_offset"]
        return np.arange(count, 0, -count / steps).round().astype(np.int64) - 1

    def scale_model_input(self, sample: np.ndarray, index: int) -> np.ndarray:
        return sample

    def step(self, output: np.ndarray, index: int, sample: np.ndarray) -> np.ndarray:
        c, final = self._c, index == len(self.timesteps) - 1
        clean = self._clean(output, index, sample)
        before, self._before = (self._before if index else None), clean
        (_, noise, level), (signal_to, noise_to, level_to) = (self._at(i) for i in (index, index + 1))
        with np.errstate(invalid="ignore", over="ignore"):
            far = level_to - level
            shrink = np.exp(-far) - np.float32(1)
            found = noise_to / noise * sample - signal_to * shrink * clean
            few = c["lower_order_final"] and len(self.timesteps) < _FEW
            first = c["solver_order"] == 1 or before is None or (final and (c["euler_at_final"] or few or c["final_sigmas_type"] == "zero"))
            if first or before is None:
                return found
            slope = far / (level - self._at(index - 1)[2]) * (clean - before)
            return found - np.float32(0.5) * signal_to * shrink * slope

    def noised(self, clean: np.ndarray, noise: np.ndarray, index: int) -> np.ndarray:
        signal, share, _ = self._at(index)
        return np.asarray(signal * clean + share * noise)

    def _at(self, index: int) -> tuple[np.float32, np.float32, np.float32]:
        """Shares of signal and noise at a level, and half the logarithm of their ratio squared."""
        sigma = self._sigmas[index]
        signal = np.float32(1) - sigma if self._c["use_flow_sigmas"] else np.float32(1) / np.sqrt(sigma**2 + np.float32(1))
        noise = sigma if self._c["use_flow_sigmas"] else sigma * signal
        with np.errstate(divide="ignore"):
            return signal, noise, np.log(signal) - np.log(noise)

    def _clean(self, output: np.ndarray, index: int, sample: np.ndarray) -> np.ndarray:
        signal, noise, _ = self._at(index)
        kind = self._c["prediction_type"]
        if kind == "epsilon":
            return (sample - noise * output) / signal
        if kind == "sample":
            return output
        return signal * sample - noise * output if kind == "v_prediction" else sample - self._sigmas[index] * output
