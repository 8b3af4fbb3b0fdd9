"""What a UNet may want beside sample, timestep and text: SDXL's pooled text and picture sizes, a guidance embedding. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..common.errors import SaeuronError

_ADDED = ("text_embeds", "time_ids")
# Original size, crop and target size, two numbers each; the refiner, which is not supported, has five.
_TIME_IDS = 6
_WIDEST = 1 << 20


def conditions_of(config: Mapping[str, Any]) -> dict[str, int]:
    """Name → width of each further input `[B, width]`; the names are diffusers', and optimum's in ONNX graphs.

    Args:
        config: of the UNet.

    Raises:
        SaeuronError: the UNet wants something that we don't know.
    """
    found = {}
    if config.get("addition_embed_type") == "text_time":
        total, each = (_width(config, key) for key in ("projection_class_embeddings_input_dim", "addition_time_embed_dim"))
        found = {"text_embeds": total - _TIME_IDS * each, "time_ids": _TIME_IDS}
    elif config.get("addition_embed_type") is not None:
        raise SaeuronError(
            f"this UNet takes added conditions of type '{config['addition_embed_type']}'; only 'text_time' (SDXL) is supported"
        )
    if config.get("time_cond_proj_dim") is not None:
        found["timestep_cond"] = _width(config, "time_cond_proj_dim")
    for key in ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type"):
        if config.get(key) is not None:
            raise SaeuronError(f"this UNet's config has '{key}' = {config[key]!r}: it takes inputs that are not supported")
    return found


def text_width(config: Any) -> int:
    """Width of the text that a UNet takes; its config may name it once a level.

    Args:
        config: of the UNet, completed by the class's defaults.
    """
    width = config["cross_attention_dim"]
    return int(width[0]) if isinstance(width, list | tuple) else int(width)


def _width(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if type(value) is not int or not 1 <= value <= _WIDEST:
        raise SaeuronError(f"this UNet's config has '{key}' = {str(value)[:60]}; it must be a whole number from 1 to {_WIDEST}")
    return value


def unet_arguments(conditions: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of diffusers' UNet for these conditions."""
    added = {name: conditions[name] for name in _ADDED if name in conditions}
    rest = {name: value for name, value in conditions.items() if name not in _ADDED}
    return {**rest, **({"added_cond_kwargs": added} if added else {})}


def conditions_in(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The conditions among the keyword arguments of a call of diffusers' UNet."""
    found = {name: value for name, value in (arguments.get("added_cond_kwargs") or {}).items() if name in _ADDED}
    if arguments.get("timestep_cond") is not None:
        found["timestep_cond"] = arguments["timestep_cond"]
    return found
