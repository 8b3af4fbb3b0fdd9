"""DDIM (eta 0) and Euler (no churn) in numpy, read from a diffusers `scheduler_config.json` with diffusers' meaning and defaults.

Sources: diffusers/schedulers/scheduling_ddim.py and scheduling_euler_discrete.py (0.42). What is not implemented is refused:
a setting that were passed over would give other pictures than the pipeline that was proven.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from ....editor.common.errors import SaeuronError

SHARED: dict[str, Any] = {
    "num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "trained_betas": None,
    "steps_offset": 0, "prediction_type": "epsilon", "rescale_betas_zero_snr": False,
}  # fmt: skip
_DDIM = {
    **SHARED, "clip_sample": True, "set_alpha_to_one": True, "thresholding": False, "dynamic_thresholding_ratio": 0.995,
    "clip_sample_range": 1.0, "sample_max_value": 1.0, "timestep_spacing": "leading",
}  # fmt: skip
_EULER = {
    **SHARED, "interpolation_type": "linear", "use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False,
    "sigma_min": None, "sigma_max": None, "timestep_spacing": "linspace", "timestep_type": "discrete", "final_sigmas_type": "zero",
}  # fmt: skip
# Settings of diffusers' other schedulers, which its DDIM and Euler pass over as well. A config made for another class, or by a
# newer diffusers from one, keeps them.
_OF_OTHERS = {
    *_DDIM, *_EULER, "skip_prk_steps", "variance_type", "algorithm_type", "solver_order", "solver_type", "lower_order_final", "euler_at_final",
    "lambda_min_clipped", "use_lu_lambdas", "use_flow_sigmas", "flow_shift", "use_dynamic_shifting", "time_shift_type", "predict_x0",
    "disable_corrector", "corrector_order", "predictor_order", "tau_func", "solver_p", "shift_terminal", "noise_sampler_seed",
    "original_inference_steps", "timestep_scaling", "quantization_config",
}  # fmt: skip
_CHOICES = {
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "prediction_type": ("epsilon", "v_prediction", "sample"),
    "timestep_spacing": ("leading", "trailing", "linspace"),
    "interpolation_type": ("linear", "log_linear"),
    "timestep_type": ("discrete", "continuous"),
    "final_sigmas_type": ("zero", "sigma_min"),
    "time_shift_type": ("exponential", "linear"),
    # Its quantiles of the beta distribution need scipy.
    "use_beta_sigmas": (False,),
    # Draws noise at every step; made for other models.
    "stochastic_sampling": (False,), "invert_sigmas": (False,),
}  # fmt: skip
_MOST_TIMESTEPS = 100_000
NO_SIDES = (0, 0)


class Scheduler(Protocol):
    """One way from noise to a picture, by the number of the step."""

    kind: str
    timesteps: np.ndarray
    """`[steps]`, as the network is told them; set by `set_timesteps`, like the next one"""
    init_noise_sigma: float
    """what unit-variance noise is multiplied by before the first step"""

    def set_timesteps(self, steps: int, sides: tuple[int, int] = NO_SIDES) -> None:
        """Choose the timesteps, of some schedulers for latents of so many rows and columns; raises `SaeuronError` where the config does not allow so many."""
        ...

    def scale_model_input(self, sample: np.ndarray, index: int) -> np.ndarray:
        """What the network is given for a sample `[B, C, h, w]`."""
        ...

    def step(self, output: np.ndarray, index: int, sample: np.ndarray) -> np.ndarray:
        """The network's output and the (unscaled) sample `[B, C, h, w]` → the next sample."""
        ...

    def noised(self, clean: np.ndarray, noise: np.ndarray, index: int) -> np.ndarray:
        """Clean latents and unit-variance noise `[B, C, h, w]` → the sample that the step of this number begins with."""
        ...


def _bad(key: str, value: Any, wanted: str) -> SaeuronError:
    text = repr(value)
    return SaeuronError(f"scheduler: '{key}' is {text if len(text) <= 60 else text[:59] + '…'}; without diffusers it must be {wanted}")


