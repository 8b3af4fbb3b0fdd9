"""What follows an edit in a graph reads edited tokens: sound graphs of every form pass, and no way around the edit does."""

import pytest
from onnx import TensorProto, helper, numpy_helper

from saeuron.validation.artifact.manifest import SeamNames
from saeuron.validation.trust.bypass import around

node = helper.make_node
SEAMS = {"block": SeamNames("in", "edited", "fires")}
BEFORE = [
    node("Conv", ["x", "w"], ["conv"]),
    node("Add", ["conv", "x"], ["map.32"]),
    node("Cast", ["map.32"], ["map"], to=TensorProto.FLOAT16),
    node("Transpose", ["map"], ["turned"], perm=[0, 2, 3, 1]),
    node("Reshape", ["turned", "flat"], ["in"]),
    node("Greater", ["in", "bar"], ["fires"]),
    node("Where", ["fires", "bar", "in"], ["edited"]),
]
AFTER = [
    node("Shape", ["map"], ["sizes"]),
    node("Reshape", ["edited", "sizes"], ["edited.map"]),
    node("Conv", ["edited.map", "w"], ["next"]),
    node("Add", ["next", "x"], ["y"]),  # a connection that skips the block
]


def found(nodes, seams=SEAMS, hookpoints=("block",)):
    weights = [numpy_helper.from_array(numpy_helper.to_array(helper.make_tensor(n, TensorProto.FLOAT, [1], [0.0])), n) for n in ("w", "bar", "flat", "zero")]  # fmt: skip
    given, output = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [None] * 4) for n in "xy")
    return around(helper.make_graph(nodes, "g", [given], [output], weights), hookpoints, seams)


def reading(read, *added):
    """The sound graph with these nodes, whose `read` stands in the edited map's place."""
    changed = helper.make_graph([*BEFORE, *AFTER[:2], *added, *AFTER[2:]], "g", [], []).node
    conv = next(n for n in changed if n.output[0] == "next")
    conv.input[0] = read
    return list(changed)


def test_a_sound_graph_passes():
    assert found(BEFORE + AFTER) == [] and found(BEFORE + AFTER, {}, ()) == []


def branch(name):
    inner = helper.make_graph(
        [node("Identity", [name], ["inner"])], "b", [], [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)]
    )
    return node("If", ["edited"], ["z"], then_branch=inner, else_branch=inner)


UNDONE = {
    "tokens": [node("Sub", ["edited", "in"], ["d"]), node("Mul", ["d", "zero"], ["e"]), node("Add", ["in", "e"], ["z"])],
    "the map": [node("Mul", ["edited.map", "zero"], ["e"]), node("Add", ["map", "e"], ["z"])],
    "the map in another precision": [node("Mul", ["edited.map", "zero"], ["e"]), node("Add", ["map.32", "e"], ["z"])],
    "decisions": [node("Mul", ["edited.map", "zero"], ["e"]), node("Where", ["fires", "e", "edited.map"], ["z"])],
    "a branch": [branch("turned")],
    "alone": [node("Identity", ["in"], ["z"])],
    "no Shape of ONNX's": [node("Shape", ["map"], ["z"], domain="theirs")],
}


@pytest.mark.parametrize("kind", UNDONE)
def test_a_way_around_is_found(kind):
    (line,) = found(reading("z", *UNDONE[kind]))
    assert "'block' reach an output" in line


@pytest.mark.parametrize("step", [("Add", "zero"), ("Mul", "bar"), ("Sub", "zero"), ("Div", "constant")])
def test_so_it_is_where_the_edit_reads_a_copy(step):
    kind, constant = step
    copied = reading("z", node("Mul", ["edited.map", "zero"], ["e"]), node("Add", ["map", "e"], ["z"]))
    turned = next(n for n in copied if n.output[0] == "turned")
    turned.input[0] = "copy"
    added = [node("Constant", [], ["constant"], value_float=1.0), node(kind, ["map", constant], ["copy"])]
    at = copied.index(turned)
    assert len(found(copied[:at] + added + copied[at:])) == 1


def test_a_copy_that_is_the_output_itself():
    nodes = [n for n in BEFORE + AFTER if n.output[0] != "y"]
    assert len(found([*nodes, node("Reshape", ["turned", "flat"], ["y"])])) == 1


@pytest.mark.parametrize("names", [{}, {"block": SeamNames("in", "nowhere", "fires")}, {"block": SeamNames("x", "edited", "fires")}])
def test_names_on_record_that_are_no_edit_are_found(names):
    (line,) = found(BEFORE + AFTER, names)
    assert "doesn't show the edit of 'block'" in line
