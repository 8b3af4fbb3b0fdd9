"""Writes a denoiser's ONNX graph with weights (and inputs) of its large layers in 8 bits; the edit and what lies between it and the sum stay as they are.

A layer is known by its weight: the exporter names and transposes weights as it likes, so each is looked up by its content among those of the
original model. The graph that is read is never written to.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from ...editor.common.errors import SaeuronError
from ...validation.artifact import weights
from ...validation.artifact.manifest import SeamNames
from ...validation.artifact.quantised import INPUTS, LARGEST, left_out
from ...validation.artifact.weights import Digest
from ...validation.trust.quantisation import codes_of
from .onnx import save_graph

_KINDS = {"w8": ir.DataType.INT8, "int8": ir.DataType.INT8, "fp8": ir.DataType.FLOAT8E4M3FN}


class Layer(NamedTuple):
    """A layer that is quantised."""

    node: ir.Node
    name: str
    """of its weight in the original model"""
    digest: str
    """of that weight's elements in any order"""
    weight: ir.Value
    """initializer that holds it"""
    axis: int
    """of the outputs, in the weight as the node takes it"""
    turned: bool
    """the node takes it transposed"""

    @property
    def input(self) -> ir.Value:
        """What the layer reads."""
        value = self.node.inputs[0]
        assert value is not None
        return value


def layers_of(graph: ir.Graph, seams: Mapping[str, SeamNames], original: Mapping[str, Digest], edited: Collection[str]) -> list[Layer]:
    """The layers that will be quantised.

    Args:
        graph: of the denoiser.
        seams: hookpoint → names of the tensors at the edge of its edit.
        original: weight → digest of what the graph must hold.
        edited: weights that the edit changed; they are part of it.

    Raises:
        SaeuronError: none is found.
    """
    names: dict[str, list[str]] = {}
    for name, digest in original.items():
        names.setdefault(digest.unordered, []).append(name)
    inside = _of_edit(graph, seams)
    digests: dict[str, str] = {}
    found = []
    for node in graph:
        taken = _weight_of(node)
        if taken is None or node in inside:
            continue
        weight, axis, turned = taken
        assert weight.name is not None and weight.const_value is not None
        if weight.name not in digests:
            digests[weight.name] = weights.unordered(weight.const_value.numpy())
        known = names.get(digests[weight.name], [])
        # Where several weights are equal, the graph holds one of them for all.
        if known and not any(left_out(name) or name in edited for name in known):
            found.append(Layer(node, known[0], digests[weight.name], weight, axis, turned))
    if not found:
        raise SaeuronError("no layer of this graph can be quantised: it holds none of the original's large weights")
    return found


def _weight_of(node: ir.Node) -> tuple[ir.Value, int, bool] | None:
    """Weight of a layer, the axis of its outputs, and whether a transposition stands between the two; None of any other node."""
    if node.op_type not in ("Conv", "MatMul", "Gemm") or len(node.inputs) < 2 or (value := node.inputs[1]) is None:
        return None
    maker, turned = value.producer(), False
    if maker is not None and maker.op_type == "Transpose" and (source := maker.inputs[0]) is not None:
        value, turned = source, True
    tensor = value.const_value
    if (
        not value.is_initializer()
        or tensor is None
        or len(tensor.shape) < 2
        or tensor.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16)
    ):
        return None
    if turned and (len(tensor.shape) != 2 or node.op_type != "MatMul"):
        return None
    if node.op_type == "MatMul":
        return (value, 1, turned) if len(tensor.shape) == 2 else None
    transposed = node.op_type == "Conv" or (node.attributes["transB"].as_int() if "transB" in node.attributes else 0)
    return value, 0 if transposed else 1, turned


def _of_edit(graph: ir.Graph, seams: Mapping[str, SeamNames]) -> set[ir.Node]:
    """Nodes that an edit's results depend on, but for what made the tokens that it reads."""
    values = {v.name: v for node in graph for v in node.outputs}
    found: set[ir.Node] = set()
    for part in seams.values():
        ends = {part.input, part.before, part.places}
        wanted = [values[name] for name in (part.output, part.fires, part.members) if name in values]
        while wanted:
            value = wanted.pop()
            node = value.producer()
            if node is None or value.name in ends or node in found:
                continue
            found.add(node)
            wanted += [v for v in node.inputs if v is not None]
    return found


def write_quantised(model: ir.Model, layers: Sequence[Layer], scheme: str, maxima: Mapping[str, float], folder: Path) -> None:
    """Write the graph with these layers in 8 bits to `folder/model.onnx` (and `model.onnx_data` beside it when large).

    Args:
        model: as it was opened; it is changed in memory, and weights are read from its file one by one while the other is written.
        layers: from `layers_of`.
        scheme: `w8`, `fp8` or `int8`.
        maxima: tensor that a layer reads → its largest magnitude; for `fp8` and `int8`.
        folder: written to; not the graph's own.
    """
    made: dict[tuple[str, bool, int], ir.Value] = {}
    read: dict[str, ir.Value] = {}
    for layer in layers:
        key = (layer.weight.name or "", layer.turned, layer.axis)
        if key not in made:
            made[key] = _quantised_weight(model.graph, layer, scheme)
        layer.node.replace_input_with(1, made[key])
        if scheme in INPUTS:
            name = layer.input.name or ""
            if name not in read:
                read[name] = _quantised_input(model.graph, layer, scheme, maxima[name])
            layer.node.replace_input_with(0, read[name])
    passes.RemoveUnusedNodesPass()(model)
    folder.mkdir(parents=True, exist_ok=True)
    save_graph(model, folder)


