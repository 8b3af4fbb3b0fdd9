"""Graphs in 8 bits: what is quantised and what isn't, that the edit stays exact, and that graphs which lost a part of it are caught."""

import copy
import hashlib
from types import SimpleNamespace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from msgspec.structs import replace
from onnx import TensorProto, helper, numpy_helper
from tests.random_edits import MUTANTS, PROMPTS, make, spoil_graph

from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.edit.bake import bake
from saeuron.editor.edit.hook import TokenEdit
from saeuron.export.formats import onnx as export
from saeuron.export.formats.calibrate import _Ranging
from saeuron.export.formats.engine_worker import build
from saeuron.export.formats.quantise import check_written, layers_of, write_quantised
from saeuron.validation.artifact.manifest import Graphs, SeamNames
from saeuron.validation.artifact.quantised import SCHEMES, Layer, Quantisation
from saeuron.validation.artifact.weights import unordered
from saeuron.validation.backends.onnx_runner import OnnxRunner
from saeuron.validation.backends.sessions import ranged, run_session
from saeuron.validation.proof.forwards import compare_quantised, fault_of_drift, quantised_drift
from saeuron.validation.proof.parity import check_network, prove
from saeuron.validation.proof.reference import make_golden
from saeuron.validation.proof.seam_reference import on_tokens
from saeuron.validation.trust import quantisation

CPU = "CPUExecutionProvider"


@pytest.fixture(scope="module")
def floats(tmp_path_factory):
    """A random edit at two hookpoints: golden vectors, the hook on tokens, the graph in floats and its seams."""
    wanted = make(0)
    golden = make_golden(
        wanted.pipeline, wanted.edit, wanted.saes, PROMPTS[:2], wanted.steps, wanted.guidance, "fp32", wanted.gate, scope="short"
    )
    edited = copy.copy(wanted.pipeline)
    edited.unet = bake(wanted.pipeline.unet, wanted.edit, wanted.saes, wanted.gate)
    root = tmp_path_factory.mktemp("floats")
    seams = export.write(export.denoiser_component(edited.unet, 24), root)
    edited.save_config(root)
    fired = {h: sum(c.seams[h].fires.sum(0) for c in golden.cases) for h in wanted.edit.hookpoints}
    hook = on_tokens(TokenEdit(wanted.edit, wanted.saes, wanted.pipeline.unet.dtype, "cpu", wanted.gate))
    held = {name: value.numpy() for name, value in wanted.pipeline.unet.named_parameters()}
    return SimpleNamespace(golden=golden, hook=hook, root=root, seams=seams, fired=fired, weights=held)


def quantise(floats, scheme, root, source=None):
    """What is on record of the quantised graph in `root`."""
    names = {h: SeamNames(**parts) for h, parts in floats.seams.items()}
    path = (source or floats.root) / "unet" / "model.onnx"
    model = ir.load(path)
    layers = layers_of(model.graph, names, floats.golden.weights["unet"], ())
    read = list(dict.fromkeys(layer.input.name for layer in layers))
    ranging = _Ranging(ranged(path, read, CPU), read)
    for case in floats.golden.cases:
        run_session(ranging, case.inputs)
    write_quantised(model, layers, scheme, ranging.most, root / "unet")
    codes = check_written(root / "unet" / "model.onnx", layers, scheme)
    said = {layer.node.name: Layer(layer.name, layer.digest, codes[layer.node.name]) for layer in layers}
    (root / "model_index.json").write_text((floats.root / "model_index.json").read_text())
    made = Quantisation(scheme=scheme, graph={}, layers=said)
    return SimpleNamespace(layers=layers, quantised=made, onnx=Graphs(20, names), edit=SimpleNamespace(weights={}))


def runner_of(floats, root, record):
    runner = OnnxRunner(root, seams=floats.seams)
    runner.quantised = record.quantised
    return runner


@pytest.fixture(scope="module", params=SCHEMES)
def made(request, floats, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param)
    before = hashlib.sha256((floats.root / "unet" / "model.onnx").read_bytes()).hexdigest()
    record = quantise(floats, request.param, root)
    assert hashlib.sha256((floats.root / "unet" / "model.onnx").read_bytes()).hexdigest() == before, "the input is never written to"
    return root, record


@pytest.fixture(scope="module")
def w8(floats, tmp_path_factory):
    root = tmp_path_factory.mktemp("alone")
    return root, quantise(floats, "w8", root)


