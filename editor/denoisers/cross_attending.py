"""What Sana and PixArt share: a block's tokens are the picture's alone, text comes in by cross-attention with a mask. Needs no torch until it has tensors."""

from __future__ import annotations

from collections.abc import Mapping
from math import lcm
from typing import TYPE_CHECKING, Any, ClassVar

from ..common.errors import SaeuronError
from .denoiser import Axes, Denoiser
from .sizes import Sizes, multiple_of
from .transformer import Doubled, check_width

if TYPE_CHECKING:
    from torch import Tensor

_MASK = "encoder_attention_mask"
_MOST = 8192


class CrossAttending(Doubled, Denoiser):
    """Its inputs are `hidden_states` (the latents), `encoder_hidden_states`, `encoder_attention_mask` (1: a token of the prompt, 0: padding) and
    `timestep`, one a row. Guidance doubles the batch.
    """

    component = "transformer"
    noun = "transformer"
    renamed = "proj_out"
    blocks = r"transformer_blocks\.\d+"
    float32 = ("timestep",)
    whole = (_MASK,)
    defaults: ClassVar[Mapping[str, Any]]
    """of its class, for those entries of its config that its graph follows from"""

    def tokens(self, name: str, output: Any) -> Tensor:
        if getattr(output, "ndim", None) != 3:
            raise SaeuronError(f"'{name}' gives no tokens [B, L, D] of the picture; choose a transformer block")
        return output

    def with_tokens(self, name: str, output: Any, tokens: Tensor) -> Any:
        return tokens

    def input_tokens(self, name: str, args: tuple, kwargs: Mapping[str, Any]) -> Tensor:
        return kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]

    def inputs(self, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        import torch

        given = self.bound(args, kwargs)
        latents, text, mask = given["hidden_states"], given["encoder_hidden_states"], given.get(_MASK)
        level = torch.as_tensor(given["timestep"], dtype=torch.float32, device=latents.device)
        return {
            "hidden_states": latents, "encoder_hidden_states": text,
            _MASK: torch.ones(text.shape[:2], dtype=torch.int64, device=text.device) if mask is None else mask.long(),
            "timestep": level.reshape(-1).expand(latents.shape[0]),
        }  # fmt: skip

    def axes(self, config: Mapping[str, Any]) -> tuple[Axes, Axes]:
        given = {name: config.get(name, default) for name, default in self.defaults.items()}
        latents = ("batch_size", given["in_channels"], "latent_height", "latent_width")
        text = ("batch_size", "sequence_length")
        inputs: Axes = {
            "hidden_states": latents, "encoder_hidden_states": (*text, given["caption_channels"]), _MASK: text, "timestep": ("batch_size",)
        }  # fmt: skip
        return inputs, {"out_hidden_states": (latents[0], given["out_channels"] or given["in_channels"], *latents[2:])}

    def unit(self, config: Mapping[str, Any]) -> int:
        return config["patch_size"]

    def sized(self, config: Mapping[str, Any], levels: int, multiple: int) -> Sizes:
        """`sizes`.

        Args:
            config: the network's.
            levels: of the autoencoder.
            multiple: of the sides of pictures, as the pipeline wants them, pixels.

        Raises:
            KeyError, ValueError: the config lacks something.
        """
        numbers = (config["in_channels"], config["sample_size"], config["patch_size"], levels)
        if not all(type(n) is int and 1 <= n <= _MOST for n in numbers):
            raise ValueError(f"sizes from 1 to {_MOST}")
        channels, own, patch, _ = numbers
        factor = 2 ** (levels - 1)
        return Sizes(channels, (own, own), factor, lcm(multiple, multiple_of(factor, patch)))

    def unscaled(self, latents: Any, vae: Mapping[str, Any]) -> Any:
        return latents / vae["scaling_factor"]

    def check_parts(self, config: Any, vae: Any, texts: Mapping[str, Any]) -> None:
        """Raise `SaeuronError` unless latents and text are those that the network takes."""
        if config.in_channels != vae.latent_channels:
            raise SaeuronError(
                f"the transformer takes {config.in_channels} channels, the autoencoder's latents have {vae.latent_channels}; inpainting and control models can't be edited, only text-to-image ones"
            )
        if config.caption_channels is None:
            raise SaeuronError("'caption_channels' in transformer/config.json is null; it must be the width of the text")
        check_width("text", config.caption_channels, {name: text.hidden_size for name, text in texts.items()})
