"""Small artifacts in shapes that ComfyUI has: 32 groups, whole multiples of the first width, CLIP's own tokenizer, four levels in the autoencoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from tests.conftest import make_activations, make_sae
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from saeuron.export.plan.settings import Settings
from saeuron.export.ship.stages import export_artifact

WIDTH, TEXT = 64, 32
POINTS = {
    "sd15": ("up_blocks.0.attentions.1", "mid_block.attentions.0"),
    "sd2": ("up_blocks.0.attentions.0",),
    "sdxl": ("up_blocks.0.attentions.0",),
}
OWN: dict[str, dict[str, Any]] = {
    "exact": {}, "threshold": {"gate": "threshold"}, "upstream": {"residual": "upstream"}, "drop": {"residual": "drop"},
    "by token": {"intervention": "multiply", "gain": "token", "multiplier": -1.0}, "zero": {"intervention": "zero"}, "clamp": {"intervention": "clamp"},
    "nearest": {"intervention": "replace", "replace_by": "nearest", "select": "count:1"}, "mean": {"intervention": "replace", "replace_by": "mean", "select": "count:1"},
    "project": {"intervention": "project", "norm": "kept", "multiplier": -4.0}, "probe": {"intervention": "probe", "multiplier": -20.0},
    "weights": {"intervention": "weights"}, "weights+multiply": {"intervention": "weights+multiply"}, "fp16": {"precision": "fp16"},
}  # fmt: skip
"""what SD 1.5's artifacts are made with"""
SAES: dict[str, dict[str, Any]] = {"jumprelu": {"activation": "jumprelu"}, "delta": {"reads": "delta"}, "unit norm": {"unit_norm": True}}
"""and with other SAEs"""
POINTS_OF = {"exact": "sd15", "sd2": "sd2", "sdxl": "sdxl"}
"""artifact → its family, one of each"""
KINDS = (*OWN, *SAES, "sd2", "sdxl")


def tokenizer_of(comfyui: Path, folder: Path, pad: str) -> CLIPTokenizer:
    """CLIP's, from ComfyUI's checkout: no other copy of it is on a machine without network."""
    tokenizer = CLIPTokenizer.from_pretrained(comfyui / "comfy" / "sd1_tokenizer", pad_token=pad, model_max_length=77)
    tokenizer.save_pretrained(folder)
    return tokenizer


def _text(layers: int, kind: type = CLIPTextModel, act: str = "quick_gelu") -> Any:
    config = CLIPTextConfig(
        vocab_size=49408, hidden_size=TEXT, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=2, projection_dim=TEXT, hidden_act=act,
        bos_token_id=49406, eos_token_id=49407, pad_token_id=49407,
    )  # fmt: skip
    model = kind(config)
    # CLIP's own start is so small that all prompts look the same to a small UNet.
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=0.3)
    return model.eval()


