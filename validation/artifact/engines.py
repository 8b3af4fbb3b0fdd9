"""TensorRT engines: which library, which GPUs, what an artifact says of them. Needs neither torch nor a GPU.

Two libraries share one interface. `tensorrt` builds on the GPU that will run the engine; `tensorrt_rtx` builds ahead of time,
without a GPU, for the RTX architectures that are named.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...editor.common.errors import SaeuronError, first_line
from ...editor.common.files import read_json
from ...editor.common.suggest import unknown
from ...editor.denoisers.families import family_of
from .manifest import Engines, Manifest

FOLDER = "tensorrt"
NOT_RUN = "built, not yet run on a GPU"
RTX_SMS = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")
"""what tensorrt_rtx 1.7 builds for; sm75 only by name and not together with others (its engines would be slower there)"""
PRECISIONS = {"sm75": ("fp16",)}
"""architectures that can't compute in every precision (TensorRT for RTX 1.7: "FP32 GEMM is not supported" on Turing, and it has no bf16)"""
SCHEMES = {"fp8": 89, "w8": 80, "int8": 80}
"""scheme of 8 bits → the first architecture that engines of it are built for (TensorRT for RTX 1.7: fp8 on sm86 fails late in the build)"""
_LIBRARIES = {"trt": ("tensorrt", "gpu"), "trt-rtx": ("tensorrt_rtx", "rtx")}
BACKENDS = tuple(_LIBRARIES)


@dataclass(frozen=True)
class Target:
    """What engines are built for."""

    backend: str
    """`trt` (tensorrt, the GPU of this machine) or `trt-rtx` (tensorrt_rtx, ahead of time)"""
    sms: tuple[str, ...] = ()
    """architectures, ascending; none for `trt-rtx`: sm80 and later, as the library decides"""

    @classmethod
    def parse(cls, text: str) -> Target:
        """`local`, `rtx` or `rtx:sm86,sm89`.

        Raises:
            SaeuronError: another word, an architecture that can't be built for, or sm75 together with others.
        """
        if not text.strip():
            raise SaeuronError("--target is empty; it is local, rtx, or rtx:sm86,sm89")
        kind, colon, tail = text.strip().lower().partition(":")
        if kind == "local" and not colon:
            return cls("trt")
        if kind != "rtx":
            raise SaeuronError(f"target '{text}' is not known; it is local, rtx, or rtx:sm86,sm89")
        named = [part.strip() for part in tail.split(",") if part.strip()]
        if colon and not named:
            raise SaeuronError(f"target '{text}' names no architecture; write e.g. rtx:sm86,sm89")
        for name in named:
            if name not in RTX_SMS:
                raise SaeuronError(f"target '{text}': '{name}' is not known; tensorrt_rtx builds for {', '.join(RTX_SMS)}")
        sms = tuple(name for name in RTX_SMS if name in named)
        if "sm75" in sms and len(sms) > 1:
            raise SaeuronError(f"target '{text}': engines for sm75 are built alone; build rtx:sm75 as a target of its own")
        return cls("trt-rtx", sms)

    @property
    def folder(self) -> str:
        """Name of its folder below `tensorrt/`."""
        return "-".join(("local" if self.backend == "trt" else "rtx", *self.sms))

    def __str__(self) -> str:
        if self.backend == "trt":
            return "local"
        return "rtx" + (":" + ",".join(self.sms) if self.sms else "")


def tensorrt_module(backend: str) -> Any:
    """The TensorRT module of a backend.

    Raises:
        SaeuronError: it isn't installed.
    """
    name, extra = _LIBRARIES[backend]
    try:
        return importlib.import_module(name)
    except ImportError as error:
        reason = "" if isinstance(error, ModuleNotFoundError) and error.name == name else f" ({first_line(error)})"
        raise SaeuronError(f"'{name}' can't be imported{reason}; pip install 'saeuron-export[{extra}]'") from None


