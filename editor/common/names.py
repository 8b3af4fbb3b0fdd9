"""Names that commands, files and modules share. Needs no torch: settings are checked before torch is imported."""

from __future__ import annotations

from typing import Any, Literal, get_args

Gate = Literal["exact", "threshold"]
GATES: tuple[str, ...] = get_args(Gate)
"""how a shipped module decides whether a feature fires"""
Residual = Literal["keep", "upstream", "drop"]
RESIDUALS: tuple[str, ...] = get_args(Residual)
"""what becomes of the part of an activation that the SAE doesn't reconstruct"""
Precision = Literal["fp32", "fp16", "bf16"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
SENTINEL = "SaeuronAblatedMidBlock"
"""`mid_block_type` of an edited UNet, as in `editor/edit/ablated_unet.py`, which is shipped alone and needs torch; a test compares them"""


def dtype_of(precision: str) -> Any:
    """`fp32`, `fp16`, `bf16` → torch's dtype."""
    import torch

    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]


def normalise(name: str) -> str:
    """`unet.up_blocks.1.attentions.1` → `up_blocks.1.attentions.1`; folder names on the Hub carry the prefix."""
    return name.removeprefix("unet.")


def at_hookpoint(text: str) -> tuple[str | None, str]:
    """`HOOKPOINT=PATH` or `PATH` → hookpoint or None, path; a path may hold `=` after its first slash."""
    head, equals, tail = text.partition("=")
    return (normalise(head), tail) if equals and "/" not in head else (None, text)
