"""What every backend offers: float32 arrays in, float32 arrays out, whatever the precision inside."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..artifact.golden import Run
from ..artifact.quantised import Quantisation
from ..artifact.seam import Tensors

Inputs = Mapping[str, np.ndarray]
"""by the names that a graph has for them, float32"""


class Observation(NamedTuple):
    """One forward with its inner tensors."""

    output: np.ndarray
    """`[B, C, h, w]`"""
    seams: dict[str, Tensors]
    """by hookpoint"""


class Sessions(Protocol):
    """An artifact's graphs, opened one by one."""

    root: Path

    def session(self, component: str) -> Any:
        """ONNX Runtime's session of one component."""
        ...


class Runner(Protocol):
    """A backend that runs an artifact."""

    name: str
    shows_seam: bool
    """whether the edit's inner tensors must be observable here; False where a backend hides them"""
    loop: str
    """whose loop makes the free runs: `diffusers` or `lean` (`validation.backends.lean`)"""
    skips: Mapping[str, str]
    """check → why it can't be made here"""
    runs_on: str
    """what runs it, in a few words"""
    provider: str
    """of ONNX Runtime; empty for others"""
    quantised: Quantisation | None
    """how its denoiser's graph was quantised; None where it is in floats"""

    def denoise(self, inputs: Inputs) -> np.ndarray:
        """One forward of the denoiser, on whatever its graph takes → `[B, C, h, w]`."""
        ...

    def observe(self, inputs: Inputs, to_seam: bool = False) -> Observation | None:
        """One forward that shows the edit's inner tensors; None where the backend can't.

        Args:
            inputs: of the denoiser.
            to_seam: end behind the last edited block; the output is the edited tokens of all hookpoints side by side `[B, N]`, in the order of their names.
        """
        ...

    def edit(
        self, hookpoint: str, timestep: float, tokens: np.ndarray, before: np.ndarray | None, places: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """The edit alone.

        Args:
            hookpoint: of the edit.
            timestep: noise level of the forward.
            tokens: of the block's output `[L, d]`.
            before: of its input, for an SAE that reads `delta`.
            places: row and column of each `[L, 2]`, where tokens are replaced.

        Returns:
            edited tokens `[L, d]`, decisions bool `[L, U]`; None where the backend can't show them.
        """
        ...

    def silent(self, inputs: Inputs) -> np.ndarray | None:
        """One forward in which no decision of the edit comes true; None where the backend can't."""
        ...

    def stop_watching(self) -> None:
        """Free what `observe` and `silent` needed."""
        ...

    def close(self) -> None:
        """Free everything."""
        ...

    def component(self, name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray] | None:
        """Run a text encoder, `vae_decoder` or `vae_encoder`; None where the backend has no such graph."""
        ...

    def free_run(self, run: Run) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Denoise from a run's initial latents.

        Returns:
            final latents `[B, C, h, w]`; their pictures uint8 `[B, H, W, 3]`; the pictures of the *hook's* final latents.
        """
        ...


def lean_free_run(root: Path, runner: Any, run: Run) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`Runner.free_run` for any runner, without torch and diffusers; the artifact's scheduler must be one of `lean`'s."""
    from .lean.pipeline import LeanPipeline, NotFinite

    pipeline = LeanPipeline(root, runner)
    try:
        latents = pipeline.denoise(run.prompts, run.initial, run.steps, run.guidance)
        return latents, pipeline.decode(latents), pipeline.decode(run.hook)
    except NotFinite as error:  # a failed proof, not a mistake of the user's
        raise RuntimeError(str(error)) from None
