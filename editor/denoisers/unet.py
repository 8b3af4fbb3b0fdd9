"""`UNet2DConditionModel` of Stable Diffusion 1, 2 and XL: feature maps are tokens, guidance doubles the batch. Needs no torch until it has tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common.errors import SaeuronError
from .denoiser import Axes, Denoiser, Text
from .sizes import Sizes, multiple_of

if TYPE_CHECKING:
    from torch import Tensor

_LATENTS = ("batch_size", "channels", "latent_height", "latent_width")
_ADDED = ("text_embeds", "time_ids")
# Original size, crop and target size, two numbers each; the refiner, which is not supported, has five.
_TIME_IDS = 6
_WIDEST = 1 << 20
_MOST, _MOST_LEVELS = 8192, 16


@dataclass(frozen=True)
class UNet(Denoiser):
    """Its inputs are `sample`, `timestep`, `encoder_hidden_states`; SDXL's also pooled text and picture sizes, an LCM's a guidance embedding."""

    normalises_latents: bool = False
    """whether the pipeline heeds `latents_mean` and `latents_std` in the autoencoder's config"""

    component = "unet"
    cls = "UNet2DConditionModel"
    sentinel, renamed = "mid_block_type", "conv_in"
    noun = "UNet"
    blocks = r"(down_blocks\.\d+|mid_block|up_blocks\.\d+)\.attentions\.\d+"
    float32 = ("timestep",)
    cross_attends = mapped = begins = True

    def tokens(self, name: str, output: Any) -> Tensor:
        """A map `[B, C, H, W]`, alone, first in a tuple or in an output object → `[B, H·W, C]`."""
        return _tokens(_map(output))

    def places(self, output: Any) -> np.ndarray:
        return np.indices(_map(output).shape[-2:]).reshape(2, -1).T

    def with_tokens(self, name: str, output: Any, tokens: Tensor) -> Any:
        made = tokens.transpose(1, 2).unflatten(-1, _map(output).shape[-2:])
        if isinstance(output, tuple):
            return (made, *output[1:])
        if not hasattr(output, "sample"):
            return made
        output.sample = made
        return output

    def input_tokens(self, name: str, args: tuple, kwargs: Mapping[str, Any]) -> Tensor:
        return _tokens(args[0] if args else kwargs["hidden_states"])

    def reads_text(self, weight: str) -> bool:
        return weight.endswith((".attn2.to_k.weight", ".attn2.to_v.weight"))

    def inputs(self, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        import torch

        given = self.bound(args, kwargs)
        more = {**(given.get("added_cond_kwargs") or {}), "timestep_cond": given.get("timestep_cond")}
        return {
            "sample": given["sample"], "timestep": torch.as_tensor(given["timestep"], dtype=torch.float32),
            "encoder_hidden_states": given["encoder_hidden_states"],
            **{name: more[name] for name in (*_ADDED, "timestep_cond") if more.get(name) is not None},
        }  # fmt: skip

    def call(self, network: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        # Widened as diffusers does it when it joins the two: in an exported graph nothing widens them.
        added = {name: inputs[name].float() for name in _ADDED if name in inputs}
        rest = {name: value for name, value in inputs.items() if name not in _ADDED}
        return network(**rest, added_cond_kwargs=added or None, return_dict=False)[0]

    def text(self, encoded: Mapping[str, Mapping[str, Tensor]]) -> Text:
        return Text(encoded["text_encoder"]["last_hidden_state"]) if len(encoded) == 1 else super().text(encoded)

    def learning(
        self, network: Any, scheduler: Any, latents: Tensor, noise: Tensor, steps: Tensor, text: Text, guidance: float
    ) -> tuple[Tensor, Tensor]:
        """The noise, the velocity or the latents, as the model predicts."""
        noised = scheduler.add_noise(latents, noise, steps)
        wanted = scheduler.get_velocity(latents, noise, steps) if scheduler.config.prediction_type == "v_prediction" else noise
        if scheduler.config.prediction_type == "sample":
            wanted = latents
        return self.call(network, {"sample": noised, "timestep": steps, "encoder_hidden_states": text.states}), wanted

    def noise_level(self, inputs: Mapping[str, Any]) -> Any:
        return inputs["timestep"].reshape(-1)

    def at_level(self, level: float, rows: int) -> dict[str, np.ndarray]:
        return {"timestep": np.array(level, np.float32)}

    def rows(self, guided: bool) -> int:
        return 2 if guided else 1

    def prompted(self, call: int, pictures: int, guided: bool) -> slice | None:
        """The negative half comes first."""
        return slice(-pictures, None)

    def axes(self, config: Mapping[str, Any]) -> tuple[Axes, Axes]:
        latents = tuple(config.get("in_channels", 4) if axis == "channels" else axis for axis in _LATENTS)
        conditions = conditions_of(config)
        inputs: Axes = {
            "sample": latents, "timestep": (), "encoder_hidden_states": ("batch_size", "sequence_length", _text_width(config)),
            **{name: ("batch_size", width) for name, width in conditions.items()},
        }  # fmt: skip
        return inputs, {"out_sample": latents}

    def unit(self, config: Mapping[str, Any]) -> int:
        """Whole down-sampling keeps the sizes of skip connections equal."""
        return 2 ** (_levels(config) - 1)

    def sizes(self, config: Mapping[str, Any], vae: Mapping[str, Any]) -> Sizes:
        size = config["sample_size"]
        own = None if size is None else tuple(size) if isinstance(size, list | tuple) else (size, size)
        if own is not None and len(own) != 2:
            raise ValueError("'sample_size', a number, two numbers or null")
        numbers = (config["in_channels"], *(own or ()), _levels(config), _levels(vae))
        # Arrays are made of these sizes: what no model has is refused before.
        if not all(type(n) is int and 1 <= n <= _MOST for n in numbers):
            raise ValueError(f"sizes from 1 to {_MOST}")
        factor = 2 ** (_levels(vae) - 1)
        return Sizes(numbers[0], own, factor, multiple_of(factor, self.unit(config)))

    def unscaled(self, latents: Any, vae: Mapping[str, Any]) -> Any:
        mean, std = self._spread(latents, vae)
        return latents * std / vae["scaling_factor"] + mean

    def scaled(self, latents: Any, vae: Mapping[str, Any]) -> Any:
        mean, std = self._spread(latents, vae)
        return (latents - mean) * vae["scaling_factor"] / std

    def _spread(self, latents: Any, vae: Mapping[str, Any]) -> tuple[Any, Any]:
        """Mean and deviation by which the pipeline normalises latents, a number each or `[1, C, 1, 1]`."""
        mean, std = vae.get("latents_mean"), vae.get("latents_std")
        if mean is None or std is None or not self.normalises_latents:
            return 0, 1
        return _per_channel(mean, latents), _per_channel(std, latents)

    def check_fit(self, config: Any, vae: Any, texts: Mapping[str, Any]) -> None:
        size, latent = config.sample_size, vae.latent_channels
        sides = size if isinstance(size, list | tuple) else (size, size)
        if size is not None and not (len(sides) == 2 and all(type(side) is int and side > 0 for side in sides)):
            raise SaeuronError(f"'sample_size' in unet/config.json is {size!r}; it must be a whole number, two, or null")
        for key in ("latents_mean", "latents_std") if self.normalises_latents and vae.get("latents_mean") is not None else ():
            given = vae.get(key)
            fits = isinstance(given, list | tuple) and len(given) == latent and all(type(v) in (int, float) and isfinite(v) for v in given)
            if given is not None and not fits:
                raise SaeuronError(f"'{key}' in vae/config.json must be a list of {latent} numbers, one a latent channel")
        for way, channels in (("takes", config.in_channels), ("gives", config.out_channels)):
            if channels != latent:
                raise SaeuronError(
                    f"the UNet {way} {channels} channels, the autoencoder's latents have {latent}; inpainting, depth and upscaling models can't be edited, only text-to-image ones"
                )
        widths, wanted = {name: text.hidden_size for name, text in texts.items()}, config.cross_attention_dim
        if any(w != sum(widths.values()) for w in (wanted if isinstance(wanted, list | tuple) else [wanted])):
            said = " and ".join(f"{name} gives {number}" for name, number in widths.items())
            raise SaeuronError(f"the UNet takes text of width {wanted}, but {said}; its parts come from different models")
        pooled = conditions_of(config).get("text_embeds")
        if (pooled is not None) != (len(widths) > 1):
            raise SaeuronError(f"the UNet is not one that this pipeline runs (its addition_embed_type is {config.addition_embed_type})")
        last, text = list(texts.items())[-1]
        if pooled is not None and pooled != text.projection_dim:
            raise SaeuronError(
                f"the UNet takes pooled text of width {pooled}, but {last} gives {text.projection_dim}; its parts come from different models"
            )

    def calibrating(self, scheduler: Any, mended: Callable[[Any], Any]) -> Any:
        """DDIM with the settings that the pipeline really uses."""
        from .schedulers import ddim_of

        return ddim_of(mended, scheduler)


def _map(output: Any) -> Tensor:
    found = output[0] if isinstance(output, tuple) and output else getattr(output, "sample", output)
    if getattr(found, "ndim", None) != 4:
        raise SaeuronError("it does not give a feature map [B, C, H, W]; choose a transformer block (…attentions.N)")
    return found


def _tokens(feature_map: Tensor) -> Tensor:
    return feature_map.flatten(2).transpose(1, 2)


def _per_channel(values: list[float], latents: Any) -> Any:
    """Numbers as `[1, C, 1, 1]` beside latents."""
    wide = np.array(values, np.float32).reshape(1, -1, 1, 1)
    if isinstance(latents, np.ndarray):
        return wide
    import torch

    return torch.from_numpy(wide).to(latents)


def _levels(config: Mapping[str, Any]) -> int:
    channels = config["block_out_channels"]
    if not isinstance(channels, list | tuple) or len(channels) > _MOST_LEVELS:
        raise ValueError(f"'block_out_channels', a list of at most {_MOST_LEVELS}")
    return len(channels)


def _text_width(config: Mapping[str, Any]) -> Any:
    """A config may name it once a level."""
    width = config.get("cross_attention_dim")
    return width[0] if isinstance(width, list | tuple) and width else width


def conditions_of(config: Mapping[str, Any]) -> dict[str, int]:
    """Name → width of each input `[B, width]` beside the usual three.

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


def _width(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if type(value) is not int or not 1 <= value <= _WIDEST:
        raise SaeuronError(f"this UNet's config has '{key}' = {str(value)[:60]}; it must be a whole number from 1 to {_WIDEST}")
    return value
