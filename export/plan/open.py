"""What a plan names, opened on the model's side: SAEs beside their blocks, safety checker, sizes of the maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...editor.common.errors import SaeuronError
from ...editor.common.files import read_json
from ...editor.common.names import DIRECTIONS
from ...editor.demo import path_of
from ...editor.denoisers.denoiser import Denoiser
from ...editor.denoisers.families import Family, family_in, family_of
from ...editor.denoisers.streamed import empty
from ...editor.edit.edit import Edit
from ...editor.edit.project import token_parts
from ...editor.sae.sae import SparseAutoencoder, check_width
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
        sources: hookpoint → SAE folder or Hub id; `names.DIRECTIONS` gives what mean tokens are collected by.

    Raises:
        SaeuronError: a hookpoint that isn't in the denoiser, an SAE that can't be opened or reads another number of channels.
    """
    widths = _channels(folder, list(sources)) if sources else {}
    saes = {
        hookpoint: token_parts(widths[hookpoint]) if source == DIRECTIONS else SparseAutoencoder.load(path_of(source), hookpoint)
        for hookpoint, source in sources.items()
    }
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
    return {name: width for name, (_, width) in tokens_of(folder, hookpoints).items()}


def empty_network(folder: Path) -> tuple[Denoiser, Any]:
    """A pipeline's denoiser: what is known of its kind, and the network of its config on torch's meta device (no weights, no memory)."""
    denoiser = family_of(read_json(folder / "model_index.json")).denoiser
    with empty(denoiser.network_class):
        return denoiser, denoiser.network_class.from_config(denoiser.network_class.load_config(folder / denoiser.component))


def tokens_of(folder: Path, hookpoints: list[str], height: int | None = None, width: int | None = None) -> dict[str, tuple[int, int]]:
    """Tokens and channels at each hookpoint, from a forward of an empty denoiser on torch's meta device (no weights, no memory).

    Args:
        folder: the pipeline's.
        hookpoints: block names.
        height: pixels of the picture; default: the model's own.
        width: pixels.

    Raises:
        SaeuronError: a hookpoint that isn't there, never runs, or gives no tokens.
    """
    denoiser, network = empty_network(folder)
    found: dict[str, tuple[int, int]] = {}

    def look(name: str, output: Any) -> None:
        try:
            _, tokens, width = denoiser.tokens(name, output).shape
        except SaeuronError as error:
            raise SaeuronError(f"hookpoint '{name}': {error}") from None
        found[name] = tokens, width

    for name in hookpoints:
        denoiser.find_hookpoint(network, name).register_forward_hook(lambda m, a, out, name=name: look(name, out))
    sizes = denoiser.sizes(network.config, family_in(folder).vae.completed(read_json(folder / "vae" / "config.json")))
    if sizes.own is None and height is None:
        rows = columns = 2 * denoiser.unit(network.config)  # for whoever asks for the channels alone
    else:
        rows, columns = sizes.latents(height, width)
    shapes = denoiser.shapes(network.config, 1, (rows, columns), 8)
    denoiser.call(network, {name: torch.empty(shape, device="meta") for name, shape in shapes.items()})
    for name in hookpoints:
        if name not in found:
            raise SaeuronError(f"hookpoint '{name}' never runs in this {denoiser.noun}'s forward")
    return found


def in_turns(lists: Sequence[Sequence[str]]) -> list[str]:
    """The first of each list, then the second of each, and so on; each text once."""
    longest = max(len(texts) for texts in lists)
    return list(dict.fromkeys(texts[i] for i in range(longest) for texts in lists if i < len(texts)))
