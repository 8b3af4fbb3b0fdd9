"""Denoiser + SAE + Edit → the denoiser with the edit in its graph and its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..common.errors import SaeuronError
from ..common.names import GATES
from ..common.typed import plain as words
from ..denoisers.families import denoiser_of
from ..denoisers.streamed import carry, empty, is_streaming
from ..sae.sae import SparseAutoencoder
from .ablated_kinds import (
    AblatedFluxTransformer2DModel,
    AblatedPixArtTransformer2DModel,
    AblatedSanaTransformer2DModel,
    AblatedSD3Transformer2DModel,
    AblatedUNet2DConditionModel,
)
from .ablated_network import FORMAT, SENTINEL, _Ablated
from .edit import Edit
from .how import check_gain_by_token

KINDS: dict[str, Any] = {
    "UNet2DConditionModel": AblatedUNet2DConditionModel,
    "SD3Transformer2DModel": AblatedSD3Transformer2DModel,
    "FluxTransformer2DModel": AblatedFluxTransformer2DModel,
    "SanaTransformer2DModel": AblatedSanaTransformer2DModel,
    "PixArtTransformer2DModel": AblatedPixArtTransformer2DModel,
}
"""stock class → the class that ships its edit"""


def refuse_edited(network: nn.Module) -> None:
    """Raise if `network` already carries an edit, a hook or an unfused adapter, since baking would count it twice or lose it."""
    if isinstance(network, _Ablated) or "ablation" in getattr(network, "config", {}):
        raise SaeuronError("this network already carries an edit; start from the original model")
    if getattr(network, "is_cache_enabled", False):
        raise SaeuronError("this network has a cache on, which passes blocks by; switch it off first (disable_cache)")
    hooked = [
        name or "the network itself"
        for name, module in network.named_modules()
        if not all(map(is_streaming, (*module._forward_hooks.values(), *module._forward_pre_hooks.values())))
    ]
    if hooked:
        raise SaeuronError(f"this network has forward hooks on {hooked[0]}; close them (leave the AblationHook context) before baking")
    if getattr(network, "peft_config", None):
        raise SaeuronError(
            "this network has adapters (LoRA) that are not fused; call pipeline.fuse_lora() and pipeline.unload_lora_weights() first"
        )


def check_gate(gate: str, edit: Edit) -> None:
    """Raise `SaeuronError` unless the gate is known and can decide this edit."""
    if gate not in GATES:
        raise SaeuronError(f"gate '{gate}' is not known; it is one of {', '.join(GATES)}")
    if gate != "exact" and edit.residual != "keep":
        raise SaeuronError(f"gate '{gate}' needs residual 'keep'; '{edit.residual}' decodes every latent and so needs gate 'exact'")
    for name, part in edit.hookpoints.items():
        check_gain_by_token(part.how, gate, name)


def bake(network: Any, edit: Edit, saes: Mapping[str, SparseAutoencoder], gate: str = "exact") -> Any:
    """Build the edited denoiser; weights that stay are shared with `network`, not copied.

    Args:
        network: the original, of one of `KINDS`.
        edit: what to suppress.
        saes: hookpoint → SAE.
        gate: `exact` (whole encoder, top-k membership) or `threshold` (chosen encoder rows only, residual `keep`).

    Returns:
        the edited network, in `network`'s dtype and device: of a class of ours, sealed; of an edit of weights alone, of the stock class.

    Raises:
        SaeuronError: unknown gate or combination, missing SAE, a network that is edited, hooked or not of the stock class.
    """
    refuse_edited(network)
    kind = KINDS.get(type(network).__name__)
    if kind is None:
        raise SaeuronError(f"only {', '.join(KINDS)} can be edited, not {type(network).__name__}")
    check_gate(gate, edit)

    shapes: dict[str, Any] = {}
    tensors: dict[str, torch.Tensor] = {}
    for name, sae in edit.saes(saes).items():
        denoiser_of(network).find_hookpoint(network, name)
        part = edit.hookpoints[name]
        shapes[name] = {
            "width": sae.config.d_in, "latents": part.latents, "k": sae.config.k, "features": len(part.features),
            "timesteps": len(part.timesteps), "unit_norm": sae.config.input_unit_norm, "activation": sae.config.activation,
            "subtract_bias": sae.config.subtract_bias, "reads": sae.config.reads,
            **words(part.how),
        }  # fmt: skip
        rows = part.features if edit.residual == "keep" and (gate == "threshold" or sae.config.activation == "jumprelu") else slice(None)
        decoded = part.features if edit.residual == "keep" else slice(None)
        values = {
            "encoder_weight": sae.W_enc[rows], "encoder_bias": sae.b_enc[rows], "pre_bias": sae.b_dec, "decoder_weight": sae.W_dec[decoded],
            "features": part.features, "timesteps": part.timesteps,
            "thresholds": part.gate_thresholds if gate == "threshold" else part.thresholds, "gains": part.gains, "offsets": part.offsets,
        }  # fmt: skip
        if part.how.replace_by:
            del values["decoder_weight"], values["offsets"]
        if sae.config.activation == "jumprelu":
            values["latent_thresholds"] = sae.threshold[rows]
        prefix = f"ablations.{name.replace('.', '-')}."
        tensors |= {prefix + key: value.detach().clone() for key, value in values.items()}

    ablation = {
        "format": FORMAT,
        "stock": network.config[kind.KEY],
        "residual": edit.residual,
        "gate": gate,
        "hookpoints": shapes,
        "sha256": None,
    }
    config = {k: v for k, v in network.config.items() if not k.startswith("_")}
    stock = network.state_dict() | (edit.weights.changed(network) if edit.weights else {})
    if not edit.hookpoints:
        with empty(type(network)):
            plain = type(network)(**config)
        plain.load_state_dict(stock, assign=True)
        _take_buffers(plain, network)
        return plain.eval().requires_grad_(False)
    with empty(type(network)):
        edited = kind(**{**config, kind.KEY: SENTINEL, "ablation": ablation})
    for key in list(stock):
        head, _, tail = key.partition(".")
        if head == kind.RENAMED:
            stock[f"edited_{head}.{tail}"] = stock.pop(key)
    parameter = next(network.parameters())
    stock[f"{kind.RENAMED}.bias"] = parameter.new_full((1,), float("nan"))
    edited.load_state_dict({**stock, **tensors}, assign=True)
    carry(network, edited, lambda name: f"edited_{name}" if name.partition(".")[0] == kind.RENAMED else name)
    _take_buffers(edited, network)
    edited.ablations.to(parameter.device, parameter.dtype)
    edited.seal()
    return edited.eval().requires_grad_(False)


def _take_buffers(made: nn.Module, original: nn.Module) -> None:
    """Give a network that was made on `meta` the buffers that no state dict holds, such as tables of positions."""
    held = dict(original.named_buffers())
    for name, value in list(made.named_buffers()):
        if value.is_meta:
            parent, _, key = name.rpartition(".")
            made.get_submodule(parent)._buffers[key] = held[name].clone()
