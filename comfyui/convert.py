"""Configs of diffusers in ComfyUI's terms. Whatever ComfyUI would run otherwise than diffusers is refused by name. Needs neither."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .artifact import ArtifactError

Config = Mapping[str, Any]

_UNET: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu",), "addition_embed_type": (None, "text_time"), "attention_type": ("default",), "center_input_sample": (False,),
    "class_embed_type": (None,), "class_embeddings_concat": (False,), "conv_in_kernel": (3,), "conv_out_kernel": (3,), "cross_attention_norm": (None,),
    "downsample_padding": (1,), "dual_cross_attention": (False,), "encoder_hid_dim": (None,), "encoder_hid_dim_type": (None,), "flip_sin_to_cos": (True,),
    "freq_shift": (0,), "in_channels": (4,), "mid_block_only_cross_attention": (None, False), "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",), "norm_eps": (1e-5,), "norm_num_groups": (32,), "num_class_embeds": (None,),
    "only_cross_attention": (False,), "out_channels": (4,), "resnet_out_scale_factor": (1.0,), "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",), "reverse_transformer_layers_per_block": (None,), "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None,), "time_embedding_dim": (None,), "time_embedding_type": ("positional",), "timestep_post_act": (None,),
}  # fmt: skip
"""entry → values that ComfyUI's UNet has too"""
_READ = (
    "sample_size", "down_block_types", "up_block_types", "block_out_channels", "layers_per_block", "dropout", "cross_attention_dim", "attention_head_dim",
    "transformer_layers_per_block", "num_attention_heads", "use_linear_projection", "upcast_attention", "addition_time_embed_dim",
    "projection_class_embeddings_input_dim", "addition_embed_type_num_heads", "ablation", "auto_map",
)  # fmt: skip
_VAE: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu",), "in_channels": (3,), "out_channels": (3,), "latent_channels": (4,), "norm_num_groups": (32,), "shift_factor": (None,),
    "latents_mean": (None,), "latents_std": (None,), "use_quant_conv": (True,), "use_post_quant_conv": (True,), "mid_block_add_attention": (True,),
}  # fmt: skip
TIME_IDS = 256
"""width of the embedding of each of SDXL's sizes, fixed in ComfyUI"""


