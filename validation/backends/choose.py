"""Which backend runs an artifact's networks here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...editor.common.errors import SaeuronError
from ..artifact import engines, manifest
from ..artifact.manifest import Manifest
from .base import Runner
from .onnx_runner import OnnxRunner
from .sessions import check_onnxruntime, check_provider, provider_of


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


def choose_networks(root: str | Path, record: Manifest, wanted: str | None = None, target: str | None = None) -> Way:
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
        backend = record.engines[target].backend
        if wanted not in (None, backend):
            raise SaeuronError(f"--target {target} is for backend {backend}, not for {wanted}")
        wanted = backend
    if wanted in manifest.BACKENDS and wanted not in NETWORKS:
        raise SaeuronError(f"backend '{wanted}' needs torch and diffusers (saeuron.load); here it is one of {', '.join(NETWORKS)}")
    if wanted is not None:
        manifest.check_backends(root, record, [wanted])
    reasons: list[str] = []
    for name in [wanted] if wanted else [n for n in (*engines.BACKENDS, "onnx") if n in record.formats]:
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
        f"'{root}' holds {', '.join(record.formats)}, which only torch runs; open it with saeuron.load, or export it with --format onnx"
    )


def open_networks(
    root: str | Path, record: Manifest, backend: str | None = None, device: str = "cpu", provider: str | None = None, target: str | None = None
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
