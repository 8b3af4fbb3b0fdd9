"""Finding a block of a UNet by name, and its output as tokens."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from ..common.errors import SaeuronError
from ..common.names import normalise

_LIKELY = re.compile(r"(down_blocks\.\d+|mid_block|up_blocks\.\d+)\.attentions\.\d+")


def find_hookpoint(unet: nn.Module, name: str) -> nn.Module:
    """The block called `name`.

    Raises:
        SaeuronError: no such block; the message lists the UNet's transformer blocks.
    """
    name = normalise(name)
    modules = dict(unet.named_modules())
    if not name or name not in modules:
        known = ", ".join(n for n in modules if _LIKELY.fullmatch(n)) or "none"
        raise SaeuronError(f"hookpoint '{name}' is not in this UNet; its transformer blocks are: {known}")
    return modules[name]


def output_tensor(output: Any) -> torch.Tensor:
    """The feature map in a block's output, be it a tensor, a tuple or an output object."""
    if isinstance(output, torch.Tensor):
        return output
    return output[0] if isinstance(output, tuple) else output.sample


def input_tensor(args: tuple, kwargs: dict[str, Any]) -> torch.Tensor:
    """The feature map that a block was called with."""
    return args[0] if args else kwargs["hidden_states"]


def read_map(reads: str, args: tuple, kwargs: dict[str, Any], output: Any) -> torch.Tensor:
    """What an SAE reads at a block, `[B, C, H, W]`: its output, or with `delta` what it adds to its input."""
    found = output_tensor(output)
    return found - input_tensor(args, kwargs) if reads == "delta" else found


def replace_tensor(output: Any, tensor: torch.Tensor) -> Any:
    """The same kind of output with its feature map replaced."""
    if isinstance(output, torch.Tensor):
        return tensor
    if isinstance(output, tuple):
        return (tensor, *output[1:])
    output.sample = tensor
    return output


def to_tokens(feature_map: torch.Tensor) -> torch.Tensor:
    """`[B, C, H, W]` → `[B, H·W, C]`."""
    return feature_map.flatten(2).transpose(1, 2)


def to_map(tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """`[B, H·W, C]` → `[B, C, H, W]`."""
    return tokens.transpose(1, 2).unflatten(-1, (height, width))