def model(kind: str, folder: Path, comfyui: Path) -> Path:
    """A random pipeline: `sd15`, `sd2` (velocity, linear projections, heads by level) or `sdxl`."""
    torch.manual_seed(5)
    blocks: dict[str, Any] = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "attention_head_dim": 4,
    }  # fmt: skip
    if kind == "sd15":
        blocks |= {"up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D")}
    if kind == "sd2":
        blocks |= {"down_block_types": ("CrossAttnDownBlock2D",) * 2, "up_block_types": ("CrossAttnUpBlock2D",) * 2, "attention_head_dim": (2, 4), "use_linear_projection": True, "upcast_attention": True}  # fmt: skip
    if kind == "sdxl":
        blocks |= {
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": (2, 4), "transformer_layers_per_block": (1, 2), "use_linear_projection": True, "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 6 * 256 + TEXT,
        }  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(32, WIDTH),
        norm_num_groups=32,
        cross_attention_dim=TEXT * (1 + (kind == "sdxl")),
        **blocks,
    )
    vae = AutoencoderKL(
        block_out_channels=(32,) * 4, down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4,
        norm_num_groups=32, sample_size=64, scaling_factor=0.13025 if kind == "sdxl" else 0.18215,
    )  # fmt: skip
    noise = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    tokenizer = tokenizer_of(comfyui, folder / "own-tokenizer", "!" if kind == "sd2" else "<|endoftext|>")
    if kind == "sdxl":
        StableDiffusionXLPipeline(
            vae=vae.eval(), unet=unet.eval(), tokenizer=tokenizer, tokenizer_2=tokenizer_of(comfyui, folder / "other-tokenizer", "!"), text_encoder=_text(3),
            text_encoder_2=_text(32, CLIPTextModelWithProjection, "gelu"), scheduler=EulerDiscreteScheduler(**noise, timestep_spacing="leading"),
            add_watermarker=False,
        ).save_pretrained(folder)  # fmt: skip
        return folder
    scheduler = DDIMScheduler(
        **noise, clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type="v_prediction" if kind == "sd2" else "epsilon"
    )
    StableDiffusionPipeline(
        vae=vae.eval(), unet=unet.eval(), tokenizer=tokenizer, text_encoder=_text(23, act="gelu") if kind == "sd2" else _text(2), scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def _write_sae(folder: Path, seed: int, point: str, kind: dict[str, Any]) -> Path:
    """In the files of those who make SAEs of that kind."""
    sae = make_sae(WIDTH, seed=seed, **kind)
    folder.mkdir(parents=True)
    state = {name: value.detach() for name, value in sae.named_parameters()}
    if sae.config.reads == "delta":
        (folder / "config.json").write_text(json.dumps({"d_model": WIDTH, "n_dirs_local": sae.config.num_latents, "k": sae.config.k}))
        names = {"encoder.weight": "W_enc", "latent_bias": "b_enc", "decoder.weight": "W_dec", "pre_bias": "b_dec"}
        torch.save(
            {new: (state[old].T if old == "W_dec" else state[old]).contiguous() for new, old in names.items()}, folder / "state_dict.pth"
        )
    elif sae.config.activation == "jumprelu":
        (folder / "cfg.json").write_text(
            json.dumps({"architecture": "jumprelu", "d_in": WIDTH, "d_sae": sae.config.num_latents, "activation_fn": "relu"})
        )
        save_file({**state, "W_enc": state["W_enc"].T.contiguous()}, folder / "sae_weights.safetensors")
    else:
        sae.save(folder / f"unet.{point}")
    return folder


def artifact(kind: str, output: Path, base: Path) -> Path:
    """One of `KINDS`.

    Args:
        kind: which.
        output: its folder.
        base: `model` of its family.
    """
    family = kind if kind in POINTS else "sd15"
    how = OWN.get(kind, {})
    parts = output.parent / f"{output.name}-parts"
    points, saes = POINTS[family], []
    for number, point in enumerate(points):
        saes.append(f"{point}={_write_sae(parts / f'sae-{number}', number, point, SAES.get(kind, {}))}")
    make_activations(concepts=("A", "B", "C"), steps=4).save(parts / "activations.safetensors")
    wanted: dict[str, Any] = {
        "model": str(base), "hookpoint": ",".join(points), "sae": tuple(saes), "activations": tuple(f"{p}={parts / 'activations.safetensors'}" for p in points),
        "concepts": ("A", "B"), "select": "count:20", "multiplier": -3.0, "proof_prompts": ("a house", "a boat at night"),
    }  # fmt: skip
    by_words = {"project", "probe", "weights"} & {*how.get("intervention", "").split("+")}
    if by_words:
        wanted |= {"concepts": ("Star",), "proof_prompts": (), **({} if by_words == {"probe"} else {"becomes": ("Heart",)})}
        if "multiply" not in how["intervention"]:
            wanted = {name: value for name, value in wanted.items() if name not in ("sae", "activations", "select", "multiplier")}
        if how["intervention"] == "weights":
            wanted.pop("hookpoint")
        if "multiply" in how["intervention"]:
            make_activations(concepts=("Star", "B", "C"), steps=4).save(parts / "activations.safetensors")
    if how.get("intervention") in ("zero", "clamp", "replace"):
        wanted.pop("multiplier")
    result = export_artifact(Settings(output=output, formats=("checkpoint",), proof="short", steps=4, **(wanted | how)))  # type: ignore[arg-type]
    assert result.report is not None and result.report.passed, result.report and result.report.failures
    return output
