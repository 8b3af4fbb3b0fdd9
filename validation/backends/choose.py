"""One runner a backend, all with the same calls: float32 arrays in, float32 arrays out, whatever the precision inside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from ...editor.common.errors import SaeuronError
from ...editor.denoisers.conditions import unet_arguments
from ...editor.denoisers.families import family_of
from ..artifact import engines, manifest
from ..artifact.golden import Run
from ..artifact.seam import Tensors
from .sessions import check_onnxruntime, check_provider, cut, open_session, provider_of, run_session, showing

Conditions = Mapping[str, np.ndarray]
NOTHING: Conditions = {}


class Observation(NamedTuple):
    """One forward with its inner tensors."""

    output: np.ndarray
    """`[B, C, h, w]`"""
    seams: dict[str, Tensors]
    """by hookpoint"""


class Runner(Protocol):
    """A backend that runs an artifact."""

    name: str
    shows_seam: bool
    """whether the edit's inner tensors must be observable here; False where a backend hides them"""
    loop: str
    """whose loop makes the free runs: `diffusers` or `lean` (`validation.lean`)"""
    skips: Mapping[str, str]
    """check → why it can't be made here"""

    def unet(self, sample: np.ndarray, timestep: float, context: np.ndarray, conditions: Conditions = NOTHING) -> np.ndarray:
        """One forward: `[B, C, h, w]`, scalar, `[B, L, D]`, further inputs `[B, width]` by name → `[B, C, h, w]`."""
        ...

    def observe(self, sample: np.ndarray, timestep: float, context: np.ndarray, conditions: Conditions = NOTHING) -> Observation | None:
        """One forward that shows the edit's inner tensors; None where the backend can't."""
        ...

    def edit(self, hookpoint: str, timestep: float, tokens: np.ndarray, before: np.ndarray | None) -> tuple[np.ndarray, np.ndarray] | None:
        """The edit alone.

        Args:
            hookpoint: of the edit.
            timestep: of the forward.
            tokens: of the block's output `[L, d]`.
            before: of its input, for an SAE that reads `delta`.

        Returns:
            edited tokens `[L, d]`, decisions bool `[L, U]`; None where the backend can't show them.
        """
        ...

    def stop_watching(self) -> None:
        """Free what `observe` needed."""
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


def _free_run(pipeline: Any, run: Run) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    import torch

    from ...editor.denoisers.sampling import denoise
    from ..proof.reference import decode, to_numpy

    initial = torch.from_numpy(run.initial).to(pipeline.unet.device, pipeline.unet.dtype)
    with torch.no_grad():
        latents = denoise(pipeline, run.prompts, initial, run.seeds, run.steps, run.guidance)
        hooked = torch.from_numpy(run.hook).to(latents.device, latents.dtype)
        return to_numpy(latents), decode(pipeline, latents), decode(pipeline, hooked)


