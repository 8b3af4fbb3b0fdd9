"""UNet + SAE + Edit → a UNet with the edit in its graph and its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..common.errors import SaeuronError
from ..common.names import GATES
from ..denoisers.families import denoiser_of
from ..sae.sae import SparseAutoencoder
from .ablated_unet import _RENAMED, BARRIER, FORMAT, SENTINEL, AblatedUNet2DConditionModel
from .edit import Edit


def refuse_edited(unet: nn.Module) -> None:
    """Raise if `unet` already carries an edit, a hook or an unfused adapter, since baking would count it twice or lose it."""
    if isinstance(unet, AblatedUNet2DConditionModel) or "ablation" in getattr(unet, "config", {}):
        raise SaeuronError("this UNet already carries an edit; start from the original model")
    hooked = [name or "the UNet itself" for name, module in unet.named_modules() if module._forward_hooks or module._forward_pre_hooks]
    if hooked:
        raise SaeuronError(f"this UNet has forward hooks on {hooked[0]}; close them (leave the AblationHook context) before baking")
    if getattr(unet, "peft_config", None):
        raise SaeuronError(
            "this UNet has adapters (LoRA) that are not fused; call pipeline.fuse_lora() and pipeline.unload_lora_weights() first"
        )


def check_gate(gate: str, edit: Edit) -> None:
    """Raise `SaeuronError` unless the gate is known and can decide this edit."""
    if gate not in GATES:
        raise SaeuronError(f"gate '{gate}' is not known; it is one of {', '.join(GATES)}")
    if gate != "exact" and edit.residual != "keep":
        raise SaeuronError(f"gate '{gate}' needs residual 'keep'; '{edit.residual}' decodes every latent and so needs gate 'exact'")


def bake(unet: Any, edit: Edit, saes: Mapping[str, SparseAutoencoder], gate: str = "exact") -> AblatedUNet2DConditionModel:
    """Build the edited UNet; stock weights are shared with `unet`, not copied.

    Args:
        unet: the original `UNet2DConditionModel`.
        edit: what to suppress.
        saes: hookpoint → SAE.
        gate: `exact` (whole encoder, top-k membership) or `threshold` (chosen encoder rows only, residual `keep`).

    Returns:
        the edited UNet, in `unet`'s dtype and device, sealed.

    Raises:
        SaeuronError: unknown gate or combination, missing SAE, a UNet that is edited, hooked or not of the stock class.
    """
    refuse_edited(unet)
    if type(unet).__name__ != "UNet2DConditionModel":
        raise SaeuronError(f"only UNet2DConditionModel can be edited, not {type(unet).__name__}")
    check_gate(gate, edit)

    shapes: dict[str, Any] = {}
    tensors: dict[str, torch.Tensor] = {}
    for name, part in edit.hookpoints.items():
        denoiser_of(unet).find_hookpoint(unet, name)
        if name not in saes:
            raise SaeuronError(f"the edit needs an SAE for hookpoint '{name}'")
        sae = saes[name]
        if sae.config.num_latents != part.latents:
            raise SaeuronError(f"hookpoint '{name}': the edit was made for {part.latents} latents, the SAE has {sae.config.num_latents}")
        shapes[name] = {
            "width": sae.config.d_in, "latents": part.latents, "k": sae.config.k, "features": len(part.features),
            "timesteps": len(part.timesteps), "unit_norm": sae.config.input_unit_norm, "activation": sae.config.activation,
            "subtract_bias": sae.config.subtract_bias, "reads": sae.config.reads,
        }  # fmt: skip
        rows = part.features if edit.residual == "keep" and (gate == "threshold" or sae.config.activation == "jumprelu") else slice(None)
        decoded = part.features if edit.residual == "keep" else slice(None)
        values = {
            "encoder_weight": sae.W_enc[rows], "encoder_bias": sae.b_enc[rows], "pre_bias": sae.b_dec, "decoder_weight": sae.W_dec[decoded],
            "features": part.features, "timesteps": part.timesteps,
            "thresholds": part.gate_thresholds if gate == "threshold" else part.thresholds, "gains": part.gains,
        }  # fmt: skip
        if sae.config.activation == "jumprelu":
            values["latent_thresholds"] = sae.threshold[rows]
        prefix = f"ablations.{name.replace('.', '-')}."
        tensors |= {prefix + key: value.detach().clone() for key, value in values.items()}

    ablation = {
        "format": FORMAT,
        "mid_block_type": unet.config.mid_block_type,
        "residual": edit.residual,
        "gate": gate,
        "hookpoints": shapes,
        "sha256": None,
    }
    config = {k: v for k, v in unet.config.items() if not k.startswith("_")}
    with torch.device("meta"):
        edited = AblatedUNet2DConditionModel(**{**config, "mid_block_type": SENTINEL, "ablation": ablation})
    stock = unet.state_dict()
    for key in list(stock):
        head, _, tail = key.partition(".")
        if head in _RENAMED:
            stock[f"{_RENAMED[head]}.{tail}"] = stock.pop(key)
    parameter = next(unet.parameters())
    stock[BARRIER] = parameter.new_full((1,), float("nan"))
    edited.load_state_dict({**stock, **tensors}, assign=True)
    edited.ablations.to(parameter.device, parameter.dtype)
    edited.seal()
    return edited.eval().requires_grad_(False)
