"""The tensors at the edges of the edit have names in the graph, and what lies between them can be cut out and run alone."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx.utils import Extractor
from tests.conftest import HOOKPOINT, WIDTH, edit_of, inputs, make_activations, make_sae, make_unet

from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.common.names import dtype_of
from saeuron.editor.denoisers.unet import UNet
from saeuron.editor.edit.bake import bake
from saeuron.editor.edit.edit import Edit
from saeuron.export.formats import onnx as export
from saeuron.validation.artifact.manifest import seam_tensor

pytestmark = pytest.mark.slow

SAES = {
    HOOKPOINT: {}, "up_blocks.0.attentions.0": {"reads": "delta"}, "mid_block.attentions.0": {"unit_norm": True},
    "mid_block.resnets.1": {"activation": "jumprelu"},
}  # fmt: skip


def made(hookpoints=(HOOKPOINT,), dtype=torch.float32, gate="exact", residual="keep"):
    edits = [edit_of(make_activations(), ("A", "count:20", -3.0), residual=residual, hookpoint=name) for name in hookpoints]
    edit = Edit({name: part for e in edits for name, part in e.hookpoints.items()}, residual)
    return bake(make_unet().to(dtype), edit, {name: make_sae(**SAES.get(name, {})) for name in hookpoints}, gate)


def written(unet, root):
    """Seams, and the graph as a file."""
    return export.write(export.denoiser_component(unet, 6), root), root / "unet" / "model.onnx"


def feeds(dtype, batch=2, height=8, width=8):
    sample, context = inputs(batch, height, width, dtype=dtype)
    return {"sample": sample.numpy(), "timestep": np.array(501.0, np.float32), "encoder_hidden_states": context.numpy()}


def run_with(path, names, feed):
    """The graph's output and inner tensors."""
    model = onnx.load(path)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip(["out_sample", *names], session.run(["out_sample", *names], feed), strict=True))


def watched(module, *args):
    """What the module gives, and what its marks show: decisions, and members where it has them."""
    marks = [module.gate, *([module.members] if hasattr(module, "members") else [])]
    seen = {}
    handles = [mark.register_forward_hook(lambda m, args, out: seen.__setitem__(m, out.numpy())) for mark in marks]
    wanted = module(*args).numpy()
    for handle in handles:
        handle.remove()
    return wanted, [seen[mark] for mark in marks]


def cut(path, seams):
    """A session of what lies between the seam's tensors."""
    entering = [seams[part] for part in ("input", "before") if part in seams]
    leaving = [seams[part] for part in ("output", "fires", "members") if part in seams]
    model = Extractor(onnx.shape_inference.infer_shapes(onnx.load(path))).extract_model([*entering, "timestep"], leaving)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("gate,residual,dtype", [("exact", "keep", "fp32"), ("threshold", "keep", "fp16"), ("exact", "drop", "fp16")])
@torch.no_grad()
def test_the_seam_is_named_and_can_be_cut_out(gate, residual, dtype, tmp_path):
    dtype = dtype_of(dtype)
    unet = made(tuple(SAES), dtype, gate, residual)
    named, path = written(unet, tmp_path)
    assert [o.name for o in onnx.load(path).graph.output] == ["out_sample"] and set(named) == set(SAES)
    whole = run_with(path, [name for parts in named.values() for name in parts.values()], feeds(dtype, 3, 8, 12))
    for hookpoint, seams in named.items():
        module = unet.ablations[hookpoint.replace(".", "-")]
        parts = (
            {"input", "output", "fires"}
            | ({"before"} if module.reads == "delta" else set())
            | (set() if residual == "keep" else {"members"})
        )
        assert seams == {part: f"saeuron/{hookpoint}/{part}" for part in parts}
        assert whole[seams["input"]].shape == whole[seams["output"]].shape == (3, 6 * 4, WIDTH)
        check_alone(cut(path, seams), module, whole, dtype)


def check_alone(session, module, whole, dtype):
    """The same values by the part alone as by the whole graph, and right ones at any batch and number of tokens."""
    entering = {i.name: whole[i.name] for i in session.get_inputs() if i.name != "timestep"}
    outputs = [o.name for o in session.get_outputs()]
    for name, value in zip(outputs, session.run(None, {**entering, "timestep": np.array(501.0, np.float32)}), strict=True):
        assert np.array_equal(value, whole[name]), name
    near = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.02, "rtol": 0.01}
    for batch, tokens in ((1, 1), (2, 7), (5, 64)):
        generator = torch.Generator().manual_seed(batch)
        given = [torch.randn(batch, tokens, WIDTH, generator=generator).to(dtype) for _ in entering]
        wanted, marked = watched(module, given[0], torch.tensor([333.3]), *given[1:])
        feed = dict(zip(entering, (g.numpy() for g in given), strict=True))
        found, *other = session.run(None, {**feed, "timestep": np.array(333.3, np.float32)})
        assert found.shape == (batch, tokens, WIDTH) and not np.array_equal(found, given[0].numpy())
        # Near ties round otherwise in another library; such tokens are few.
        same = np.all([(np.sort(a) == np.sort(b)).all(-1) for a, b in zip(other, marked, strict=True)], axis=0)
        assert same.mean() > (0.99 if dtype == torch.float32 else 0.8)
        assert np.allclose(found[same], wanted[same], **near)


@torch.no_grad()
def test_two_hookpoints_that_end_at_one_place(tmp_path):
    """A block and the last layer in it: each has its own names, and the outer one reads what the inner one has edited."""
    inner, outer = HOOKPOINT, "up_blocks.0"
    unet = made((inner, outer), residual="upstream")
    named, path = written(unet, tmp_path)
    assert set(named) == {inner, outer}
    feed = feeds(torch.float32)
    found = run_with(path, [name for parts in named.values() for name in parts.values()], feed)
    wanted = unet(torch.from_numpy(feed["sample"]), 501.0, torch.from_numpy(feed["encoder_hidden_states"])).sample
    assert np.allclose(found["out_sample"], wanted.numpy(), atol=1e-5)
    assert not np.array_equal(found[seam_tensor(inner, "input")], found[seam_tensor(inner, "output")])


def test_what_the_exporter_loses_is_an_error():
    graph = ir.Graph([], [], nodes=[])
    with pytest.raises(SaeuronError, match="lost input of the edit at"):
        export._name_seams(graph, export._Network(UNet(), made()))
    with pytest.raises(SaeuronError, match=f"ONNX export lost saeuron/{HOOKPOINT}/output"):
        export._close_seams(graph, {HOOKPOINT: {"output": ir.Value()}})


@torch.no_grad()
def test_what_clients_feed(tmp_path):
    """A timestep of shape [1] is the scalar; other numbers of timesteps, and inputs of different batches, stop."""
    path = written(made(), tmp_path)[1]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = feeds(torch.float32)
    (wanted,) = session.run(None, feed)
    assert np.array_equal(session.run(None, {**feed, "timestep": np.array([501.0], np.float32)})[0], wanted)
    assert next(i for i in session.get_inputs() if i.name == "timestep").shape == []
    one, two = (feeds(torch.float32, batch) for batch in (1, 2))
    changes = [
        {"timestep": np.array([501.0, 501.0], np.float32)}, {"encoder_hidden_states": one["encoder_hidden_states"]}, {"sample": one["sample"]},
        {"encoder_hidden_states": np.concatenate([two["encoder_hidden_states"]] * 2)},
    ]  # fmt: skip
    for change in changes:
        with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.Fail):
            session.run(None, feed | change)
    assert not [n for n in onnx.load(path).graph.node if n.op_type == "Cast" and n.input[0].endswith("fires")]
