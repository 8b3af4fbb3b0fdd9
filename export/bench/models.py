"""What `saeuron bench` times: a model with its edit, or random weights of a known size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from ...editor.common.names import dtype_of
from ...editor.denoisers.hookpoints import to_tokens
from ...editor.denoisers.pipelines import load_pipeline
from ...editor.denoisers.sampling import capture
from ...editor.edit.edit import Edit, Suppression, make_edit
from ...editor.features.activations import ConceptActivations
from ...editor.features.rule import Rule
from ...editor.sae.formats.config import SaeConfig, SaeFile
from ...editor.sae.sae import SparseAutoencoder
from ..plan.prepare import prepare
from ..plan.resolve import resolve
from ..plan.settings import Settings

HOOKPOINT = "up_blocks.1.attentions.1"
_LATENTS, _K, _FEATURES, _COMMON = 20480, 32, 8, 256

Model = tuple[Any, Edit, dict[str, SparseAutoencoder], int, int]
"""UNet, edit, SAEs, text tokens, pixels a latent pixel"""


def of_plan(wanted: dict[str, Any], precision: str, say: Callable[[str], None]) -> Model:
    """A pipeline's UNet and the edit that presets and options make."""
    ready = prepare(resolve(Settings(**wanted)), say)
    say(f"loading {ready.plan.model}")
    pipeline = load_pipeline(ready.plan.model, dtype_of(precision), variant=ready.plan.settings.variant)
    tokens = ready.family.text_encoders[0].tokens(pipeline)
    return pipeline.unet, ready.edit, ready.saes, tokens, pipeline.vae_scale_factor


@torch.no_grad()
def random_sd14(precision: str, present: bool, say: Callable[[str], None]) -> Model:
    """SD 1.4's UNet with random weights, and an SAE that behaves like a trained one: a few latents are active at most tokens.

    Random weights tell times, not what an edit does. `present` chooses features that fire on the benchmark's own input, else
    ones that stay below their threshold there.
    """
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    say("making 860 M random weights")
    # The other settings of SD 1.4's UNet are this class's defaults.
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8).to(dtype_of(precision)).eval()
    generator = torch.Generator().manual_seed(0)
    sample, context = torch.randn(2, 4, 64, 64, generator=generator), torch.randn(2, 77, 768, generator=generator)
    with capture(unet, [HOOKPOINT]) as seen:
        unet(sample.to(unet.dtype), 501.0, context.to(unet.dtype))
    tokens = to_tokens(seen[0].outputs[HOOKPOINT]).float()
    center = tokens.mean((0, 1))
    rows = F.normalize(torch.randn(_LATENTS, tokens.shape[-1], generator=generator), dim=1)
    spread = float((tokens - center).norm(dim=-1).mean())
    bias = torch.zeros(_LATENTS)
    bias[:_COMMON] = 0.15 * spread  # active at most tokens, as a few latents of every trained SAE are
    tensors = {"W_enc": rows, "b_enc": bias, "W_dec": rows.clone(), "b_dec": center}
    sae = SparseAutoencoder.from_file(SaeFile(SaeConfig(tokens.shape[-1], _LATENTS, _K), tensors, "random"))
    latents = sae.latents(tokens)
    members = torch.bincount(sae.top(latents).indices.flatten(), minlength=_LATENTS)
    members[:_COMMON] = 0 if present else members.max() + 1  # what is active everywhere belongs to no concept
    chosen = members.topk(2 * _FEATURES, largest=present).indices
    level = 0.2 * float(sae.top(latents).values.mean())
    means = torch.full((2, 3, _LATENTS), 1e-4 * level)
    means[..., :_COMMON] = 2 * level  # shared by both concepts, so no rule chooses them
    means[0, :, chosen[:_FEATURES]], means[1, :, chosen[_FEATURES:]] = level, level
    activations = ConceptActivations(["one", "two"], [1, 1], means, torch.tensor([901, 501, 101]))
    wishes = [Suppression(name, HOOKPOINT, Rule.parse(f"count:{_FEATURES}"), -1.0) for name in ("one", "two")]
    edit = make_edit(wishes, {(w.concept, HOOKPOINT): activations for w in wishes})
    return unet, edit, {HOOKPOINT: sae}, 77, 8
