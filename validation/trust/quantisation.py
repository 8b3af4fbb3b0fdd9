"""Structure of a quantised graph: which layers are in 8 bits, and that the edit isn't. Needs onnx alone, and runs nothing."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...editor.common.errors import SaeuronError
from ..artifact.manifest import Manifest, SeamNames
from ..artifact.quantised import INPUTS, Layer, Quantisation, left_out

_WIDEN, _NARROW = "DequantizeLinear", "QuantizeLinear"
_OTHERS = (
    "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "MatMulNBits", "QGemm", "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul", "QAttention", "QLinearAdd", "QLinearMul",
)  # fmt: skip
"""nodes that quantise in one; a graph of ours has none"""
_LAYERS = ("Conv", "MatMul", "Gemm")
_ROUNDING = 1.001
"""for a quotient in float32 that lies halfway between two codes"""


def check(path: Path, record: Manifest) -> list[str]:
    """Compare a graph with what is on record of its quantisation, or find that there is some where none is on record.

    Args:
        path: of the denoiser's graph; its weights stay on disk.
        record: of the artifact.

    Returns:
        one line a difference.
    """
    return _open(path).faults(record)


class Codes(NamedTuple):
    """A layer's weight as it lies in a graph."""

    node: str
    codes: np.ndarray
    scales: np.ndarray
    """one an output"""
    axis: int
    """of the outputs"""

    @property
    def sha256(self) -> str:
        """As in `Layer.codes`."""
        return _sha256(self.codes, self.scales)

    def nearest(self, weight: np.ndarray, scheme: str) -> bool:
        """Whether no other code lies nearer to any element of a weight in floats, which has the axes of the codes."""
        if weight.shape != self.codes.shape:
            return False
        weight = weight.astype(np.float32)
        steps = self.scales.astype(np.float32).reshape([-1 if i == self.axis else 1 for i in range(weight.ndim)])
        apart = np.abs(self.codes.astype(np.float32) * steps - weight)
        # E4M3 has 3 bits after the leading one, down to 2⁻⁶; below, its codes lie evenly.
        room = steps / 2 if scheme != "fp8" else steps * np.exp2(np.floor(np.log2(np.maximum(np.abs(weight) / steps, 2.0**-6))) - 4)
        return bool((apart <= room * _ROUNDING).all())


def codes_of(path: Path) -> Iterator[Codes]:
    """Read back one by one the weights that a graph has in 8 bits; raises `SaeuronError` for a file that can't be read."""
    graph = _open(path)
    widened = {node.output[0]: node for node in graph.nodes if node.op_type == _WIDEN}
    for node in graph.nodes:
        if node.op_type in _LAYERS and (step := widened.get(node.input[1])) and step.input[0] in graph.held:
            codes, scales = (graph.values(graph.held[name]) for name in step.input[:2])
            yield Codes(node.name, codes, scales, step.attribute[0].i)


def check_codes(path: Path, said: Quantisation, original: Callable[[str], np.ndarray]) -> None:
    """Hold each weight in 8 bits to the original's, as the export did.

    Args:
        path: of the denoiser's graph.
        said: what is on record of it.
        original: gives a weight of the original model by its name; linear ones as torch has them, outputs first.

    Raises:
        SaeuronError: a weight whose codes are not the nearest.
    """
    for held in codes_of(path):
        if (layer := said.layers.get(held.node)) is None:
            continue  # `check` says so
        weight = original(layer.weight)
        if not held.nearest(weight if held.axis == 0 else weight.T, said.scheme):
            raise SaeuronError(
                f"{path}: '{layer.weight}' in {said.scheme} is further than half a step from the original's; take the artifact again from its source"
            )


def _open(path: Path) -> _Graph:
    try:
        import onnx

        graph = onnx.load(path, load_external_data=False).graph
    except Exception as error:  # onnx and protobuf raise many types
        raise SaeuronError(f"{path} can't be read as an ONNX graph: {(str(error).splitlines() or [''])[0][:200]}") from None
    return _Graph(graph, path.parent)


