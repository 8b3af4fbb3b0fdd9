"""Writes networks whose weights stay in their files (`editor.denoisers.streamed`): each tensor goes from one file into the other."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import TorchTensor, from_torch_dtype
from torch import nn
from torch._subclasses import FakeTensorMode

from ...editor.denoisers.streamed import Streamed, streamed, weights_of

_KINDS = {
    torch.int64: "I64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16",
}  # fmt: skip
"""in the order in which safetensors' own writer has them: wide ones first, so that all are aligned"""


@contextmanager
def unread(module: nn.Module) -> Iterator[dict[str, ir.TensorProtocol]]:
    """A module to trace without reading its weights: those that lie in files are fake tensors while the context is open.

    Yields:
        name of such a weight in the module → a tensor that reads it whenever it is asked for its values.
    """
    found: dict[str, ir.TensorProtocol] = {}
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with ExitStack() as stack:
        for path, part in module.named_modules():
            if held := streamed(part):
                stack.enter_context(held.apart(lambda stored: _fake(mode, stored)))
                found |= {f"{path}.{name}".lstrip("."): _lazy(held, name) for name in held.stored}
        yield found


def _fake(mode: FakeTensorMode, stored: Any) -> torch.Tensor:
    with mode:
        return torch.empty(stored.shape, dtype=stored.dtype)


def _lazy(held: Streamed, name: str) -> ir.TensorProtocol:
    stored = held.stored[name]
    return ir.LazyTensor(
        lambda: TorchTensor(held.read(name)), dtype=from_torch_dtype(stored.dtype), shape=ir.Shape(stored.shape), name=name
    )


def turn_weights(graph: ir.Graph) -> None:
    """Fold each transposed weight into one that is turned when it is written: the exporter's own folding would keep all of them in memory a second time."""
    for node in list(graph):
        value = node.inputs[0] if node.op_type == "Transpose" else None
        output = node.outputs[0]
        if value is None or not value.is_initializer() or value.const_value is None or output.is_graph_output():
            continue
        axes = node.attributes["perm"].as_ints() if "perm" in node.attributes else list(reversed(range(len(value.const_value.shape))))
        turned = _turned(value.const_value, axes, output.name)
        folded = ir.Value(name=output.name, shape=turned.shape, type=ir.TensorType(turned.dtype), const_value=turned)
        output.replace_all_uses_with(folded)
        graph.remove(node, safe=True)
        graph.register_initializer(folded)


def _turned(weight: ir.TensorProtocol, axes: Sequence[int], name: str | None) -> ir.LazyTensor:
    def read() -> ir.TensorProtocol:
        return ir.Tensor(np.ascontiguousarray(weight.numpy().transpose(axes)), dtype=weight.dtype)

    return ir.LazyTensor(read, dtype=weight.dtype, shape=ir.Shape([weight.shape.numpy()[axis] for axis in axes]), name=name)


def save_weights(network: nn.Module, path: Path) -> None:
    """Write a network's tensors as safetensors' own writer does, byte by byte, with one of them in memory at a time; tied ones once."""
    seen: dict[int, str] = {}
    state = {name: value for name, value in network.state_dict(keep_vars=True).items() if seen.setdefault(id(value), name) == name}
    order = sorted(state, key=lambda name: (list(_KINDS).index(state[name].dtype), name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        start, end = end, end + state[name].numel() * state[name].dtype.itemsize
        header[name] = {"dtype": _KINDS[state[name].dtype], "shape": list(state[name].shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, value in weights_of(network, [(name, state[name]) for name in order]):
            file.write(value.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
