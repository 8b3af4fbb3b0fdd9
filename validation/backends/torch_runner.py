"""The diffusers pipeline in torch."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ...editor.denoisers.families import family_of, network_of
from ..artifact.golden import Run
from ..artifact.quantised import Quantisation
from ..artifact.seam import Tensors
from .base import Inputs, Observation
from .load import load

_MARKERS = {
    "input": "seam_input",
    "before": "seam_before",
    "output": "seam_output",
    "fires": "gate",
    "members": "members",
    "places": "seam_places",
}
"""part of the seam → the edit's module that gives it"""


@contextmanager
def seams_shown(network: Any, parts: Sequence[str] = tuple(_MARKERS)) -> Iterator[dict[str, dict[str, np.ndarray]]]:
    """What an edited network shows of its edit while the context is open: hookpoint → part → array of the last forward.

    Args:
        network: its `ablations` hold the edit.
        parts: of the seam, as in `manifest.seam_tensor`.
    """
    from ...editor.denoisers.sampling import to_numpy

    seen: dict[str, dict[str, np.ndarray]] = {}

    def watch(hookpoint: str, part: str) -> Any:
        return lambda module, args, output: seen.setdefault(hookpoint, {}).__setitem__(part, to_numpy(output))

    handles = [
        getattr(module, _MARKERS[part]).register_forward_hook(watch(key.replace("-", "."), part))
        for key, module in network.ablations.items() for part in parts if hasattr(module, _MARKERS[part])
    ]  # fmt: skip
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


class TorchRunner:
    """The diffusers pipeline in torch.

    Args:
        pipeline: a pipeline of one of `editor.denoisers.families`; with an edited denoiser its decisions are shown.
        name: shown in the report.
    """

    shows_seam = True
    loop = "diffusers"
    runs_on, provider = "torch", ""
    skips: Mapping[str, str] = {}
    quantised: Quantisation | None = None

    def __init__(self, pipeline: Any, name: str = "checkpoint") -> None:
        self._pipeline, self.name = pipeline, name

    @property
    def pipeline(self) -> Any:
        """The diffusers pipeline."""
        return self._pipeline

    def denoise(self, inputs: Inputs) -> np.ndarray:
        denoiser = family_of(self.pipeline).denoiser
        return self._forward(inputs, denoiser.call)

    def _forward(self, inputs: Inputs, call: Callable[[Any, Any], Any]) -> np.ndarray:
        import torch

        from ...editor.denoisers.sampling import to_numpy

        network, denoiser = network_of(self.pipeline), family_of(self.pipeline).denoiser
        types = dict.fromkeys(denoiser.float32, torch.float32) | dict.fromkeys(denoiser.whole, torch.int64)
        given = {name: torch.from_numpy(value).to(network.device, types.get(name, network.dtype)) for name, value in inputs.items()}
        with torch.no_grad():
            return to_numpy(call(network, given))

    def observe(self, inputs: Inputs, to_seam: bool = False) -> Observation | None:
        from ...editor.denoisers.sampling import tokens_up_to

        network = network_of(self.pipeline)
        if getattr(network, "ablations", None) is None:
            return None
        with seams_shown(network) as seen:
            if to_seam:
                names = sorted(key.replace("-", ".") for key in network.ablations)
                output = self._forward(inputs, lambda network, given: tokens_up_to(network, names, given))
            else:
                output = self.denoise(inputs)
        return Observation(output, {h: _tensors(found) for h, found in seen.items()})

    def edit(
        self, hookpoint: str, timestep: float, tokens: np.ndarray, before: np.ndarray | None, places: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray] | None:
        import torch

        from ...editor.denoisers.sampling import to_numpy

        network = network_of(self.pipeline)
        key = hookpoint.replace(".", "-")
        if key not in getattr(network, "ablations", {}):
            return None
        module = network.ablations[key]
        fires: list[np.ndarray] = []
        handle = module.gate.register_forward_hook(lambda m, args, output: fires.append(to_numpy(output)))
        given = [None if v is None else torch.from_numpy(v[None]).to(network.device, network.dtype) for v in (tokens, before)]
        try:
            with torch.no_grad():
                where = None if places is None else torch.from_numpy(places[None]).to(network.device, torch.float32)
                output = module(given[0], torch.tensor([timestep], dtype=torch.float32, device=network.device), given[1], where)
        finally:
            handle.remove()
        return to_numpy(output)[0], fires[0][0]

    def silent(self, inputs: Inputs) -> np.ndarray | None:
        return None

    def stop_watching(self) -> None:
        return None

    def close(self) -> None:
        return None

    def component(self, name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray] | None:
        import torch

        from ...editor.denoisers.sampling import autoencoder, to_numpy

        pipe = self.pipeline
        kind, text = family_of(pipe).vae, family_of(pipe).text_encoder(name)
        given = {n: torch.from_numpy(v) for n, v in inputs.items()}
        with torch.no_grad():
            if text is not None:
                network = getattr(pipe, name)
                return {n: to_numpy(v) for n, v in text.encode(network, **{n: v.to(network.device) for n, v in given.items()}).items()}
            with autoencoder(pipe) as vae:
                value = next(iter(given.values())).to(vae.device, vae.dtype)
                if name == "vae_decoder":
                    return {"sample": to_numpy(vae.decode(value, return_dict=False)[0])}
                return {kind.encoded: to_numpy(kind.encode(vae, value))}

    def free_run(self, run: Run) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return _free_run(self.pipeline, run)


class CheckpointRunner(TorchRunner):
    """An artifact's checkpoint, opened when its turn comes, so that two copies of a large model never lie in memory together.

    Args:
        root: artifact folder, its files checked.
        device: torch device.
    """

    def __init__(self, root: Path, device: str = "cpu") -> None:
        super().__init__(None)
        self._root, self._device = root, device

    @property
    def pipeline(self) -> Any:
        """The diffusers pipeline, opened at first use; see `load`."""
        if self._pipeline is None:
            self._pipeline = load(self._root, device=self._device, check_files=False)
        return self._pipeline

    def close(self) -> None:
        self._pipeline = None
        gc.collect()


def _free_run(pipeline: Any, run: Run) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    import torch

    from ...editor.denoisers.sampling import decode, denoise, to_numpy

    network = network_of(pipeline)
    initial = torch.from_numpy(run.initial).to(network.device, network.dtype)
    with torch.no_grad():
        latents = denoise(pipeline, run.prompts, initial, run.seeds, run.steps, run.guidance)
        hooked = torch.from_numpy(run.hook).to(latents.device, latents.dtype)
        return to_numpy(latents), decode(pipeline, latents), decode(pipeline, hooked)


def _tensors(parts: Mapping[str, np.ndarray]) -> Tensors:
    return Tensors(parts["input"], parts.get("before"), parts["output"], parts["fires"], parts.get("members"), parts.get("places"))
