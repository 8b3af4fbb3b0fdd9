"""Transformers too large for memory: the same artifact as from memory, graphs in parts, the proof up to the edited block and its mutants."""

import shutil

import numpy as np
import pytest
import torch
from onnx import helper, numpy_helper
from onnx import load as read_graph
from onnx import save as save_graph
from tests.transformer_pipelines import lose_a_feature, make, settings

import saeuron
from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.denoisers import streamed
from saeuron.editor.denoisers.families import family_of, network_of
from saeuron.editor.denoisers.pipelines import load_pipeline
from saeuron.editor.edit.bake import bake
from saeuron.export.formats import checkpoint, onnx
from saeuron.export.plan.prepare import prepare
from saeuron.export.plan.resolve import resolve
from saeuron.export.ship.stages import export_artifact
from saeuron.validation.artifact import contents
from saeuron.validation.artifact.golden import Golden
from saeuron.validation.backends import parts, sessions
from saeuron.validation.backends.onnx_runner import OnnxRunner
from saeuron.validation.backends.torch_runner import TorchRunner
from saeuron.validation.page.verdict import reach
from saeuron.validation.proof.parity import prove
from saeuron.validation.trust.record import check_record
from saeuron.validation.trust.verify import verify

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["sd3", "flux"])
def made(request, tmp_path_factory):
    return make(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def bounds():
    """Bounds that tiny networks and their graphs are above."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streamed, "LARGE", 0)
        patch.setattr(streamed, "SMALL", 64)
        patch.setattr(parts, "LARGE", 0)
        patch.setattr(parts, "PART", 1 << 14)
        patch.setattr(onnx, "_INLINE_LIMIT", 0)
        yield


def written(made, folder, precision="fp32"):
    """Edited transformer as checkpoint and graph, without a proof."""
    prepared = prepare(resolve(settings(made, folder, precision=precision)))
    pipeline = load_pipeline(str(made["model"]), {"fp32": torch.float32, "fp16": torch.float16}[precision])
    edited = checkpoint.edited_pipeline(pipeline, bake(network_of(pipeline), prepared.edit, prepared.saes))
    checkpoint.write(edited, folder, {})
    text = family_of(pipeline).text_encoders[-1]
    for part in (onnx.denoiser_component(network_of(edited), 9), *(p for p in onnx.components(edited) if p.folder == text.name)):
        onnx.write(part, folder)
    return text.name


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_files_are_the_same_to_the_byte(made, tmp_path, precision):
    """Traced with fake tensors and streamed from file to file, or from memory."""
    reads: dict[str, int] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx, "_INLINE_LIMIT", 0)
        text = written(made, tmp_path / "memory", precision)
        patch.setattr(streamed, "LARGE", 0)
        patch.setattr(streamed, "SMALL", 64)
        own = streamed.Streamed.read
        patch.setattr(streamed.Streamed, "read", lambda self, name: reads.update({name: reads.get(name, 0) + 1}) or own(self, name))
        written(made, tmp_path / "files", precision)
    assert reads
    for folder in ("transformer", text):
        names = sorted(p.name for p in (tmp_path / "memory" / folder).iterdir())
        assert names == sorted(p.name for p in (tmp_path / "files" / folder).iterdir()) and "model.onnx_data" in names
        for name in names:
            one, other = ((tmp_path / side / folder / name).read_bytes() for side in ("memory", "files"))
            assert one == other, f"{folder}/{name}"


@pytest.fixture(scope="module")
def proven(made, bounds, tmp_path_factory):
    return export_artifact(settings(made, tmp_path_factory.mktemp("out") / "a", proof="seam"))


def test_it_is_proven_up_to_the_edited_block(proven):
    report = proven.report
    assert proven.proven, report.failures
    assert report.scope == "seam" and reach(report) == " up to its last edited block"
    assert any(entry.check == "forwards" and "neither its end nor a picture" in entry.reason for entry in report.not_checked)
    for found in report.backends.values():
        assert found.seam.golden_tokens.fired > 0 and found.seam.own_tokens.fired > 0 and found.seam.own_tokens.wrong == 0
        assert found.forwards.forwards == 3 and found.forwards.worst < 1e-3 and not found.runs.rows
    assert report.control.seams_caught == report.control.seams > 0 and report.control.forwards_caught == report.control.forwards > 0
    assert "edited blocks' tokens" in (proven.path / "README.md").read_text()


def test_a_graph_in_parts_gives_what_the_whole_gives(proven, monkeypatch):
    golden = Golden.load(proven.path / "edit" / "golden.safetensors")
    runner = OnnxRunner(proven.path)
    session = runner.session("transformer")
    assert isinstance(session, parts.PartedSession) and len(session._parts) > 3
    found = [runner.denoise(case.inputs) for case in golden.cases]
    shown = runner.observe(golden.cases[0].inputs)
    monkeypatch.setattr(parts, "LARGE", 1 << 40)
    whole = OnnxRunner(proven.path)
    for case, output in zip(golden.cases, found, strict=True):
        assert np.allclose(whole.denoise(case.inputs), output, rtol=1e-4, atol=1e-5)
    for name, tensors in whole.observe(golden.cases[0].inputs).seams.items():
        assert np.allclose(tensors.output, shown.seams[name].output, rtol=1e-4, atol=1e-5)


def test_parts_behind_the_seam_are_not_opened(proven, monkeypatch):
    golden = Golden.load(proven.path / "edit" / "golden.safetensors")
    opened = []
    own = sessions._opened
    runner = OnnxRunner(proven.path)
    runner.observe(golden.cases[0].inputs, True)
    session = runner._watching
    monkeypatch.setattr(session, "_open", lambda model: opened.append(model) or own(runner._graph, "CPUExecutionProvider", model))
    runner.observe(golden.cases[0].inputs, True)
    some = len(opened)
    runner.observe(golden.cases[0].inputs)
    assert 0 < some < len(opened) - some


MUTANTS = ("a feature lost", "gains halved", "the other stream", "a block before it passed by", "no edit")


def passed_by(module, args, kwargs, output):
    return kwargs["encoder_hidden_states"], kwargs["hidden_states"]


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_are_caught(proven, mutant):
    golden = Golden.load(proven.path / "edit" / "golden.safetensors")
    pipeline = saeuron.load(proven.path)
    network = network_of(pipeline)
    (module,) = network.ablations.values()
    with torch.no_grad():
        if mutant == "a feature lost":
            lose_a_feature(module, golden)
        elif mutant == "gains halved":
            module.gains.copy_((module.gains + 1) / 2)
        elif mutant == "the other stream":
            module.stream = "text"
        elif mutant == "no edit":
            module.gains.fill_(1.0)
        else:
            network.transformer_blocks[0].register_forward_hook(passed_by, with_kwargs=True)
    assert prove(golden, [TorchRunner(pipeline)]).backends["checkpoint"].passed is False, mutant


@pytest.mark.parametrize("file", ["diffusion_pytorch_model.safetensors", "model.onnx_data"])
def test_a_changed_weight_behind_the_seam_is_seen(proven, tmp_path, file):
    """What no forward of this proof reaches, the record compares."""
    folder = shutil.copytree(proven.path, tmp_path / "copy")
    golden, path = Golden.load(folder / "edit" / "golden.safetensors"), folder / "transformer" / file
    assert not check_record(folder, proven.manifest, golden)
    network = network_of(saeuron.load(folder))
    name = "proj_out.weight"
    value = dict(streamed.weights_of(network, [(name, network.state_dict()[name])]))[name]
    data, wanted = bytearray(path.read_bytes()), value.contiguous().numpy().tobytes()
    at = data.find(wanted)
    if at < 0:  # an exporter may have turned it
        at = data.find(value.T.contiguous().numpy().tobytes())
    data[at : at + 4] = np.float32(7.5).tobytes()
    path.write_bytes(data)
    assert any("transformer" in line for line in check_record(folder, proven.manifest, golden))


@pytest.mark.parametrize("where", ["behind the edit", "before a copy that the edit reads"])
def test_an_edit_that_is_thrown_away_behind_the_seam_is_seen(proven, tmp_path, where):
    """At the seam all is as it was; behind it `input + 0 · (output - input)` is read. No run up to the seam shows it."""
    folder = shutil.copytree(proven.path, tmp_path / "copy")
    golden, path = Golden.load(folder / "edit" / "golden.safetensors"), folder / "transformer" / "model.onnx"
    graph = (model := read_graph(path, load_external_data=False)).graph
    (seam,) = proven.manifest.onnx.seams.values()
    unedited = seam.input
    if where != "behind the edit":
        unedited = "block"
        maker = next(n for n in graph.node if seam.input in n.output)
        maker.output[list(maker.output).index(seam.input)] = unedited
        graph.node.insert(list(graph.node).index(maker) + 1, helper.make_node("Add", [unedited, "nought"], [seam.input]))
    place = next(i for i, n in enumerate(graph.node) if seam.output in n.output) + 1
    for node in graph.node[place:]:
        node.input[:] = ["undone" if name == seam.output else name for name in node.input]
    graph.initializer.append(numpy_helper.from_array(np.float32(0), "nought"))
    undo = (("Sub", seam.output, unedited, "change"), ("Mul", "change", "nought", "none"), ("Add", unedited, "none", "undone"))
    for i, (kind, one, other, made) in enumerate(undo):
        graph.node.insert(place + i, helper.make_node(kind, [one, other], [made]))
    save_graph(model, path)
    contents.write(folder, proven.manifest)
    assert prove(golden, [OnnxRunner(folder)]).backends["onnx"].passed
    for found in (verify(folder)["failures"], check_record(folder, proven.manifest, golden)):
        assert any("reach an output of the graph around its edit" in line for line in found), found


def test_an_edit_that_begins_later_is_refused(made, tmp_path):
    with pytest.raises(SaeuronError, match="--proof seam looks at timesteps"):
        export_artifact(settings(made, tmp_path / "out", proof="seam", start=300))