@pytest.fixture(scope="module")
def int8(floats, tmp_path_factory):
    root = tmp_path_factory.mktemp("int8")
    return root, quantise(floats, "int8", root)


@pytest.mark.slow
def test_a_quantised_graph_keeps_its_edit(floats, made):
    root, record = made
    assert not quantisation.check(root / "unet" / "model.onnx", record)
    found = check_network(floats.golden, runner_of(floats, root, record), floats.hook)
    assert found.seam.passed, found.seam.failures
    assert found.seam.own_tokens.worst < 1e-4 and found.seam.own_tokens.wrong == 0
    if record.quantised.scheme == "w8":
        assert found.forwards.passed, found.forwards.failures
        assert 0 < found.forwards.drift < found.forwards.allowed <= 2 * found.forwards.drift + 0.01
    else:  # inputs in 8 bits move this random network by more than half of what its edit does
        assert not found.forwards.passed and "inconclusive" in found.forwards.failures[0]
    assert (root / "unet" / "model.onnx").stat().st_size < 0.7 * (floats.root / "unet" / "model.onnx").stat().st_size


@pytest.mark.slow
def test_every_weight_is_the_nearest_code(floats, made):
    """Read back from the file, beside the original's weights by their digests."""
    root, record = made
    held = [
        numpy_helper.to_array(w)
        for w in onnx.load(floats.root / "unet" / "model.onnx").graph.initializer
        if len(w.dims) > 1 and w.data_type == TensorProto.FLOAT
    ]
    original = {unordered(values): values for values in held}
    graph = onnx.load(root / "unet" / "model.onnx").graph
    tensors = {w.name: w for w in graph.initializer}
    widened = {n.output[0]: n for n in graph.node if n.op_type == "DequantizeLinear"}
    for node in graph.node:
        if node.name not in record.quantised.layers:
            continue
        step = widened[node.input[1]]
        axis = step.attribute[0].i
        codes, scales = (numpy_helper.to_array(tensors[name]).astype(np.float32) for name in step.input[:2])
        scales = scales.reshape([-1 if i == axis else 1 for i in range(codes.ndim)])
        weight = original[record.quantised.layers[node.name].digest]
        found = codes * scales
        room = np.maximum(scales / 2, np.abs(weight) / 16) if record.quantised.scheme == "fp8" else scales / 2
        assert found.shape == weight.shape and (np.abs(found - weight) <= room * 1.001).all(), node.name


@pytest.mark.slow
def test_what_recipes_leave_out_stays_in_floats(made):
    _, record = made
    names = [layer.weight for layer in record.quantised.layers.values()]
    assert any("conv1" in name for name in names) and any("to_q" in name for name in names)
    assert not [
        n for n in names if {"conv_in", "conv_out", "proj_out", "time_emb_proj", "conv_shortcut", "time_embedding"} & set(n.split("."))
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MUTANTS if name != "rows of other features"])
def test_mutants_of_the_edit_are_caught_in_a_quantised_graph(floats, w8, tmp_path, name):
    root, record = w8
    point = list(floats.fired)[-1]
    spoil_graph(root / "unet" / "model.onnx", tmp_path / "unet" / "model.onnx", point, MUTANTS[name], floats.fired[point])
    found = check_network(floats.golden, runner_of(floats, tmp_path, record), floats.hook)
    assert not found.seam.passed
    if name in ("one hookpoint lost", "gains halved"):
        assert not found.forwards.passed


def through(graph, node, place, name, weight=False):
    """Put 8 bits between a node and one of its inputs."""
    at = next(i for i, n in enumerate(graph.node) if n is node)
    given = node.input[place]
    graph.initializer.append(numpy_helper.from_array(np.float32(0.02), f"{name}.scale"))
    graph.initializer.append(numpy_helper.from_array(np.int8(0), f"{name}.zero"))
    steps = [
        helper.make_node("QuantizeLinear", [given, f"{name}.scale", f"{name}.zero"], [f"{name}.codes"], f"{name}.q"),
        helper.make_node("DequantizeLinear", [f"{name}.codes", f"{name}.scale", f"{name}.zero"], [f"{name}.wide"], f"{name}.dq"),
    ]
    if weight:
        held = next(w for w in graph.initializer if w.name == given)
        codes = np.rint(numpy_helper.to_array(held) / 0.02).clip(-127, 127).astype(np.int8)
        graph.initializer.append(numpy_helper.from_array(codes, f"{name}.codes"))
        steps = steps[1:]
    node.input[place] = f"{name}.wide"
    for step in reversed(steps):
        graph.node.insert(at, step)


