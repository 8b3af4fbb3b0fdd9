"""Names that commands, files and modules share. Needs no torch: settings are checked before torch is imported."""

from __future__ import annotations

from typing import Any, Literal, get_args

from .errors import SaeuronError
from .suggest import unknown

Gate = Literal["exact", "threshold"]
GATES: tuple[str, ...] = get_args(Gate)
"""how a shipped module decides whether a feature fires"""
Residual = Literal["keep", "upstream", "drop"]
RESIDUALS: tuple[str, ...] = get_args(Residual)
"""what becomes of the part of an activation that the SAE doesn't reconstruct"""
Precision = Literal["fp32", "fp16", "bf16"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
BY_SAE = ("multiply", "zero", "clamp", "replace")
"""what is done where a chosen feature of an SAE fires: z becomes gain · z, 0, or its bar μ̄; or the token becomes another one"""
BY_DIRECTION = ("project", "probe")
"""what is done along directions of a block's tokens, without an SAE"""
AT_BLOCKS = (*BY_SAE, *BY_DIRECTION)
"""what is done to a block's output"""
ReplaceBy = Literal["nearest", "mean"]
REPLACE_BY: tuple[str, ...] = get_args(ReplaceBy)
"""what a token is replaced by: the nearest of the map at which nothing fires, or the mean of all of these"""
Gain = Literal["mean", "token"]
GAINS: tuple[str, ...] = get_args(Gain)
"""what the multiplier of `multiply` is multiplied by: the feature's mean activation, or the norm of the token's latents over that of the feature's decoder row"""
Norm = Literal["free", "kept"]
NORMS: tuple[str, ...] = get_args(Norm)
"""whether `project` leaves a token at the norm that it gives it, or brings it back to its own"""
WIDEST = 64
"""largest spread of what is replaced, in places"""
NOISIEST = 1000
"""largest timestep; an edit that starts there acts at all of them"""
SCALED = ("multiply", *BY_DIRECTION)
"""those that a multiplier says the strength of"""
DIRECTIONS = "directions"
"""source on record where directions stand in the place of an SAE"""
INTERVENTIONS = ("weights", *AT_BLOCKS)
"""what is done to remove a concept"""
READ_BY: dict[str, tuple[str, ...]] = {
    "sae": BY_SAE, "activations": BY_SAE, "select": BY_SAE, "residual": BY_SAE, "hookpoint": AT_BLOCKS, "start": AT_BLOCKS, "gate": AT_BLOCKS,
    "multiplier": SCALED, "gain": ("multiply",), "replace_by": ("replace",), "spread": ("replace",), "norm": BY_DIRECTION,
    "mean_tokens": ("project",), "directions": ("probe",), "becomes": ("weights", "project"),
}  # fmt: skip
"""option, and key of a preset → the interventions that read it; what isn't here is for all of them"""
SENTINEL = "SaeuronAblated"
"""an entry of an edited network's config, as in `editor/edit/ablated_network.py`, which is shipped alone and needs torch; a test compares them"""


def dtype_of(precision: str) -> Any:
    """`fp32`, `fp16`, `bf16` → torch's dtype."""
    import torch

    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]


def interventions(text: str) -> tuple[str, ...]:
    """`weights+multiply` → its parts, in the order of `INTERVENTIONS`; raises `SaeuronError` for one that isn't known."""
    parts = [part.strip() for part in text.split("+")]
    for part in parts:
        if part not in INTERVENTIONS:
            raise SaeuronError(unknown("intervention", part, INTERVENTIONS))
    if len(set(parts)) < len(parts):
        raise SaeuronError(f"intervention '{text}' names a part twice")
    if len(several := [part for part in parts if part in AT_BLOCKS]) > 1:
        raise SaeuronError(f"intervention '{text}': {' and '.join(several)} do different things to the same blocks; take one of them")
    if {"weights", "replace"} <= set(parts):
        raise SaeuronError(
            f"intervention '{text}': once the words are given other weights, there may be nothing left to replace, and no proof could show that it would be; take one of them"
        )
    return tuple(part for part in INTERVENTIONS if part in parts)


def normalise(name: str) -> str:
    """The name of a hookpoint: a block, and `:text` after it where tokens of the text are meant and not the picture's.

    Folders on the Hub have the network's name before it (`unet.up_blocks.1.attentions.1`), and the place of the stream
    in what the block returns after it (`transformer_blocks.18-1`).
    """
    block = name.removeprefix("unet.").removeprefix("transformer.")
    text, image = block.removesuffix("-0").removesuffix(":text"), block.removesuffix("-1").removesuffix(":image")
    return f"{text}:text" if text != block else image


def folders_of(hookpoint: str) -> list[str]:
    """Names under which a hookpoint's files may lie in a folder, ours first."""
    block, stream = normalise(hookpoint).partition(":")[::2]
    ends = ("-0", ":text") if stream else ("", "-1", ":image")
    return [f"{network}{block}{end}" for end in ends for network in ("unet.", "transformer.", "")]


def folder_of(hookpoint: str, component: str) -> str:
    """Name of the folder that a hookpoint's SAE is written to; `component` is that of its network."""
    return f"{component}.{file_of(hookpoint)}"


def file_of(hookpoint: str) -> str:
    """What stands for a hookpoint in the name of a file; some file systems take no colon."""
    block, stream = normalise(hookpoint).partition(":")[::2]
    return f"{block}{'-0' if stream else ''}"


def stream_of(hookpoint: str) -> str:
    """`text`, or empty for the picture's tokens."""
    return hookpoint.partition(":")[2]


def at_hookpoint(text: str) -> tuple[str | None, str]:
    """`HOOKPOINT=PATH` or `PATH` → hookpoint or None, path; a path may hold `=` after its first slash."""
    head, equals, tail = text.partition("=")
    return (normalise(head), tail) if equals and "/" not in head else (None, text)
