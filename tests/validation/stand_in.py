"""A stand-in for TensorRT and CUDA, which can't be here: the interface that the runner calls, with ONNX Runtime behind it.

Device memory is host memory, a stream runs at once, an engine is the ONNX graph that it was built from. It is strict where the
real ones are: shapes outside of the build, copies beyond a buffer, unset addresses and forgotten frees are errors.
"""

from __future__ import annotations

import ctypes
import enum
from types import SimpleNamespace

import numpy as np
import onnxruntime

_TYPES = {"tensor(float)": ("FLOAT", np.float32), "tensor(float16)": ("HALF", np.float16), "tensor(int64)": ("INT64", np.int64)}


class Kind(enum.IntEnum):
    host_to_device = 1
    device_to_host = 2


class StandInCuda:
    """`cuda.bindings.runtime`, as far as it is called."""

    cudaMemcpyKind = Kind
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self):
        self.memory, self.calls, self.recording = {}, [], None

    def _call(self, name, *values):
        self.calls.append(name)
        return (0, *values)

    def cudaMalloc(self, size):
        buffer = ctypes.create_string_buffer(max(size, 1))
        address = ctypes.addressof(buffer)
        self.memory[address] = buffer
        return self._call("cudaMalloc", address)

    def cudaFree(self, address):
        del self.memory[address]
        return self._call("cudaFree")

    def cudaMemcpyAsync(self, target, source, size, kind, stream):
        device = target if kind == Kind.host_to_device else source
        assert size <= len(self.memory[device]), "copy beyond the buffer"
        ctypes.memmove(target, source, size)
        return self._call("cudaMemcpyAsync")

    def cudaStreamCreate(self):
        return self._call("cudaStreamCreate", 7)

    def cudaStreamDestroy(self, stream):
        return self._call("cudaStreamDestroy")

    def cudaStreamSynchronize(self, stream):
        return self._call("cudaStreamSynchronize")

    def cudaStreamBeginCapture(self, stream, mode):
        assert self.recording is None
        self.recording = []
        return self._call("cudaStreamBeginCapture")

    def cudaStreamEndCapture(self, stream):
        found, self.recording = self.recording, None
        return self._call("cudaStreamEndCapture", found)

    def cudaGraphInstantiate(self, graph, flags):
        assert graph, "nothing was recorded"
        return self._call("cudaGraphInstantiate", list(graph))

    def cudaGraphDestroy(self, graph):
        return self._call("cudaGraphDestroy")

    def cudaGraphExecDestroy(self, graph):
        return self._call("cudaGraphExecDestroy")

    def cudaGraphLaunch(self, graph, stream):
        for work in graph:
            work()
        return self._call("cudaGraphLaunch")


class StandInTensorRT:
    """The `tensorrt` module, as far as it is called.

    Args:
        cuda: whose memory the engines read.
        graphs: content of an engine file → its ONNX graph.
        break_outputs: changes what an engine answers, to see whether a proof notices.
    """

    __name__ = "tensorrt_rtx"
    TensorIOMode = SimpleNamespace(INPUT="in", OUTPUT="out")

    def __init__(self, cuda, graphs, version, break_outputs=lambda name, value: value):
        self.cuda, self.graphs, self.__version__, self.break_outputs = cuda, graphs, version, break_outputs
        self.Logger = type("Logger", (), {"ERROR": 1, "__init__": lambda self, severity: None})

    def Runtime(self, logger):
        return SimpleNamespace(
            deserialize_cuda_engine=lambda content: _Engine(self, self.graphs[content]) if content in self.graphs else None
        )


class _Engine:
    def __init__(self, trt, graph):
        self.trt, self.session = trt, onnxruntime.InferenceSession(str(graph))
        self.inputs = {i.name: i for i in self.session.get_inputs()}
        self.tensors = {**self.inputs, **{o.name: o for o in self.session.get_outputs()}}
        self.num_io_tensors = len(self.tensors)

    def get_tensor_name(self, place):
        return list(self.tensors)[place]

    def get_tensor_mode(self, name):
        return "in" if name in self.inputs else "out"

    def get_tensor_dtype(self, name):
        return SimpleNamespace(name=_TYPES[self.tensors[name].type][0])

    def create_execution_context(self):
        return _Context(self)


class _Context:
    def __init__(self, engine):
        self.engine, self.shapes, self.addresses, self._known = engine, {}, {}, {}

    def set_input_shape(self, name, shape):
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def get_tensor_shape(self, name):
        key = tuple(sorted(self.shapes.items()))
        if key not in self._known:
            feed = {n: np.zeros(self.shapes[n], _TYPES[i.type][1]) for n, i in self.engine.inputs.items()}
            self._known[key] = {
                o.name: v.shape for o, v in zip(self.engine.session.get_outputs(), self.engine.session.run(None, feed), strict=True)
            }
        return {**self.shapes, **self._known[key]}[name]

    def execute_async_v3(self, stream):
        cuda = self.engine.trt.cuda
        if cuda.recording is not None:
            cuda.recording.append(self._run)
        else:
            self._run()
        return True

    def _run(self):
        feed = {name: self._view(name, self.shapes[name]).copy() for name in self.engine.inputs}
        for output, value in zip(self.engine.session.get_outputs(), self.engine.session.run(None, feed), strict=True):
            self._view(output.name, value.shape)[...] = self.engine.trt.break_outputs(output.name, value)

    def _view(self, name, shape):
        dtype = np.dtype(_TYPES[self.engine.tensors[name].type][1])
        buffer = self.engine.trt.cuda.memory[self.addresses[name]]
        count = int(np.prod(shape))
        return np.frombuffer(buffer, dtype, count).reshape(shape)
