"""A setting that differs from the original's is named, whether a forward reads it or not; what savers write otherwise is none."""

import json

import numpy as np
import pytest
from diffusers import DPMSolverMultistepScheduler

from saeuron.editor.denoisers.pipelines import load_pipeline
from saeuron.editor.edit.ablated_network import SENTINEL
from saeuron.validation.trust.configs import compare_configs, configs_of


def drop(path, key):
    content = json.loads(path.read_text())
    del content[key]
    path.write_text(json.dumps(content))


def change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


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
        (lambda root: change(root / UNET, mid_block_type=SENTINEL, ablation={"stock": None}), f"{UNET}: 'mid_block_type' is None"),
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
    change(root / UNET, mid_block_type=SENTINEL, ablation={"stock": middle}, torch_dtype="float16", _name_or_path="/x", mid_block_scale_factor=1.0)  # fmt: skip
    change(root / VAE, dtype="float16", shift_factor=float("nan"))
    reference["vae"]["shift_factor"] = float("nan")
    assert compare_configs(root, reference) == []


def test_an_empty_reference_proves_nothing(configured):
    assert len(compare_configs(configured[0], {})) == 3


@pytest.mark.parametrize(
    "values", [{"force_upcast": False}, {"latents_std": None}, {"latents_mean": [0.1, 0.0, 0.0, 0.0]}, {"scaling_factor": 0.19}]
)
def test_latent_scaling_of_sdxl(tiny_xl, tmp_path, values):
    pipeline = load_pipeline(str(tiny_xl["model"]))
    pipeline.vae.register_to_config(latents_mean=[0.0] * 4, latents_std=[0.5] * 4)
    pipeline.save_pretrained(tmp_path)
    assert compare_configs(tmp_path, configs_of(pipeline)) == []
    change(tmp_path / VAE, **values)
    (line,) = compare_configs(tmp_path, configs_of(pipeline))
    assert line.startswith(f"{VAE}: '{next(iter(values))}'")


def test_scaling_that_the_original_has_not(tiny_xl, tmp_path):
    pipeline = load_pipeline(str(tiny_xl["model"]))
    pipeline.save_pretrained(tmp_path)
    change(tmp_path / VAE, latents_mean=[0.0] * 4)
    assert any("latents_mean" in line for line in compare_configs(tmp_path, configs_of(pipeline)))
