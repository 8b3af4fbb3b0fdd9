"""What a plan names, opened on the model's side: SAEs beside their blocks, safety checker, sizes of the maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...editor.common.errors import SaeuronError
from ...editor.common.files import read_json
from ...editor.denoisers.conditions import conditions_of, text_width, unet_arguments
from ...editor.denoisers.families import Family
from ...editor.denoisers.hookpoints import find_hookpoint, output_tensor
from ...editor.denoisers.sizes import latent_sides
from ...editor.edit.edit import Edit
from ...editor.sae.sae import SparseAutoencoder, check_width
from .resolve import path_of
from .settings import Plan


@dataclass
class Prepared:
    """A plan with its files opened."""

    plan: Plan
    model_folder: Path
    family: Family
    has_checker: bool
    """whether the base model has a safety checker"""
    edit: Edit
    saes: dict[str, SparseAutoencoder]
    prompts: list[str]
    """prompts that show the concepts, one of each first"""
    warnings: list[str] = field(default_factory=list)


def open_saes(folder: Path, sources: Mapping[str, str]) -> dict[str, SparseAutoencoder]:
    """Hookpoint → SAE, each checked against the channels of its block.

    Args:
        folder: the pipeline's.
        sources: hookpoint → SAE folder or Hub id.

    Raises:
        SaeuronError: a hookpoint that isn't in the UNet, an SAE that can't be opened or reads another number of channels.
    """
    widths = _channels(folder, list(sources))
    saes = {hookpoint: SparseAutoencoder.load(path_of(source), hookpoint) for hookpoint, source in sources.items()}
    for hookpoint, sae in saes.items():
        check_width(sae, widths[hookpoint], hookpoint)
    return saes


def safety_checker(folder: Path, formats: tuple[str, ...]) -> tuple[bool, list[str]]:
    """Whether the base model has a safety checker, and what has to be said about the artifact's."""
    entry = read_json(folder / "model_index.json").get("safety_checker")
    has_checker = isinstance(entry, list) and bool(entry[0])
    return has_checker, _checker_warnings(has_checker, formats)


def _checker_warnings(has_checker: bool, formats: tuple[str, ...]) -> list[str]:
    if not has_checker:
        return ["the base model has no safety checker, so the artifact has none either"]
    if "checkpoint" not in formats:
        return ["the base model's safety checker is LOST: an artifact without a checkpoint has none; add --format checkpoint to keep it"]
    return []


def _channels(folder: Path, hookpoints: list[str]) -> dict[str, int]:
    return {name: shape[0] for name, shape in maps_of(folder, hookpoints).items()}


def maps_of(folder: Path, hookpoints: list[str], height: int | None = None, width: int | None = None) -> dict[str, tuple[int, int, int]]:
    """Channels, rows and columns of each hookpoint's map, from a forward of an empty UNet on torch's meta device (no weights, no memory).

    Args:
        folder: the pipeline's.
        hookpoints: block names.
        height: pixels of the picture; default: the model's own.
        width: pixels.

    Raises:
        SaeuronError: a hookpoint that isn't there, never runs, or gives no feature map.
    """
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder / "unet"))
    found: dict[str, tuple[int, int, int]] = {}
    for name in hookpoints:
        find_hookpoint(unet, name).register_forward_hook(
            lambda m, a, out, name=name: found.__setitem__(name, _map(output_tensor(out), name))
        )
    own = unet.config.sample_size
    if own is None and height is None:
        rows, columns = (2 ** len(unet.config.block_out_channels),) * 2  # for whoever asks for the channels alone
    else:
        levels = len(read_json(folder / "vae" / "config.json").get("block_out_channels", [64]))  # the class's own default
        rows, columns = latent_sides(own, 2 ** (levels - 1), height, width)
    context = torch.empty(1, 8, text_width(unet.config), device="meta")
    conditions = {name: torch.empty(1, size, device="meta") for name, size in conditions_of(unet.config).items()}
    sample = torch.empty(1, unet.config.in_channels, rows, columns, device="meta")
    unet(sample, torch.empty(1, device="meta"), context, **unet_arguments(conditions))
    for name in hookpoints:
        if name not in found:
            raise SaeuronError(f"hookpoint '{name}' never runs in this UNet's forward")
    return found


def _map(tensor: Any, name: str) -> tuple[int, int, int]:
    if not isinstance(tensor, torch.Tensor) or tensor.ndim != 4:
        raise SaeuronError(f"hookpoint '{name}' does not give a feature map [B, C, H, W]; choose a transformer block (…attentions.N)")
    return int(tensor.shape[1]), int(tensor.shape[2]), int(tensor.shape[3])


def in_turns(lists: Sequence[Sequence[str]]) -> list[str]:
    """The first of each list, then the second of each, and so on; each text once."""
    longest = max(len(texts) for texts in lists)
    return list(dict.fromkeys(texts[i] for i in range(longest) for texts in lists if i < len(texts)))
