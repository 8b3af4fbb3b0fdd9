"""diffusers' own loop around ONNX Runtime networks, so that schedulers and guidance are the ones people use."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import nn
from transformers import AutoTokenizer
from transformers.utils import ModelOutput

from ...editor.common.files import read_json
from ...editor.denoisers.autoencoders import KL
from ...editor.denoisers.denoiser import Denoiser
from ...editor.denoisers.families import family_of
from .base import Sessions


class _Network(nn.Module):
    """A network run elsewhere; carries the config and dtype that diffusers asks for.

    Args:
        runner: runs the graph.
        folder: of the graph.
        config: of the network, with the values that its class takes for what is missing there.
    """

    def __init__(self, runner: Sessions, folder: str, config: dict[str, Any]) -> None:
        super().__init__()
        self.runner, self.folder, self.config = runner, folder, FrozenDict(config)
        given, made = runner.session(folder).get_inputs(), runner.session(folder).get_outputs()
        self.inputs, types = [i.name for i in given], {each.type for each in (*given, *made)}
        self.dtype = torch.float16 if "tensor(float16)" in types else torch.float32
        self.device = torch.device("cpu")

    def _call(self, folder: str, **inputs: Any) -> dict[str, torch.Tensor]:
        from .sessions import run_session

        values = {k: v.detach().float().numpy() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in inputs.items()}
        found = run_session(self.runner.session(folder), values)
        return {k: torch.from_numpy(v).to(self.dtype) for k, v in found.items()}


class _Denoiser(_Network):
    def __init__(self, denoiser: Denoiser, runner: Sessions, config: dict[str, Any]) -> None:
        super().__init__(runner, denoiser.component, config)
        self.denoiser = denoiser

    @property
    def add_embedding(self) -> Any:
        """SDXL's pipeline checks the width of the added conditions here."""
        return SimpleNamespace(linear_1=SimpleNamespace(in_features=self.config.projection_class_embeddings_input_dim))

    def cache_context(self, name: str) -> Any:
        """FLUX's pipeline opens one around each call; no cache is ever on here."""
        return nullcontext()

    def forward(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor]:
        return (next(iter(self._call(self.folder, **self.denoiser.inputs(args, kwargs)).values())),)


class _TextEncoder(_Network):
    def forward(self, input_ids: torch.Tensor, attention_mask: Any = None, **rest: Any) -> ModelOutput:
        given = {"input_ids": input_ids, "attention_mask": attention_mask}
        found = self._call(self.folder, **{name: value.numpy() for name, value in given.items() if name in self.inputs})
        layers = tuple(found.pop(name) for name in [n for n in found if n.startswith("hidden_states.")])
        return ModelOutput(**found, **({"hidden_states": layers} if layers else {}))


class _Vae(_Network):
    def decode(self, latents: torch.Tensor, return_dict: bool = False, **rest: Any) -> tuple[torch.Tensor]:
        return (self._call("vae_decoder", latent_sample=latents)["sample"],)

    def encode(self, sample: torch.Tensor, return_dict: bool = True) -> Any:
        ((name, found),) = self._call("vae_encoder", sample=sample).items()
        return SimpleNamespace(latent_dist=DiagonalGaussianDistribution(found)) if name == KL.encoded else SimpleNamespace(latent=found)


def onnx_pipeline(runner: Sessions) -> Any:
    """The artifact's pipeline on its ONNX graphs."""
    import diffusers

    root = runner.root
    index = read_json(root / "model_index.json")
    family = family_of(index)
    network = family.denoiser.component

    def config(name: str, **defaults: Any) -> dict[str, Any]:
        return {**defaults, **read_json(root / name / "config.json")}

    parts: dict[str, Any] = {
        network: _Denoiser(
            family.denoiser, runner, config(network, _diffusers_version="0.42.1", time_cond_proj_dim=None, addition_embed_type=None)
        ),
        "vae": _Vae(runner, "vae_decoder", config("vae", **family.vae.completed({}))),
        "scheduler": getattr(diffusers, index["scheduler"][1]).from_pretrained(root / "scheduler"),
    }
    for text in family.text_encoders:
        parts[text.tokenizer] = AutoTokenizer.from_pretrained(root / text.tokenizer)
        parts[text.name] = _TextEncoder(runner, text.name, config(text.name, use_attention_mask=False))
    # The networks that a pipeline may lack have no graphs.
    parts |= dict.fromkeys(family.extras)
    options = {name: index[name] for name in family.options if name in index and name != "requires_safety_checker"}
    if "safety_checker" in family.optional:
        options["requires_safety_checker"] = False
    return family.cls(**parts, **options, **family.fixed)
