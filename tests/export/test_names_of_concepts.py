"""The main job for someone who has only the names of the concepts: activations are collected on the way."""

import json

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tests.conftest import make_sae, run
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from saeuron.editor.edit.edit import Edit

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def small_sd(tmp_path_factory):
    """Shaped as SD 1.4 (four levels, the same hookpoints), with small widths; its SAE in the released layout."""
    from benchmarks.demo.train_pipeline import make_tokenizer

    root = tmp_path_factory.mktemp("small_sd")
    torch.manual_seed(3)
    make_tokenizer(root / "tokenizer")
    # It writes most words letter by letter, so CLIP's 77 tokens would be too few for the presets' prompts.
    tokenizer = CLIPTokenizer.from_pretrained(root / "tokenizer", model_max_length=128)
    text = CLIPTextModel(CLIPTextConfig(vocab_size=len(tokenizer), hidden_size=24, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
                                        max_position_embeddings=128, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
                                        pad_token_id=tokenizer.pad_token_id))  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=16,
        layers_per_block=1,
        block_out_channels=(16, 16, 32, 32),
        norm_num_groups=8,
        cross_attention_dim=24,
        attention_head_dim=4,
    )
    vae = AutoencoderKL(block_out_channels=(8, 8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
                        latent_channels=4, norm_num_groups=4)  # fmt: skip
    StableDiffusionPipeline(
        vae=vae.eval(), text_encoder=text.eval(), tokenizer=tokenizer, unet=unet.eval(), scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(root / "model")  # fmt: skip
    make_sae(32, 512, 8).save(root / "sae" / "unet.up_blocks.1.attentions.1")
    return root


def test_names_of_concepts_are_enough(small_sd, tmp_path):
    """`--concepts nudity,vangogh` with the Hub replaced by folders: collects, chooses, bakes, exports, proves; then from the cache."""
    (tmp_path / "short.toml").write_text(
        '[[concepts]]\nname = "nudity"\ncollect_steps = 2\nselect = "count:20"\nmultiplier = -9.0\n[[concepts]]\nname = "vangogh"\ncollect_steps = 2\nselect = "count:20"\nmultiplier = -9.0\n'
    )
    options = ["export", "--settings", tmp_path / "short.toml", "--model", small_sd / "model", "--sae", small_sd / "sae", "--steps", 2]
    dry = run(*options, "--output", tmp_path / "out", "--dry-run").stdout
    assert "collect    activations of nudity at up_blocks.1.attentions.1: 90 prompts" in dry and not (tmp_path / "out").exists()
    result = run(*options, "--format", "onnx", "--proof", "short", "--output", tmp_path / "out", "--json")
    report = json.loads(result.stdout)
    assert report["proven"] and "collecting activations of nudity: 8 of 90 prompts" in result.stderr
    assert any("untuned settings for nudity, vangogh" in w for w in report["manifest"]["warnings"])
    edit = Edit.load(tmp_path / "out" / "edit" / "edit.safetensors")
    assert edit.concepts == ["nudity", "vangogh"]
    plan = json.loads(run(*options, "--output", tmp_path / "other", "--dry-run", "--json").stdout)
    assert "to_collect" not in plan and set(plan["features"]["up_blocks.1.attentions.1"]) == {"nudity", "vangogh"}
