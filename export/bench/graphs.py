"""The graphs that `saeuron bench` times, and how each backend runs one on inputs that already lie where it computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnx as library
import torch

from ...validation.artifact import engines
from ...validation.backends.sessions import open_session
from ...validation.backends.tensorrt_runner import Cuda, Engine
from ..formats import onnx
from ..formats.tensorrt import run_worker

Tensors = dict[str, torch.Tensor]
Graph = tuple[Path, dict[str, np.ndarray]]
"""where it lies, and what it is run on"""


class Edits(torch.nn.Module):
    """An edited UNet's `ablations`, side by side; of those that replace tokens with their places, float32 `[1, L, 2]`."""

    def __init__(self, ablations: Any, places: Sequence[torch.Tensor | None]) -> None:
        super().__init__()
        self.inner = ablations
        for number, held in enumerate(places):
            self.register_buffer(f"places{number}", held, persistent=False)

    def forward(self, timestep: torch.Tensor, *tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Edit tokens `[B, L, D]` of each hookpoint, in the edit's order; `timestep` is a float32 scalar."""
        edits = enumerate(zip(self.inner.values(), tokens, strict=True))
        return tuple(module(x, timestep.reshape(1), places=getattr(self, f"places{i}")) for i, (module, x) in edits)


def export_edit(edits: Edits, arguments: tuple[torch.Tensor, ...], folder: Path) -> Graph:
    """The edit alone, of these very shapes, in a folder that is made here."""
    path = folder / "model.onnx"
    folder.mkdir()
    onnx.write_plain(edits, arguments, path)
    return path, {i.name: v.numpy() for i, v in zip(_inputs(path), arguments, strict=True)}


def export_unet(part: onnx.Component, root: Path) -> Graph:
    """The unedited UNet as its artifact holds it."""
    onnx.write(part, root)
    return root / part.folder / "model.onnx", {name: value.numpy() for name, value in part.inputs.items()}


def opened(graph: Graph, backend: str, provider: str, stack: ExitStack) -> Callable[[], Any]:
    """A call that runs the graph in a backend without copies; what is opened is closed with the stack."""
    path, feed = graph
    if backend in engines.BACKENDS:
        return _engine(path, feed, backend, stack)
    import onnxruntime

    session = open_session(path, provider)
    device = "cpu" if provider == "CPUExecutionProvider" else "cuda"
    bound = session.io_binding()
    for name, value in feed.items():
        held = np.ascontiguousarray(value).reshape(value.shape)  # numpy makes a scalar one-dimensional
        bound.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(held, device, 0))
    for o in session.get_outputs():
        bound.bind_output(o.name, device)
    return lambda: session.run_with_iobinding(bound)


def _engine(path: Path, feed: dict[str, np.ndarray], backend: str, stack: ExitStack) -> Callable[[], Any]:
    """An engine of these very shapes, built for this GPU. NOT TESTED on a GPU."""
    axes = {
        dim.dim_param: [size] * 3
        for tensor in _inputs(path)
        for dim, size in zip(tensor.type.tensor_type.shape.dim, feed[tensor.name].shape, strict=True)
        if dim.dim_param
    }
    file = path.parent / f"{path.parent.name}.engine"
    made = run_worker({
        "backend": backend, "sms": [engines.gpu().sm] if backend == "trt-rtx" else [], "graph": str(path), "engine": str(file),
        "axes": axes, "precision": None, "options": {}, "timing_cache": None,
    })  # fmt: skip
    engine = Engine(engines.tensorrt_module(backend), Cuda(), file, made["shapes"])
    stack.callback(engine.close)
    engine({name: feed[name] for name in engine.inputs})
    return engine.again


def _inputs(path: Path) -> list[Any]:
    return list(library.load(str(path), load_external_data=False).graph.input)