def unet(config: Config) -> dict[str, Any]:
    """`unet/config.json`, its sentinel undone → ComfyUI's `unet_config`.

    Raises:
        ArtifactError: a UNet that ComfyUI's class can't be.
    """
    for name, value in config.items():
        if not name.startswith("_") and name not in _READ:
            _one_of("UNet", name, value, _UNET.get(name, (None, False)))
    channels, count = list(config["block_out_channels"]), len(config["block_out_channels"])
    if any(c % channels[0] for c in channels):
        raise ArtifactError(f"the UNet's block_out_channels are {channels}; ComfyUI runs whole multiples of the first alone")
    layers, depths = (
        _each("layers_per_block", config["layers_per_block"], count),
        _each("transformer_layers_per_block", config.get("transformer_layers_per_block", 1), count),
    )
    down = [_attends("down_block_types", kind, "DownBlock2D") for kind in config["down_block_types"]]
    up = [_attends("up_block_types", kind, "UpBlock2D") for kind in config["up_block_types"]][::-1]
    # Its attention_head_dim is a number of heads, unless num_attention_heads is there.
    heads = _each("attention_head_dim", config.get("num_attention_heads") or config.get("attention_head_dim", 8), count)
    used = [level for level in range(count) if down[level] or up[level] or level == count - 1]
    widths, numbers = {channels[level] / heads[level] for level in used}, {heads[level] for level in used}
    if len(widths) > 1 and len(numbers) > 1:
        raise ArtifactError(
            f"the UNet's attention_head_dim is {heads}: neither number nor width of heads is the same at all levels, as ComfyUI wants it"
        )
    by_number = len(numbers) == 1
    if not isinstance(context := config["cross_attention_dim"], int):
        raise ArtifactError(f"the UNet's cross_attention_dim is {context!r}; ComfyUI takes one number")
    made: dict[str, Any] = {
        "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": channels[0], "channel_mult": [c // channels[0] for c in channels],
        "num_res_blocks": layers, "use_checkpoint": False, "use_spatial_transformer": True, "legacy": False, "context_dim": context,
        "transformer_depth": [depths[level] * down[level] for level in range(count) for _ in range(layers[level])],
        "transformer_depth_output": [depths[level] * up[level] for level in range(count) for _ in range(layers[level] + 1)],
        "transformer_depth_middle": depths[-1], "use_linear_in_transformer": bool(config.get("use_linear_projection")), "adm_in_channels": None,
        "num_heads": heads[-1] if by_number else -1, "num_head_channels": -1 if by_number else int(widths.pop()),
        "use_temporal_attention": False, "use_temporal_resblock": False,
    }  # fmt: skip
    if config.get("addition_embed_type"):
        _one_of("UNet", "addition_time_embed_dim", config.get("addition_time_embed_dim"), (TIME_IDS,))
        made |= {"num_classes": "sequential", "adm_in_channels": config["projection_class_embeddings_input_dim"]}
    return made


def sampling(config: Config) -> tuple[str, dict[str, Any]]:
    """`scheduler_config.json` → `eps` or `v`, and ComfyUI's `sampling_settings`, which its own readers of diffusers' folders never look at.

    Raises:
        ArtifactError: a scheduler whose noise ComfyUI's discrete sampling can't be.
    """
    name = config.get("_class_name", "")
    if "Flow" in name or "EDM" in name or config.get("timestep_type") == "continuous" or config.get("trained_betas") is not None:
        raise ArtifactError(
            f"the artifact's scheduler is {name or 'not named'}, which isn't one of noise levels by timestep that ComfyUI takes from a config"
        )
    _one_of("scheduler", "num_train_timesteps", config.get("num_train_timesteps", 1000), (1000,))
    kinds = {"epsilon": "eps", "v_prediction": "v"}
    _one_of("scheduler", "prediction_type", prediction := config.get("prediction_type", "epsilon"), tuple(kinds))
    schedules = {"scaled_linear": "linear", "linear": "sqrt_linear", "squaredcos_cap_v2": "squaredcos_cap_v2"}
    _one_of("scheduler", "beta_schedule", schedule := config.get("beta_schedule", "linear"), tuple(schedules))
    return kinds[prediction], {
        "beta_schedule": schedules[schedule], "linear_start": config.get("beta_start", 0.0001), "linear_end": config.get("beta_end", 0.02),
        "timesteps": 1000, "zsnr": bool(config.get("rescale_betas_zero_snr")),
    }  # fmt: skip


def vae(config: Config) -> dict[str, Any]:
    """`vae/config.json` → arguments of ComfyUI's autoencoder.

    Raises:
        ArtifactError: an autoencoder that isn't of the kind of SD and SDXL.
    """
    for name, known in _VAE.items():
        _one_of("autoencoder", name, config.get(name, known[0]), known)
    channels = list(config["block_out_channels"])
    # Four levels: the pictures' size by that of the latents, and the names of its layers, are fixed in ComfyUI.
    if len(channels) != 4 or any(c % channels[0] for c in channels):
        raise ArtifactError(f"the autoencoder's block_out_channels are {channels}; ComfyUI runs four, in whole multiples of the first")
    shape = {
        "double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": channels[0],
        "ch_mult": [c // channels[0] for c in channels], "num_res_blocks": config.get("layers_per_block", 1), "attn_resolutions": [], "dropout": 0.0,
    }  # fmt: skip
    return {"params": {"ddconfig": shape, "embed_dim": 4}}


def text_encoder(config: Config, last: int = 0) -> dict[str, Any]:
    """`text_encoder/config.json` → entries of ComfyUI's config of a CLIP model.

    Args:
        config: as diffusers has it.
        last: layers that ComfyUI has after the last of these, and passes over.
    """
    _one_of("text encoder", "model_type", config.get("model_type"), ("clip_text_model",))
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "hidden_act", "max_position_embeddings")
    return {**{name: config[name] for name in names}, "num_hidden_layers": config["num_hidden_layers"] + last}


def _one_of(part: str, name: str, value: Any, known: tuple[Any, ...]) -> None:
    if value not in known:
        raise ArtifactError(
            f"the {part}'s {name} is {value!r}; ComfyUI runs {' or '.join(repr(k) for k in known)} alone, so this artifact can't be loaded there"
        )


def _each(name: str, value: Any, count: int) -> list[int]:
    found = [value] * count if isinstance(value, int) else list(value)
    if len(found) != count or not all(isinstance(v, int) for v in found):
        raise ArtifactError(f"the UNet's {name} is {value!r}; ComfyUI takes a whole number, or one a level")
    return found


def _attends(name: str, kind: str, plain: str) -> bool:
    if kind not in (plain, f"CrossAttn{plain}"):
        raise ArtifactError(f"the UNet's {name} name {kind!r}; ComfyUI runs {plain} and CrossAttn{plain}")
    return kind != plain
