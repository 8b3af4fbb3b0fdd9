"""Opens an artifact, and its original where that can be, and draws with both by one loop."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from ...editor import demo
from ...editor.common.errors import SaeuronError, first_line
from ...editor.common.files import read_json
from ...editor.common.names import stream_of
from ...editor.denoisers.denoiser import Denoiser
from ...editor.denoisers.families import family_of
from ..artifact import engines, manifest
from ..artifact.installed import missing
from ..artifact.manifest import Manifest
from ..backends.base import Runner
from ..backends.choose import NETWORKS, Way, choose_networks
from ..backends.decisions import Decisions, Watched, collected
from ..backends.lean.noise import initial_noise
from ..backends.lean.pipeline import LeanPipeline, scheduler_of
from ..backends.sessions import check_provider, provider_of
from ..backends.torch_runner import CheckpointRunner, TorchRunner
from ..trust.tables import EditFile, read_edit
from .firing import Firing, firing
from .settings import TrySettings, Wish

Step = Callable[[int, int], None]
"""told how many steps of how many are done"""


class Loop(Protocol):
    """Draws pictures, one at a time."""

    def truncated(self, text: str) -> int:
        """How many of a prompt's tokens no text encoder sees."""
        ...

    def __call__(self, wish: Wish, step: Step, decisions: Decisions | None = None) -> np.ndarray:
        """A picture uint8 `[H, W, 3]`; what the edit decides goes into `decisions`."""
        ...


class Drawn(NamedTuple):
    """A picture by the edited model."""

    picture: np.ndarray
    """uint8 `[H, W, 3]`"""
    firing: Firing | None
    """None where the backend can't show it"""


class DiffusersLoop:
    """diffusers' own loop. A safety checker isn't asked.

    Args:
        pipeline: of one of `editor.denoisers.families`.
        size: height and width, pixels; None: the model's own.
    """

    def __init__(self, pipeline: Any, size: tuple[int | None, int | None]) -> None:
        self._pipeline, self._size = pipeline, size

    def truncated(self, text: str) -> int:
        known = [each for each in family_of(self._pipeline).text_encoders if not each.cuts]
        return max(
            0, *(len(getattr(self._pipeline, each.tokenizer)(text).input_ids) - each.tokens(self._pipeline) + each.kept for each in known)
        )

    def __call__(self, wish: Wish, step: Step, decisions: Decisions | None = None) -> np.ndarray:
        import torch

        from ...editor.denoisers.families import network_of, sizes_of
        from ...editor.denoisers.sampling import check_finite, decode, denoise

        network = network_of(self._pipeline)
        noise = torch.from_numpy(initial_noise([wish.seed], sizes_of(self._pipeline).noise(*self._size)))
        more: dict[str, Any] = {"negative_prompt": [wish.negative]} if wish.negative else {}

        done = itertools.count(1)
        # Not every pipeline has a callback for it.
        handle = network.register_forward_hook(lambda *_: step(next(done), len(self._pipeline.scheduler.timesteps)))
        with contextlib.ExitStack() as stack, torch.no_grad():
            stack.callback(handle.remove)
            stack.enter_context(contextlib.nullcontext() if decisions is None else collected(network, decisions))
            latents = denoise(
                self._pipeline, [wish.prompt], noise.to(network.device, network.dtype), [wish.seed], wish.steps, wish.guidance, **more
            )
            check_finite(latents)
            return decode(self._pipeline, latents, finite=True)[0]


class LeanLoop:
    """The loop without diffusers, around any runner.

    Args:
        root: artifact folder.
        runner: runs the networks.
        scheduler: see `LeanPipeline`.
        size: as for `DiffusersLoop`.
    """

    def __init__(self, root: Path, runner: Runner, scheduler: str | None, size: tuple[int | None, int | None]) -> None:
        self._networks = Watched(runner)
        self._pipeline, self._size = LeanPipeline(root, self._networks, scheduler), size

    def truncated(self, text: str) -> int:
        return self._pipeline.truncated(text)

    def __call__(self, wish: Wish, step: Step, decisions: Decisions | None = None) -> np.ndarray:
        self._networks.decisions = decisions
        negatives = [wish.negative] if wish.negative else None
        try:
            return self._pipeline([wish.prompt], [wish.seed], wish.steps, wish.guidance, negatives, *self._size, step)[0]
        except Exception as error:
            if not type(error).__module__.startswith("onnxruntime"):
                raise
            raise SaeuronError(f"ONNX Runtime can't run the networks: {first_line(error)}") from None


def choose(root: Path, record: Manifest, settings: TrySettings, target: str | None = None) -> Way:
    """What draws; opens nothing.

    Args:
        root: artifact folder.
        record: its manifest.
        settings: backend, device, provider, scheduler.
        target: of engines.

    Raises:
        SaeuronError: a backend that isn't known, isn't in the artifact or can't be run here; options that contradict each other.
    """
    wanted, lacking = settings.backend, missing()
    if wanted is not None:
        manifest.check_backends(root, record, [wanted])
    elif target is None and settings.provider is None and "checkpoint" in record.formats and not lacking:
        wanted = "checkpoint"
    if wanted == "checkpoint" and target is None:
        if lacking:
            raise SaeuronError(f"backend 'checkpoint' needs {', '.join(lacking)}; pip install 'saeuron-export[export]'")
        way = Way(wanted)
    else:
        way = choose_networks(root, record, wanted, target)
    check_provider(settings.provider, [way.backend])
    provider_of(settings.device or "cpu", settings.provider)
    if settings.device and settings.provider and (settings.device == "cpu") != (settings.provider == "cpu"):
        raise SaeuronError(f"--device {settings.device} and --provider {settings.provider} contradict each other; give one of them")
    if way.backend != "checkpoint" or settings.scheduler is not None:
        scheduler_of(root, settings.scheduler)
    return way


