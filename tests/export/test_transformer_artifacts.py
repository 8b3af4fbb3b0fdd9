"""SD3, FLUX.1 (dev, schnell), Sana and PixArt from the plan to a proven artifact; mutants of the seam are caught."""

import json
import shutil

import numpy as np
import onnx
import pytest
import torch
from diffusers import DiffusionPipeline
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from tests.export.test_without_torch import bare
from tests.transformer_pipelines import lose_a_feature, make, settings
from tests.validation.test_lean import change

import saeuron
from saeuron.editor.denoisers.families import denoiser_of, family_in, network_of, sizes_in
from saeuron.editor.denoisers.sampling import decode, denoise
from saeuron.export.ship.stages import export_artifact
from saeuron.validation.artifact import manifest
from saeuron.validation.artifact.golden import Golden
from saeuron.validation.backends.decisions import Decisions, Watched
from saeuron.validation.backends.lean import LeanPipeline
from saeuron.validation.backends.onnx_runner import OnnxRunner
from saeuron.validation.backends.torch_runner import TorchRunner
from saeuron.validation.evidence.picture_backends import PictureBackends
from saeuron.validation.proof.forwards import compare_forwards
from saeuron.validation.proof.parity import check_components, check_seam, psnr, run_forwards
from saeuron.validation.proof.validate import validate
from saeuron.validation.trust.verify import verify
from saeuron.validation.ui.settings import TrySettings, Wish
from saeuron.validation.ui.studio import LeanLoop, choose, open_studio

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["sd3", "flux", "schnell", "sana", "pixart"])
def proven(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    made = make(request.param, folder)
    return made, export_artifact(settings(made, folder / "out"))


def test_both_formats_are_proven(proven):
    _, found = proven
    assert found.report.passed, found.report.failures
    assert set(found.report.backends) == {"checkpoint", "onnx"}
    for parts in found.report.backends.values():
        assert parts.forwards.worst < 1e-4 and parts.seam.own_tokens.fired > 0 and parts.seam.own_tokens.wrong == 0
    assert {p.name for p in (found.path / "transformer").iterdir()} >= {"config.json", "model.onnx", "diffusion_pytorch_model.safetensors"}
    assert verify(found.path)["verified"]


def test_opens_in_diffusers_as_it_was_proven(proven):
    _, found = proven
    golden = Golden.load(found.path / "edit" / "golden.safetensors")
    pipeline = DiffusionPipeline.from_pretrained(found.path, trust_remote_code=True)
    assert type(pipeline.transformer).__name__.startswith("Ablated")
    run = golden.runs[0]
    latents = denoise(pipeline, run.prompts, torch.from_numpy(run.initial), run.seeds, run.steps, run.guidance).numpy()
    assert abs(latents - run.hook).max() < 1e-3 * abs(run.hook - run.unedited).max()


@pytest.fixture(scope="module", params=[(kind, of) for of in ("fp16", "bf16") for kind in ("sd3", "flux", "sana", "pixart")], ids="-".join)
def narrow(request, tmp_path_factory):
    """In 16 bits; of bf16 no ONNX, which a CPU can't run."""
    (kind, precision), folder = request.param, tmp_path_factory.mktemp("-".join(request.param))
    formats = ("checkpoint", "onnx") if precision == "fp16" else ("checkpoint",)
    return export_artifact(settings(make(kind, folder), folder / "out", precision=precision, formats=formats))


MUTANTS = ("a feature lost", "gains halved", "tables one step off", "decoder rows shifted")


def assert_caught(path, mutant):
    golden = Golden.load(path / "edit" / "golden.safetensors")
    pipeline = saeuron.load(path)
    (module,) = network_of(pipeline).ablations.values()
    with torch.no_grad():
        if mutant == "a feature lost":
            lose_a_feature(module, golden)
        elif mutant == "gains halved":
            module.gains.copy_((module.gains + 1) / 2)
        elif mutant == "tables one step off":
            for table in (module.thresholds, module.gains):
                table.copy_(table.roll(1, 0))
        else:
            module.decoder_weight.copy_(module.decoder_weight.roll(1, 1))
    assert check_seam(golden, TorchRunner(pipeline)).failures, mutant


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_are_caught(proven, mutant):
    assert_caught(proven[1].path, mutant)


def test_in_16_bits_it_is_proven_and_mutants_are_caught(narrow):
    report = narrow.report
    assert report.passed, report.failures
    assert verify(narrow.path)["verified"] and report.precision == narrow.manifest.precision
    for parts in report.backends.values():
        assert parts.seam.own_tokens.fired > 0 and parts.seam.own_tokens.wrong == 0 and parts.forwards.worst < 0.05
    for mutant in MUTANTS:
        assert_caught(narrow.path, mutant)


def test_the_edit_on_the_other_stream_is_caught(proven):
    """The seam alone can't see that: it is given its tokens."""
    made, found = proven
    if made["model"].parent.name.startswith(("sana", "pixart")):
        pytest.skip("its blocks give the picture's alone")
    golden = Golden.load(found.path / "edit" / "golden.safetensors")
    pipeline, calm = saeuron.load(found.path), [0] * len(golden.cases)
    runner = TorchRunner(pipeline)
    assert compare_forwards(golden, run_forwards(golden, runner.denoise), calm).passed
    (module,) = network_of(pipeline).ablations.values()
    module.stream = "text"
    assert not compare_forwards(golden, run_forwards(golden, runner.denoise), calm).passed


@pytest.mark.parametrize("tokens", [1, 7, 60])
@pytest.mark.parametrize(("rows", "size"), [(1, (32, 32)), (3, (64, 32)), (2, (32, 96))])
def test_graphs_take_every_batch_size_and_length(proven, rows, size, tokens):
    """An export may fix what only a run shows."""
    _, found = proven
    network, runner = network_of(saeuron.load(found.path)), OnnxRunner(found.path)
    denoiser, generator = denoiser_of(network), torch.Generator().manual_seed(tokens)
    sides = sizes_in(found.path).latents(*size)
    given = {name: torch.randn(shape, generator=generator) for name, shape in denoiser.shapes(network.config, rows, sides, tokens).items()}
    given |= {name: torch.randint(0, 2, given[name].shape, generator=generator) | (torch.arange(tokens) == 0) for name in denoiser.whole}
    given |= {name: torch.from_numpy(value) for name, value in denoiser.at_level(321.0, rows).items()}
    with torch.no_grad():
        wanted = denoiser.call(network, given).numpy()
    output = runner.denoise({name: value.numpy() for name, value in given.items()})
    assert output.shape == wanted.shape and np.linalg.norm(output - wanted) < 1e-4 * np.linalg.norm(wanted)


def test_a_forgotten_mask_is_caught(proven):
    """Of the network, and of a text encoder that reads in both directions."""
    made, found = proven
    kind = made["model"].parent.name
    if not kind.startswith(("sana", "pixart")):
        pytest.skip("it has no mask")
    golden = Golden.load(found.path / "edit" / "golden.safetensors")
    pipeline = saeuron.load(found.path)
    runner, calm = TorchRunner(pipeline), [0] * len(golden.cases)
    assert check_components(golden, runner).passed
    forward = pipeline.text_encoder.forward
    pipeline.text_encoder.forward = lambda ids, attention_mask, **more: forward(ids, attention_mask=torch.ones_like(attention_mask), **more)
    assert not check_components(golden, runner).passed
    pipeline.transformer.register_forward_pre_hook(
        lambda m, args, kwargs: (args, kwargs | {"encoder_attention_mask": torch.ones_like(kwargs["encoder_attention_mask"])}),
        with_kwargs=True,
    )
    assert not compare_forwards(golden, run_forwards(golden, runner.denoise), calm).passed


# --- without torch

TEXTS = ["a cat", "an image of dog in style"]


def drawn(root, runner, noise, steps, guidance):
    """Pictures by our loop, and what the edit decided: a row a picture."""
    watched = Watched(runner)
    lean = LeanPipeline(root, watched)
    watched.decisions = Decisions(lean.family.denoiser, len(noise), guidance > 1)
    pictures = lean.decode(lean.denoise(TEXTS, noise, steps, guidance))
    fires = [np.concatenate([f.fires[h].reshape(len(noise), -1) for h in sorted(f.fires)], 1) for f in watched.decisions.forwards]
    return pictures, np.concatenate(fires, 1)


def test_graphs_draw_what_diffusers_draws(proven):
    """From the same noise: diffusers' loop around the same graphs, and around the checkpoint, unless rounding turned one of the edit's decisions."""
    made, found = proven
    graphs, checkpoint = OnnxRunner(found.path), TorchRunner(saeuron.load(found.path))
    theirs = graphs.pipeline()
    worst, alike = [np.inf, np.inf], []
    multiple = sizes_in(found.path).multiple
    for size in ((32, 32), (24, 40), (48, 16)):
        noise = LeanPipeline(found.path, graphs).initial_latents([5, 6], *(-(-side // multiple) * multiple for side in size))
        for steps, guidance in ((2, 1.0), (2, 4.0), (5, 1.0), (5, 4.0)):
            ours, decisions = drawn(found.path, graphs, noise, steps, guidance)
            with torch.no_grad():
                expected = decode(theirs, denoise(theirs, TEXTS, torch.from_numpy(noise), [], steps, guidance))
            worst[0] = min(worst[0], psnr(ours, expected))
            other, others = drawn(found.path, checkpoint, noise, steps, guidance)
            alike += (same := (decisions == others).all(1)).tolist()
            worst[1] = min([worst[1], *(psnr(ours[i : i + 1], other[i : i + 1]) for i in np.flatnonzero(same))])
    name = made["model"].parent.name
    print(
        f"PSNR {name}: {worst[0]:.1f} dB around the graphs, {worst[1]:.1f} dB around the checkpoint ({sum(alike)} of {len(alike)} decide alike)"
    )
    assert worst[0] >= 60 and worst[1] >= 50 and np.mean(alike) >= 0.8


def test_generate_and_validate_without_torch(proven, tmp_path):
    _, found = proven
    kind, width = found.path.parent.name[:4], max(48, 32 + sizes_in(found.path).multiple)
    file = tmp_path / "cat.png"
    code, stdout, stderr = bare("generate", found.path, "--prompt", "a cat", "--seed", 5, "--width", width, "--json", "-o", file)
    assert code == 0, stderr
    said = json.loads(stdout)
    assert said["scheduler"] == ("dpm" if kind in ("sana", "pixa") else "flow")
    assert (said["height"], said["width"], said["steps"]) == (32, width, 4)
    with Image.open(file) as picture:
        expected = LeanPipeline(found.path, OnnxRunner(found.path))(["a cat"], [5], 4, 3.0, None, 32, width)[0]
        assert np.array_equal(np.asarray(picture), expected)
    if kind != "pixa":  # which takes those of UNets
        code, _, stderr = bare("generate", found.path, "--prompt", "a cat", "--scheduler", "ddim", "-o", tmp_path / "x.png")
        assert code == 2 and "error: scheduler 'ddim' is for UNets" in stderr and not (tmp_path / "x.png").exists()
    code, stdout, stderr = bare("validate", found.path, "--backend", "onnx", "--json")
    assert code == 0, stderr
    proof = json.loads(stdout)
    runs = proof["backends"]["onnx"]["runs"]
    assert proof["passed"] and runs["loop"] == "lean" and len(runs["rows"]) == 3 and all(r["conclusive"] for r in runs["rows"])
    assert [e["check"] for e in proof["not_checked"]] == ["record", "surroundings"]


@pytest.mark.parametrize("mutant", ["shift", "vae"])
def test_an_altered_folder_is_not_proven_without_torch(proven, tmp_path, monkeypatch, mutant):
    _, found = proven
    folder = shutil.copytree(found.path, tmp_path / "copy")
    if mutant == "shift":
        flow = "flow_shift" in (folder / "scheduler" / "scheduler_config.json").read_text()
        more = {"flow_shift": 1.5, "solver_order": 1} if flow else {"shift": 2.0, "base_shift": 1.0, "max_shift": 1.9}
        change(folder / "scheduler" / "scheduler_config.json", **more)
    else:
        shifts = family_in(folder).denoiser.shifts
        change(folder / "vae" / "config.json", **({"shift_factor": 3.0} if shifts else {"scaling_factor": 0.2}))
    monkeypatch.setattr("saeuron.validation.proof.validate.missing", lambda: ["torch"])
    proof = validate(folder, ["onnx"], check_files=False)
    assert not proof.passed and any("free run" in line for line in proof.failures), proof.failures


def test_the_page_and_evaluations_without_torch(proven, monkeypatch):
    """`try` draws and shows firing alike by both loops; `evaluate` gets the same pictures."""
    _, found = proven
    record, drawn = manifest.read(found.path), {}
    for backend in ("checkpoint", "onnx"):
        wanted = TrySettings(backend=backend)
        studio = open_studio(found.path, record, wanted, choose(found.path, record, wanted))
        drawn[backend] = studio.edited(Wish("a cat", "", 3, 4, 3.0))
    assert isinstance(studio.edited_loop, LeanLoop)
    first, second = drawn.values()
    assert psnr(first.picture[None], second.picture[None]) >= 50
    assert np.allclose(first.firing.timesteps, second.firing.timesteps) and first.firing.features == second.firing.features
    assert all(counts.any() and (second.firing.maps[name] != counts).mean() <= 0.01 for name, counts in first.firing.maps.items())
    pictures = []
    for lacking in ([], ["torch"]):
        monkeypatch.setattr("saeuron.validation.evidence.picture_backends.missing", lambda lacking=lacking: lacking)
        backends = PictureBackends(found.path, record)
        assert backends.runs_on("onnx")["loop"] == ("lean" if lacking else "diffusers")
        with backends.open("onnx") as draw:
            pictures.append(draw(TEXTS, [1, 2], 3, 3.0))
    assert psnr(*pictures) >= 50


def make_judge(folder):
    """A judge of two objects: which of two colours there is more of."""
    folder.mkdir()
    weights = numpy_helper.from_array(np.array([[1, -1], [-2, 2], [1, -1]], np.float32), "w")
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    given, made = (helper.make_tensor_value_info(n, TensorProto.FLOAT, axes) for n, axes in (("x", ["b", 3, "h", "v"]), ("y", ["b", 2])))
    graph = helper.make_graph(nodes, "judge", [given], [made], [weights])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "object.onnx")
    (folder / "object.txt").write_text("cat\ndog\n")
    (folder / "style.txt").write_text("plain\nSketch\n")
    return folder


def test_evaluate_without_torch(proven, tmp_path):
    _, found = proven
    options = ["--backend", "onnx", "--no-before", "--judge", f"onnx={make_judge(tmp_path / 'judge')}", "--seeds", 1, "--steps", 2]
    code, _, stderr = bare("evaluate", found.path, *options, "--output", tmp_path / "out")
    assert code == 0, stderr
    said = json.loads((tmp_path / "out" / "evaluation.json").read_text())["backends"]["onnx"]
    assert said["loop"] == "lean" and said["pictures"] == 4


def test_graphs_alone_are_enough(tmp_path):
    """An artifact without a checkpoint holds all that the loop reads."""
    made = make("schnell", tmp_path)
    found = export_artifact(settings(made, tmp_path / "out", formats=("onnx",)))
    assert found.report.passed and not list(found.path.rglob("*.safetensors.index.json"))
    assert not (found.path / "transformer" / "diffusion_pytorch_model.safetensors").exists()
    code, _, stderr = bare("generate", found.path, "--prompt", "a cat", "-o", tmp_path / "cat.png")
    assert code == 0 and (tmp_path / "cat.png").exists(), stderr
