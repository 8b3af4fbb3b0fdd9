"""Which chosen features fire, forward by forward of a denoising loop, by any backend that shows it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from ...editor.denoisers.denoiser import Denoiser
from .base import Inputs, Runner


class Decided(NamedTuple):
    """The edit's decisions in one forward."""

    timestep: float
    """its noise level, 0 to 1000"""
    fires: dict[str, np.ndarray]
    """hookpoint → bool `[pictures, tokens, U]`, of the rows that follow the prompts"""


class Decisions:
    """Collects the decisions of one denoising loop.

    Args:
        denoiser: the kind of network.
        pictures: of the loop.
        guided: whether the loop uses classifier-free guidance.
    """

    def __init__(self, denoiser: Denoiser, pictures: int, guided: bool) -> None:
        self.denoiser, self._pictures, self._guided = denoiser, pictures, guided
        self._calls = 0
        self.forwards: list[Decided] = []
        """in the order of the loop; those of negative prompts alone are left out"""

    def add(self, timestep: float, fires: Mapping[str, np.ndarray]) -> None:
        """The next forward: its noise level, and hookpoint → `[B, tokens, U]`."""
        rows = self.denoiser.prompted(self._calls, self._pictures, self._guided)
        self._calls += 1
        if rows is not None:
            self.forwards.append(Decided(timestep, {name: each[rows].astype(bool) for name, each in fires.items()}))


@contextmanager
def collected(network: Any, decisions: Decisions) -> Iterator[None]:
    """Collect what an edited network of torch decides while the context is open."""
    from ...editor.denoisers.families import denoiser_of
    from .torch_runner import seams_shown

    denoiser = denoiser_of(network)
    with seams_shown(network, ("fires",)) as seen:

        def finish(module: Any, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
            level = denoiser.noise_level(denoiser.inputs(args, kwargs))
            decisions.add(float(level[0]), {name: parts["fires"] for name, parts in seen.items()})

        handle = network.register_forward_hook(finish, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()


class Watched:
    """A runner's networks for `lean.LeanPipeline`, whose decisions are collected while `decisions` is set.

    Args:
        runner: one that shows its inner tensors.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.decisions: Decisions | None = None

    def denoise(self, inputs: Inputs) -> np.ndarray:
        """See `Runner.denoise`."""
        seen = None if self.decisions is None else self._runner.observe(inputs)
        if self.decisions is None or seen is None:
            return self._runner.denoise(inputs)
        level = float(self.decisions.denoiser.noise_level(inputs)[0])
        self.decisions.add(level, {name: tensors.fires for name, tensors in seen.seams.items()})
        return seen.output

    def component(self, name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray] | None:
        """See `Runner.component`."""
        return self._runner.component(name, inputs)
