"""An artifact as a technique of eval-unlearn, by what its registry and runners ask for. The real package runs in `tests/clients/run_eval_unlearn.py`."""

import shutil
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import run

from saeuron.editor.common.errors import SaeuronError
from saeuron.validation.evidence.eval_unlearn import TECHNIQUE, SaeuronExport
from saeuron.validation.evidence.picture_backends import PictureBackends

# The artifact removes Neon and House.
PROMPTS = ["An image of House in Neon style.", "An image of Car in Sepia style.", "An image of Star."]


@pytest.fixture(scope="module")
def root(demo_artifact):
    return demo_artifact.path


@pytest.fixture(scope="module", params=["checkpoint", "onnx"])
def technique(root, request):
    return SaeuronExport(artifact=str(root), backend=request.param, num_inference_steps=2)


def pixels(pictures):
    return np.stack([np.asarray(p) for p in pictures]).astype(int)


def test_the_entry_point_needs_nothing_of_eval_unlearn():
    group = "eval_unlearn.techniques"
    said = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    ((name, value),) = said["project"]["entry-points"][group].items()
    assert (name, EntryPoint(name, value, group).load()) == (TECHNIQUE, SaeuronExport)
    assert "eval_unlearn" not in sys.modules and "eval-unlearn" not in str(said["project"]["optional-dependencies"])


@pytest.mark.parametrize("backend", ["checkpoint", "onnx"])
def test_pictures_are_those_that_evaluate_judges(root, backend, tmp_path):
    few = ["--objects", "House", "--styles", "Neon", "--seeds", "5,6", "--no-before", "--batch-size", "1"]
    run("evaluate", root, "--backend", backend, *few, "-o", tmp_path / "e")
    # Steps and guidance are those on record; the second picture takes the next seed.
    mine = SaeuronExport(artifact=str(root), backend=backend, batch_size=1).generate(prompts=[PROMPTS[0]] * 2, seed=5)
    judged = [Image.open(tmp_path / "e" / "pictures" / backend / f"House-Neon-{seed}.png") for seed in (5, 6)]
    assert [(p.size, p.mode) for p in mine] == [((32, 32), "RGB")] * 2
    assert np.array_equal(pixels(mine), pixels(judged))
    assert np.abs(pixels(mine)[0] - pixels(mine)[1]).max() > 20


def test_a_seed_gives_what_it_gives_in_its_own_techniques(root, technique):
    """They call a diffusers pipeline with `torch.Generator().manual_seed(seed + i)`, a prompt at a time."""
    from saeuron.validation.backends.load import load

    pipeline = load(root)
    pipeline.set_progress_bar_config(disable=True)
    guidance = technique._sampling.guidance
    theirs = [
        pipeline(prompt, generator=torch.Generator().manual_seed(7 + i), num_inference_steps=2, guidance_scale=guidance).images[0]
        for i, prompt in enumerate(PROMPTS)
    ]
    together = pixels(technique.generate(prompts=PROMPTS, seed=7))
    assert np.abs(together - pixels(theirs)).max() <= 1
    # Whatever batch it is drawn in.
    alone = pixels([technique.generate([prompt], seed=7 + i)[0] for i, prompt in enumerate(PROMPTS)])
    assert np.abs(together - alone).max() <= 1
    assert technique.generate([]) == []


def test_a_run_without_a_seed_can_be_repeated(root):
    def made(**config):
        return SaeuronExport(artifact=str(root), backend="onnx", num_inference_steps=1, **config)

    seven = made(seed=7)
    # No noise comes twice: the second call goes on where the first one ended.
    found = pixels([*seven.generate(PROMPTS[:2]), *seven.generate(PROMPTS[2:])])
    assert np.abs(found - pixels(made().generate(PROMPTS, seed=7))).max() <= 1
    assert np.abs(found - pixels(made().generate(PROMPTS))).max() > 20


def test_a_call_may_ask_for_other_steps_and_guidance(root):
    technique = SaeuronExport(artifact=str(root), backend="onnx", num_inference_steps=1)
    other = SaeuronExport(artifact=str(root), backend="onnx", num_inference_steps=3, guidance_scale=1)
    asked = pixels(technique.generate(PROMPTS, seed=1, num_inference_steps=3, guidance_scale=1))
    assert np.array_equal(asked, pixels(other.generate(PROMPTS, seed=1)))
    assert np.abs(asked - pixels(technique.generate(PROMPTS, seed=1))).max() > 20
    with pytest.raises(SaeuronError, match=r"^saeuron_export: 'num_inference_steps' must be"):
        technique.generate(PROMPTS, num_inference_steps=0)
    with pytest.raises(TypeError, match="'width'"):
        technique.generate(PROMPTS, width=64)
    with pytest.raises(SaeuronError, match="a seed lies between"):
        technique.generate(PROMPTS, seed=-1)
    with pytest.raises(SaeuronError, match="prompts are a list"):
        technique.generate(PROMPTS[0])


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"artifact": None}, "saeuron_export: 'artifact' is missing"),
        ({"artifact": "nowhere"}, "'nowhere' is no artifact: there is no such folder"),
        ({"artifact": 3}, "saeuron_export: 'artifact' must be"),
        ({"backnd": "onnx"}, "key 'backnd' is not known to saeuron_export; did you mean backend?"),
        ({"backend": "hook"}, "backend 'hook' is not known; it is one of checkpoint, onnx, trt, trt-rtx"),
        ({"backend": "trt"}, "holds no 'trt' (formats: checkpoint, onnx)"),
        ({"device": "gpu"}, "gpu"),
        ({"erase_concept": "Hose"}, "erase_concept 'Hose' is not known to"),
        ({"num_inference_steps": 0}, "saeuron_export: 'num_inference_steps' must be"),
        ({"num_inference_steps": "20"}, "saeuron_export: 'num_inference_steps' must be"),
        ({"guidance_scale": float("nan")}, "saeuron_export: 'guidance_scale' must be"),
        ({"seed": 2**32}, "saeuron_export: 'seed' must be"),
        ({"batch_size": 0}, "saeuron_export: 'batch_size' must be"),
    ],
    ids=lambda part: str(part)[:40],
)
def test_a_config_that_cannot_be_meant(root, monkeypatch, config, said):
    monkeypatch.setattr(PictureBackends, "open", lambda *_: pytest.fail("opened before everything was checked"))
    config = {k: v for k, v in ({"artifact": str(root)} | config).items() if v is not None}
    # eval-unlearn's own techniques raise ValueError for such, and its runner ends with what it says.
    with pytest.raises(ValueError, match=r"^[^\n]+$") as error:
        SaeuronExport(**config)
    assert type(error.value) is SaeuronError and said in str(error.value)


def test_a_changed_file_is_found_before_anything_opens(root, tmp_path, monkeypatch):
    copy = shutil.copytree(root, tmp_path / "copy")
    weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    monkeypatch.setattr(PictureBackends, "open", lambda *_: pytest.fail("opened"))
    with pytest.raises(SaeuronError, match="is not the file that was written"):
        SaeuronExport(artifact=str(copy), backend="onnx")


def test_the_concept_of_a_report_is_one_of_the_artifacts(root):
    # eval-unlearn compares in lower case.
    assert SaeuronExport(artifact=str(root), backend="onnx", erase_concept="house").config.erase_concept == "house"
