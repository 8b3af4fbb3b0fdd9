"""A graph run part by part: how large its weights are, and what a node with branches of its own reads."""

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from saeuron.validation.artifact.graphs import reads
from saeuron.validation.backends import parts

BYTES = {"INT8": 1, "UINT8": 1, "BOOL": 1, "FLOAT8E4M3FN": 1, "FLOAT8E5M2": 1, "FLOAT16": 2, "BFLOAT16": 2, "INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8}  # fmt: skip


@pytest.mark.parametrize("kind", BYTES)
def test_weights_are_as_large_as_their_type_says(kind):
    size = 12 * BYTES[kind]
    weight = helper.make_tensor("w", getattr(TensorProto, kind), [3, 4], bytes(size), raw=True)
    assert parts.weights_size(helper.make_model(helper.make_graph([], "g", [], [], [weight]))) == size


def value(name, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, [2])


def branch(nodes, output, weights=()):
    return helper.make_graph(nodes, output, [], [value(output)], weights)


def branching():
    """`If` in an `If`; names that branches make and hold are also looked for among what the whole gives them."""
    node, weight = helper.make_node, numpy_helper.from_array(np.float32([3, 4]), "own")
    deep = branch([node("Mul", ["x.inner", "w"], ["deep"])], "deep")
    other = branch([node("Add", ["x.outer", "own"], ["other"])], "other", [weight])
    then = branch(
        [node("Add", ["x.outer", "x.outer"], ["x.inner"]), node("If", ["inside"], ["chosen"], then_branch=deep, else_branch=other)],
        "chosen",
    )
    nodes = [
        node("Add", ["x", "w"], ["x.outer"]),
        node("If", ["first"], ["out.1"], then_branch=then, else_branch=branch([node("Sub", ["x.outer", "v"], ["less"])], "less")),
        node("Mul", ["out.1", "v"], ["out"]),
    ]
    weights = [numpy_helper.from_array(np.float32(v), name) for name, v in (("w", [5, 6]), ("v", [7, 8]))]
    given = [value("x"), *(helper.make_tensor_value_info(n, TensorProto.BOOL, []) for n in ("first", "inside"))]
    graph = helper.make_graph(nodes, "g", given, [value("out")], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_a_node_reads_what_its_branches_read_of_others():
    assert set(reads(branching().graph.node[1])) == {"first", "inside", "x.outer", "w", "v"}


@pytest.mark.parametrize("part", [1, 8, 1 << 20])
@pytest.mark.parametrize(("first", "inside"), [(True, True), (True, False), (False, False)])
def test_branches_in_parts_give_what_the_whole_gives(monkeypatch, part, first, inside):
    monkeypatch.setattr(parts, "PART", part)
    model, given = branching(), {"x": np.float32([1, 2]), "first": np.array(first), "inside": np.array(inside)}
    session = parts.PartedSession(model, lambda m: onnxruntime.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]))
    assert (len(session._parts) > 1) == (part < 1 << 20)
    whole = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert np.array_equal(session.run(["out"], given)[0], whole.run(["out"], given)[0])
