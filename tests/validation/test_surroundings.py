"""A changed tokenizer, scheduler or scaling beside an equal UNet must be found, whatever the proof's scope."""

import json

import numpy as np
import pytest
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler

from saeuron.editor.ablated_unet import SENTINEL
from saeuron.editor.pipelines import load_pipeline
from saeuron.validation.surroundings import compare, compare_configs, configs_of, of_folder, of_pipeline

PROMPTS = ["An image of House.", "An image of Car in Neon style."]


@pytest.fixture
def saved(tiny, tmp_path):
    pipeline = load_pipeline(str(tiny["model"]))
    pipeline.save_pretrained(tmp_path)
    return tmp_path, of_pipeline(pipeline, PROMPTS, 5)


def test_a_faithful_folder_passes(saved):
    root, reference = saved
    found = compare(of_folder(root, PROMPTS, 5), reference)
    assert found["passed"], found["failures"]
    assert set(found["relative"]) == {
        "input_ids", "vocabulary", "merges", "max_length", "timesteps", "trajectory", "init_noise_sigma", "scaling_factor",
    }  # fmt: skip


def test_an_empty_reference_proves_nothing(saved):
    root, reference = saved
    assert not compare(of_folder(root, PROMPTS, 5), {})["passed"]
    short = {k: v for k, v in reference.items() if k != "trajectory"}
    assert any("hold no 'trajectory'" in line for line in compare(of_folder(root, PROMPTS, 5), short)["failures"])
    assert len(compare_configs(root, {})) == 3


def test_names_on_one_side_fail_whatever_they_are(saved):
    _, reference = saved
    more = {**reference, "latents_mean": np.zeros(4), "unheard_of": np.zeros(1)}
    found = compare(more, reference)["failures"]
    assert len(found) == 2 and any("unheard_of" in line for line in found) and any(line.startswith("vae") for line in found)
    assert len(compare(reference, more)["failures"]) == 2


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
        (lambda root: change(root / "vae" / "config.json", scaling_factor=0.19), "vae"),
        (lambda root: change(root / "tokenizer" / "tokenizer_config.json", model_max_length=5), "tokenizer"),
    ],
)
def test_a_change_is_found(saved, spoil, room):
    root, reference = saved
    spoil(root)
    failures = compare(of_folder(root, PROMPTS, 5), reference)["failures"]
    assert failures and all(line.startswith(room) for line in failures)


@pytest.mark.parametrize(
    ("spoil", "room"),
    [
        (lambda root: None, None),
        (lambda root: change(root / "tokenizer_2" / "tokenizer_config.json", pad_token="<|endoftext|>"), "tokenizer_2"),
        (lambda root: change(root / "model_index.json", force_zeros_for_empty_prompt=False), "model_index.json"),
        (lambda root: change(root / "vae" / "config.json", force_upcast=False), "vae"),
        (lambda root: change(root / "vae" / "config.json", latents_std=None), "vae"),
        (lambda root: change(root / "vae" / "config.json", latents_mean=[0.1, 0.0, 0.0, 0.0]), "vae"),
    ],
)
def test_a_change_is_found_in_sdxl(tiny_xl, tmp_path, spoil, room):
    pipeline = load_pipeline(str(tiny_xl["model"]))
    pipeline.vae.register_to_config(latents_mean=[0.0] * 4, latents_std=[0.5] * 4)
    pipeline.save_pretrained(tmp_path)
    reference = of_pipeline(pipeline, PROMPTS, 5)
    assert {"input_ids", "input_ids_2", "force_zeros_for_empty_prompt", "force_upcast", "latents_std"} <= set(reference)
    spoil(tmp_path)
    failures = compare(of_folder(tmp_path, PROMPTS, 5), reference)["failures"]
    assert all(line.startswith(room) for line in failures) if room else not failures, failures
    assert bool(failures) == bool(room)