def in_edit(graph, output):
    """The products on the way from the block's output to `output`, last first."""
    makers = {o: n for n in graph.node for o in n.output}
    wanted, found = [output], []
    while wanted:
        node = makers.get(wanted.pop(0))
        if node is None or node in found or any(o.endswith("/input") for o in node.output):
            continue
        found.append(node)
        wanted += node.input
    return [n for n in found if n.op_type in ("MatMul", "Gemm")]


def held_by(graph, node):
    return next(i for i, name in enumerate(node.input) if any(w.name == name for w in graph.initializer))


def decoder(graph, seams):
    node = next(n for n in in_edit(graph, seams["output"]) if any(w.name in n.input for w in graph.initializer))
    through(graph, node, held_by(graph, node), "decoder", weight=True)


def encoder(graph, seams):
    node = next(n for n in in_edit(graph, seams["fires"]) if any(w.name in n.input for w in graph.initializer))
    through(graph, node, held_by(graph, node), "encoder", weight=True)


def summed(graph, seams):
    """The sum itself takes a block's output that went through 8 bits."""
    node = next(n for n in graph.node if seams["output"] in n.output)
    through(graph, node, 0, "sum")


def product(graph, seams):
    """A batched product of attention."""
    node = next(
        n
        for n in graph.node
        if n.op_type == "MatMul"
        and not any(w.name in n.input for w in graph.initializer)
        and not any("wide" in i for i in n.input)
        and n not in in_edit(graph, seams["output"])
    )
    through(graph, node, 0, "product")


def left_out(graph, seams):
    node = next(n for n in graph.node if n.op_type == "Conv" and any("conv_out" in i for i in n.input))
    through(graph, node, 1, "more", weight=True)


def stray(graph, seams):
    """Between layers."""
    node = next(n for n in graph.node if n.op_type == "Sigmoid")
    through(graph, node, 0, "stray")


def dynamic(graph, seams):
    name = next(n.output[0] for n in graph.node if n.op_type == "Conv")
    graph.node.append(helper.make_node("DynamicQuantizeLinear", [name], ["d.codes", "d.scale", "d.zero"], "d"))


def undone(graph, seams):
    """A layer on record that is in floats."""
    node = next(n for n in graph.node if any(i.endswith(".w8.widened") for i in n.input))
    step = next(n for n in graph.node if n.output[0] == node.input[1])
    codes = numpy_helper.to_array(next(w for w in graph.initializer if w.name == step.input[0]))
    graph.initializer.append(numpy_helper.from_array(codes.astype(np.float32), "undone"))
    for n in graph.node:
        for i, name in enumerate(n.input):
            if name == node.input[1]:
                n.input[i] = "undone"
    graph.node.remove(step)


def other_size(graph, seams):
    node = next(n for n in graph.node if n.op_type == "DequantizeLinear")
    tensor = next(w for w in graph.initializer if w.name == node.input[0])
    tensor.CopyFrom(numpy_helper.from_array(np.zeros((*tensor.dims[:-1], tensor.dims[-1] + 1), np.int8), tensor.name))


def of_weight(graph, place=0):
    """The step that widens a layer's weight."""
    held = {w.name for w in graph.initializer}
    return [n for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in held][place]


def put(graph, name, values):
    graph.initializer.append(numpy_helper.from_array(values, name))
    return name


def held_at(graph, name):
    return numpy_helper.to_array(next(w for w in graph.initializer if w.name == name))


def zero_point(graph, seams):
    step = of_weight(graph)
    step.input.append(put(graph, "zp", np.full(held_at(graph, step.input[1]).shape, 1, np.int8)))


def other_axis(graph, seams):
    step = of_weight(graph)
    step.attribute[0].i = 1 - step.attribute[0].i


def one_scale(graph, seams):
    step = of_weight(graph)
    step.input[1] = put(graph, "s", held_at(graph, step.input[1])[:1])


def scale_of(value):
    def change(graph, seams):
        step = of_weight(graph)
        scales = held_at(graph, step.input[1]).copy()
        scales[0] = value
        step.input[1] = put(graph, "s", scales)

    return change


def set_to(graph, name, values):
    next(w for w in graph.initializer if w.name == name).CopyFrom(numpy_helper.from_array(values, name))


