"""diffusers' own loop around ONNX Runtime networks, so that schedulers and guidance are the ones people use."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.schedulers import SchedulerMixin
from torch import nn
from transformers import AutoTokenizer

from ..editor.files import read_json

if TYPE_CHECKING:
    from .runners import OnnxRunner


class _Network(nn.Module):
    """A network run elsewhere; carries the config and dtype that diffusers asks for."""

    def __init__(self, runner: OnnxRunner, folder: str, config: dict[str, Any]) -> None:
        super().__init__()
        self.runner, self.config = runner, SimpleNamespace(**{"time_cond_proj_dim": None, "addition_embed_type": None, **config})
        first = runner.session(folder).get_inputs()[0].type
        self.dtype = torch.float16 if first == "tensor(float16)" else torch.float32
        self.device = torch.device("cpu")

    def _call(self, folder: str, **inputs: Any) -> dict[str, torch.Tensor]:
        from .runners import run_session

        values = {k: v.detach().float().numpy() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in inputs.items()}
        found = run_session(self.runner.session(folder), values)
        return {k: torch.from_numpy(v).to(self.dtype) for k, v in found.items()}


class _UNet(_Network):
    def forward(self, sample: torch.Tensor, timestep: Any, encoder_hidden_states: torch.Tensor, **rest: Any) -> tuple[torch.Tensor]:
        t = torch.as_tensor(timestep).float().reshape(-1)[0].numpy()
        return (self._call("unet", sample=sample, timestep=t, encoder_hidden_states=encoder_hidden_states)["out_sample"],)


class _TextEncoder(_Network):
    def forward(self, input_ids: torch.Tensor, attention_mask: Any = None, **rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
        found = self._call("text_encoder", input_ids=input_ids.numpy())
        return found["last_hidden_state"], found["pooler_output"]


class _Vae(_Network):
    def decode(self, latents: torch.Tensor, return_dict: bool = False, **rest: Any) -> tuple[torch.Tensor]:
        return (self._call("vae_decoder", latent_sample=latents)["sample"],)

    def encode(self, sample: torch.Tensor, return_dict: bool = True) -> Any:
        return SimpleNamespace(latent_dist=DiagonalGaussianDistribution(self._call("vae_encoder", sample=sample)["latent_parameters"]))


def onnx_pipeline(runner: OnnxRunner) -> StableDiffusionPipeline:
    """`StableDiffusionPipeline` on the ONNX graphs of an artifact."""
    root = runner.root
    index = read_json(root / "model_index.json")
    import diffusers

    scheduler: SchedulerMixin = getattr(diffusers, index["scheduler"][1]).from_pretrained(root / "scheduler")
    vae_config = read_json(root / "vae" / "config.json")
    defaults = {"scaling_factor": AutoencoderKL().config.scaling_factor} if "scaling_factor" not in vae_config else {}
    tokenizer = AutoTokenizer.from_pretrained(root / "tokenizer")
    text = _TextEncoder(runner, "vae_decoder", {"use_attention_mask": False, **read_json(root / "text_encoder" / "config.json")})
    pipeline = StableDiffusionPipeline.__new__(StableDiffusionPipeline)
    StableDiffusionPipeline.__init__(
        pipeline, vae=_Vae(runner, "vae_decoder", {**defaults, **vae_config}), text_encoder=text, tokenizer=tokenizer,
        unet=_UNet(runner, "unet", {"_diffusers_version": "0.42.1", **read_json(root / "unet" / "config.json")}), scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    return pipeline
