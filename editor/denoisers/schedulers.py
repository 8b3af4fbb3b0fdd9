"""Schedulers as a pipeline really uses them: with the values that its constructor mends, and others made from them."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..common.errors import SaeuronError, first_line
from ..common.quiet import quiet_loading

Told = Callable[[int], Mapping[str, Any]]
"""number of steps → what the pipeline gives to `set_timesteps` besides; see `families.telling`"""


def _nothing(steps: int) -> Mapping[str, Any]:
    return {}


def ddim_of(mended: Callable[[Any], Any], scheduler: Any) -> Any:
    """DDIM in the place of a pipeline's own scheduler, with the settings that the pipeline really uses.

    Args:
        mended: a scheduler as the pipeline's constructor leaves it.
        scheduler: the pipeline's.

    Raises:
        SaeuronError: it has no noise schedule for DDIM, or settings that DDIM can't follow.
    """
    from diffusers import DDIMScheduler

    name = type(scheduler).__name__
    if not hasattr(scheduler, "alphas_cumprod"):
        raise SaeuronError(f"DDIM can't sample in the place of {name}: it has another noise schedule (no betas)")
    # `from_config` would take DDIM's defaults for what the file left to the defaults of its own class, or to the constructor.
    config = {key: value for key, value in scheduler.config.items() if key != "_use_default_values"}
    # Most classes have no such setting, and never clip; DDIM's default is to.
    config.setdefault("clip_sample", False)
    try:
        with quiet_loading():
            made = mended(DDIMScheduler.from_config(config))
        walk(made, 2)
    except Exception as error:
        raise SaeuronError(f"DDIM can't sample in the place of {name}: {first_line(error)}") from None
    reached, wanted = _highest(scheduler), _highest(made)
    if -float("inf") < reached < wanted / 2:
        raise SaeuronError(
            f"DDIM can't sample in the place of {name}: this one calls the UNet at timesteps up to {reached:g}, DDIM up to {wanted:g}, so they are of other units"
        )
    return made


def timesteps(scheduler: Any, steps: int, told: Told = _nothing) -> torch.Tensor:
    """What a loop of so many steps tells the network, float64 `[calls]`; the scheduler stays as it is.

    Raises:
        SaeuronError: the scheduler can't take so many steps.
    """
    own = copy.deepcopy(scheduler)
    try:
        own.set_timesteps(steps, **told(steps))
    except Exception as error:  # each class checks in its own way
        raise SaeuronError(f"{type(scheduler).__name__} can't take {steps} steps: {first_line(error)}") from None
    return own.timesteps.double().cpu()


def walk(scheduler: Any, steps: int, told: Told = _nothing) -> tuple[Any, torch.Tensor]:
    """Run a copy of a scheduler through its loop, with a fixed field in the place of the network.

    Returns:
        the copy, and the samples after each step, float64 `[calls, 4, 4]`.
    """
    own = copy.deepcopy(scheduler)
    own.set_timesteps(steps, **told(steps))
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(1, 1, 4, 4, generator=generator) * getattr(own, "init_noise_sigma", 1.0)  # of flow matching always 1
    field = torch.randn(1, 1, 4, 4, generator=generator)
    # Deterministic schedulers take no generator.
    noise = {"generator": torch.Generator().manual_seed(1)} if "generator" in inspect.signature(own.step).parameters else {}
    found = []
    for t in own.timesteps:
        seen = own.scale_model_input(sample, t) if hasattr(own, "scale_model_input") else sample
        sample = own.step(torch.tanh(seen + field), t, sample, **noise).prev_sample
        found.append(sample[0, 0].double())
    return own, torch.stack(found)


def check_loop(scheduler: Any, steps: int, told: Told = _nothing) -> None:
    """Raise `SaeuronError` unless the scheduler's own loop of so many steps runs through."""
    timesteps(scheduler, steps, told)
    try:
        if not walk(scheduler, steps, told)[1].isfinite().all():
            raise ValueError("its samples become infinite or NaN")
    except Exception as error:  # diffusers' own faults among them
        raise SaeuronError(
            f"the model's scheduler {type(scheduler).__name__} doesn't run through {steps} steps: {first_line(error)}; mend its settings, or take another number of steps"
        ) from None


def check_reach(
    scheduler: Any, steps: int, calibrated: torch.Tensor, what: str, ends: bool = False, told: Told = _nothing
) -> None:  # fmt: skip
    """Raise `SaeuronError` where an edit's tables don't hold for the timesteps that a scheduler tells the network.

    Args:
        scheduler: the pipeline's.
        steps: of its loop.
        calibrated: timesteps that something was measured at, `[T]`.
        what: whose they are, for the message.
        ends: refuse also timesteps that lie further outside than the steps lie apart.
        told: see `timesteps`.
    """
    name, low, high = type(scheduler).__name__, float(calibrated.min()), float(calibrated.max())
    found = timesteps(scheduler, steps, told)
    outside = max(float(found.max()) - high, low - float(found.min())) if ends and len(calibrated) > 1 else 0.0
    apart = max((float(t.sort().values.diff().max()) for t in (calibrated.double(), found) if len(t) > 1), default=0.0)
    # In other units (EDM's ln σ / 4, σ itself), not even more steps come near the larger timesteps.
    if max(float(found.max()), _highest(scheduler, told)) < high / 2 or outside > apart:
        raise SaeuronError(
            f"the model's scheduler {name} calls the network at timesteps {found.max():g} to {found.min():g}, but {what} are {high:g} to {low:g}, and nothing was measured where it goes; give the pipeline another scheduler (in its folder 'scheduler' and in model_index.json), or make these anew with this one"
        )


def _highest(scheduler: Any, told: Told = _nothing) -> float:
    """The highest timestep of ten steps, which show a scheduler's units better than one does."""
    try:
        return float(timesteps(scheduler, 10, told).max())
    except SaeuronError:
        return -float("inf")