def swapped(graph):
    held = {w.name: list(w.dims) for w in graph.initializer}
    steps = [n for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in held]
    a, b = next((a, b) for i, a in enumerate(steps) for b in steps[i + 1 :] if held[a.input[0]] == held[b.input[0]])
    a.input[1], b.input[1] = b.input[1], a.input[1]


def jittered(graph):
    rng = np.random.default_rng(0)
    for name in {n.input[1] for n in graph.node if n.op_type == "DequantizeLinear" and n.input[1].endswith("scale")}:
        values = held_at(graph, name)
        set_to(graph, name, (values * (1 + 0.02 * rng.standard_normal(values.shape))).astype(values.dtype))


def coarse(bits):
    def change(graph):
        for w in graph.initializer:
            if w.data_type == TensorProto.INT8:
                codes = np.rint(numpy_helper.to_array(w) / 2.0**bits) * 2**bits
                set_to(graph, w.name, codes.clip(-127, 127).astype(np.int8))

    return change


def one_larger(graph):
    name = of_weight(graph, 3).input[1]
    set_to(graph, name, held_at(graph, name) * np.float32(1.05))


@pytest.mark.slow
@pytest.mark.parametrize("change", [swapped, jittered, coarse(1), coarse(2), one_larger])
def test_mutants_of_codes_and_scales_are_caught(floats, w8, tmp_path, change):
    root, record = w8
    model = onnx.load(root / "unet" / "model.onnx")
    change(model.graph)
    path = tmp_path / "unet" / "model.onnx"
    path.parent.mkdir()
    onnx.save(model, path)
    (tmp_path / "model_index.json").write_text((root / "model_index.json").read_text())
    found = quantisation.check(path, record)
    assert found and all("other codes or scales than those on record" in line for line in found)
    with pytest.raises(SaeuronError, match="half a step"):
        check_written(path, record.layers, "w8")
    quantisation.check_codes(root / "unet" / "model.onnx", record.quantised, floats.weights.__getitem__)
    with pytest.raises(SaeuronError, match="half a step"):
        quantisation.check_codes(path, record.quantised, floats.weights.__getitem__)
    if change is jittered:  # the worst of them, also by its drift
        drifts = []
        for folder in (root, tmp_path):
            runner = runner_of(floats, folder, record)
            drifts.append(quantised_drift(floats.golden, [runner.silent(c.inputs) for c in floats.golden.cases]))
        assert fault_of_drift(drifts[1], drifts[0])


def test_a_drift_above_the_one_on_record_is_a_fault():
    assert not fault_of_drift(0.0149, 0.01) and not fault_of_drift(0.002, 0.01) and not fault_of_drift(0.3, None)
    assert "on record are 1.00%" in fault_of_drift(0.0151, 0.01)


def of_input(graph):
    return next(n for n in graph.node if n.op_type == "QuantizeLinear")


def input_scale(graph, seams):
    step = of_input(graph)
    step.input[1] = put(graph, "qs", held_at(graph, step.input[1]) * np.float32(1.1))


def input_zero(graph, seams):
    of_input(graph).input[2] = put(graph, "qz", np.int8(3))


def both_zeros(graph, seams):
    step = of_input(graph)
    widening = next(n for n in graph.node if step.output[0] in n.input)
    step.input[2] = widening.input[2] = put(graph, "qz", np.int8(3))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [(input_scale, "another scale or zero point"), (input_zero, "another scale or zero point"), (both_zeros, "an input with a zero point")],
)
def test_mutants_of_an_inputs_scale_are_caught(floats, int8, tmp_path, change, said):
    root, record = int8
    model = onnx.load(root / "unet" / "model.onnx")
    change(model.graph, None)
    onnx.save(model, tmp_path / "model.onnx")
    found = quantisation.check(tmp_path / "model.onnx", record)
    assert any(said in line for line in found), found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (zero_point, "a weight with a zero point"), (other_axis, "aren't those of its outputs"), (one_scale, "a positive number for each output"),
        (scale_of(0), "a positive number for each output"), (scale_of(np.nan), "a positive number for each output"),
        (decoder, "the edit at"), (encoder, "the edit at"), (summed, "the edit at"), (product, "and not on record"), (left_out, "and not on record"),
        (stray, "something else than a layer's"), (dynamic, "DynamicQuantizeLinear"), (undone, "and is not"), (other_size, "of another size"),
    ],
)  # fmt: skip
def test_mutants_of_the_structure_are_caught(floats, w8, tmp_path, change, said):
    root, record = w8
    model = onnx.load(root / "unet" / "model.onnx")
    change(model.graph, floats.seams[list(floats.seams)[-1]])
    onnx.save(model, tmp_path / "model.onnx")
    found = quantisation.check(tmp_path / "model.onnx", record)
    assert any(said in line for line in found), found