def settings_of(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The config completed by a class's defaults; raises `SaeuronError` for anything that is not implemented."""
    # diffusers takes its defaults for these, whatever the file says of them.
    ignored = config.get("_use_default_values") or ()
    given = {k: v for k, v in config.items() if not k.startswith("_") and k not in ignored}
    for key in given:
        if key not in _OF_OTHERS and key not in defaults:
            raise SaeuronError(f"scheduler: the setting '{str(key)[:60]}' is not known here, and passing over it could give other pictures")
    found = {key: given.get(key, default) for key, default in defaults.items()}
    for key, value in found.items():
        _check(key, value, defaults[key])
    if found.get("trained_betas") is not None and len(found["trained_betas"]) != found["num_train_timesteps"]:
        raise SaeuronError(f"scheduler: {len(found['trained_betas'])} 'trained_betas' for {found['num_train_timesteps']} timesteps")
    return found


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check(key: str, value: Any, default: Any) -> None:
    if key in _CHOICES:
        if value not in _CHOICES[key] or isinstance(value, bool) != isinstance(default, bool):
            raise _bad(key, value, " or ".join(map(repr, _CHOICES[key])))
    elif isinstance(default, bool):
        if not isinstance(value, bool):
            raise _bad(key, value, "true or false")
    elif key == "trained_betas":
        if value is not None and not (isinstance(value, list | tuple) and value and all(map(_number, value))):
            raise _bad(key, value, "null or a list of numbers")
    elif isinstance(default, int):
        least = 1 if key == "num_train_timesteps" else 0
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= _MOST_TIMESTEPS:
            raise _bad(key, value, f"a whole number from {least} to {_MOST_TIMESTEPS}")
    elif not _number(value) and not (default is None and value is None):
        raise _bad(key, value, "a number")
    elif key == "dynamic_thresholding_ratio" and not 0 <= value <= 1:
        raise _bad(key, value, "a number from 0 to 1")


def _linspace(start: float, end: float, count: int) -> np.ndarray:
    """torch.linspace in float32, bit by bit: from both ends towards the middle, each value rounded once (fused multiply-add)."""
    first, last = np.float32(start), np.float32(end)
    if count == 1:
        return np.array([first])
    step, index = np.float64((last - first) / np.float32(count - 1)), np.arange(count)
    return np.where(index < count // 2, first + step * index, last - step * (count - 1 - index)).astype(np.float32)


def alphas_cumprod(c: Mapping[str, Any]) -> np.ndarray:
    """Cumulative product of `1 - beta`, float32 `[num_train_timesteps]`; torch accumulates it in float64."""
    count = c["num_train_timesteps"]
    if c["trained_betas"] is not None:
        betas = np.array(c["trained_betas"], np.float32)
    elif c["beta_schedule"] == "linear":
        betas = _linspace(c["beta_start"], c["beta_end"], count)
    elif c["beta_schedule"] == "scaled_linear":
        for key in ("beta_start", "beta_end"):
            if c[key] < 0:
                raise _bad(key, c[key], "at least 0 with 'scaled_linear'")
        betas = _linspace(c["beta_start"] ** 0.5, c["beta_end"] ** 0.5, count) ** 2
    else:

        def cosine(t: float) -> float:
            return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

        betas = np.array([min(1 - cosine((i + 1) / count) / cosine(i / count), 0.999) for i in range(count)], np.float32)
    if c["rescale_betas_zero_snr"]:
        betas = _zero_terminal_snr(betas)
    return _cumprod(np.float32(1) - betas)


def trained_sigmas(c: Mapping[str, Any]) -> np.ndarray:
    """Noise levels of the trained timesteps, float32 `[T]`."""
    alphas = alphas_cumprod(c)
    if c["rescale_betas_zero_snr"]:
        alphas[-1] = 2**-24  # as in diffusers: the first sigma would be infinite
    return np.asarray(np.sqrt((np.float32(1) - alphas) / alphas))


def _cumprod(values: np.ndarray) -> np.ndarray:
    return np.cumprod(values.astype(np.float64)).astype(np.float32)


def _zero_terminal_snr(betas: np.ndarray) -> np.ndarray:
    """Betas whose last cumulative product is zero (arXiv:2305.08891, algorithm 1)."""
    root = np.sqrt(_cumprod(np.float32(1) - betas))
    first, last = root[0], root[-1]
    if not first > last:
        raise SaeuronError("scheduler: 'rescale_betas_zero_snr' needs betas that add noise from the first timestep to the last")
    bar = ((root - last) * (first / (first - last))) ** 2
    return np.float32(1) - np.concatenate([bar[:1], bar[1:] / bar[:-1]])


def check_steps(steps: int, c: Mapping[str, Any]) -> None:
    """Raise `SaeuronError` for a number of steps that can't be, by a completed config."""
    if not 1 <= steps <= c["num_train_timesteps"]:
        raise SaeuronError(f"{steps} steps: this scheduler takes 1 to {c['num_train_timesteps']}")


class Ddim:
    """Denoising diffusion implicit models, without noise of its own (eta 0).

    Args:
        config: see `make_scheduler`.
    """

    kind = "ddim"
    init_noise_sigma = 1.0

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._c = settings_of(config, _DDIM)
        self._alphas = alphas_cumprod(self._c)
        self._final = np.float32(1) if self._c["set_alpha_to_one"] else self._alphas[0]
        self.timesteps = np.zeros(0, np.int64)
        self._stride = 0

    def set_timesteps(self, steps: int, sides: tuple[int, int] = NO_SIDES) -> None:
        c = self._c
        check_steps(steps, c)
        trained, spacing = c["num_train_timesteps"], c["timestep_spacing"]
        if spacing == "linspace":
            found = np.linspace(0, trained - 1, steps).round()[::-1].astype(np.int64)
        elif spacing == "leading":
            found = (np.arange(steps) * (trained // steps))[::-1].astype(np.int64) + c["steps_offset"]
        else:
            found = np.round(np.arange(trained, 0, -trained / steps)).astype(np.int64) - 1
        # diffusers ends with an IndexError here.
        if found[0] >= trained:
            raise SaeuronError(
                f"{steps} steps with 'steps_offset' {c['steps_offset']}: the first timestep, {found[0]}, was never trained; take fewer"
            )
        self.timesteps, self._stride = found, trained // steps

    def scale_model_input(self, sample: np.ndarray, index: int) -> np.ndarray:
        return sample

    def step(self, output: np.ndarray, index: int, sample: np.ndarray) -> np.ndarray:
        t = int(self.timesteps[index])
        alpha, before = self._alphas[t], t - self._stride
        alpha_before = self._alphas[before] if before >= 0 else self._final
        signal, noise = np.sqrt(alpha), np.sqrt(np.float32(1) - alpha)
        kind = self._c["prediction_type"]
        # A terminal SNR of zero divides by zero for epsilon; whoever runs the loop looks for what is not finite.
        with np.errstate(divide="ignore", invalid="ignore"):
            if kind == "epsilon":
                clean, direction = (sample - noise * output) / signal, output
            elif kind == "sample":
                clean, direction = output, (sample - signal * output) / noise
            else:
                clean, direction = signal * sample - noise * output, signal * output + noise * sample
            if self._c["thresholding"]:
                clean = self._threshold(clean)
        if self._c["clip_sample"] and not self._c["thresholding"]:
            clean = clean.clip(-np.float32(self._c["clip_sample_range"]), np.float32(self._c["clip_sample_range"]))
        return np.sqrt(alpha_before) * clean + np.sqrt(np.float32(1) - alpha_before) * direction

    def noised(self, clean: np.ndarray, noise: np.ndarray, index: int) -> np.ndarray:
        alpha = self._alphas[int(self.timesteps[index])]
        return np.asarray(np.sqrt(alpha) * clean + np.sqrt(np.float32(1) - alpha) * noise)

    def _threshold(self, clean: np.ndarray) -> np.ndarray:
        """Dynamic thresholding (arXiv:2205.11487): each picture is clipped to a quantile of its own and divided by it."""
        flat = clean.reshape(len(clean), -1)
        ordered = np.sort(np.abs(flat), axis=1)
        # The place between two values in float32, as torch.quantile has it.
        place = np.float32(self._c["dynamic_thresholding_ratio"]) * np.float32(flat.shape[1] - 1)
        below, above = ordered[:, int(np.floor(place))], ordered[:, int(np.ceil(place))]
        bound = below + (place - np.floor(place)) * (above - below)
        bound = np.minimum(np.maximum(bound, np.float32(1)), np.float32(self._c["sample_max_value"]))[:, None]
        return (flat.clip(-bound, bound) / bound).reshape(clean.shape)


class Euler:
    """Euler's method on the noise level sigma, without churn.

    Args:
        config: see `make_scheduler`.
    """

    kind = "euler"

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._c = c = settings_of(config, _EULER)
        if c["use_karras_sigmas"] and c["use_exponential_sigmas"]:
            raise SaeuronError("scheduler: only one of 'use_karras_sigmas' and 'use_exponential_sigmas' can be true")
        self._trained = trained_sigmas(c)
        self._sigmas = np.zeros(0, np.float32)
        self.timesteps = np.zeros(0, np.float32)
        self.init_noise_sigma = 0.0

    def set_timesteps(self, steps: int, sides: tuple[int, int] = NO_SIDES) -> None:
        c, trained = self._c, self._trained
        check_steps(steps, c)
        count, spacing = c["num_train_timesteps"], c["timestep_spacing"]
        if spacing == "linspace":
            timesteps = np.linspace(0, count - 1, steps, dtype=np.float32)[::-1]
        elif spacing == "leading":
            timesteps = (np.arange(steps) * (count // steps))[::-1].astype(np.float32) + np.float32(c["steps_offset"])
        else:
            timesteps = np.arange(count, 0, -count / steps).round().astype(np.float32) - np.float32(1)
        if c["interpolation_type"] == "linear":
            sigmas = np.interp(timesteps, np.arange(count), trained)
        else:
            # One more than there are steps, so the last one is never reached; diffusers does the same.
            sigmas = np.exp(_linspace(float(np.log(trained[-1])), float(np.log(trained[0])), steps + 1))
        curve = karras if c["use_karras_sigmas"] else exponential if c["use_exponential_sigmas"] else None
        if curve is not None:
            sigmas, timesteps = self._curved(curve, sigmas, steps)
        last = trained[0] if c["final_sigmas_type"] == "sigma_min" else 0.0
        self._sigmas = np.concatenate([sigmas, [last]]).astype(np.float32)
        if c["timestep_type"] == "continuous" and c["prediction_type"] == "v_prediction":
            timesteps = np.float32(0.25) * np.log(self._sigmas[:-1])
        self.timesteps = timesteps.astype(np.float32)
        largest = self._sigmas.max()
        self.init_noise_sigma = float(largest if spacing != "leading" else np.sqrt(largest**2 + np.float32(1)))

    def _curved(self, curve: Callable[[float, float, int], np.ndarray], sigmas: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """Sigmas along another curve between the same ends, and the timesteps that they lie at."""
        low, high = (
            float(own if own is not None else end) for own, end in ((self._c["sigma_min"], sigmas[-1]), (self._c["sigma_max"], sigmas[0]))
        )
        if not 0 < low <= high:
            raise SaeuronError(f"scheduler: sigmas from {high:g} to {low:g}; they must fall and stay above 0")
        found, known = curve(low, high, steps), np.log(self._trained)
        logs = np.log(np.maximum(found, 1e-10))
        # Sigmas grow with the timestep: the last one that is not larger, and the one after it.
        left = np.array([np.cumsum(x - known >= 0).argmax() for x in logs]).clip(max=len(known) - 2)
        weight = ((known[left] - logs) / (known[left] - known[left + 1])).clip(0, 1)
        return found, (1 - weight) * left + weight * (left + 1)

    def scale_model_input(self, sample: np.ndarray, index: int) -> np.ndarray:
        return sample / np.sqrt(self._sigmas[index] ** 2 + np.float32(1))

    def step(self, output: np.ndarray, index: int, sample: np.ndarray) -> np.ndarray:
        sigma, following = self._sigmas[index], self._sigmas[index + 1]
        kind = self._c["prediction_type"]
        if kind == "epsilon":
            clean = sample - sigma * output
        elif kind == "sample":
            clean = output
        else:
            clean = output * (-sigma / np.sqrt(sigma**2 + np.float32(1))) + sample / (sigma**2 + np.float32(1))
        with np.errstate(divide="ignore", invalid="ignore"):
            return sample + (sample - clean) / sigma * (following - sigma)

    def noised(self, clean: np.ndarray, noise: np.ndarray, index: int) -> np.ndarray:
        return np.asarray(clean + noise * self._sigmas[index])


def karras(low: float, high: float, steps: int) -> np.ndarray:
    """Equal steps of the seventh root (arXiv:2206.00364)."""
    rho = 7.0
    return (high ** (1 / rho) + np.linspace(0, 1, steps) * (low ** (1 / rho) - high ** (1 / rho))) ** rho


def exponential(low: float, high: float, steps: int) -> np.ndarray:
    """Equal steps of the logarithm."""
    return np.exp(np.linspace(math.log(high), math.log(low), steps))


KINDS: dict[str, Callable[[Mapping[str, Any]], Scheduler]] = {"ddim": Ddim, "euler": Euler}
_CLASSES = {"DDIMScheduler": "ddim", "EulerDiscreteScheduler": "euler"}


def make_scheduler(config: Mapping[str, Any], kind: str | None = None) -> Scheduler:
    """A scheduler from a diffusers config.

    Args:
        config: content of `scheduler_config.json`; `_class_name` says which scheduler it is for.
        kind: `ddim` or `euler`, made from the config as the class's `from_config` would; default: what the config is for.

    Raises:
        SaeuronError: another scheduler, or a setting that is not implemented.
    """
    if kind is None:
        name = config.get("_class_name")
        kind = _CLASSES.get(str(name))
        if kind is None:
            raise SaeuronError(
                f"the scheduler is a {name}, which only diffusers runs; --scheduler ddim or --scheduler euler makes one of these two from its settings (the pictures differ)"
            )
    if kind not in KINDS:
        raise SaeuronError(f"scheduler '{kind}' is not known; it is {' or '.join(KINDS)}")
    return KINDS[kind](config)