def module_name(backend: str) -> str:
    """Its import name."""
    return _LIBRARIES[backend][0]


class OutsideShapes(SaeuronError):
    """An input of a shape that an engine wasn't built for."""


def inside(shape: Sequence[int], sizes: Sequence[Sequence[int]]) -> bool:
    """Whether every axis lies within its smallest and largest size; `sizes` as for `check_shape`."""
    low, _, high = sizes
    return len(shape) == len(low) and all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True))


def check_shape(name: str, shape: Sequence[int], sizes: Sequence[Sequence[int]]) -> None:
    """Raise `OutsideShapes` unless every axis lies within its smallest and largest size.

    Args:
        name: of the input.
        shape: asked for.
        sizes: smallest, usual and largest shape.
    """
    low, _, high = sizes
    if not inside(shape, sizes):
        built = list(low) if list(low) == list(high) else f"{list(low)} to {list(high)}"
        raise OutsideShapes(f"the engine takes '{name}' of shape {built}, not {list(shape)}; build it with other --shapes")


@dataclass(frozen=True)
class Gpu:
    """A CUDA device."""

    name: str
    sm: str


def gpu() -> Gpu:
    """The first CUDA device, by cuda-bindings. Not tested on a machine with a GPU.

    Raises:
        SaeuronError: no binding, no driver, or no device; with what to do.
    """
    try:
        from cuda.bindings import runtime
    except ImportError:
        raise SaeuronError("'cuda-bindings' is not installed; pip install 'saeuron-export[rtx]' (or [gpu])") from None
    try:
        status, count = runtime.cudaGetDeviceCount()
    except RuntimeError as error:  # no CUDA libraries to load
        raise SaeuronError(f"no GPU can be used here: {first_line(error)}") from None
    if int(status) or not count:
        # What CUDA calls an insufficient driver is most often none.
        known = {0: "no CUDA device", 100: "no CUDA device", 35: "no NVIDIA driver, or one that is too old"}
        reason = known.get(int(status)) or f"CUDA says {status.name}"
        raise SaeuronError(f"no GPU can be used here ({reason})")
    status, properties = runtime.cudaGetDeviceProperties(0)
    if int(status):
        raise SaeuronError(f"no GPU can be used here (CUDA says {status.name})")
    name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
    return Gpu(name.rstrip("\0"), f"sm{properties.major}{properties.minor}")


def runs_on(engines: Engines, device: Gpu, version: str) -> str | None:
    """Why this GPU and library can't run an artifact's engines; None if they can.

    Args:
        engines: one target's entry in the manifest.
        device: the GPU.
        version: of the TensorRT library here.
    """
    if not _compatible(engines, version):
        return f"built with {engines.module} {engines.version}, here is {version}"
    sms, portable = engines.sms, engines.options.hardware_compatible
    if engines.backend == "trt-rtx":
        fits = device.sm in sms if sms else number(device.sm) >= 80
    else:
        fits = device.sm in sms or (portable and number(device.sm) >= 80)
    return None if fits else f"built for {', '.join(sms) or 'sm80 and later'}, this GPU ({device.name}) is {device.sm}"


def _compatible(engines: Engines, version: str) -> bool:
    """An engine runs in the version that built it; a version-compatible one in that major version, from the builder's on."""
    if engines.version == version:
        return True
    made, here = (tuple(map(int, re.findall(r"\d+", text)[:3])) for text in (engines.version, version))
    return bool(engines.options.version_compatible) and made[0] == here[0] and here >= made


def number(sm: str) -> int:
    """`sm89` → 89."""
    return int(sm.removeprefix("sm"))


def targets(record: Manifest, backend: str) -> dict[str, Engines]:
    """Folder below `tensorrt/` → entry in the manifest, for one backend."""
    return {name: entry for name, entry in record.engines.items() if entry.backend == backend}


