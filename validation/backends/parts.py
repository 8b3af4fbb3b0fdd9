"""An ONNX graph whose weights are too large for memory, run part by part: each is opened, run and freed before the next. Needs numpy and onnx."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..artifact.graphs import reads

LARGE = 4 << 30
"""bytes of a graph's weights; above, it is run part by part"""
PART = 1 << 30
"""bytes of weights that a part holds about"""
_TYPES = {1: "tensor(float)", 7: "tensor(int64)", 10: "tensor(float16)", 6: "tensor(int32)"}


class Argument(NamedTuple):
    """An input or output, as ONNX Runtime's sessions say it."""

    name: str
    type: str


class _Part(NamedTuple):
    nodes: list[Any]
    weights: list[Any]
    reads: list[str]
    """tensors that earlier parts made, or that the graph is given"""
    makes: set[str]


def weights_size(model: Any) -> int:
    """Bytes of a graph's weights, also of those beside it."""
    return sum(map(_size, model.graph.initializer))


def _size(weight: Any) -> int:
    from onnx import helper

    return math.prod(weight.dims) * helper.tensor_dtype_to_np_dtype(weight.data_type).itemsize


class PartedSession:
    """Stands in the place of an ONNX Runtime session, and gives what that would give but for rounding.

    Args:
        model: the graph, its large weights in a file beside it.
        open_part: a session of a part of it, given as a model.
    """

    def __init__(self, model: Any, open_part: Callable[[Any], Any]) -> None:
        self._model, self._open = model, open_part
        self._parts = _parts(model.graph)

    def get_inputs(self) -> list[Argument]:
        """Of the graph."""
        return [Argument(i.name, _TYPES[i.type.tensor_type.elem_type]) for i in self._model.graph.input]

    def get_outputs(self) -> list[Argument]:
        """Of the graph; tensors that were added as outputs have no type."""
        return [Argument(o.name, _TYPES.get(o.type.tensor_type.elem_type, "")) for o in self._model.graph.output]

    def run(self, names: Sequence[str], feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """As a session's: the outputs of these names."""
        held, open_ = dict(feed), set(names)
        needed: list[tuple[_Part, set[str]]] = []
        for part in reversed(self._parts):
            if part.makes & open_:
                needed.append((part, set(open_)))
                open_ |= set(part.reads)
        for part, later in reversed(needed):
            wanted = sorted(part.makes & later)
            session = self._open(self._part(part, held, wanted))
            held |= dict(zip(wanted, session.run(wanted, {i.name: held[i.name] for i in session.get_inputs()}), strict=True))
            del session
            held = {name: value for name, value in held.items() if name in later}
        return [held[name] for name in names]

    def _part(self, part: _Part, held: Mapping[str, np.ndarray], wanted: Sequence[str]) -> Any:
        from onnx import ValueInfoProto, helper

        given = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(held[n].dtype), held[n].shape) for n in part.reads]
        graph = helper.make_graph(part.nodes, "part", given, [ValueInfoProto(name=name) for name in wanted], part.weights)
        return helper.make_model(graph, opset_imports=self._model.opset_import, ir_version=self._model.ir_version)


def _parts(graph: Any) -> list[_Part]:
    """Nodes in their order, cut where the weights that they read come to `PART`."""
    weights = {w.name: w for w in graph.initializer}
    found: list[_Part] = []
    nodes: list[Any] = []
    read: dict[str, None] = {}
    size = 0

    def close() -> None:
        made = {name for node in nodes for name in node.output if name}
        own = [weights[name] for name in read if name in weights]
        found.append(_Part(list(nodes), own, [name for name in read if name not in weights and name not in made], made))

    for node in graph.node:
        new = [name for name in reads(node) if name not in read]
        more = sum(_size(weights[name]) for name in new if name in weights)
        if nodes and size + more > PART:
            close()
            nodes, read, size = [], {}, 0
            new, more = list(reads(node)), sum(_size(weights[name]) for name in reads(node) if name in weights)
        nodes.append(node)
        read |= dict.fromkeys(new)
        size += more
    close()
    return found