@pytest.mark.slow
def test_a_record_that_says_too_much_or_nothing_is_caught(floats, w8):
    root, record = w8
    path = root / "unet" / "model.onnx"
    node, layer = next(iter(record.quantised.layers.items()))
    for layers, said in (
        ({node: Layer("conv_out.weight", layer.digest, layer.codes)}, "must stay in floats"),
        ({"nobody": layer}, "and is not"),
    ):
        more = SimpleNamespace(
            quantised=replace(record.quantised, layers={**record.quantised.layers, **layers}), onnx=record.onnx, edit=record.edit
        )
        assert any(said in line for line in quantisation.check(path, more))
    edited = SimpleNamespace(quantised=record.quantised, onnx=record.onnx, edit=SimpleNamespace(weights={layer.weight: 0}))
    assert any("must stay in floats" in line for line in quantisation.check(path, edited))
    silent = SimpleNamespace(quantised=None, onnx=record.onnx, edit=record.edit)
    assert "the manifest says nothing of it" in quantisation.check(path, silent)[0]
    assert not quantisation.check(floats.root / "unet" / "model.onnx", silent)
    other = SimpleNamespace(quantised=replace(record.quantised, scheme="fp8"), onnx=record.onnx, edit=record.edit)
    assert any("another type than fp8" in line for line in quantisation.check(path, other))


@pytest.mark.slow
def test_forwards_are_held_to_what_quantising_alone_does(floats, w8):
    root, record = w8
    golden = floats.golden
    runner = runner_of(floats, root, record)
    silent = [runner.silent(c.inputs) for c in golden.cases]
    assert "inconclusive" in compare_quantised(golden, [c.hook for c in golden.cases], 0.6).failures[0]
    drift = quantised_drift(golden, silent)
    assert compare_quantised(golden, [c.hook for c in golden.cases], drift).passed
    assert not compare_quantised(golden, silent, drift).passed, "a graph without its edit"
    half = [c.neutral + (c.hook - c.neutral) / 2 for c in golden.cases]
    assert not compare_quantised(golden, half, drift).passed


class Engine(OnnxRunner):
    """The graph, which hides its inner tensors like an engine that was built from it."""

    name = "engine"
    shows_seam = False

    def observe(self, inputs, seam_only=False):
        return None


@pytest.mark.slow
def test_an_engine_is_held_to_the_drift_that_was_measured_on_its_graph(floats, w8):
    root, record = w8

    def found(*runners):
        for runner in runners:
            runner.quantised, runner.skips = replace(record.quantised, drift=0.7), {"components": "only the UNet is here"}
        return {name: b.forwards.drift for name, b in prove(floats.golden, runners, reference=floats.hook).backends.items()}

    assert found(Engine(root, seams=floats.seams)) == {"engine": 0.7}
    both = found(Engine(root, seams=floats.seams), OnnxRunner(root, seams=floats.seams))
    assert 0 < both["onnx"] == both["engine"] < 0.7


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["w8", "fp8"])
def test_engines_of_it_count_their_weights(floats, tmp_path, scheme):
    pytest.importorskip("tensorrt_rtx")
    record = quantise(floats, scheme, tmp_path)
    axes = {"batch_size": [2] * 3, "latent_height": [8] * 3, "latent_width": [8] * 3, "sequence_length": [24] * 3}
    job = {
        "backend": "trt-rtx", "sms": ["sm89"], "graph": str(tmp_path / "unet" / "model.onnx"), "engine": str(tmp_path / "e.engine"), "axes": axes, "precision": "fp32",
        "options": {}, "timing_cache": None,
    }  # fmt: skip
    count = len({layer.digest for layer in record.quantised.layers.values()})
    made = build({**job, "weights": count}, lambda text: None)
    assert made["types"]["weight in 8 bits"] == {"INT8" if scheme == "w8" else "FP8": count}
    for weights in (0, count + 1):
        with pytest.raises(SaeuronError, match="weights in 8 bits, on record are"):
            build({**job, "weights": weights}, lambda text: None)
