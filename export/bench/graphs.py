"""The graphs that `saeuron bench` times, and how each backend runs one on inputs that already lie where it computes."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnx as library
import torch

from ...editor.common.writing import temporary
from ...validation.artifact.engines import BACKENDS as ENGINES
from ...validation.artifact.engines import gpu
from ...validation.backends.sessions import open_session
from ..formats import onnx
from ..formats.tensorrt import run_worker

Feed = Mapping[str, np.ndarray]
Call = Callable[[], Any]


class _Edits(torch.nn.Module):
    """The edit modules of all hookpoints, side by side, for an export of their own."""

    def __init__(self, modules: Any) -> None:
        super().__init__()
        self.inner = modules

    def forward(self, timestep: torch.Tensor, *maps: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(module.on_map(m, timestep.reshape(1)) for module, m in zip(self.inner.values(), maps, strict=True))


def export_edit(modules: Any, maps: Mapping[str, torch.Tensor], timestep: torch.Tensor, folder: Path) -> tuple[Path, Feed]:
    """The edit alone as a graph of these very shapes, and its inputs.

    Args:
        modules: an edited UNet's `ablations`.
        maps: hookpoint → `[B, C, H, W]`.
        timestep: float32 scalar.
        folder: where `model.onnx` goes; made here.
    """
    path = folder / "model.onnx"
    folder.mkdir()
    arguments = (timestep, *(maps[name.replace("-", ".")] for name in modules))
    onnx.write_plain(_Edits(modules), arguments, path)
    return path, {i.name: v.numpy() for i, v in zip(_inputs(path), arguments, strict=True)}


def export_unet(unet: Any, tokens: int, feed: Mapping[str, torch.Tensor], root: Path) -> tuple[Path, Feed]:
    """The unedited UNet as its artifact holds it, and its inputs."""
    onnx.write(onnx.unet_component(unet, tokens), root)
    return root / "unet" / "model.onnx", {name: value.numpy() for name, value in feed.items()}


def opener(backend: str, provider: str) -> Callable[[Path, Feed, ExitStack], Call]:
    """`(graph, inputs, stack) → call` for a backend; what is opened is closed with the stack."""
    if backend in ENGINES:
        return functools.partial(_engine, backend)
    return functools.partial(_session, provider)


def _session(provider: str, path: Path, feed: Feed, opened: ExitStack) -> Call:
    """Runs with inputs and outputs bound to the provider's device, so that no copy is timed."""
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


def _engine(backend: str, path: Path, feed: Feed, opened: ExitStack) -> Call:
    """An engine of these very shapes, built for this GPU. NOT TESTED on a GPU."""
    from ...validation.artifact.engines import tensorrt_module
    from ...validation.backends.tensorrt_runner import Cuda, Engine

    folder = opened.enter_context(temporary())
    axes = _axes(path, feed)
    job = {
        "backend": backend, "sms": [gpu().sm] if backend == "trt-rtx" else [], "graph": str(path), "engine": os.fspath(folder / f"{path.parent.name}.engine"),
        "axes": axes, "precision": None, "options": {}, "timing_cache": None,
    }  # fmt: skip
    made = run_worker(job)
    engine = Engine(tensorrt_module(backend), Cuda(), folder / f"{path.parent.name}.engine", made["shapes"])
    opened.callback(engine.close)
    engine({name: feed[name] for name in engine.inputs})
    return engine.again


def _axes(path: Path, feed: Feed) -> dict[str, list[int]]:
    """Name of a dynamic axis → its one size here, three times."""
    return {
        dim.dim_param: [size] * 3
        for tensor in _inputs(path)
        for dim, size in zip(tensor.type.tensor_type.shape.dim, feed[tensor.name].shape, strict=True)
        if dim.dim_param
    }


def _inputs(path: Path) -> list[Any]:
    return list(library.load(str(path), load_external_data=False).graph.input)
