"""A picture that a loop begins from (img2img), and of which a mask keeps a part (inpainting by a UNet that was not made for it)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ....editor.common.errors import SaeuronError
from .schedulers import Scheduler


@dataclass(frozen=True)
class Begin:
    """What a loop begins from, besides noise."""

    clean: np.ndarray
    """latents of the picture `[B, C, h, w]`, in the pipeline's scaling"""
    strength: float
    """above 0, up to 1: the share of the steps that is taken"""
    mask: np.ndarray | None = None
    """`[1, 1, h, w]`, 1 where the picture is drawn anew, 0 where it is kept; None: drawn anew everywhere"""

    def start(self, scheduler: Scheduler, pure: np.ndarray, noise: np.ndarray, first: int) -> np.ndarray:
        """The sample `[B, C, h, w]` of the first step that is taken.

        Args:
            scheduler: with its timesteps set.
            pure: the sample without a picture.
            noise: of unit variance.
            first: number of the step.
        """
        # diffusers: with a mask and at full strength from noise alone, without a mask never.
        return pure if self.mask is not None and self.strength == 1 else scheduler.noised(self.clean, noise, first)

    def kept(self, scheduler: Scheduler, sample: np.ndarray, noise: np.ndarray, following: int) -> np.ndarray:
        """The sample with the original, as noised as step `following` begins with, where the mask keeps it."""
        if self.mask is None:
            return sample
        done = following == len(scheduler.timesteps)
        original = self.clean if done else scheduler.noised(self.clean, noise, following)
        return np.asarray((1 - self.mask) * original + self.mask * sample)


def left_out(steps: int, strength: float) -> int:
    """How many of the first steps a strength leaves out, by diffusers' rounding.

    Raises:
        SaeuronError: all of them.
    """
    if (taken := min(int(steps * strength), steps)) < 1:
        raise SaeuronError(f"strength {strength:g} leaves none of {steps} steps; take more steps, or a larger strength")
    return steps - taken


def sampled(seen: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Latents `[B, C, h, w]` of what an encoder gives: mean and logarithm of the variance, `[1, 2 · C, h, w]`; `noise` is of unit variance, `[B, C, h, w]`."""
    mean, log = np.split(seen, 2, axis=1)
    return np.asarray(mean + np.exp(np.float32(0.5) * log.clip(-30, 20)) * noise)
