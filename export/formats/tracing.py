"""What a network needs changed while it is traced, so that its graph takes every size. The graph computes what the network computes."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from diffusers import PixArtTransformer2DModel, SanaTransformer2DModel
from diffusers.models.embeddings import PatchEmbed
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from ...editor.common.errors import SaeuronError


@contextlib.contextmanager
def traceable(module: nn.Module) -> Iterator[None]:
    """The module, or what lies in it, as it can be traced; as before afterwards."""
    with _cropping(module), _placing(module), _masking(module), _unpacking(module):
        yield


@contextlib.contextmanager
def _cropping(module: nn.Module) -> Iterator[None]:
    """SD3's crop of its table of positions, without a negative number that is halved: the exporter rounds its half up, and Python down.

    Traced as it is written, (most - side) // 2 becomes most / 2 + (-side) // 2, which is one too many where a side is odd.
    """
    tables: list[Any] = [
        m for m in module.modules() if getattr(m, "pos_embed_max_size", None) is not None and hasattr(m, "cropped_pos_embed")
    ]

    def crop(table: Any, height: Any, width: Any) -> torch.Tensor:
        most, sides = table.pos_embed_max_size, [side // table.patch_size for side in (height, width)]
        top, left = (most // 2 - (side + 1 - most % 2) // 2 for side in sides)
        whole = table.pos_embed.reshape(most, most, -1)
        return whole[top : top + sides[0], left : left + sides[1]].reshape(1, sides[0] * sides[1], -1)

    for table in tables:
        table.cropped_pos_embed = functools.partial(crop, table)
    try:
        yield
    finally:
        for table in tables:
            del table.cropped_pos_embed


@contextlib.contextmanager
def _placing(module: nn.Module) -> Iterator[None]:
    """Tables of positions that are made anew for each size, also for the network's own: which of both would be fixed by the example."""
    made = [m for m in module.modules() if isinstance(m, PatchEmbed) and m.pos_embed is not None and m.pos_embed_max_size is None]
    own = [table.height for table in made]
    for table in made:
        table.height = 0
    try:
        yield
    finally:
        for table, height in zip(made, own, strict=True):
            table.height = height


@contextlib.contextmanager
def _unpacking(module: nn.Module) -> Iterator[None]:
    """PixArt's `squeeze(1)` of `[B, L, D]` does nothing, but the exporter makes one of it that fails for L above 1: so it is given an axis to take away."""
    networks = [m for m in module.modules() if isinstance(m, PixArtTransformer2DModel)]
    last = [m for network in networks for n, m in network.named_children() if n in ("proj_out", "edited_proj_out")]
    handles = [m.register_forward_hook(lambda m, args, output: output.unsqueeze(1)) for m in last]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _MaskedAttention:
    """diffusers' attention to masked text, but for a `view` of the mask that no tracer can follow with a batch and a length that it doesn't know."""

    stock = ("SanaAttnProcessor2_0", "AttnProcessor2_0")
    """processors of diffusers that compute the same"""

    def __call__(self, attn: Any, hidden_states: Any, encoder_hidden_states: Any = None, attention_mask: Any = None) -> torch.Tensor:
        read = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (layer(x) for layer, x in ((attn.to_q, hidden_states), (attn.to_k, read), (attn.to_v, read)))
        query, key = (x if norm is None else norm(x) for x, norm in ((query, attn.norm_q), (key, attn.norm_k)))
        query, key, value = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (query, key, value))
        # The mask `[B, 1, L]` is the same for every head.
        found = scaled_dot_product_attention(query, key, value, attn_mask=None if attention_mask is None else attention_mask[:, None])
        return attn.to_out[0](found.transpose(1, 2).flatten(2).to(query.dtype)) / attn.rescale_output_factor


@contextlib.contextmanager
def _masking(module: nn.Module) -> Iterator[None]:
    """Cross-attention to text of any length, of those networks that are told its mask."""
    networks = [m for m in module.modules() if isinstance(m, PixArtTransformer2DModel | SanaTransformer2DModel)]
    own: dict[Any, Any] = {m: m.processor for network in networks for n, m in network.named_modules() if n.endswith(".attn2")}
    for attention, processor in own.items():
        if (name := type(processor).__name__) not in _MaskedAttention.stock:
            raise SaeuronError(
                f"ONNX export: cross-attention by diffusers' {name} can't be traced; leave the network's own processors in place"
            )
        attention.processor = _MaskedAttention()
    try:
        yield
    finally:
        for attention, processor in own.items():
            attention.processor = processor
