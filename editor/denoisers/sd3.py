"""`SD3Transformer2DModel` of Stable Diffusion 3 and 3.5: guidance doubles the batch. Needs no torch until it has tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..common.errors import SaeuronError
from .denoiser import Axes, Text
from .sizes import Sizes
from .transformer import Doubled, Transformer, check_width

if TYPE_CHECKING:
    from torch import Tensor

_NAMES = ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep")


class SD3(Doubled, Transformer):
    """Its inputs are `hidden_states` (the latents), `encoder_hidden_states`, `pooled_projections` and `timestep`, one a row."""

    cls = "SD3Transformer2DModel"
    sentinel, renamed = "qk_norm", "context_embedder"
    blocks = r"transformer_blocks\.\d+"
    float32 = ("timestep",)

    def inputs(self, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        import torch

        given = self.bound(args, kwargs)
        rows = given["hidden_states"].shape[0]
        level = torch.as_tensor(given["timestep"], dtype=torch.float32, device=given["hidden_states"].device)
        return {**{name: given[name] for name in _NAMES[:-1]}, "timestep": level.reshape(-1).expand(rows)}

    def text(self, encoded: Mapping[str, Mapping[str, Tensor]]) -> Text:
        """The last but one layers of the CLIPs side by side, widened, then the T5's; pooled ones side by side."""
        import torch
        from torch.nn.functional import pad

        *clips, t5 = encoded.values()
        states, long = torch.cat([list(clip.values())[-2] for clip in clips], -1), t5["last_hidden_state"]
        states = pad(states, (0, long.shape[-1] - states.shape[-1]))
        return Text(torch.cat([states, long], -2), torch.cat([clip["text_embeds"] for clip in clips], -1))

    def fed(self, config: Any, latents: Tensor, steps: Tensor, text: Text, guidance: float) -> dict[str, Tensor]:
        assert text.pooled is not None
        return {
            "hidden_states": latents, "encoder_hidden_states": text.states, "pooled_projections": text.pooled, "timestep": steps.float()
        }  # fmt: skip

    def axes(self, config: Mapping[str, Any]) -> tuple[Axes, Axes]:
        latents = ("batch_size", config.get("in_channels", 16), "latent_height", "latent_width")
        inputs: Axes = {
            "hidden_states": latents, "encoder_hidden_states": ("batch_size", "sequence_length", config.get("joint_attention_dim", 4096)),
            "pooled_projections": ("batch_size", config.get("pooled_projection_dim", 2048)), "timestep": ("batch_size",),
        }  # fmt: skip
        return inputs, {"out_hidden_states": latents}

    def channels(self, config: Mapping[str, Any]) -> int:
        return config["in_channels"]

    def sizes(self, config: Mapping[str, Any], vae: Mapping[str, Any]) -> Sizes:
        """Positions are a table of so many rows and columns, so there is a largest size."""
        most = config["pos_embed_max_size"]
        return self.sized(config, vae, config["sample_size"], None if most is None else most * config["patch_size"])

    def check_fit(self, config: Any, vae: Any, texts: Mapping[str, Any]) -> None:
        self.check_vae(config, vae)
        if config.patch_size != 2:
            raise SaeuronError(f"'patch_size' in transformer/config.json is {config.patch_size!r}; only 2 is supported")
        first, second, t5 = texts.values()
        check_width("text", config.joint_attention_dim, {"text_encoder_3": t5.hidden_size})
        if (both := first.hidden_size + second.hidden_size) > config.joint_attention_dim:
            raise SaeuronError(
                f"the transformer takes text of width {config.joint_attention_dim}, but text_encoder and text_encoder_2 give {both} together; its parts come from different models"
            )
        pooled = {"text_encoder": first.projection_dim, "text_encoder_2": second.projection_dim}
        check_width("pooled text", config.pooled_projection_dim, pooled)
