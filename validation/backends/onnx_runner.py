"""The artifact's ONNX graphs in ONNX Runtime."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...editor.common.files import read_json
from ...editor.common.typed import plain
from ...editor.denoisers.denoiser import Denoiser
from ...editor.denoisers.families import family_of
from ..artifact import manifest
from ..artifact.golden import Run
from ..artifact.quantised import Quantisation
from .base import Inputs, Observation, lean_free_run
from .sessions import cut, open_session, run_session, showing, silenced
from .torch_runner import _free_run, _tensors


class OnnxRunner:
    """The artifact's ONNX graphs in ONNX Runtime.

    Args:
        root: the artifact folder.
        provider: execution provider; checked to be the one that runs.
        loop: whose loop makes the free runs: `diffusers` or `lean`.
        seams: hookpoint → part of the seam → tensor of the graph; default: the manifest's.
    """

    name = "onnx"
    shows_seam = True
    skips: Mapping[str, str] = {}
    quantised: Quantisation | None = None

    def __init__(
        self, root: str | Path, provider: str = "CPUExecutionProvider", loop: str = "diffusers",
        seams: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:  # fmt: skip
        self.root, self.loop = Path(root), loop
        self.provider = provider
        self.runs_on = f"ONNX Runtime, {provider}"
        self.seams: Mapping[str, Mapping[str, str]] = (
            {name: {k: v for k, v in plain(s).items() if v} for name, s in manifest.read(root).onnx.seams.items()}
            if seams is None
            else seams
        )
        self._sessions: dict[str, Any] = {}
        self._parts: dict[str, Any] = {}
        self._watching: Any = None
        self._silent: Any = None

    def session(self, component: str) -> Any:
        """The session of one component, opened at first use."""
        if component not in self._sessions:
            self._sessions[component] = open_session(self.root / component / "model.onnx", self.provider)
        return self._sessions[component]

    @functools.cached_property
    def _denoiser(self) -> Denoiser:
        return family_of(read_json(self.root / "model_index.json")).denoiser

    @property
    def _graph(self) -> Path:
        return self.root / self._denoiser.component / "model.onnx"

    def denoise(self, inputs: Inputs) -> np.ndarray:
        return next(iter(run_session(self.session(self._denoiser.component), inputs).values()))

    def observe(self, inputs: Inputs, to_seam: bool = False) -> Observation | None:
        names = [name for parts in self.seams.values() for name in parts.values()]
        if self._watching is None:
            # Two sessions of a large denoiser would not fit beside each other.
            self._sessions.pop(self._denoiser.component, None)
            read = [parts[part] for parts in self.seams.values() for part in ("input", "before") if part in parts]
            self._watching = showing(self._graph, names, self.provider, read)
        found = run_session(self._watching, inputs, names if to_seam else None)
        seams = {h: _tensors({part: found[name] for part, name in parts.items()}) for h, parts in self.seams.items()}
        if to_seam:
            return Observation(np.concatenate([seams[h].output.reshape(len(seams[h].output), -1) for h in sorted(seams)], 1), seams)
        return Observation(next(iter(found.values())), seams)  # the graph's own output is the first

    def edit(
        self, hookpoint: str, timestep: float, tokens: np.ndarray, before: np.ndarray | None, places: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray] | None:
        names = self.seams[hookpoint]
        given = {names["input"]: tokens[None]} | ({names["before"]: before[None]} if before is not None else {})
        if places is not None:  # maps of one size may share their places in a graph
            given |= {parts["places"]: places[None] for parts in self.seams.values() if "places" in parts}
        outputs, level = [names["output"], names["fires"]], self._denoiser.at_level(timestep, 1)
        if hookpoint not in self._parts:
            self._parts[hookpoint] = cut(self._graph, list(given), list(level), outputs, self.provider)
        found = run_session(self._parts[hookpoint], {**given, **level}, outputs)
        return found[outputs[0]][0], found[outputs[1]][0]

    def silent(self, inputs: Inputs) -> np.ndarray | None:
        if self._silent is None:
            self._sessions.pop(self._denoiser.component, None)
            self._silent = silenced(self._graph, [parts["fires"] for parts in self.seams.values()], self.provider)
        return next(iter(run_session(self._silent, inputs).values()))

    def stop_watching(self) -> None:
        """Free the sessions of changed graphs."""
        self._watching = self._silent = None

    def close(self) -> None:
        self._sessions.clear()
        self._parts.clear()
        self.stop_watching()

    def component(self, name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray] | None:
        return run_session(self.session(name), inputs)

    def free_run(self, run: Run) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return lean_free_run(self.root, self, run) if self.loop == "lean" else _free_run(self.pipeline(), run)

    def pipeline(self) -> Any:
        """A diffusers pipeline whose every network is run by ONNX Runtime."""
        from .onnx_pipeline import onnx_pipeline

        return onnx_pipeline(self)
