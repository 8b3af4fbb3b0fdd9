"""Folders whose parts don't fit together: one line before anything is computed. What simply works, works."""

import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from tests.conftest import HOOKPOINT, make_sae
from transformers import AutoTokenizer, BertConfig, BertModel, CLIPTextConfig, CLIPTextModel

from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.denoisers import pipelines
from saeuron.editor.denoisers.pipelines import load_pipeline, open_folder
from saeuron.editor.denoisers.sampling_settings import Sampling
from saeuron.editor.features.collect import collect
from saeuron.export.plan.open import tokens_of


@pytest.fixture
def folder(request, tmp_path):
    return shutil.copytree(request.getfixturevalue(getattr(request, "param", "tiny"))["model"], tmp_path / "model")


def say(folder, file, **changes):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(folder, message):
    with pytest.raises(SaeuronError, match=message) as error:
        open_folder(str(folder), size=(None, None))
    assert "\n" not in str(error.value)


def unet(folder, **changes):
    config = UNet2DConditionModel.load_config(folder / "unet")
    UNet2DConditionModel.from_config({**config, **changes}).save_pretrained(folder / "unet")


def test_networks_that_do_not_fit(folder):
    unet(folder, in_channels=9)
    refused(folder, "the UNet takes 9 channels, the autoencoder's latents have 4; inpainting")
    unet(folder, in_channels=4, out_channels=8)
    refused(folder, "the UNet gives 8 channels")
    unet(folder, out_channels=4, cross_attention_dim=40)
    refused(folder, "the UNet takes text of width 40, but text_encoder gives 24")
    unet(folder, cross_attention_dim=(24, 40))
    refused(folder, r"text of width \[24, 40\], but")
    unet(folder, cross_attention_dim=(24, 24))
    open_folder(str(folder))
    config = AutoencoderKL.load_config(folder / "vae")
    AutoencoderKL.from_config({**config, "latent_channels": 16}).save_pretrained(folder / "vae")
    refused(folder, "latents have 16")


@pytest.mark.parametrize("folder", ["tiny_xl"], indirect=True)
def test_networks_of_sdxl_that_do_not_fit(folder):
    config = CLIPTextConfig.from_pretrained(folder / "text_encoder")
    config.hidden_size = 32
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    refused(folder, "text of width 40, but text_encoder gives 32 and text_encoder_2 gives 16")


def test_another_class_than_the_familys(folder):
    small = {
        "num_encoder_blocks": (1, 1),
        "num_decoder_blocks": (1, 1),
        "encoder_block_out_channels": (8, 8),
        "decoder_block_out_channels": (8, 8),
    }
    AutoencoderTiny(**small).save_pretrained(folder / "vae")
    say(folder, "model_index.json", vae=["diffusers", "AutoencoderTiny"])
    refused(folder, "its vae is a AutoencoderTiny")
    say(folder, "model_index.json", vae=[None, None])
    refused(folder, "it has no vae")
    say(folder, "model_index.json", vae=["diffusers", "AutoencoderKL"], text_encoder=["transformers", "BertModel"])
    bert = BertConfig(hidden_size=24, num_attention_heads=2, intermediate_size=8, num_hidden_layers=1, vocab_size=700)
    BertModel(bert).save_pretrained(folder / "text_encoder")
    refused(folder, "its text_encoder is a BertModel")
    say(folder, "model_index.json", text_encoder=["transformers", "CLIPTextModel"])
    refused(folder, "text_encoder: the weights in model.safetensors lack")


def test_tokenizers_that_their_text_encoder_does_not_know(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder / "tokenizer")
    refused(folder, "resize_token_embeddings")
    text = CLIPTextModel.from_pretrained(folder / "text_encoder")
    text.resize_token_embeddings(len(tokenizer))
    text.save_pretrained(folder / "text_encoder")
    open_folder(str(folder))
    say(folder, "tokenizer/tokenizer_config.json", model_max_length=77)
    refused(folder, "the tokenizer pads to 77 tokens, but text_encoder takes 24")


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("vae/config.json", {"scaling_factor": None}, "'scaling_factor' in vae/config.json is None"),
        ("vae/config.json", {"block_out_channels": None}, "has null as 'block_out_channels'"),
        ("unet/config.json", {"in_channels": None}, "has null as 'in_channels'"),
        ("unet/config.json", {"sample_size": "8"}, "'sample_size' in unet/config.json is '8'"),
        ("unet/config.json", {"sample_size": [8]}, r"'sample_size' in unet/config.json is \[8\]"),
        ("unet/config.json", {"sample_size": None}, "give --height and --width"),
        ("text_encoder/config.json", {"hidden_size": None}, "hidden_size"),
        ("text_encoder/config.json", {"eos_token_id": None}, "'eos_token_id' in text_encoder/config.json is None"),
    ],
)
def test_nulls_and_lists_in_configs(folder, file, changes, message):
    say(folder, file, **changes)
    refused(folder, message)


def test_a_unet_without_a_size_of_its_own_and_with_a_width_a_level(folder):
    say(folder, "unet/config.json", sample_size=None, cross_attention_dim=[24, 24])
    open_folder(str(folder), size=(16, 24))
    assert tokens_of(folder, [HOOKPOINT])[HOOKPOINT][1] == 32 and tokens_of(folder, [HOOKPOINT], 16, 24)[HOOKPOINT] == (24, 32)
    prompts = {"a": ["An image of House."], "b": ["A boat."]}
    found = collect(load_pipeline(str(folder)), {HOOKPOINT: make_sae()}, prompts, Sampling(2, 3.0, height=16, width=24))
    assert bool(torch.isfinite(found[HOOKPOINT].means).all())
    with pytest.raises(SaeuronError, match="give --height and --width"):
        collect(load_pipeline(str(folder)), {HOOKPOINT: make_sae()}, prompts, Sampling(2, 3.0))


def test_a_hub_model_of_pickles_alone(tiny, tmp_path, monkeypatch):
    """What a first look brings holds no safetensors, so the pickles are fetched; nowhere else."""
    asked = []

    def fetch(repo, patterns, revision, what, online):
        asked.append(patterns)
        for name in ("unet", "vae"):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").touch()
        return tmp_path

    monkeypatch.setattr(pipelines, "hub_folder", fetch)
    assert pipelines.locate("me/old") == tmp_path
    assert len(asked) == 2 and not any(p.endswith(".bin") for p in asked[0]) and asked[1] == ["unet/*.bin"]