def check_target(record: Manifest, target: str | None) -> None:
    """Raise `SaeuronError` unless the artifact has engines of this name (None: any)."""
    if target is not None and target not in record.engines:
        raise SaeuronError(unknown("target", target, record.engines, "in this artifact") if target else "--target is empty")


def stale(record: Manifest, entry: Engines) -> list[str]:
    """Components whose engine was not built from the graphs on record."""
    found = []
    for name, part in entry.components.items():
        graphs = {file: known.sha256 for file, known in record.files.items() if file.startswith(f"{name}/model.onnx")}
        if not graphs or part.onnx != graphs:
            found.append(name)
    return found


def fitting(record: Manifest, backend: str, target: str | None = None) -> tuple[list[str], dict[str, str]]:
    """Targets that this machine can run, and why it can't run the others.

    Args:
        record: the artifact's manifest.
        backend: `trt` or `trt-rtx`.
        target: only this one.

    Returns:
        folders below `tensorrt/`: the fewest architectures first, of these the last built; target → reason.

    Raises:
        SaeuronError: no library or GPU here.
    """
    try:
        version, device = tensorrt_module(backend).__version__, gpu()
    except SaeuronError as error:
        if "onnx" not in record.formats:
            raise
        raise SaeuronError(f"{error}; --backend onnx runs the same artifact's graphs without it") from None
    entries = {name: entry for name, entry in targets(record, backend).items() if target in (None, name)}
    fit, reasons = [], {}
    for name, entry in entries.items():
        reason = runs_on(entry, device, version)
        if reason is None and (old := stale(record, entry)):
            reason = f"engine of {old[0]} was built from other ONNX graphs"
        if reason is None:
            fit.append(name)
        else:
            reasons[name] = reason
    fit.sort(key=lambda name: entries[name].built, reverse=True)
    fit.sort(key=lambda name: (bool(entries[name].options.hardware_compatible), len(entries[name].sms) or len(RTX_SMS)))
    return fit, reasons


def none_fits(root: str | Path, reasons: dict[str, str]) -> SaeuronError:
    """Said where no target fits."""
    said = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    return SaeuronError(f"no engine in '{root}' fits ({said or 'there are none'}); build one: saeuron build {root}")


def check_entries(root: Path, record: Manifest) -> list[str]:
    """Compare what is said of engines with the files and the graphs; needs no GPU.

    Returns:
        one line a disagreement.
    """
    found, said = [], record.engines
    needed = {*family_of(read_json(root / "model_index.json")).graphs} - {"vae_encoder"}
    there = {file.split("/")[1] for file in record.files if file.startswith(f"{FOLDER}/") and file.count("/") > 1}
    found += [f"engines of {name} lie in the folder, but are not on record" for name in sorted(there - set(said))]
    for name, entry in said.items():
        where = f"engines of {name}"
        if Target(entry.backend, tuple(entry.sms)).folder != name:
            found.append(f"{where}: on record for {entry.backend}, {', '.join(entry.sms) or 'sm80 and later'}")
        if entry.module != module_name(entry.backend):
            found.append(f"{where}: on record as built by {entry.module}")
        if entry.precision != record.precision:
            found.append(f"{where}: on record as {entry.precision}, the artifact is {record.precision}")
        if entry.status != NOT_RUN:
            found.append(f"{where}: their status is on record as '{entry.status}', which nothing writes")
        if set(entry.components) != needed:
            found.append(f"{where}: on record are {', '.join(entry.components) or 'none'}, needed are {', '.join(sorted(needed))}")
        for component, part in entry.components.items():
            held = record.files.get(file_of(Path(), name, component).as_posix())
            if held is None or held.bytes != part.bytes:
                found.append(f"{where}: the engine of {component} is not the file on record")
        found += [f"{where}: the engine of {component} was built from other ONNX graphs" for component in stale(record, entry)]
    return found


def file_of(root: Path, target: str, component: str) -> Path:
    """Where a component's engine lies."""
    return root / FOLDER / target / f"{component}.engine"
