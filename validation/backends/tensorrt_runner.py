"""The artifact's TensorRT engines on this machine's GPU, with numpy arrays in and out. Needs no torch.

NOT TESTED on a GPU: on the machines that this was built on there is none. What doesn't need one (choosing engines, shapes, rows,
conversions, the order of the calls) is tested with a stand-in for the library and for CUDA.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...editor.common.errors import SaeuronError
from ...editor.common.files import file_sha256, read_json
from ...editor.denoisers.families import family_of
from ..artifact import engines, manifest
from ..artifact.golden import Run
from ..artifact.quantised import Quantisation
from .base import Inputs, Observation, lean_free_run

_TO_DEVICE, _TO_HOST = 1, 2  # cudaMemcpyKind
_NUMPY: dict[str, Any] = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "INT64": np.int64,
    "INT32": np.int32,
    "BOOL": np.bool_,
    "BF16": np.uint16,
}
"""BF16, which numpy lacks, travels as its 16 bits"""


def to_bf16(value: np.ndarray) -> np.ndarray:
    """float32 → the bits of bfloat16, uint16, rounded to nearest even."""
    bits = np.ascontiguousarray(value, dtype=np.float32).view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(value), np.uint16(0x7FC0), rounded)


def from_bf16(bits: np.ndarray) -> np.ndarray:
    """The bits of bfloat16 → float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


class Cuda:
    """The few CUDA calls that are needed, each checked."""

    def __init__(self) -> None:
        from cuda.bindings import runtime

        self._runtime = runtime

    def call(self, name: str, *arguments: Any) -> Any:
        """One call of the runtime.

        Raises:
            SaeuronError: it failed.
        """
        status, *values = getattr(self._runtime, name)(*arguments)
        if int(status):
            raise SaeuronError(f"{name} failed: {getattr(status, 'name', status)}")
        return values[0] if len(values) == 1 else values

    def copy(self, target: int, source: int, size: int, kind: int, stream: Any) -> None:
        """Copy between host and device, in order on the stream."""
        self.call("cudaMemcpyAsync", target, source, size, self._runtime.cudaMemcpyKind(kind), stream)

    def capture(self, stream: Any) -> None:
        """What follows on the stream is recorded instead of run."""
        self.call("cudaStreamBeginCapture", stream, self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)