@pytest.mark.parametrize("kind", [DDIMScheduler, EulerDiscreteScheduler, EulerAncestralDiscreteScheduler, DPMSolverMultistepScheduler])
def test_any_scheduler_gives_the_same_twice(tiny, kind):
    pipeline = load_pipeline(str(tiny["model"]))
    pipeline.scheduler = kind.from_config(pipeline.scheduler.config)
    a, b = of_pipeline(pipeline, PROMPTS, 4), of_pipeline(pipeline, PROMPTS, 4)
    assert compare(a, b)["passed"] and len(a["timesteps"]) >= 4 and np.isfinite(a["trajectory"]).all()


def drop(path, key):
    content = json.loads(path.read_text())
    del content[key]
    path.write_text(json.dumps(content))


SCHEDULER, UNET, VAE = "scheduler/scheduler_config.json", "unet/config.json", "vae/config.json"


@pytest.fixture
def configured(tiny, tmp_path):
    """A folder with settings that differ from their classes' defaults, and the original's configs as a golden file gives them."""
    pipeline = load_pipeline(str(tiny["model"]))
    pipeline.scheduler = DPMSolverMultistepScheduler(lower_order_final=False, trained_betas=np.linspace(1e-4, 0.02, 1000))
    pipeline.save_pretrained(tmp_path)
    return tmp_path, json.loads(json.dumps(configs_of(pipeline)))


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda root: change(root / SCHEDULER, lower_order_final=True), f"{SCHEDULER}: 'lower_order_final' is True, the original's is False"),
        (lambda root: drop(root / SCHEDULER, "lower_order_final"), f"{SCHEDULER}: 'lower_order_final' is True, the original's is False"),
        (lambda root: change(root / SCHEDULER, _use_default_values=["lower_order_final"]), f"{SCHEDULER}: 'lower_order_final' is True"),
        (lambda root: change(root / SCHEDULER, trained_betas=[0.5]), f"{SCHEDULER}: 'trained_betas' is [0.5]"),
        (lambda root: change(root / SCHEDULER, unheard_of=1), f"{SCHEDULER}: 'unheard_of' is 1, the original's is not set"),
        (lambda root: change(root / "model_index.json", scheduler=["diffusers", "DDIMScheduler"]), f"{SCHEDULER}: 'class' is 'DDIMScheduler'"),
        (lambda root: change(root / UNET, sample_size=64), f"{UNET}: 'sample_size' is 64, the original's is 8"),
        (lambda root: drop(root / UNET, "norm_num_groups"), f"{UNET}: 'norm_num_groups' is 32, the original's is 8"),
        (lambda root: change(root / UNET, mid_block_type="UNetMidBlock2D"), f"{UNET}: 'mid_block_type' is 'UNetMidBlock2D'"),
        (lambda root: change(root / UNET, mid_block_type=SENTINEL, ablation={"mid_block_type": None}), f"{UNET}: 'mid_block_type' is None"),
        (lambda root: change(root / VAE, use_quant_conv=False), f"{VAE}: 'use_quant_conv' is False, the original's is True"),
        (lambda root: change(root / VAE, scaling_factor=float("nan")), f"{VAE}: 'scaling_factor' is nan"),
    ],
)  # fmt: skip
def test_a_changed_setting_is_named(configured, spoil, line):
    root, reference = configured
    assert compare_configs(root, reference) == []
    spoil(root)
    (found,) = [f for f in compare_configs(root, reference) if f.startswith(line)]
    assert found


def test_what_savers_write_otherwise_is_no_change(configured):
    """Defaults left out or added by another diffusers, notes, the edited UNet's sentinel, 1 for 1.0, NaN."""
    root, reference = configured
    drop(root / VAE, "use_quant_conv")
    drop(root / SCHEDULER, "thresholding")
    del reference["unet"]["dropout"], reference["vae"]["mid_block_add_attention"]
    middle = json.loads((root / UNET).read_text())["mid_block_type"]
    change(root / UNET, mid_block_type=SENTINEL, ablation={"mid_block_type": middle}, torch_dtype="float16", _name_or_path="/x", mid_block_scale_factor=1.0)  # fmt: skip
    change(root / VAE, dtype="float16", shift_factor=float("nan"))
    reference["vae"]["shift_factor"] = float("nan")
    assert compare_configs(root, reference) == []
