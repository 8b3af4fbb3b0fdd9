"""The main job on the embedded demo: a real trained model, real ONNX Runtime, real files."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from tests.conftest import check_plan, refused, run
from typer.testing import CliRunner

import saeuron
from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.features.concepts import presets
from saeuron.editor.features.prompt_sets import prompts_of
from saeuron.export.cli import app
from saeuron.export.plan.concepts import prompts_on_record
from saeuron.export.plan.resolve import resolve
from saeuron.export.plan.settings import Settings
from saeuron.validation.artifact import contents, manifest
from saeuron.validation.artifact.concepts import read_concepts
from saeuron.validation.artifact.golden import Golden
from saeuron.validation.proof.validate import validate

runner = CliRunner()


def test_both_backends_are_proven(demo_artifact):
    report = demo_artifact.report
    assert report.passed, report.failures
    for parts in report.backends.values():
        assert parts.forwards.worst <= 0.01 and parts.seam.passed and parts.seam.own_tokens.fired > 0
    assert demo_artifact.manifest.validation.passed


def test_the_dry_run_names_every_file(demo_artifact):
    check_plan(demo_artifact, Settings(("Neon", "House"), demo_artifact.path, intervention="multiply"))


def test_every_file_is_on_record(demo_artifact):
    root = demo_artifact.path
    record = manifest.read(root)
    on_disk = {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()} - {manifest.NAME}
    assert on_disk == set(record.files)
    for name in ("unet/model.onnx", "text_encoder/model.onnx", "vae_decoder/model.onnx", "vae_encoder/model.onnx", "unet/diffusion_pytorch_model.safetensors",
                 "tokenizer/vocab.json", "tokenizer/merges.txt", "edit/edit.safetensors", "edit/golden.safetensors", "validation/report.json", "README.md", "model_index.json"):  # fmt: skip
        assert name in on_disk
    assert sum(n.endswith(".py") for n in on_disk) == 1
    card = (root / "README.md").read_text()
    assert "`edit/` holds" in card and "`validation/report.json` holds" in card


def test_the_prompts_of_its_concepts_are_in_it(demo_artifact):
    known = presets()
    assert read_concepts(demo_artifact.path) == {name: prompts_of(known[name]) for name in ("Neon", "House")}
    # An edit out of it: its concepts are looked up by their names.
    plan = resolve(Settings(edit=demo_artifact.path / "edit" / "edit.safetensors", output=demo_artifact.path.with_name("again")))
    assert plan.concepts == {} and prompts_on_record(plan) == read_concepts(demo_artifact.path)


@pytest.mark.slow
def test_opens_in_diffusers_without_this_package(demo_artifact, tmp_path):
    """A fresh process that must not import saeuron; its free run equals the hook's."""
    script = """
import sys, json, numpy as np, torch
from diffusers import DiffusionPipeline
from safetensors import safe_open
from safetensors.numpy import load_file
root = sys.argv[1]
pipe = DiffusionPipeline.from_pretrained(root, trust_remote_code=True)
assert not any(m == "saeuron" or m.startswith("saeuron.") for m in sys.modules)
path = root + "/edit/golden.safetensors"
with safe_open(path, "np") as f: content = json.loads(f.metadata()["content"])
tensors = load_file(path)
case = content["cases"][3]
get = lambda k: torch.from_numpy(tensors[case[k]])
with torch.no_grad(): out = pipe.unet(**{k: torch.from_numpy(tensors[name]) for k, name in case["inputs"].items()}).sample
print(float((out - get("hook")).norm() / (get("hook") - get("unedited")).norm()))
"""
    found = subprocess.run(
        [sys.executable, "-c", script, str(demo_artifact.path)], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert float(found.stdout.strip().splitlines()[-1]) < 0.01


def test_opening_says_nothing_and_leaves_the_libraries_as_they_were(demo_artifact, capfd):
    from diffusers.utils import logging as diffusers_log
    from transformers.utils import logging as transformers_log

    before = [(log.get_verbosity(), log.is_progress_bar_enabled()) for log in (diffusers_log, transformers_log)]
    capfd.readouterr()
    saeuron.load(demo_artifact.path)
    shown = capfd.readouterr()
    assert shown.out == "" and shown.err == ""
    assert before == [(log.get_verbosity(), log.is_progress_bar_enabled()) for log in (diffusers_log, transformers_log)]


def test_loads_by_our_loader_and_really_removes(demo_artifact):
    """The judge, trained on rendered pictures alone, no longer sees the style or the object, and still sees the rest."""
    from saeuron.editor import demo
    from saeuron.editor.demo.classifier import DemoClassifier
    from saeuron.editor.denoisers.sampling import generate

    pipeline = saeuron.load(demo_artifact.path)
    judge = DemoClassifier.load(demo.CLASSIFIER)
    neon = [f"An image of {o} in Neon style." for o in ("Car", "Star", "Boat", "Heart", "Umbrella", "Cactus")]
    house = [f"An image of House{s}." for s in ("", " in Sepia style", " in Sunset style", " in Blueprint style")]
    kept = [
        f"An image of {o} in {s} style."
        for o, s in (
            ("Car", "Sepia"),
            ("Star", "Sunset"),
            ("Boat", "Blueprint"),
            ("Heart", "Stripes"),
            ("Cactus", "Chalkboard"),
            ("Star", "Tiles"),
        )
    ]
    seen = judge.classify(generate(pipeline, neon + house + kept, range(900, 916), demo.STEPS, demo.GUIDANCE))
    assert sum(s == "Neon" for s in seen.styles[:6]) <= 1
    assert sum(o == "House" for o in seen.objects[6:10]) <= 1
    assert sum(s == a.split(" in ")[1].split()[0] for s, a in zip(seen.styles[10:], kept, strict=True)) >= 5
    assert sum(o == a.split()[3] for o, a in zip(seen.objects[10:], kept, strict=True)) >= 4


@pytest.mark.slow
def test_validate_from_the_golden_file_and_afresh(demo_artifact):
    result = runner.invoke(app, ["validate", str(demo_artifact.path), "--backend", "onnx", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["backends"]["onnx"]["forwards"]["worst"] <= 0.01
    result = runner.invoke(
        app, ["validate", str(demo_artifact.path), "--backend", "checkpoint", "--model", "demo", "--seed", "77", "--json"]
    )
    assert result.exit_code == 0, result.output


@pytest.mark.slow
def test_the_provider_that_runs_is_the_one_asked_for(demo_artifact, tmp_path, monkeypatch):
    """A provider that isn't there, and one that ONNX Runtime quietly replaces, are refused; the one that ran is said."""
    root = demo_artifact.path
    result = run("validate", root, "--backend", "onnx", "--provider", "cpu")
    assert "ONNX Runtime ran on CPUExecutionProvider" in result.stdout
    generate = ("generate", root, "--prompt", "An image of House.", "--steps", 1, "-o", tmp_path / "x.png")
    for command in (("validate", root, "--backend", "onnx"), generate):
        refused("has no CUDAExecutionProvider", *command, "--provider", "cuda")
        refused("has no TensorrtExecutionProvider", *command, "--provider", "tensorrt")
        refused("provider 'tensort' is not known; did you mean tensorrt?", *command, "--provider", "tensort")
    refused("is for backend onnx, not for checkpoint", "validate", root, "--backend", "checkpoint", "--provider", "cpu")
    # The real runtime, told that it has CUDA, runs on the CPU with a warning.
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    refused("on CPUExecutionProvider, not on CUDAExecutionProvider as asked", *generate, "--provider", "cuda")
    assert not (tmp_path / "x.png").exists()
    made = json.loads(run(*generate, "--json").stdout)
    assert made["provider"] == "CPUExecutionProvider"


@pytest.mark.slow
def test_validate_finds_an_unedited_golden(demo_artifact, tmp_path):
    """If the golden outputs are another edit's, the proof fails with exit code 1."""
    root = tmp_path / "artifact"
    shutil.copytree(demo_artifact.path, root)
    golden = Golden.load(root / "edit" / "golden.safetensors")
    for case in golden.cases:
        case.hook = case.unedited + 0.9 * (case.hook - case.unedited)
    golden.save(root / "edit" / "golden.safetensors")
    record = manifest.read(root)
    contents.write(root, record)
    result = runner.invoke(app, ["validate", str(root), "--backend", "checkpoint"])
    assert result.exit_code == 1 and "not proven" in result.stderr


@pytest.mark.parametrize(
    "name", ["unet/model.onnx", "unet/diffusion_pytorch_model.safetensors", "edit/golden.safetensors", "tokenizer/vocab.json"]
)
def test_a_changed_file_is_found(demo_artifact, tmp_path, name):
    root = tmp_path / "artifact"
    shutil.copytree(demo_artifact.path, root)
    data = bytearray((root / name).read_bytes())
    data[len(data) // 2] ^= 1
    (root / name).write_bytes(data)
    for opening in (lambda: validate(root), lambda: saeuron.load(root)):
        with pytest.raises(SaeuronError, match=name):
            opening()
    result = runner.invoke(app, ["validate", str(root)])
    assert result.exit_code == 2 and name in result.stderr


def test_an_unrecorded_file_is_found(demo_artifact, tmp_path):
    root = tmp_path / "artifact"
    shutil.copytree(demo_artifact.path, root)
    (root / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text("{}")
    with pytest.raises(SaeuronError, match="not on record"):
        saeuron.load(root)


def test_onnx_takes_any_batch_and_size(demo_artifact):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(demo_artifact.path / "unet" / "model.onnx"), providers=["CPUExecutionProvider"])
    assert [(i.name, i.type) for i in session.get_inputs()] == [
        ("sample", "tensor(float)"),
        ("timestep", "tensor(float)"),
        ("encoder_hidden_states", "tensor(float)"),
    ]
    unet = saeuron.load(demo_artifact.path).unet
    for batch, height, width in ((1, 8, 8), (3, 16, 8), (5, 4, 12)):
        x, c = torch.randn(batch, 8, height, width), torch.randn(batch, 24, 128)
        feed = {"sample": x.numpy(), "timestep": np.array(612.5, np.float32), "encoder_hidden_states": c.numpy()}
        with torch.no_grad():
            expected = unet(x, 612.5, c).sample.numpy()
        assert np.allclose(session.run(None, feed)[0], expected, atol=1e-4)


def test_graphs_say_nothing_of_the_machine(demo_artifact):
    for path in demo_artifact.path.rglob("model.onnx"):
        data = path.read_bytes()
        assert b"site-packages" not in data and b"/home/" not in data and b"/tmp/" not in data