class Engine:
    """One engine with its buffers.

    Args:
        trt: the TensorRT module.
        cuda: CUDA calls.
        path: the engine file.
        shapes: input → smallest, usual and largest shape, as on record.

    Raises:
        SaeuronError: the library can't open it, or its inputs aren't those on record.
    """

    def __init__(self, trt: Any, cuda: Cuda, path: Path, shapes: Mapping[str, list[list[int]]]) -> None:
        self._trt, self._cuda, self.shapes = trt, cuda, shapes
        self._logger = trt.Logger(trt.Logger.ERROR)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise SaeuronError(f"'{path}' can't be opened by {trt.__name__} {trt.__version__} on this GPU")
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        self.inputs = [n for n in names if self._engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        self.outputs = [n for n in names if n not in self.inputs]
        if set(self.inputs) != set(shapes):
            raise SaeuronError(f"'{path}' takes {', '.join(self.inputs)}; on record are {', '.join(shapes)}")
        self._types = {n: self._engine.get_tensor_dtype(n).name for n in names}
        self._context = self._engine.create_execution_context()
        self._stream = cuda.call("cudaStreamCreate")
        self._graph: Any = None
        self._static = all(low == high for low, _, high in shapes.values())
        self._ran = False
        # The largest shapes say how much memory is ever needed, so nothing is allocated while pictures are made.
        for name in self.inputs:
            self._context.set_input_shape(name, tuple(shapes[name][2]))
        self._buffers = {n: cuda.call("cudaMalloc", self._bytes(n)) for n in names}
        for name, buffer in self._buffers.items():
            self._context.set_tensor_address(name, int(buffer))

    def _bytes(self, name: str) -> int:
        shape = self.shapes[name][2] if name in self.shapes else self._context.get_tensor_shape(name)
        return int(np.prod(shape, dtype=np.int64)) * np.dtype(_NUMPY[self._types[name]]).itemsize

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once; floats come back as float32.

        Raises:
            OutsideShapes: an input that the engine wasn't built for.
        """
        kept = []  # host memory must outlive the copies
        for name in self.inputs:
            value = np.asarray(inputs[name])
            engines.check_shape(name, value.shape, self.shapes[name])
            value = to_bf16(value) if self._types[name] == "BF16" else value.astype(_NUMPY[self._types[name]])
            value = np.ascontiguousarray(value).reshape(value.shape)  # numpy makes a scalar one-dimensional
            kept.append(value)
            self._context.set_input_shape(name, value.shape)
            self._cuda.copy(int(self._buffers[name]), value.ctypes.data, value.nbytes, _TO_DEVICE, self._stream)
        self._launch()
        found = {}
        for name in self.outputs:
            value = np.empty(tuple(self._context.get_tensor_shape(name)), _NUMPY[self._types[name]])
            self._cuda.copy(value.ctypes.data, int(self._buffers[name]), value.nbytes, _TO_HOST, self._stream)
            found[name] = value
        self._cuda.call("cudaStreamSynchronize", self._stream)
        return {n: from_bf16(v) if self._types[n] == "BF16" else v.astype(np.float32) for n, v in found.items()}

    def again(self) -> None:
        """Run on the inputs of the last call, which still lie on the device, and wait: for timing without copies."""
        self._launch()
        self._cuda.call("cudaStreamSynchronize", self._stream)

    def _launch(self) -> None:
        """The first run as it is (the library may still allocate), later ones of fixed shapes as one CUDA graph."""
        if self._graph is None and self._ran and self._static:
            self._cuda.capture(self._stream)
            self._enqueue()
            graph = self._cuda.call("cudaStreamEndCapture", self._stream)
            self._graph = self._cuda.call("cudaGraphInstantiate", graph, 0)
            self._cuda.call("cudaGraphDestroy", graph)
        if self._graph is not None:
            self._cuda.call("cudaGraphLaunch", self._graph, self._stream)
        else:
            self._enqueue()
        self._ran = True

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(int(self._stream)):
            raise SaeuronError("TensorRT could not run the engine")

    def close(self) -> None:
        """Give the device memory back."""
        if self._graph is not None:
            self._cuda.call("cudaGraphExecDestroy", self._graph)
        for buffer in self._buffers.values():
            self._cuda.call("cudaFree", buffer)
        self._cuda.call("cudaStreamDestroy", self._stream)
        self._buffers, self._graph, self._context, self._engine = {}, None, None, None


class TensorRTRunner:
    """The engines of one target, on this GPU.

    Args:
        root: the artifact folder.
        backend: `trt` or `trt-rtx`.
        target: folder below `tensorrt/`; default: the first of `engines.fitting`.

    Raises:
        SaeuronError: no library or GPU here, or no engine that was built for them; said before any engine is opened.
    """

    shows_seam = False
    loop = "lean"
    skips: Mapping[str, str] = {}
    quantised: Quantisation | None = None
    provider = ""

    def __init__(self, root: str | Path, backend: str, target: str | None = None) -> None:
        self.root = Path(root)
        self._denoiser = family_of(read_json(self.root / "model_index.json")).denoiser
        record = manifest.read(root)
        self._trt = engines.tensorrt_module(backend)
        self.gpu = engines.gpu()
        engines.check_target(record, target)
        fit, reasons = engines.fitting(record, backend, target)
        if not fit:
            raise engines.none_fits(root, reasons)
        self.target, self.entry = fit[0], record.engines[fit[0]]
        self.name = f"{backend}/{self.target}"
        self.runs_on = f"engines {self.target} ({backend}) on {self.gpu.name}"
        self._cuda = Cuda()
        self._engines: dict[str, Engine] = {}
        for name in self.entry.components:
            wanted = record.files.get(engines.file_of(Path(), self.target, name).as_posix())
            if wanted is None or file_sha256(engines.file_of(self.root, self.target, name)) != wanted.sha256:
                raise SaeuronError(f"engine of {name} for {self.target} is not the one on record; build it again: saeuron build {root}")

    def engine(self, component: str) -> Engine:
        """A component's engine, opened at first use."""
        if component not in self._engines:
            shapes = self.entry.components[component].shapes
            self._engines[component] = Engine(self._trt, self._cuda, engines.file_of(self.root, self.target, component), shapes)
        return self._engines[component]

    def denoise(self, inputs: Inputs) -> np.ndarray:
        """See `Runner.denoise`."""
        axes, _ = self._denoiser.axes(read_json(self.root / self._denoiser.component / "config.json"))
        common = [name for name, names in axes.items() if names[:1] != ("batch_size",)]
        return next(iter(in_rows(self.engine(self._denoiser.component), inputs, common).values()))

    def observe(self, inputs: Inputs, to_seam: bool = False) -> Observation | None:
        """None: an engine hides its inner tensors."""
        return None

    def edit(
        self, hookpoint: str, timestep: float, tokens: np.ndarray, before: np.ndarray | None, places: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """None: an engine can't be cut."""
        return None

    def silent(self, inputs: Inputs) -> np.ndarray | None:
        return None

    def stop_watching(self) -> None:
        """Nothing was watched."""

    def component(self, name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray] | None:
        """See `Runner.component`; None for the autoencoder's encoder, which text-to-image doesn't need."""
        return in_rows(self.engine(name), inputs) if name in self.entry.components else None

    def free_run(self, run: Run) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See `Runner.free_run`."""
        return lean_free_run(self.root, self, run)

    def close(self) -> None:
        """Give the device memory back."""
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()


def in_rows(engine: Any, inputs: Inputs, common: Collection[str] = ()) -> dict[str, np.ndarray]:
    """Any number of rows through an engine that takes some numbers only: in parts, the last one filled up with copies.

    Args:
        engine: has `shapes`, and is called with inputs by name.
        inputs: `[B, …]` each; scalars are the same for all rows.
        common: inputs that are the same for all rows too, though no scalars.

    Returns:
        output → `[B, …]`.
    """
    rows = {name: value for name, value in inputs.items() if np.ndim(value) and name not in common}
    same = {name: value for name, value in inputs.items() if name not in rows}
    low, _, high = (shape[0] for shape in engine.shapes[next(iter(rows))])
    count = len(next(iter(rows.values())))
    parts: list[dict[str, np.ndarray]] = []
    for start in range(0, count, high):
        part = {name: value[start : start + high] for name, value in rows.items()}
        own = len(next(iter(part.values())))
        if own < low:
            part = {name: np.concatenate([value, np.repeat(value[-1:], low - own, axis=0)]) for name, value in part.items()}
        parts.append({name: value[:own] for name, value in engine({**part, **same}).items()})
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