class TorchRunner:
    """The diffusers pipeline in torch.

    Args:
        pipeline: a pipeline of one of `editor.families`; with an `AblatedUNet2DConditionModel` its decisions are shown.
        name: shown in the report.
    """

    shows_seam = True
    loop = "diffusers"
    skips: Mapping[str, str] = {}

    def __init__(self, pipeline: Any, name: str = "checkpoint") -> None:
        self.pipeline, self.name = pipeline, name

    def unet(self, sample: np.ndarray, timestep: float, context: np.ndarray, conditions: Conditions = NOTHING) -> np.ndarray:
        import torch

        from ..proof.reference import to_numpy

        unet = self.pipeline.unet

        def tensor(value: np.ndarray) -> Any:
            return torch.from_numpy(value).to(unet.device, unet.dtype)

        more = unet_arguments({name: tensor(value) for name, value in conditions.items()})
        with torch.no_grad():
            return to_numpy(unet(tensor(sample), timestep, tensor(context), return_dict=False, **more)[0])

    def observe(self, sample: np.ndarray, timestep: float, context: np.ndarray, conditions: Conditions = NOTHING) -> Observation | None:
        from ..proof.reference import to_numpy

        ablations = getattr(self.pipeline.unet, "ablations", None)
        if ablations is None:
            return None
        seen: dict[str, dict[str, np.ndarray]] = {}

        def watch(hookpoint: str, part: str) -> Any:
            return lambda module, args, output: seen.setdefault(hookpoint, {}).__setitem__(part, to_numpy(output))

        markers = {"input": "seam_input", "before": "seam_before", "output": "seam_output", "fires": "gate", "members": "members"}
        handles = [
            getattr(module, marker).register_forward_hook(watch(key.replace("-", "."), part))
            for key, module in ablations.items() for part, marker in markers.items() if hasattr(module, marker)
        ]  # fmt: skip
        try:
            output = self.unet(sample, timestep, context, conditions)
        finally:
            for handle in handles:
                handle.remove()
        return Observation(output, {h: _tensors(found) for h, found in seen.items()})

    def edit(self, hookpoint: str, timestep: float, tokens: np.ndarray, before: np.ndarray | None) -> tuple[np.ndarray, np.ndarray] | None:
        import torch

        from ..proof.reference import to_numpy

        unet = self.pipeline.unet
        key = hookpoint.replace(".", "-")
        if key not in getattr(unet, "ablations", {}):
            return None
        module = unet.ablations[key]
        fires: list[np.ndarray] = []
        handle = module.gate.register_forward_hook(lambda m, args, output: fires.append(to_numpy(output)))
        given = [None if v is None else torch.from_numpy(v[None]).to(unet.device, unet.dtype) for v in (tokens, before)]
        try:
            with torch.no_grad():
                output = module(given[0], torch.tensor([timestep], dtype=torch.float32, device=unet.device), given[1])
        finally:
            handle.remove()
        return to_numpy(output)[0], fires[0][0]

    def stop_watching(self) -> None:
        return None

    def close(self) -> None:
        return None

    def component(self, name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray] | None:
        import torch

        from ...editor.denoisers.sampling import autoencoder
        from ..proof.reference import to_numpy

        pipe = self.pipeline
        text = family_of(pipe).text_encoder(name)
        value = torch.from_numpy(next(iter(inputs.values())))
        with torch.no_grad():
            if text is not None:
                network = getattr(pipe, name)
                return {n: to_numpy(v) for n, v in text.encode(network, value.to(network.device)).items()}
            with autoencoder(pipe) as vae:
                value = value.to(vae.device, vae.dtype)
                if name == "vae_decoder":
                    return {"sample": to_numpy(vae.decode(value, return_dict=False)[0])}
                return {"latent_parameters": to_numpy(vae.encode(value).latent_dist.parameters)}

    def free_run(self, run: Run) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return _free_run(self.pipeline, run)


def _tensors(parts: Mapping[str, np.ndarray]) -> Tensors:
    return Tensors(parts["input"], parts.get("before"), parts["output"], parts["fires"], parts.get("members"))


def _feed(sample: np.ndarray, timestep: float, context: np.ndarray, conditions: Conditions) -> dict[str, Any]:
    return {"sample": sample, "timestep": np.float32(timestep), "encoder_hidden_states": context, **conditions}