def _sha256(codes: np.ndarray, scales: np.ndarray) -> str:
    found = hashlib.sha256(codes.tobytes())
    found.update(scales.tobytes())
    return found.hexdigest()


class _Graph:
    def __init__(self, graph: Any, folder: Path) -> None:
        import onnx

        self.folder = folder
        self.nodes = list(graph.node)
        self.made_by = {name: node for node in self.nodes for name in node.output if name}
        self.held = {tensor.name: tensor for tensor in graph.initializer}
        kinds = onnx.TensorProto
        self.codes = {"w8": kinds.INT8, "int8": kinds.INT8, "fp8": kinds.FLOAT8E4M3FN}
        narrow = {kinds.INT8, kinds.UINT8, kinds.INT4, kinds.UINT4, kinds.FLOAT8E4M3FN, kinds.FLOAT8E5M2, kinds.FLOAT8E4M3FNUZ, kinds.FLOAT8E5M2FNUZ, kinds.FLOAT4E2M1}  # fmt: skip
        self.narrow = {name for name, tensor in self.held.items() if tensor.data_type in narrow}

    def faults(self, record: Manifest) -> list[str]:
        said = record.quantised
        steps = [node for node in self.nodes if node.op_type in (_WIDEN, _NARROW)]
        found = [f"onnx: the graph holds {node.op_type} ('{node.name}'), which nothing of ours writes" for node in self.nodes if node.op_type in _OTHERS]  # fmt: skip
        if any(_graphs_in(node) for node in self.nodes):
            inner = {n.op_type for node in self.nodes for n in _graphs_in(node)}
            found += [f"onnx: {kind} stands in a branch of the graph" for kind in sorted(inner & {_WIDEN, _NARROW, *_OTHERS})]
        if said is None:
            return found + ([f"onnx: {len(steps)} nodes of the graph quantise, and the manifest says nothing of it"] if steps else [])
        for hookpoint, names in record.onnx.seams.items():
            found += self._in_edit(hookpoint, names)
        widened = {node.output[0]: node for node in steps if node.op_type == _WIDEN}
        there = {node.name: node for node in self.nodes if node.op_type in _LAYERS and any(i in widened for i in node.input[:2])}
        for name in sorted(set(there) - set(said.layers)):
            found.append(f"onnx: the layer '{name}' is quantised, and not on record as such")
        for name, layer in said.layers.items():
            if left_out(layer.weight) or layer.weight in record.edit.weights:
                found.append(f"onnx: the layer '{name}' ({layer.weight}) is on record as quantised, and must stay in floats")
            if name not in there:
                found.append(f"onnx: the layer '{name}' is on record as quantised, and is not")
            elif fault := self._layer(there[name], widened, said.scheme, layer):
                found.append(f"onnx: the layer '{name}' {fault}")
        return found + self._loose(steps, set(widened), {id(node) for node in there.values()})

    def _in_edit(self, hookpoint: str, names: SeamNames) -> list[str]:
        """What quantises between a block's output and the edited one, the tables and decisions included."""
        ends = {names.input, names.before, names.places}
        wanted = [name for name in (names.output, names.fires, names.members) if name]
        seen: set[str] = set()
        while wanted:
            name = wanted.pop()
            if name in seen or name in ends:
                continue
            seen.add(name)
            if node := self.made_by.get(name):
                if node.op_type in (_WIDEN, _NARROW):
                    return [f"onnx: the edit at '{hookpoint}' is quantised ('{node.name}')"]
                wanted += node.input
        return [f"onnx: the edit at '{hookpoint}' holds '{name}' in 8 bits or fewer" for name in sorted(seen & self.narrow)]

    def _layer(self, node: Any, widened: dict[str, Any], scheme: str, layer: Layer) -> str:
        weight = widened.get(node.input[1])
        if weight is None:
            return "has a weight in floats"
        tensor = self.held.get(weight.input[0])
        if tensor is None:
            return "takes no weight that lies in the graph"
        if tensor.data_type != self.codes[scheme]:
            return f"has a weight of another type than {scheme} has"
        if math.prod(tensor.dims) != int(layer.digest.partition(":")[0]):
            return "has a weight of another size than the one on record"
        if fault := self._widening(node, weight, tensor):
            return fault
        if _sha256(self.values(tensor), self.values(self.held[weight.input[1]])) != layer.codes:
            return "has other codes or scales than those on record"
        entry = widened.get(node.input[0])
        if (entry is not None) != (scheme in INPUTS):
            return f"{'has an input in 8 bits' if entry is not None else 'has an input in floats'}, which {scheme} doesn't"
        if entry is not None:
            source = self.made_by.get(entry.input[0])
            zero = self.held.get(source.input[2]) if source is not None and len(source.input) > 2 else None
            if source is None or source.op_type != _NARROW or zero is None or zero.data_type != self.codes[scheme]:
                return f"has an input that isn't quantised as {scheme} is"
            if list(source.input[1:]) != list(entry.input[1:]):
                return "has an input that is widened by another scale or zero point than it was quantised by"
            if source.attribute or entry.attribute or self.values(zero).astype(np.float32).any():
                return "has an input with a zero point, or with settings that nothing of ours writes"
            if not _are_steps(self._floats(source.input[1]), ()):
                return "has an input whose scale isn't one positive number"
        return ""

    def _widening(self, node: Any, weight: Any, codes: Any) -> str:
        """What is wrong with how a layer's codes become its weight."""
        if len(weight.input) != 2:
            return "has a weight with a zero point"
        transposed = node.op_type == "Conv" or any(a.name == "transB" and a.i for a in node.attribute)
        axis = 0 if transposed else 1
        if [(a.name, a.i) for a in weight.attribute] != [("axis", axis)]:
            return "has a weight whose scales aren't those of its outputs"
        if not _are_steps(self._floats(weight.input[1]), (codes.dims[axis],)):
            return "has a weight whose scales aren't a positive number for each output"
        return ""

    def values(self, tensor: Any) -> np.ndarray:
        """Of an initializer, beside the graph or in it."""
        from onnx.numpy_helper import to_array

        try:
            return to_array(tensor, str(self.folder))
        except Exception as error:  # what lies beside the graph
            raise SaeuronError(
                f"'{tensor.name}' of {self.folder / 'model.onnx'} can't be read: {(str(error).splitlines() or [''])[0][:200]}"
            ) from None

    def _floats(self, name: str) -> np.ndarray | None:
        tensor = self.held.get(name)
        found = None if tensor is None else self.values(tensor)
        return found if found is not None and found.dtype in (np.float32, np.float16) else None

    def _loose(self, steps: Iterable[Any], widened: set[str], layers: set[int]) -> list[str]:
        """Steps of quantisation that don't belong to a layer's weight or input."""
        found = []
        for step in steps:
            name = step.output[0]
            readers = [n for n in self.nodes if name in n.input]
            if step.op_type == _WIDEN:
                right = bool(readers) and all(id(n) in layers and name in n.input[:2] for n in readers)
            else:
                right = bool(readers) and all(n.op_type == _WIDEN and n.output[0] in widened for n in readers)
            if not right:
                found.append(f"onnx: '{step.name}' quantises something else than a layer's weight or input")
        return found


def _are_steps(values: np.ndarray | None, shape: tuple[int, ...]) -> bool:
    return values is not None and values.shape == shape and bool((np.isfinite(values) & (values > 0)).all())


def _graphs_in(node: Any) -> list[Any]:
    found = [n for a in node.attribute if a.HasField("g") for n in a.g.node]
    return found + [n for inner in found for n in _graphs_in(inner)]