@dataclass
class Studio:
    """What is open."""

    root: Path
    record: Manifest
    edit: EditFile
    denoiser: Denoiser
    """the kind of network"""
    runs_on: str
    """what draws, in a few words"""
    edited_loop: Loop
    unedited_loop: Loop | None
    no_original: str
    """why there are no unedited pictures; empty where there are"""
    no_maps: str
    """why there are no heat maps; empty where there are"""

    def edited(self, wish: Wish, step: Step = lambda done, total: None) -> Drawn:
        """The artifact's picture, and where which concept's features fired.

        Raises:
            SaeuronError: it can't be drawn so.
        """
        decisions = None if self.no_maps else Decisions(self.denoiser, 1, wish.guided)
        picture = self.edited_loop(wish, step, decisions)
        return Drawn(picture, None if decisions is None else firing(self.edit, decisions.forwards, *picture.shape[:2]))

    def unedited(self, wish: Wish, step: Step = lambda done, total: None) -> np.ndarray | None:
        """The original model's picture, uint8 `[H, W, 3]`; None where it isn't open."""
        return None if self.unedited_loop is None else self.unedited_loop(wish, step)

    def warnings(self, wish: Wish) -> list[str]:
        """What of a wish has no effect."""
        found = [
            f"The last {lost} tokens of the {what} are beyond what the text encoder reads."
            for text, what in ((wish.prompt, "prompt"), (wish.negative, "negative prompt"))
            if (lost := self.edited_loop.truncated(text))
        ]
        if wish.negative and (not wish.guided or self.denoiser.rows(True) == 1):
            found.append(f"The negative prompt does nothing with this model at guidance {wish.guidance:g}.")
        return found


def open_studio(root: Path, record: Manifest, settings: TrySettings, way: Way, say: Callable[[str], None] = lambda text: None) -> Studio:
    """Open what draws; check the artifact's files before.

    Args:
        root: artifact folder.
        record: its manifest.
        settings: what to open.
        way: see `choose`.
        say: told what is being opened.

    Raises:
        SaeuronError: something can't be opened; of the original only where `settings` name it.
    """
    size, device = (record.sampling.height, record.sampling.width), settings.device or "cpu"
    plain = way.backend == "checkpoint" and settings.scheduler is None
    say("opening the artifact")
    runner: Runner
    if way.backend == "checkpoint":
        runner = CheckpointRunner(root, device)
        _ = runner.pipeline
        runs_on = f"the checkpoint, torch on {device}"
    else:
        runner = NETWORKS[way.backend](root, provider_of(device, settings.provider), way.target)
        runs_on = runner.runs_on
    edited = (
        DiffusersLoop(runner.pipeline, size)
        if isinstance(runner, TorchRunner) and plain
        else LeanLoop(root, runner, settings.scheduler, size)
    )
    say("opening the original model")
    original, reason = _original(record, settings, device)
    unedited: Loop | None = None
    if original is not None:
        unedited = DiffusersLoop(original, size) if plain else LeanLoop(root, TorchRunner(original, "unedited"), settings.scheduler, size)
    edit, denoiser = read_edit(root / "edit" / "edit.safetensors"), family_of(read_json(root / "model_index.json")).denoiser
    return Studio(root, record, edit, denoiser, runs_on, edited, unedited, reason, _no_maps(way, edit.header.chosen))


def _no_maps(way: Way, hookpoints: Iterable[str]) -> str:
    if all(stream_of(hookpoint) for hookpoint in hookpoints):
        return "This edit changes weights or tokens of the text alone, and neither has a place in a picture."
    if way.backend in engines.BACKENDS:
        return "A TensorRT engine hides its inner tensors, so nobody can see here where features fire. The backends checkpoint and onnx show it."
    if way.backend == "onnx" and missing(("onnx",)):
        return "The package onnx is not installed, so the graph's inner tensors can't be read. pip install 'saeuron-export[cpu]' brings it."
    return ""


def _original(record: Manifest, settings: TrySettings, device: str) -> tuple[Any, str]:
    """The original pipeline; or None, and why. One that is asked for and can't be opened is an error."""
    lacking, wanted = missing(), settings.model
    if lacking:
        reason = f"it needs {', '.join(lacking)}; pip install 'saeuron-export[export]'"
        if wanted is not None:
            raise SaeuronError(f"--model {wanted}: {reason}")
        return None, f"Not drawn: {reason}."
    from ...editor.denoisers.pipelines import locate
    from ..proof.fresh import open_original

    if wanted is not None:
        return open_original(wanted, record, device), ""
    source = record.model.source
    try:
        # The one on record may lie on the Hub: gigabytes that nobody asked for.
        return open_original(source if source in demo.MODELS else str(locate(source, fetch=False)), record, device), ""
    except SaeuronError as error:
        return None, f"Not drawn: the original model on record can't be opened here ({error}). --model DIR or ID says where it is."
