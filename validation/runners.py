"""One runner a backend, all with the same calls: float32 arrays in, float32 arrays out, whatever the precision inside."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..editor.conditions import unet_arguments
from ..editor.errors import SaeuronError, first_line
from ..editor.families import family_of
from ..editor.suggest import unknown
from . import engines, manifest
from .golden import Run
from .installed import missing

Conditions = Mapping[str, np.ndarray]
NOTHING: Conditions = {}


class Runner(Protocol):
    """A backend that runs an artifact."""

    name: str
    shows_gates: bool
    """whether gate decisions must be observable here; False where a backend hides its inner tensors"""
    loop: str
    """whose loop makes the free runs: `diffusers` or `lean` (`validation.lean`)"""

    def unet(self, sample: np.ndarray, timestep: float, context: np.ndarray, conditions: Conditions = NOTHING) -> np.ndarray:
        """One forward: `[B, C, h, w]`, scalar, `[B, L, D]`, further inputs `[B, width]` by name → `[B, C, h, w]`."""
        ...

    def decisions(
        self, sample: np.ndarray, timestep: float, context: np.ndarray, conditions: Conditions = NOTHING
    ) -> dict[str, np.ndarray] | None:
        """Gate decisions of one forward, hookpoint → bool `[B, tokens, U]`; None where the backend can't show them."""
        ...

    def stop_watching(self) -> None:
        """Free what `decisions` needed."""
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

    from ..editor.sampling import denoise
    from .reference import decode, to_numpy

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

    shows_gates = True
    loop = "diffusers"

    def __init__(self, pipeline: Any, name: str = "checkpoint") -> None:
        self.pipeline, self.name = pipeline, name

    def unet(self, sample: np.ndarray, timestep: float, context: np.ndarray, conditions: Conditions = NOTHING) -> np.ndarray:
        import torch

        from .reference import to_numpy

        unet = self.pipeline.unet

        def tensor(value: np.ndarray) -> Any:
            return torch.from_numpy(value).to(unet.device, unet.dtype)

        more = unet_arguments({name: tensor(value) for name, value in conditions.items()})
        with torch.no_grad():
            return to_numpy(unet(tensor(sample), timestep, tensor(context), return_dict=False, **more)[0])

    def decisions(
        self, sample: np.ndarray, timestep: float, context: np.ndarray, conditions: Conditions = NOTHING
    ) -> dict[str, np.ndarray] | None:
        ablations = getattr(self.pipeline.unet, "ablations", None)
        if ablations is None:
            return None
        seen: dict[str, np.ndarray] = {}

        def watch(name: str) -> Any:
            return lambda module, args, output: seen.__setitem__(name, output.cpu().numpy())

        handles = [module.gate.register_forward_hook(watch(key.replace("-", "."))) for key, module in ablations.items()]
        try:
            self.unet(sample, timestep, context, conditions)
        finally:
            for handle in handles:
                handle.remove()
        return seen

    def stop_watching(self) -> None:
        return None

    def component(self, name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray] | None:
        import torch

        from ..editor.sampling import autoencoder
        from .reference import to_numpy

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


_ORT_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64, "tensor(int32)": np.int32}


PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
"""how ONNX Runtime's providers are asked for → its own names; `tensorrt` is untested; `cuda` ran on an H200"""
_NEXT = {"TensorrtExecutionProvider": ("CUDAExecutionProvider",)}
"""what runs the nodes that a provider lacks, before the CPU does"""


def open_session(path: Path, provider: str = "CPUExecutionProvider") -> Any:
    """An ONNX Runtime session that really uses `provider`.

    Raises:
        SaeuronError: the file can't be run, or the runtime fell back to another provider. Single nodes that a provider lacks are run by
            the next one all the same; only a profile of the session shows these.
    """
    try:
        import onnxruntime
    except ImportError:
        raise SaeuronError("ONNX Runtime is not installed; install saeuron-export[cpu] (or [gpu])") from None
    if provider not in onnxruntime.get_available_providers():
        raise SaeuronError(f"this ONNX Runtime has no {provider}; it has {', '.join(onnxruntime.get_available_providers())}")
    if provider != "CPUExecutionProvider":
        # CUDA's libraries lie in packages of their own, where no loader looks; torch would have loaded them, but here it may not be.
        with contextlib.redirect_stdout(sys.stderr):
            onnxruntime.preload_dlls()
    options = onnxruntime.SessionOptions()
    # Waiting threads that spin take the processor from torch, or from another session: a proof is 15 % quicker without.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[provider, *_NEXT.get(provider, ())])
    except Exception as error:  # onnxruntime raises many private types
        raise SaeuronError(f"{path} can't be run by ONNX Runtime: {first_line(error)}") from None
    if session.get_providers()[0] != provider:
        raise SaeuronError(f"ONNX Runtime runs {path} on {', '.join(session.get_providers())}, not on {provider} as asked")
    return session


