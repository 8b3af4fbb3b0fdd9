"""Pictures of an artifact by any backend, from the same latents: what `evaluate` looks at.

The latents of a picture follow from its seed alone (`lean.noise`, torch's CPU noise in numpy), whatever backend and batch it is made in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...editor.common.errors import SaeuronError
from ...editor.common.suggest import unknown
from ...editor.denoisers.families import network_of, sizes_of
from ..artifact import engines, manifest
from ..artifact.installed import missing
from ..artifact.manifest import Manifest
from ..backends.choose import NETWORKS, choose_networks
from ..backends.lean.noise import initial_noise
from ..backends.onnx_runner import OnnxRunner
from ..backends.sessions import check_provider, provider_of

if TYPE_CHECKING:
    from ..proof.fresh import Original

UNEDITED, HOOK = "unedited", "hook"
KINDS = (UNEDITED, HOOK, *manifest.BACKENDS)
Draw = Callable[[Sequence[str], Sequence[int], int, float], np.ndarray]
Watch = Callable[[Any, int, bool], AbstractContextManager[None]]
"""network, pictures, whether with guidance → a context around the loop that draws them"""
"""prompts, seeds, steps, guidance → pictures uint8 `[B, H, W, 3]`"""


def stage(concepts: Sequence[str]) -> str:
    """Name of the hook that removes some of an artifact's concepts."""
    return f"{HOOK}[{'+'.join(concepts)}]"


class PictureBackends:
    """Opens backends one at a time.

    Args:
        root: artifact folder.
        record: its manifest.
        model: the original model, for `unedited` and `hook`; default: the one on record.
        saes: `PATH` or `HOOKPOINT=PATH`; default: the sources on record.
        device: torch device.
        provider: of ONNX Runtime, one of `runners.PROVIDERS`; default: the device's.
    """

    def __init__(
        self, root: Path, record: Manifest, model: str | None = None, saes: tuple[str, ...] = (), device: str = "cpu",
        provider: str | None = None,
    ) -> None:  # fmt: skip
        self.root, self.record, self.device, self._provider = root, record, device, provider
        self._model, self._saes = model or record.model.source, saes
        self._original: Original | None = None
        self.watch: Watch | None = None
        """network, pictures, whether with guidance → a context around each loop in torch, for whoever looks at tokens"""
        sampling = record.sampling
        self._height, self._width = sampling.height, sampling.width

    def check(self, backends: Sequence[str]) -> None:
        """Raise `SaeuronError` for a backend that isn't known, not in the artifact or can't be run here; opens nothing."""
        if self._provider is not None:
            check_provider(self._provider, backends)
        lacking = missing()
        torches = [name for name in backends if name in (UNEDITED, HOOK, "checkpoint")]
        if torches and not lacking:
            from ...editor.denoisers.pipelines import check_device

            check_device(self.device)
        if "onnx" in backends:
            provider_of(self.device, self._provider)
        for name in backends:
            if name not in KINDS:
                raise SaeuronError(unknown("backend", name, KINDS))
            if name not in (UNEDITED, HOOK):
                manifest.check_backends(self.root, self.record, [name])
            if name in (UNEDITED, HOOK, "checkpoint") and lacking:
                more = "; --no-before leaves the unedited model out" if name == UNEDITED else ""
                raise SaeuronError(f"backend '{name}' needs {', '.join(lacking)}; pip install 'saeuron-export[export]'{more}")
            if name in engines.BACKENDS:
                choose_networks(self.root, self.record, name)

    def runs_on(self, name: str) -> dict[str, Any]:
        """What runs a backend and whose denoising loop it is: fields of a `results.Backend`."""
        if name in engines.BACKENDS:
            target = choose_networks(self.root, self.record, name).target or ""
            return {"runtime": "TensorRT for RTX" if name == "trt-rtx" else "TensorRT", "target": target, "device": "cuda", "loop": "lean"}
        if name == "onnx":
            return {
                "runtime": "ONNX Runtime",
                "device": provider_of(self.device, self._provider),
                "loop": "lean" if missing() else "diffusers",
            }
        return {"runtime": "torch", "device": self.device, "loop": "diffusers"}

    @contextmanager
    def open(self, name: str, concepts: Sequence[str] = ()) -> Iterator[Draw]:
        """A backend that draws.

        Args:
            name: one of `KINDS`.
            concepts: for `hook`: the concepts that it removes; default: all of the artifact's.
        """
        if name == UNEDITED and self._original is None:
            from ..proof.fresh import open_original

            with self._torch(open_original(self._model, self.record, self.device)) as draw:
                yield draw
        elif name in (UNEDITED, HOOK):
            original = self.original()
            if name == UNEDITED:
                with self._torch(original.pipeline) as draw:
                    yield draw
                return
            from ...editor.edit.hook import AblationHook

            edit = original.edit.only(concepts) if concepts else original.edit
            with AblationHook(network_of(original.pipeline), edit, original.saes, self.record.gate), self._torch(original.pipeline) as draw:
                yield draw
        elif name == "checkpoint":
            from ..backends.load import load

            with self._torch(load(self.root, device=self.device, check_files=False)) as draw:
                yield draw
        elif name == "onnx" and not missing():
            with self._torch(OnnxRunner(self.root, provider_of(self.device, self._provider)).pipeline(), watched=False) as draw:
                yield draw
        else:
            from ..backends.lean.pipeline import LeanPipeline

            way = choose_networks(self.root, self.record, name)
            pipeline = LeanPipeline(self.root, NETWORKS[name](self.root, provider_of(self.device, self._provider), way.target))
            yield lambda prompts, seeds, steps, guidance: pipeline(prompts, seeds, steps, guidance, None, self._height, self._width)

    def original(self) -> Original:
        """Original pipeline, edit and SAEs, opened once."""
        if self._original is None:
            from ..proof.fresh import open_reference

            self._original = open_reference(self.root, self.record, self._model, self._saes, self.device)
        return self._original

    def forget(self) -> None:
        """Free the original, so that two copies of a large model never lie in memory together."""
        import gc

        self._original = None
        gc.collect()

    def _torch(self, pipeline: Any, watched: bool = True) -> AbstractContextManager[Draw]:
        """`watched`: its network has blocks to look at."""
        return torch_draw(pipeline, self._height, self._width, lambda: self.watch if watched else None)


@contextmanager
def torch_draw(pipeline: Any, height: int | None, width: int | None, watch: Callable[[], Watch | None]) -> Iterator[Draw]:
    """Pictures by diffusers' loop, each batch within what `watch` gives; a safety checker would blacken pictures, and only some backends have one: none is asked."""
    import torch

    from ...editor.denoisers.sampling import check_finite, decode, denoise

    network, shape = network_of(pipeline), sizes_of(pipeline).noise(height, width)

    def draw(prompts: Sequence[str], seeds: Sequence[int], steps: int, guidance: float) -> np.ndarray:
        noise, over = torch.from_numpy(initial_noise(seeds, shape)), watch()
        with torch.no_grad(), nullcontext() if over is None else over(network, len(prompts), guidance > 1):
            latents = denoise(pipeline, prompts, noise.to(network.device, network.dtype), seeds, steps, guidance)
            check_finite(latents)
            return decode(pipeline, latents, finite=True)

    yield draw
