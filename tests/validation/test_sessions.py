"""What a session shows of a graph is what the graph reads."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from saeuron.validation.backends.sessions import run_session, showing


@pytest.mark.parametrize("read", [True, False])
def test_a_sum_in_float16_is_read_as_it_is_shown(tmp_path, read):
    """ONNX Runtime on a CPU adds in float32 and leaves the rounding out, unless it is told to show it."""
    kind = TensorProto.FLOAT16
    nodes = [
        helper.make_node("Add", ["a", "b"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["wide", "wide"], ["out"]),
    ]
    graph = helper.make_graph(
        nodes, "sums", [helper.make_tensor_value_info(n, kind, ["batch", 8]) for n in "ab"], [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", 8])]
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "model.onnx")
    session = showing(tmp_path / "model.onnx", ["sum"], "CPUExecutionProvider", ["sum"] if read else [])
    a, b = np.random.default_rng(0).normal(size=(2, 50, 8)).astype(np.float16)
    found = run_session(session, {"a": a, "b": b})
    assert np.array_equal(found["sum"], (a.astype(np.float32) + b).astype(np.float16).astype(np.float32))
    assert np.array_equal(found["out"], found["sum"] ** 2) == read