def run_session(session: Any, inputs: dict[str, Any], outputs: list[str] | None = None) -> dict[str, np.ndarray]:
    """Run with inputs cast to the graph's own types; floats come back as float32."""
    feed = {i.name: np.asarray(inputs[i.name]).astype(_ORT_TYPES[i.type]) for i in session.get_inputs()}
    names = outputs or [o.name for o in session.get_outputs()]
    values = session.run(names, feed)
    return {n: v.astype(np.float32) if v.dtype == np.float16 else v for n, v in zip(names, values, strict=True)}


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
    """

    name = "onnx"
    shows_gates = True

    def __init__(self, root: str | Path, provider: str = "CPUExecutionProvider", loop: str = "diffusers") -> None:
        self.root, self.provider, self.loop = Path(root), provider, loop
        self.gates: dict[str, str] = {h: parts["fires"] for h, parts in manifest.read(root)["onnx"]["seams"].items()}
        self._sessions: dict[str, Any] = {}
        self._watching: Any = None

    def session(self, component: str) -> Any:
        """The session of one component, opened at first use."""
        if component not in self._sessions:
            self._sessions[component] = open_session(self.root / component / "model.onnx", self.provider)
        return self._sessions[component]

    def unet(self, sample: np.ndarray, timestep: float, context: np.ndarray, conditions: Conditions = NOTHING) -> np.ndarray:
        return run_session(self.session("unet"), _feed(sample, timestep, context, conditions))["out_sample"]

    def decisions(
        self, sample: np.ndarray, timestep: float, context: np.ndarray, conditions: Conditions = NOTHING
    ) -> dict[str, np.ndarray] | None:
        if self._watching is None:
            # Two sessions of a large UNet would not fit beside each other.
            self._sessions.pop("unet", None)
            self._watching = _with_outputs(self.root / "unet" / "model.onnx", list(self.gates.values()), self.provider)
        found = run_session(self._watching, _feed(sample, timestep, context, conditions), list(self.gates.values()))
        return {hookpoint: found[name] for hookpoint, name in self.gates.items()}

    def stop_watching(self) -> None:
        """Free the session with extra outputs."""
        self._watching = None

    def component(self, name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray] | None:
        return run_session(self.session(name), inputs)

    def free_run(self, run: Run) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return lean_free_run(self.root, self, run) if self.loop == "lean" else _free_run(self.pipeline(), run)

    def pipeline(self) -> Any:
        """A diffusers pipeline whose every network is run by ONNX Runtime."""
        from .onnx_pipeline import onnx_pipeline

        return onnx_pipeline(self)


def _with_outputs(path: Path, names: list[str], provider: str) -> Any:
    """A session of a temporary copy of the graph with inner tensors as outputs; the artifact stays untouched."""
    try:
        import onnx
    except ImportError:
        raise SaeuronError(
            "onnx is not installed, so gate decisions can't be read from the graph; install saeuron-export[cpu] (or [gpu])"
        ) from None
    model = onnx.load(str(path), load_external_data=False)
    model.graph.output.extend(onnx.helper.make_tensor_value_info(n, onnx.TensorProto.BOOL, None) for n in names)
    # Beside the weights, since external data is found relative to the graph; elsewhere if the artifact is read-only.
    external = any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "model.onnx"
        if external:
            data = path.parent / "model.onnx_data"
            try:
                (copy.parent / data.name).hardlink_to(data)
            except OSError:
                import shutil

                shutil.copyfile(data, copy.parent / data.name)
        onnx.save(model, str(copy))
        return open_session(copy, provider)


def provider_of(device: str, wanted: str | None = None) -> str:
    """ONNX Runtime's name of the provider that is to run.

    Args:
        device: torch's name of a device, which decides where nothing is asked for.
        wanted: one of `PROVIDERS`.

    Raises:
        SaeuronError: another word.
    """
    if wanted is None:
        if device != "cpu" and not device.startswith("cuda"):
            raise SaeuronError(f"device '{device}' is not known to ONNX Runtime; it is cpu or cuda")
        wanted = "cuda" if device.startswith("cuda") else "cpu"
    if wanted not in PROVIDERS:
        raise SaeuronError(unknown("provider", wanted, PROVIDERS))
    return PROVIDERS[wanted]


def check_provider(wanted: str | None, backends: Sequence[str]) -> None:
    """Raise `SaeuronError` where a provider is asked for that isn't known, or that none of the backends has."""
    if wanted is not None:
        provider_of("cpu", wanted)
        if "onnx" not in backends:
            raise SaeuronError(f"--provider {wanted} is for backend onnx, not for {', '.join(backends)}")


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


def check_onnxruntime() -> None:
    """Raise `SaeuronError` unless ONNX Runtime is installed."""
    if missing(("onnxruntime",)):
        raise SaeuronError("ONNX Runtime is not installed; install saeuron-export[cpu] (or [gpu])")


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