def lean_free_run(root: Path, runner: Any, run: Run) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`Runner.free_run` for any runner, without torch and diffusers; the artifact's scheduler must be DDIM or Euler."""
    from .lean.pipeline import LeanPipeline, NotFinite

    pipeline = LeanPipeline(root, runner)
    try:
        latents = pipeline.denoise(run.prompts, run.initial, run.steps, run.guidance)
        return latents, pipeline.decode(latents), pipeline.decode(run.hook)
    except NotFinite as error:  # a failed proof, not a mistake of the user's
        raise RuntimeError(str(error)) from None


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

    def __init__(
        self, root: str | Path, provider: str = "CPUExecutionProvider", loop: str = "diffusers",
        seams: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:  # fmt: skip
        self.root, self.provider, self.loop = Path(root), provider, loop
        self.seams: Mapping[str, Mapping[str, str]] = manifest.read(root)["onnx"]["seams"] if seams is None else seams
        self._sessions: dict[str, Any] = {}
        self._parts: dict[str, Any] = {}
        self._watching: Any = None

    def session(self, component: str) -> Any:
        """The session of one component, opened at first use."""
        if component not in self._sessions:
            self._sessions[component] = open_session(self.root / component / "model.onnx", self.provider)
        return self._sessions[component]

    def unet(self, sample: np.ndarray, timestep: float, context: np.ndarray, conditions: Conditions = NOTHING) -> np.ndarray:
        return run_session(self.session("unet"), _feed(sample, timestep, context, conditions))["out_sample"]

    def observe(self, sample: np.ndarray, timestep: float, context: np.ndarray, conditions: Conditions = NOTHING) -> Observation | None:
        names = [name for parts in self.seams.values() for name in parts.values()]
        if self._watching is None:
            # Two sessions of a large UNet would not fit beside each other.
            self._sessions.pop("unet", None)
            self._watching = showing(self.root / "unet" / "model.onnx", names, self.provider)
        found = run_session(self._watching, _feed(sample, timestep, context, conditions), ["out_sample", *names])
        seams = {h: _tensors({part: found[name] for part, name in parts.items()}) for h, parts in self.seams.items()}
        return Observation(found["out_sample"], seams)

    def edit(self, hookpoint: str, timestep: float, tokens: np.ndarray, before: np.ndarray | None) -> tuple[np.ndarray, np.ndarray] | None:
        names = self.seams[hookpoint]
        given = {names["input"]: tokens[None]} | ({names["before"]: before[None]} if before is not None else {})
        outputs = [names["output"], names["fires"]]
        if hookpoint not in self._parts:
            self._parts[hookpoint] = cut(self.root / "unet" / "model.onnx", list(given), outputs, self.provider)
        found = run_session(self._parts[hookpoint], {**given, "timestep": np.float32(timestep)}, outputs)
        return found[outputs[0]][0], found[outputs[1]][0]

    def stop_watching(self) -> None:
        """Free the session with extra outputs."""
        self._watching = None

    def close(self) -> None:
        self._sessions.clear()
        self._parts.clear()
        self._watching = None

    def component(self, name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray] | None:
        return run_session(self.session(name), inputs)

    def free_run(self, run: Run) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return lean_free_run(self.root, self, run) if self.loop == "lean" else _free_run(self.pipeline(), run)

    def pipeline(self) -> Any:
        """A diffusers pipeline whose every network is run by ONNX Runtime."""
        from .onnx_pipeline import onnx_pipeline

        return onnx_pipeline(self)


def _engines(backend: str) -> Callable[[Path, str, str | None], Runner]:
    def make(root: Path, provider: str, target: str | None) -> Runner:
        from .tensorrt_runner import TensorRTRunner  # builds on this module

        return TensorRTRunner(root, backend, target)

    return make


NETWORKS: dict[str, Callable[[Path, str, str | None], Runner]] = {
    "onnx": lambda root, provider, target: OnnxRunner(root, provider, "lean"), **{name: _engines(name) for name in engines.BACKENDS},
}  # fmt: skip
"""backends that run an artifact's networks without torch → how one is opened, with ONNX Runtime's provider and an engine's target"""


@dataclass(frozen=True)
class Way:
    """What runs an artifact's networks."""

    backend: str
    target: str | None = None
    """of engines"""
    passed_over: tuple[str, ...] = ()
    """why engines in the artifact don't run"""


def choose_networks(root: str | Path, record: dict[str, Any], wanted: str | None = None, target: str | None = None) -> Way:
    """Which of `NETWORKS` runs an artifact; opens nothing.

    Args:
        root: artifact folder.
        record: its manifest.
        wanted: one of `NETWORKS`; default: engines that fit this GPU, else the graphs.
        target: engines of this name.

    Raises:
        SaeuronError: the artifact does not hold it, or it can't be run here without torch.
    """
    engines.check_target(record, target)
    if target is not None:
        backend = record["engines"][target]["backend"]
        if wanted not in (None, backend):
            raise SaeuronError(f"--target {target} is for backend {backend}, not for {wanted}")
        wanted = backend
    if wanted in manifest.BACKENDS and wanted not in NETWORKS:
        raise SaeuronError(f"backend '{wanted}' needs torch and diffusers (saeuron.load); here it is one of {', '.join(NETWORKS)}")
    if wanted is not None:
        manifest.check_backends(root, record, [wanted])
    reasons: list[str] = []
    for name in [wanted] if wanted else [n for n in (*engines.BACKENDS, "onnx") if n in record["formats"]]:
        try:
            if name == "onnx":
                check_onnxruntime()
                return Way(name, None, tuple(reasons))
            fit, why = engines.fitting(record, name, target)
            if not fit:
                raise engines.none_fits(root, why)
            return Way(name, fit[0], tuple(reasons))
        except SaeuronError as error:
            if wanted:
                raise
            reasons.append(f"{name}: {error}")
    if reasons:
        raise SaeuronError("; ".join(reasons))
    raise SaeuronError(
        f"'{root}' holds {', '.join(record['formats'])}, which only torch runs; open it with saeuron.load, or export it with --format onnx"
    )


def open_networks(
    root: str | Path, record: dict[str, Any], backend: str | None = None, device: str = "cpu", provider: str | None = None, target: str | None = None
) -> Runner:  # fmt: skip
    """The networks of an artifact, for `lean.LeanPipeline`; check its files first.

    Args:
        root: artifact folder.
        record: its manifest.
        backend: see `choose_networks`, also for what is raised.
        device: `cpu` or `cuda`.
        provider: of ONNX Runtime, one of `PROVIDERS`; default: the device's.
        target: engines of this name.
    """
    way = choose_networks(root, record, backend, target)
    check_provider(provider, [way.backend])
    return NETWORKS[way.backend](Path(root), provider_of(device, provider), way.target)
