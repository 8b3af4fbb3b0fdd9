"""Euler's steps along a flow (SD3, FLUX.1) in numpy, read from a diffusers `scheduler_config.json` with diffusers' meaning and defaults.

Source: diffusers/schedulers/scheduling_flow_match_euler_discrete.py (0.42). What is not implemented is refused, as in `schedulers.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ....editor.common.errors import SaeuronError
from .schedulers import NO_SIDES, check_steps, exponential, karras, settings_of

CLASS = "FlowMatchEulerDiscreteScheduler"
_FLOW: dict[str, Any] = {
    "num_train_timesteps": 1000, "shift": 1.0, "use_dynamic_shifting": False, "base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256,
    "max_image_seq_len": 4096, "invert_sigmas": False, "shift_terminal": None, "use_karras_sigmas": False, "use_exponential_sigmas": False,
    "use_beta_sigmas": False, "time_shift_type": "exponential", "stochastic_sampling": False,
    # No parameters of the class, but read from the config where they are in it: by its curves, and by FLUX's pipeline.
    "sigma_min": None, "sigma_max": None, "use_flow_sigmas": False,
}  # fmt: skip

Told = Callable[[Mapping[str, Any], int, tuple[int, int]], Mapping[str, Any]]
"""scheduler's config, steps, rows and columns of the latents → what the pipeline gives to `set_timesteps`; see `Denoiser.told`"""


class FlowEuler:
    """Euler's method on the noise level sigma, from 1 (noise) to 0 (clean).

    Args:
        config: content of `scheduler_config.json`.
        told: `sigmas` before the shift, and the shift `mu` that follows from the picture's size, where the pipeline gives them.

    Raises:
        SaeuronError: a setting that is not implemented.
    """

    kind = "flow"
    init_noise_sigma = 1.0

    def __init__(self, config: Mapping[str, Any], told: Told) -> None:
        self._c = c = settings_of(config, _FLOW)
        self._told = told
        if c["use_karras_sigmas"] and c["use_exponential_sigmas"]:
            raise SaeuronError("scheduler: only one of 'use_karras_sigmas' and 'use_exponential_sigmas' can be true")
        if c["shift"] <= 0:
            raise SaeuronError(f"scheduler: 'shift' is {c['shift']!r}; it must be above 0")
        if c["shift_terminal"] is not None and not 0 <= c["shift_terminal"] < 1:
            raise SaeuronError(f"scheduler: 'shift_terminal' is {c['shift_terminal']!r}; it must be from 0 to less than 1")
        if c["use_dynamic_shifting"] and c["base_image_seq_len"] == c["max_image_seq_len"]:
            raise SaeuronError("scheduler: 'base_image_seq_len' and 'max_image_seq_len' are equal; a dynamic shift needs two sizes")
        count, shift = c["num_train_timesteps"], 1.0 if c["use_dynamic_shifting"] else c["shift"]
        # Each operation is rounded to float32, as torch does it.
        ends = np.array([count, 1], np.float32) / count
        ends = shift * ends / (1 + (shift - 1) * ends)
        self._first, self._last = float(ends[0]), float(ends[1])
        self._sigmas = np.zeros(0, np.float32)
        self.timesteps = np.zeros(0, np.float32)

    def set_timesteps(self, steps: int, sides: tuple[int, int] = NO_SIDES) -> None:
        """Also raises where the shift, for latents of these sides, leaves no noise levels that fall."""
        c = self._c
        check_steps(steps, c)
        count, told = c["num_train_timesteps"], self._told(c, steps, sides)
        # The scheduler's own levels stay float64 until the end, those that a pipeline gives are float32 from the start.
        sigmas = np.linspace(self._first * count, self._last * count, steps) / count
        if "sigmas" in told:
            sigmas = np.array(told["sigmas"]).astype(np.float32)
        with np.errstate(all="ignore"):
            sigmas = self._curved(self._shifted(sigmas, told), steps).astype(np.float32)
        if not np.isfinite(sigmas).all() or not sigmas[-1] > 0 or (np.diff(sigmas) >= 0).any():
            raise SaeuronError(
                f"scheduler: its settings give no noise levels that fall for {steps} steps and latents of {sides[0]}x{sides[1]}"
            )
        self.timesteps = sigmas * count
        self._sigmas = np.append(sigmas, np.float32(0))

    def _shifted(self, sigmas: np.ndarray, told: Mapping[str, Any]) -> np.ndarray:
        c = self._c
        if c["use_dynamic_shifting"]:
            try:
                weight = math.exp(told["mu"]) if c["time_shift_type"] == "exponential" else told["mu"]
            except OverflowError:
                weight = math.inf
            sigmas = weight / (weight + (1 / sigmas - 1) ** 1.0)
        else:
            sigmas = c["shift"] * sigmas / (1 + (c["shift"] - 1) * sigmas)
        if c["shift_terminal"]:
            rest = 1 - sigmas
            sigmas = 1 - rest / (rest[-1] / (1 - c["shift_terminal"]))
        return sigmas

    def _curved(self, sigmas: np.ndarray, steps: int) -> np.ndarray:
        c = self._c
        curve = karras if c["use_karras_sigmas"] else exponential if c["use_exponential_sigmas"] else None
        if curve is None:
            return sigmas
        low, high = (float(own if own is not None else end) for own, end in ((c["sigma_min"], sigmas[-1]), (c["sigma_max"], sigmas[0])))
        if not 0 < low <= high:
            raise SaeuronError(f"scheduler: sigmas from {high:g} to {low:g}; they must fall and stay above 0")
        return curve(low, high, steps)

    def scale_model_input(self, sample: np.ndarray, index: int) -> np.ndarray:
        return sample

    def step(self, output: np.ndarray, index: int, sample: np.ndarray) -> np.ndarray:
        return sample + (self._sigmas[index + 1] - self._sigmas[index]) * output

    def noised(self, clean: np.ndarray, noise: np.ndarray, index: int) -> np.ndarray:
        return np.asarray((np.float32(1) - self._sigmas[index]) * clean + self._sigmas[index] * noise)
