"""The node pack in a real ComfyUI, beside diffusers: `COMFYUI_DIR=/a/checkout make test-comfyui`, see CONTRIBUTING.md.

ComfyUI runs in processes of its own (`COMFYUI_PYTHON`), which have no diffusers and nothing of ours but the pack.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from tests.comfyui import expected, made
from tests.comfyui.server import Server, drawing

import saeuron
from saeuron.editor.denoisers.sampling import decode
from saeuron.export.plan.settings import Settings
from saeuron.export.ship.stages import export_artifact

CHECKOUT = os.environ.get("COMFYUI_DIR", "")
PYTHON = os.environ.get("COMFYUI_PYTHON", sys.executable)
HERE = Path(__file__).parent
EXACT = 2e-5
"""largest distance, as a share of the edit's effect, in fp32"""

pytestmark = pytest.mark.slow
if not CHECKOUT:
    pytest.skip("needs a checkout of ComfyUI: give COMFYUI_DIR=/a/checkout (CONTRIBUTING.md says how to get one)", allow_module_level=True)


@pytest.fixture(scope="session")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("comfyui")


@pytest.fixture(scope="session")
def artifacts(work):
    bases = {family: made.model(family, work / f"base-{family}", Path(CHECKOUT)) for family in made.POINTS}
    return {kind: made.artifact(kind, work / kind, bases[kind if kind in made.POINTS else "sd15"]) for kind in made.KINDS}


@pytest.fixture(scope="session")
def inside(work, artifacts):
    """What every check found, run in one process of ComfyUI."""
    exact, scratch = artifacts["exact"], work / "scratch"
    scratch.mkdir()
    lora, residuals = expected.write_lora(work / "lora.safetensors", exact), expected.write_residuals(work / "residuals.safetensors")
    demo = export_artifact(Settings(("Neon",), work / "demo", formats=("checkpoint",), intervention="multiply", validate=False))
    job = {f"golden:{kind}": {"artifact": str(path)} for kind, path in artifacts.items()} | {
        **{f"components:{kind}": {"artifact": str(artifacts[kind])} for kind in made.POINTS_OF},
        "spoiled": {"artifact": str(exact)},
        "sampler": {"artifact": str(exact), "out": str(work / "euler.safetensors")},
        "heat": {"artifact": str(exact)},
        "survives": {"artifact": str(exact), "lora": str(lora), "residuals": str(residuals), "out": str(work / "others.safetensors")},
        "fails_closed": {"artifact": str(exact), "scratch": str(scratch)},
        "not_loaded": {"artifact": str(demo.path)},
    }
    (work / "job.json").write_text(json.dumps(job))
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")} | {
        "PYTHONPATH": str(HERE)
    }
    command = [PYTHON, "-W", "ignore", str(HERE / "inside.py"), CHECKOUT, str(work / "job.json"), str(work / "found.json")]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=work, check=False)
    assert ran.returncode == 0, ran.stderr[-4000:]
    return json.loads((work / "found.json").read_text())


def of(inside: dict[str, Any], name: str) -> Any:
    assert "found" in inside[name], inside[name].get("trace")
    return inside[name]["found"]


def share(found: torch.Tensor, right: torch.Tensor, other: torch.Tensor) -> float:
    return float((found.double() - right.double()).norm() / (right.double() - other.double()).norm())


@pytest.mark.parametrize("kind", made.KINDS)
def test_golden_forwards(inside, kind):
    found = of(inside, f"golden:{kind}")
    print(kind, {name: value for name, value in found.items() if name != "text"})
    assert found["passed"] and found["unedited"] > 0.9, found["text"]
    # Of an edit in the weights the effect is a hundredth of the output.
    assert found["pooled"] < {"fp16": 0.02, "weights": 2e-4}.get(kind, EXACT)
    assert found["turned"] == 0 or kind == "fp16"


def test_an_edit_that_is_slightly_wrong_fails(inside):
    found = of(inside, "spoiled")
    assert len(found) == 5 and not any(entry["passed"] for entry in found.values()), found


@pytest.mark.parametrize("kind", made.POINTS_OF)
def test_text_encoders_and_autoencoder(inside, kind):
    found = of(inside, f"components:{kind}")
    assert len(found) == (3 if kind == "sdxl" else 2) and max(found.values()) < 1e-5, found


def test_ksampler_beside_diffusers(inside, work, artifacts):
    """And what fired in it, counted anew."""
    said = of(inside, "sampler")
    given = load_file(work / "euler.safetensors")
    right, fired = expected.euler(artifacts["exact"], given)
    print(
        "KSampler, Euler:",
        share(given["found"], right, given["other"]),
        float((given["found"] - right).abs().max()),
        "of",
        float(right.abs().max()),
    )
    assert share(given["found"], right, given["other"]) < 1e-4 and said["effect"] > 0.1
    assert all(effect > 0.01 for effect in said["others"].values()), said["others"]
    with safe_open(artifacts["exact"] / "edit" / "edit.safetensors", "pt") as file:
        chosen = json.loads(file.metadata()["chosen"])
    assert said["concepts"] == ["A", "B"] and set(fired) == set(made.POINTS["sd15"])
    for name, decisions in fired.items():
        wanted, counted = expected.by_concept(decisions, chosen[name]), given[f"fired/{name}"].flatten(2)
        assert torch.allclose(counted, wanted, atol=1e-6) and 0 < float(counted.mean()) < 1


def test_heat_maps(inside):
    found = of(inside, "heat")
    assert found["made"] == [4, 64, 64, 3] and found["same again"] and found["red"] > 0.3
    assert "hasn't sampled anything" in found["nothing"] and "connect the pictures of that sampling" in found["other pictures"]


