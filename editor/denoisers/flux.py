"""`FluxTransformer2DModel` of FLUX.1: latents are packed, guidance is an embedding or nothing. Needs no torch until it has tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common.errors import SaeuronError
from .denoiser import Axes, Text
from .sizes import Sizes
from .transformer import Transformer, check_width, full

if TYPE_CHECKING:
    from torch import Tensor

_SIZE = 128
"""latents along each side of what FLUX.1 draws unless it is told otherwise; its config has no size"""
_NAMES = ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep", "txt_ids", "img_ids")


class Flux(Transformer):
    """Its inputs are `hidden_states` (packed latents `[B, h/2 · w/2, 4 C]`), `encoder_hidden_states`, `pooled_projections`, `timestep` (0 to 1, one a row),
    `txt_ids` and `img_ids` (positions of tokens), and of a model that was distilled from guidance (`dev`) `guidance`.

    Guidance by two calls (`true_cfg_scale` with a negative prompt) is left to whoever calls the pipeline; the edit acts in both.
    """

    cls = "FluxTransformer2DModel"
    sentinel, renamed = "num_layers", "x_embedder"
    blocks = r"(single_)?transformer_blocks\.\d+"
    float32 = ("timestep", "txt_ids", "img_ids", "guidance")

    def inputs(self, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        import torch

        given = self.bound(args, kwargs)
        rows, device = given["hidden_states"].shape[0], given["hidden_states"].device
        floats = {n: torch.as_tensor(given[n], dtype=torch.float32, device=device) for n in self.float32 if given.get(n) is not None}
        found = {n: floats.get(n, given[n]) for n in _NAMES}
        more = {n: floats[n].reshape(-1).expand(rows) for n in ("timestep", "guidance") if n in floats}
        # Older pipelines gave positions once a row.
        return found | more | {n: floats[n][0] if floats[n].ndim == 3 else floats[n] for n in ("txt_ids", "img_ids")}

    def call(self, network: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        return network(**inputs, return_dict=False)[0]

    def text(self, encoded: Mapping[str, Mapping[str, Tensor]]) -> Text:
        """The T5's states, the CLIP's pooled one."""
        clip, t5 = encoded.values()
        return Text(t5["last_hidden_state"], clip["pooler_output"])

    def fed(self, config: Any, latents: Tensor, steps: Tensor, text: Text, guidance: float) -> dict[str, Tensor]:
        import torch

        assert text.pooled is not None
        rows, columns = (torch.arange(side // 2, dtype=torch.float32, device=latents.device) for side in latents.shape[-2:])
        places = torch.cartesian_prod(torch.zeros_like(rows[:1]), rows, columns)
        told = {"guidance": torch.full((len(latents),), guidance, device=latents.device)} if config.guidance_embeds else {}
        return {
            "hidden_states": self.packed(latents), "encoder_hidden_states": text.states, "pooled_projections": text.pooled,
            "timestep": steps.float() / 1000.0, "txt_ids": places.new_zeros(text.states.shape[1], 3), "img_ids": places, **told,
        }  # fmt: skip

    def noise_level(self, inputs: Mapping[str, Any]) -> Any:
        return inputs["timestep"].reshape(-1) * 1000.0

    def at_level(self, level: float, rows: int) -> dict[str, np.ndarray]:
        return {"timestep": full(level, rows) / np.float32(1000.0)}

    def told_as(self, network: Any, dtype: Any) -> None:
        """The pipeline casts timesteps to the latents' type; the network multiplies both numbers by 1000 in it, so in bf16 it is told 3008 for a guidance of 3.

        In float16 the product is rounded by a fraction of one step, and ONNX Runtime on a CPU leaves that out: it belongs to what rounding does.
        """
        import torch

        if dtype != torch.bfloat16:
            return

        def cast(module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
            given = self.bound(args, kwargs)
            del given["self"]
            return (), given | {name: given[name].to(dtype).float() for name in ("timestep", "guidance") if given.get(name) is not None}

        def multiplied(module: Any, args: tuple) -> tuple:
            return (*(value.to(dtype).float() for value in args[:-1]), args[-1])

        network.register_forward_pre_hook(cast, with_kwargs=True)
        network.time_text_embed.register_forward_pre_hook(multiplied)

    def rows(self, guided: bool) -> int:
        return 1

    def prompted(self, call: int, pictures: int, guided: bool) -> slice | None:
        return slice(None)

    def axes(self, config: Mapping[str, Any]) -> tuple[Axes, Axes]:
        packed = ("batch_size", "packed_height_width", config.get("in_channels", 64))
        inputs: Axes = {
            "hidden_states": packed, "encoder_hidden_states": ("batch_size", "sequence_length", config.get("joint_attention_dim", 4096)),
            "pooled_projections": ("batch_size", config.get("pooled_projection_dim", 768)), "timestep": ("batch_size",),
            "txt_ids": ("sequence_length", 3), "img_ids": ("packed_height_width", 3),
            **({"guidance": ("batch_size",)} if config.get("guidance_embeds") else {}),
        }  # fmt: skip
        return inputs, {"out_hidden_states": packed}

    def lengths(self, rows: int, sides: tuple[int, int], tokens: int) -> dict[str, int]:
        return super().lengths(rows, sides, tokens) | {"packed_height_width": sides[0] * sides[1] // 4}

    def channels(self, config: Mapping[str, Any]) -> int:
        return config["in_channels"] // 4

    def packed(self, latents: Any) -> Any:
        b, c, h, w = latents.shape
        return _swapped(latents.reshape(b, c, h // 2, 2, w // 2, 2), (0, 2, 4, 1, 3, 5)).reshape(b, h * w // 4, 4 * c)

    def unpacked(self, latents: Any, sides: tuple[int, int]) -> Any:
        (b, _, c), (h, w) = latents.shape, sides
        return _swapped(latents.reshape(b, h // 2, w // 2, c // 4, 2, 2), (0, 3, 1, 4, 2, 5)).reshape(b, c // 4, h, w)

    def told(self, scheduler: Mapping[str, Any], steps: int, sides: tuple[int, int]) -> dict[str, Any]:
        """Also the noise levels before the shift, unless the scheduler makes its own."""
        own = {} if scheduler.get("use_flow_sigmas") else {"sigmas": np.linspace(1.0, 1 / steps, steps)}
        return super().told(scheduler, steps, sides) | own

    def sizes(self, config: Mapping[str, Any], vae: Mapping[str, Any]) -> Sizes:
        return self.sized(config, vae, _SIZE, None)

    def check_fit(self, config: Any, vae: Any, texts: Mapping[str, Any]) -> None:
        self.check_vae(config, vae)
        if config.patch_size != 1 or config.out_channels not in (None, config.in_channels) or config.in_channels % 4:
            raise SaeuronError("transformer/config.json is that of no text-to-image FLUX.1 (patch_size 1, as many channels out as in)")
        if sum(config.axes_dims_rope) != config.attention_head_dim:
            raise SaeuronError(
                f"'axes_dims_rope' in transformer/config.json sums to {sum(config.axes_dims_rope)}, 'attention_head_dim' is {config.attention_head_dim}"
            )
        clip, t5 = texts.values()
        check_width("text", config.joint_attention_dim, {"text_encoder_2": t5.hidden_size})
        check_width("pooled text", config.pooled_projection_dim, {"text_encoder": clip.hidden_size})


def _swapped(value: Any, order: tuple[int, ...]) -> Any:
    """Axes of a numpy array or a tensor in another order."""
    return value.transpose(order) if isinstance(value, np.ndarray) else value.permute(order)
