"""Largest magnitudes of inner tensors of a denoiser's graph, over denoising loops in ONNX Runtime."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...editor.common.errors import SaeuronError
from ...editor.denoisers.sampling import denoise, initial_latents
from ...validation.artifact.manifest import SamplingRecord
from ...validation.backends.onnx_runner import OnnxRunner
from ...validation.backends.sessions import ranged

_BATCH = 4


class _Ranging:
    """ONNX Runtime's session of a graph that keeps the largest magnitudes of some of its tensors.

    Args:
        session: from `ranged`.
        names: of the tensors.
    """

    def __init__(self, session: Any, names: Sequence[str]) -> None:
        self._session, self._names = session, names
        self.most = dict.fromkeys(names, 0.0)
        self.forwards = 0

    def get_inputs(self) -> list[Any]:
        return list(self._session.get_inputs())

    def get_outputs(self) -> list[Any]:
        return list(self._session.get_outputs()[: -len(self._names)])

    def run(self, outputs: Sequence[str], feed: Any) -> list[Any]:
        found = self._session.run([*outputs, *(f"{name}.most" for name in self._names)], feed)
        for name, value in zip(self._names, found[len(outputs) :], strict=True):
            if not math.isfinite(value):
                raise SaeuronError(
                    f"calibrating: the tensor '{name}' of the graph is not finite, so it has no range; use a higher --precision"
                )
            self.most[name] = max(self.most[name], float(value))
        self.forwards += 1
        return found[: len(outputs)]


class _Runner(OnnxRunner):
    def __init__(self, root: Path, component: str, names: Sequence[str]) -> None:
        super().__init__(root)
        self._sessions[component] = self.ranging = _Ranging(ranged(root / component / "model.onnx", names, self.provider), names)


def ranges(
    root: Path, component: str, names: Sequence[str], prompts: Sequence[str], sampling: SamplingRecord, steps: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[dict[str, float], int]:  # fmt: skip
    """Run the artifact's graphs on prompts.

    Args:
        root: artifact folder, its denoiser's graph in floats.
        component: folder of the denoiser.
        names: of tensors of its graph.
        prompts: one picture each, with the seeds 0, 1, ….
        sampling: guidance and size of the pictures.
        steps: denoising steps of each loop.
        progress: told prompts done and in all.

    Returns:
        tensor → largest magnitude; forwards that were run.

    Raises:
        SaeuronError: a graph that can't be run, or values that are not finite.
    """
    runner = _Runner(root, component, names)
    pipeline = runner.pipeline()
    for start in range(0, len(prompts), _BATCH):
        progress(start, len(prompts))
        texts = prompts[start : start + _BATCH]
        seeds = list(range(start, start + len(texts)))
        latents = initial_latents(pipeline, seeds, sampling.height, sampling.width)
        denoise(pipeline, texts, latents, seeds, steps, sampling.guidance)
    found, forwards = runner.ranging.most, runner.ranging.forwards
    runner.close()
    return found, forwards