def test_what_the_edit_survives(inside, work, artifacts):
    found = of(inside, "survives")
    print(found)
    for name in ("clone", "deepcopy", "lora taken away"):
        assert found[name] < EXACT, name
    for name in ("torch.compile eager", "torch.compile inductor"):
        assert found[name]["share"] < 1e-4 and found[name]["graphs"] > 0, name
    assert found["streamed weights"]["share"] < EXACT and found["streamed weights"]["layers"] > 50
    for name, least in {"fp16": 0.99, "bf16": 0.95, "fp8_e4m3fn": 0.7, "fp8_e5m2": 0.7}.items():
        assert found[name]["kept"] > least and found[name]["from the unedited"] > 0.7 and found[name]["tables"] == "{torch.float32}", name
    assert found["fp16"]["verify"][0] and found["bf16"]["verify"][0] and "changes the whole UNet" in found["fp8_e5m2"]["verify"]
    given = load_file(work / "others.safetensors")
    for name, right in expected.others(artifacts["exact"], given, work / "lora.safetensors", work / "residuals.safetensors").items():
        other = given["unedited" if name == "plain" else f"unedited {name}"]
        print(name, share(given[name], right, other))
        assert share(given[name], right, other) < EXACT
        assert name == "plain" or share(given[name], given["plain"], given["unedited"]) > 0.1, "it changed nothing"


def test_everything_that_must_fail_does(inside):
    """Each would else give, or keep, a model without its edit. The check itself fails where nothing is raised."""
    found = of(inside, "fails_closed")
    assert len(found) > 45 and found.pop("the folder, unchanged") == "loads"
    found.pop("EasyCache")  # in older versions it fails by itself
    theirs = {"DiffusersLoader", "UNETLoader", "CheckpointLoaderSimple"}
    ours = ("EditError: ", "ArtifactError: ", "AblationIntegrityError: ")
    assert [name for name, said in found.items() if not said.startswith(ours)] == sorted(theirs, key=list(found).index)


def test_shapes_that_comfyui_lacks_are_refused(inside):
    """The demo: latents of eight channels, half as many groups, and widths in steps of one and a half."""
    assert re.search(
        r"ArtifactError: the UNet's (in_channels is 8; ComfyUI runs 4|norm_num_groups is 16; ComfyUI runs 32) alone",
        of(inside, "not_loaded"),
    )


def test_a_graph_over_http(work, artifacts, inside):
    """From a page's graph to saved pictures, held to diffusers' from the same text and noise; then the same server refuses."""
    broken = shutil.copytree(artifacts["exact"], work / "broken")
    weights = broken / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    with Server(Path(CHECKOUT), PYTHON, work / "server", {"edited": artifacts["exact"], "broken": broken}) as server:
        assert (
            server.ask("/object_info/SaeuronLoadEditedCheckpoint")["SaeuronLoadEditedCheckpoint"]["display_name"]
            == "Load edited checkpoint"
        )
        done = server.run(drawing())
        assert done["status"]["status_str"] == "success", done["status"]
        assert "the edit is what was proven" in done["outputs"]["verify"]["text"][0] and "strongest" in done["outputs"]["fired"]["text"][0]
        output = server.folder / "output"
        latents = load_file(output / "latents_00001_.latent")["latent_tensor"]
        pictures = np.stack([np.asarray(Image.open(output / image["filename"])) for image in done["outputs"]["save"]["images"]])
        assert len(done["outputs"]["save maps"]["images"]) == 4

        load = drawing()["load"]
        saving = {"load": load, "save": {"class_type": "ModelSave", "inputs": {"model": ["load", 0], "filename_prefix": "stolen"}}}
        assert "can't be saved" in server.error(saving)
        merging = {
            "load": load,
            "merge": {"class_type": "ModelMergeSimple", "inputs": {"model1": ["load", 0], "model2": ["load", 0], "ratio": 0.5}},
        }
        merging["save"] = {"class_type": "ModelSave", "inputs": {"model": ["merge", 0], "filename_prefix": "stolen"}}
        assert "can't be merged" in server.error(merging)
        assert not list(output.rglob("*stolen*"))
        assert "is not the file that was written" in server.error(drawing("broken"))
        other = {
            "load": {"class_type": "DiffusersLoader", "inputs": {"model_path": "edited"}},
            "save": {"class_type": "ModelSave", "inputs": {"model": ["load", 0], "filename_prefix": "stolen"}},
        }
        assert "Could not detect model type" in server.error(other)
        edm = drawing(seed=8)
        edm["edm"] = {
            "class_type": "ModelSamplingContinuousEDM",
            "inputs": {"model": ["load", 0], "sampling": "eps", "sigma_max": 120.0, "sigma_min": 0.002},
        }
        edm["sample"]["inputs"]["model"] = ["edm", 0]
        assert "noise levels that the edit doesn't know" in server.error(edm)

    pipeline = saeuron.load(artifacts["exact"])
    tokens = pipeline.tokenizer(["a house at night", "blurry"], padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        states = pipeline.text_encoder(tokens).last_hidden_state
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    known = load_file(work / "euler.safetensors")
    right, _ = expected.euler(artifacts["exact"], {"sigmas": known["sigmas"], "noise": noise, "cond": states[:1], "uncond": states[1:]})
    effect = float((known["found"] - known["other"]).norm())
    print("HTTP, latents:", float((latents - right).norm()) / effect, float((latents - right).abs().max()), "of", float(right.abs().max()))
    assert float((latents - right).norm()) / effect < 1e-4
    drawn = np.asarray(decode(pipeline, right * pipeline.vae.config.scaling_factor))
    print("HTTP, pictures:", np.abs(drawn.astype(int) - pictures).max(), pictures.std())
    assert np.abs(drawn.astype(int) - pictures).max() <= 2 and pictures.std() > 5