def check_written(path: Path, layers: Sequence[Layer], scheme: str) -> dict[str, str]:
    """Read the codes back, and hold each weight to half a step of the original's.

    Args:
        path: of the graph that `write_quantised` wrote.
        layers: that it wrote; the file of their weights in floats is still there.
        scheme: `w8`, `fp8` or `int8`.

    Returns:
        node → SHA-256 of its codes and scales.

    Raises:
        SaeuronError: a weight that isn't the nearest code, or a layer that isn't there.
    """
    wanted = {layer.node.name or "": layer for layer in layers}
    found = {}
    for held in codes_of(path):
        layer = wanted[held.node]
        assert layer.weight.const_value is not None
        if held.axis != layer.axis or not held.nearest(_turned(layer.weight.const_value, layer.turned), scheme):
            raise SaeuronError(f"the graph in {scheme} doesn't hold '{layer.name}' to half a step of the original's; please report this")
        found[held.node] = held.sha256
    if lacking := sorted(set(wanted) - set(found)):
        raise SaeuronError(f"the graph in {scheme} lacks the layer '{lacking[0]}'; please report this")
    return found


def _quantised_weight(graph: ir.Graph, layer: Layer, scheme: str) -> ir.Value:
    """Output of a node that widens the weight again, as the layer takes it."""
    tensor, kind = layer.weight.const_value, _KINDS[scheme]
    assert tensor is not None and layer.weight.name is not None
    scales = _scales(_turned(tensor, layer.turned), layer.axis, scheme)
    name = f"{layer.weight.name}.{scheme}{'.turned' if layer.turned else ''}"

    def codes() -> ir.Tensor:
        return ir.Tensor(_codes(_turned(tensor, layer.turned), scales, layer.axis, scheme), dtype=kind)

    sizes = tensor.shape.numpy()
    shape = ir.Shape(sizes[::-1] if layer.turned else sizes)
    held = [
        _constant(graph, name, ir.LazyTensor(codes, kind, shape, name=name)),
        _constant(graph, f"{name}.scale", ir.tensor(scales, name=f"{name}.scale")),
    ]
    return _before(layer.node, ir.node("DequantizeLinear", held, attributes={"axis": layer.axis}), f"{name}.widened", tensor.dtype)


def _quantised_input(graph: ir.Graph, layer: Layer, scheme: str, most: float) -> ir.Value:
    """What the layer reads, through 8 bits and back."""
    value, kind = layer.input, _KINDS[scheme]
    assert layer.weight.const_value is not None
    dtype = layer.weight.const_value.dtype
    # A tensor that was 0 throughout has no range of its own.
    scale = np.asarray((most or 1.0) / LARGEST[scheme]).astype(dtype.numpy())
    name = f"{value.name}.{scheme}"
    held = [
        _constant(graph, f"{name}.scale", ir.tensor(scale, name=f"{name}.scale")),
        _constant(graph, f"{name}.zero", ir.Tensor(np.zeros((), kind.numpy()), dtype=kind, name=f"{name}.zero")),
    ]
    narrow = _before(layer.node, ir.node("QuantizeLinear", [value, *held]), name, kind)
    return _before(layer.node, ir.node("DequantizeLinear", [narrow, *held]), f"{name}.widened", dtype)


def _constant(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    found = ir.Value(name=name, const_value=tensor, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype))
    graph.register_initializer(found)
    return found


def _before(node: ir.Node, made: ir.Node, output: str, dtype: ir.DataType) -> ir.Value:
    """Put a new node before another; returns its output."""
    made.name, made.outputs[0].name, made.outputs[0].type = f"{output}.node", output, ir.TensorType(dtype)
    assert node.graph is not None
    node.graph.insert_before(node, made)
    return made.outputs[0]


def _turned(tensor: ir.TensorProtocol, turned: bool) -> np.ndarray:
    values = tensor.numpy()
    return values.T if turned else values


def _scales(values: np.ndarray, axis: int, scheme: str) -> np.ndarray:
    """Of each output the step of its codes, in the weight's own type; never so small that its largest weight lies beyond the last code."""
    most = np.abs(values).max(tuple(i for i in range(values.ndim) if i != axis)).astype(np.float32)
    wanted = np.where(most > 0, most, 1.0) / LARGEST[scheme]
    found = wanted.astype(values.dtype)
    return np.where(found.astype(np.float32) < wanted, np.nextafter(found, np.asarray(np.inf, values.dtype)), found)


def _codes(values: np.ndarray, scales: np.ndarray, axis: int, scheme: str) -> np.ndarray:
    wide = scales.astype(np.float32).reshape([-1 if i == axis else 1 for i in range(values.ndim)])
    found = values.astype(np.float32) / wide
    np.clip(found, -LARGEST[scheme], LARGEST[scheme], out=found)
    return found.astype(ml_dtypes.float8_e4m3fn) if scheme == "fp8" else np.rint(found, out=found).astype(np.int8)
