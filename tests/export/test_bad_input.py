"""Every user's mistake: one line on stderr, exit code 2, nothing written."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conftest import HOOKPOINT, make_activations, make_sae
from typer.testing import CliRunner

from saeuron.export.cli import app

runner = CliRunner()


def run(*options):
    return runner.invoke(app, ["export", *[str(o) for o in options]], env={"COLUMNS": "400"})


@pytest.fixture
def job(tiny, tmp_path):
    """Options of a job that works, as a dictionary to spoil, and its output folder."""
    return {
        "--concepts": "A", "--model": tiny["model"], "--sae": tiny["sae"], "--activations": tiny["activations"], "--hookpoint": HOOKPOINT,
        "--select": "count:20", "--multiplier": "-3", "--steps": "2", "--proof": "short", "--format": "checkpoint", "--output": tmp_path / "out",
    }  # fmt: skip


def refused(job, message, **changes):
    options = [part for k, v in (job | changes).items() if v is not None for part in (k, v)]
    before = sorted(p.name for p in job["--output"].parent.iterdir())
    result = run(*options)
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and message in lines[0], result.stderr
    assert "Traceback" not in result.output and result.stdout == ""
    assert sorted(p.name for p in job["--output"].parent.iterdir()) == before


def spoiled(path, target):
    shutil.copytree(path, target)
    return target


def test_the_job_itself_works(job):
    result = run(*[part for item in job.items() for part in item])
    assert result.exit_code == 0, result.output
    assert (job["--output"] / "saeuron.json").is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--concepts": "Neom", "--activations": None}, "did you mean Neon"),
        ({"--concepts": "AA"}, "did you mean A"),
        ({"--concepts": None}, "no concept named"),
        ({"--output": None}, "no output folder"),
        (
            {"--hookpoint": "up_blocks.7.attentions.0"},
            f"its transformer blocks are: down_blocks.0.attentions.0, up_blocks.0.attentions.0, {HOOKPOINT}",
        ),
        ({"--hookpoint": None}, "no hookpoint known"),
        ({"--sae": None}, "no SAE known"),
        ({"--model": None}, "no base model"),
        ({"--model": "/nowhere/else/x"}, "no folder '/nowhere/else/x'"),
        ({"--select": "percentile:100"}, "between 0 and 100"),
        ({"--select": "percentile:0"}, "between 0 and 100"),
        ({"--select": "count:0"}, "at least 1"),
        ({"--select": "best"}, "expected percentile:P or count:N"),
        ({"--multiplier": "2"}, "--allow-amplify"),
        ({"--multiplier": "nan"}, "a finite number"),
        ({"--guidance": "nan"}, "finite number"),
        ({"--output": Path("x" * 300)}, "File name too long"),
        ({"--residual": "drop", "--gate": "threshold"}, "--residual keep only"),
        ({"--residual": "wrong"}, "keep, upstream, drop"),
        ({"--gate": "fast"}, "exact, threshold"),
        ({"--residual": "drop", "--gate": "threshold"}, "--residual keep only"),
        ({"--precision": "int8"}, "fp32, fp16, bf16"),
        ({"--precision": "bf16", "--format": "onnx"}, "bf16"),
        ({"--format": "onxx"}, "did you mean onnx"),
        ({"--format": ","}, "the list ',' is empty"),
        ({"--format": ""}, "--format is empty"),
        ({"--steps": "0"}, "--steps is 0; it must be 1 to 1000"),
        ({"--height": "65"}, "multiple of 8"),
        ({"--device": "cuda:9"}, "device 'cuda:9' can't be used"),
        ({"--device": "toaster"}, "device 'toaster' can't be used"),
        ({"--settings": "/nowhere.toml"}, "does not exist"),
        ({"--proof": "long"}, "full, short"),
    ],
)
def test_bad_options(job, changes, message):
    refused(job, message, **changes)


def test_existing_output(job, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("x")
    refused(job, "exists")
    options = [part for item in job.items() for part in item]
    assert run(*options, "--overwrite").exit_code == 2
    assert (tmp_path / "out" / "precious.txt").read_text() == "x"


def test_no_room_on_the_disk(job, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    refused(job, "GiB free")


def test_sae_of_another_width(job, tmp_path):
    make_sae(width=16).save(tmp_path / "sae")
    refused(job, "reads 16 channels, but hookpoint", **{"--sae": tmp_path / "sae"})


def test_sae_that_claims_too_much(job, tiny, tmp_path):
    folder = spoiled(tiny["sae"], tmp_path / "sae")
    path = folder / f"unet.{HOOKPOINT}" / "cfg.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_latents": 10**12}))
    refused(job, "1000000000000", **{"--sae": folder})


def test_truncated_sae(job, tiny, tmp_path):
    folder = spoiled(tiny["sae"], tmp_path / "sae")
    path = folder / f"unet.{HOOKPOINT}" / "sae.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    refused(job, "truncated", **{"--sae": folder})


def activations_file(tmp_path, **changes):
    made = make_activations(**changes)
    made.save(tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


def test_activations_of_another_sae(job, tmp_path):
    refused(job, "255 latents", **{"--activations": activations_file(tmp_path, latents=255)})


def test_activations_with_nan(job, tmp_path):
    path = activations_file(tmp_path)
    tensors = load_file(path)
    from safetensors import safe_open

    with safe_open(path, "pt") as handle:
        header = handle.metadata()
    tensors["means"][0, 0, 0] = float("nan")
    save_file(tensors, path, metadata=header)
    refused(job, "NaN", **{"--activations": path})


def test_activations_of_one_concept(job, tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"A": torch.rand(2, 4, 256).half()}))
    refused(job, "one concept only", **{"--activations": tmp_path / "a.pkl"})


def test_activations_with_too_many_steps(job, tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({c: torch.rand(1, 1200, 256).half() for c in "AB"}))
    refused(job, "1200 steps", **{"--activations": tmp_path / "a.pkl"})


def test_two_files_at_one_hookpoint_with_other_steps(job, tmp_path, tiny):
    path = activations_file(tmp_path, steps=5, concepts=("Y", "Z"))
    options = [part for item in (job | {"--concepts": "A,Y"}).items() for part in item]
    result = run(*options, "--activations", path)
    assert result.exit_code == 2 and "different timesteps" in result.stderr


def test_one_concept_in_two_files(job, tmp_path):
    options = [part for item in job.items() for part in item]
    result = run(*options, "--activations", activations_file(tmp_path, concepts=("A", "Z")))
    assert result.exit_code == 2 and "two activations files" in result.stderr


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/saeuron-was-here",)


def test_a_pickle_that_wants_to_run_code(job, tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"A": Evil()}))
    refused(job, "could run code", **{"--activations": tmp_path / "a.pkl"})
    assert not os.path.exists("/tmp/saeuron-was-here")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "model_index.json").unlink(), "no model_index.json"),
        (lambda f: shutil.rmtree(f / "unet"), "'unet' folder is missing"),
        (lambda f: shutil.rmtree(f / "tokenizer"), "'tokenizer' folder is missing"),
        (lambda f: (f / "vae" / "diffusion_pytorch_model.safetensors").unlink(), "'vae' has no weights"),
        (lambda f: (f / "unet" / "config.json").unlink(), "unet/config.json is missing"),
        (lambda f: (f / "unet" / "config.json").write_text("{"), "can't be read as JSON"),
        (lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"x" * 100), "no whole safetensors file"),
    ],
)
def test_incomplete_model(job, tiny, tmp_path, spoil, message):
    folder = spoiled(tiny["model"], tmp_path / "model")
    spoil(folder)
    refused(job, message, **{"--model": folder})


@pytest.mark.parametrize(
    "kind",
    [
        "StableDiffusion3Img2ImgPipeline",
        "FluxInpaintPipeline",
        "CogView4Pipeline",
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",
        "StableDiffusionControlNetPipeline",
        "StableDiffusionXLImg2ImgPipeline",
    ],
)
def test_other_pipelines(job, tiny, tmp_path, kind):
    folder = spoiled(tiny["model"], tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text()) | {"_class_name": kind}
    if not kind.startswith(("StableDiffusionI", "StableDiffusionC", "StableDiffusionX")):
        del index["unet"]
    (folder / "model_index.json").write_text(json.dumps(index))
    refused(job, kind, **{"--model": folder})


def test_an_edited_model(job, tmp_path):
    first = tmp_path / "first"
    assert run(*[part for item in (job | {"--output": first}).items() for part in item]).exit_code == 0
    refused(job, "already carries an edit", **{"--model": first})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[export]\nmodle = 'x'", "did you mean model"),
        ("[[concepts]]\nselect = 'count:1'", "each concept with a name"),
        ("[[concepts]]\nname = 'A'\ngama = 3", "key 'gama'"),
        ("[other]", "table 'other'"),
        ("= 3", "read as TOML"),
    ],
)
def test_bad_settings_file(job, tmp_path, text, message):
    (tmp_path / "s.toml").write_text(text)
    refused(job, message, **{"--settings": tmp_path / "s.toml"})


def test_a_read_only_target(job, tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    tmp_path.chmod(0o500)
    refused(job, "no permission")


def test_presets_of_two_models_are_refused(monkeypatch):
    from dataclasses import replace

    from saeuron.editor.common.errors import SaeuronError
    from saeuron.editor.features import named
    from saeuron.editor.features.concepts import presets
    from saeuron.export.plan import resolve as module
    from saeuron.export.plan.settings import Settings

    known = presets()
    name = next(iter(known))
    known["Other"] = replace(known[name], name="Other", model="someone/else", directions="")
    monkeypatch.setattr(named, "presets", lambda *_: known)
    with pytest.raises(SaeuronError, match="different base models"):
        module.resolve(Settings((name, "Other"), output="x", intervention="multiply"))
