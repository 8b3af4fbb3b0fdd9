"""A changed tokenizer, scheduler or scaling beside an equal UNet must be found, whatever the proof's scope."""

import json

import numpy as np
import pytest
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler

from saeuron.editor.denoisers.pipelines import load_pipeline
from saeuron.validation.proof.surroundings import compare, of_folder, of_pipeline

PROMPTS = ["An image of House.", "An image of Car in Neon style."]


@pytest.fixture
def saved(tiny, tmp_path):
    pipeline = load_pipeline(str(tiny["model"]))
    pipeline.save_pretrained(tmp_path)
    return tmp_path, of_pipeline(pipeline, PROMPTS, 5)


def test_a_faithful_folder_passes(saved):
    root, reference = saved
    found = compare(of_folder(root, PROMPTS, 5), reference)
    assert found.passed, found.failures
    assert set(found.relative) == {
        "input_ids", "vocabulary", "merges", "max_length", "timesteps", "trajectory", "init_noise_sigma",
    }  # fmt: skip


def test_an_empty_reference_proves_nothing(saved):
    root, reference = saved
    assert not compare(of_folder(root, PROMPTS, 5), {}).passed
    short = {k: v for k, v in reference.items() if k != "trajectory"}
    assert any("hold no 'trajectory'" in line for line in compare(of_folder(root, PROMPTS, 5), short).failures)


def test_names_on_one_side_fail_whatever_they_are(saved):
    _, reference = saved
    more = {**reference, "merges_2": np.zeros(4), "unheard_of": np.zeros(1)}
    found = compare(more, reference).failures
    assert len(found) == 2 and any("unheard_of" in line for line in found) and any(line.startswith("tokenizer_2") for line in found)
    assert len(compare(reference, more).failures) == 2


def change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def swap_merges(root):
    path = root / "tokenizer" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["merges"] = content["model"]["merges"][: len(content["model"]["merges"]) // 2]
    path.write_text(json.dumps(content))


def drop_last_merge(root):
    """One that no prompt of the proof needs."""
    path = root / "tokenizer" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["merges"].pop()
    path.write_text(json.dumps(content))


def rename_a_token(root):
    path = root / "tokenizer" / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["¡"], vocabulary["¢"] = vocabulary["¢"], vocabulary["¡"]
    path.write_text(json.dumps(content, ensure_ascii=False))


@pytest.mark.parametrize(
    ("spoil", "room"),
    [
        (swap_merges, "tokenizer"),
        (drop_last_merge, "tokenizer"),
        (rename_a_token, "tokenizer"),
        (lambda root: change(root / "scheduler" / "scheduler_config.json", timestep_spacing="trailing"), "scheduler"),
        (lambda root: change(root / "scheduler" / "scheduler_config.json", prediction_type="v_prediction"), "scheduler"),
        (lambda root: change(root / "scheduler" / "scheduler_config.json", beta_end=0.013), "scheduler"),
        (lambda root: change(root / "tokenizer" / "tokenizer_config.json", model_max_length=5), "tokenizer"),
    ],
)
def test_a_change_is_found(saved, spoil, room):
    root, reference = saved
    spoil(root)
    failures = compare(of_folder(root, PROMPTS, 5), reference).failures
    assert failures and all(line.startswith(room) for line in failures)


@pytest.mark.parametrize(
    ("spoil", "room"),
    [
        (lambda root: None, None),
        (lambda root: change(root / "tokenizer_2" / "tokenizer_config.json", pad_token="<|endoftext|>"), "tokenizer_2"),
        (lambda root: change(root / "model_index.json", force_zeros_for_empty_prompt=False), "model_index.json"),
    ],
)
def test_a_change_is_found_in_sdxl(tiny_xl, tmp_path, spoil, room):
    pipeline = load_pipeline(str(tiny_xl["model"]))
    pipeline.save_pretrained(tmp_path)
    reference = of_pipeline(pipeline, PROMPTS, 5)
    assert {"input_ids", "input_ids_2", "force_zeros_for_empty_prompt"} <= set(reference)
    spoil(tmp_path)
    failures = compare(of_folder(tmp_path, PROMPTS, 5), reference).failures
    assert all(line.startswith(room) for line in failures) if room else not failures, failures
    assert bool(failures) == bool(room)


@pytest.mark.parametrize("kind", [DDIMScheduler, EulerDiscreteScheduler, EulerAncestralDiscreteScheduler, DPMSolverMultistepScheduler])
def test_any_scheduler_gives_the_same_twice(tiny, kind):
    pipeline = load_pipeline(str(tiny["model"]))
    pipeline.scheduler = kind.from_config(pipeline.scheduler.config)
    a, b = of_pipeline(pipeline, PROMPTS, 4), of_pipeline(pipeline, PROMPTS, 4)
    assert compare(a, b).passed and len(a["timesteps"]) >= 4 and np.isfinite(a["trajectory"]).all()
