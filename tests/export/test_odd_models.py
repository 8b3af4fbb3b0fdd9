"""Odd but real model folders through the commands: what simply works ends proven, the rest in one line, in a dry run too."""

import json
import shutil

import pytest
from diffusers import EDMEulerScheduler, StableDiffusionPipeline
from tests.conftest import HOOKPOINT, refused, run

from saeuron.validation.artifact import manifest


@pytest.fixture
def folder(tiny, tmp_path):
    return shutil.copytree(tiny["model"], tmp_path / "model")


def job(tiny, folder, output, *more, formats="checkpoint"):
    return [
        "export", "--concepts", "A", "--model", folder, "--sae", tiny["sae"], "--activations", tiny["activations"], "--hookpoint", HOOKPOINT, "--select",
        "count:20", "--multiplier", "-3", "--steps", "2", "--proof", "short", "--format", formats, "--output", output, *more,
    ]  # fmt: skip


@pytest.mark.slow
def test_a_folder_that_holds_only_a_variant(tiny, folder, tmp_path):
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    shutil.rmtree(folder)
    pipeline.save_pretrained(folder, variant="fp16")
    for more in ((), ("--dry-run",)):
        refused("give --variant fp16", *job(tiny, folder, tmp_path / "out", *more))
    places = ["--model", folder, "--variant", "fp16", "--hookpoint", HOOKPOINT]
    (tmp_path / "p.txt").write_text("An image of House.\n")
    run("collect", "--prompts", f"a={tmp_path / 'p.txt'}", "--prompts", f"b={tmp_path / 'p.txt'}", *places, "--sae", tiny["sae"], "--steps", "2", "--output", tmp_path / "a.safetensors")  # fmt: skip
    run(
        "train",
        "--prompts",
        tmp_path / "p.txt",
        *places,
        "--sampling-steps",
        "2",
        "--batch",
        "64",
        "--output",
        tmp_path / "sae",
        "--dry-run",
    )
    run("steer", "--feature", "3=0", *places, "--sae", tiny["sae"], "--output", tmp_path / "edit.safetensors")
    run(*job(tiny, folder, tmp_path / "out", "--variant", "fp16"))
    assert manifest.read(tmp_path / "out").model.variant == "fp16"
    run("validate", tmp_path / "out", "--model", folder, "--sae", tiny["sae"])


@pytest.mark.slow
def test_a_tokenizer_that_pads_to_less_than_its_network_takes_ends_proven(tiny, folder, tmp_path):
    path = folder / "tokenizer" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 12}))
    run(*job(tiny, folder, tmp_path / "out", formats="checkpoint,onnx"))
    run("generate", tmp_path / "out", "--prompt", "An image of House.", "--output", tmp_path / "picture.png")


@pytest.mark.slow
def test_a_unet_without_a_size_of_its_own_ends_proven(tiny, folder, tmp_path):
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sample_size": None, "cross_attention_dim": [24, 24]}))
    refused("give --height and --width", *job(tiny, folder, tmp_path / "out"))
    run(*job(tiny, folder, tmp_path / "out", "--height", "16", "--width", "24", formats="checkpoint,onnx"))
    run("generate", tmp_path / "out", "--prompt", "An image of House.", "--output", tmp_path / "picture.png")


def test_edm_timesteps_are_refused(tiny, folder, tmp_path):
    EDMEulerScheduler().save_pretrained(folder / "scheduler")
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"scheduler": ["diffusers", "EDMEulerScheduler"]}))
    for more in ((), ("--dry-run",)):
        refused("EDMEulerScheduler calls the network at timesteps 1.0", *job(tiny, folder, tmp_path / "out", *more))
    (tmp_path / "p.txt").write_text("An image of House.\n")
    sets = ("--prompts", f"a={tmp_path / 'p.txt'}", "--prompts", f"b={tmp_path / 'p.txt'}")
    for more in ((), ("--dry-run",)):
        refused(
            "DDIM can't sample in the place of EDMEulerScheduler", "collect", *sets, "--model", folder, "--hookpoint", HOOKPOINT, "--sae", tiny["sae"],
            "--output", tmp_path / "a.safetensors", *more,
        )  # fmt: skip
    refused(
        "another scheduler (in its folder 'scheduler'", "collect", *sets, "--model", folder, "--hookpoint", HOOKPOINT, "--sae", tiny["sae"], "--scheduler",
        "model", "--output", tmp_path / "a.safetensors",
    )  # fmt: skip
    assert not (tmp_path / "out").exists() and not (tmp_path / "a.safetensors").exists()
