"""The model under attack: an artifact's checkpoint, or the original with the dynamic hook."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ...editor.denoisers.families import family_of, network_of, rebuilt
from ...editor.edit.edit import Edit
from ...editor.edit.feature_ablation import FeatureAblation
from ...editor.edit.hook import AblationHook
from ...editor.edit.weights import text_weights
from ...editor.sae.sae import SparseAutoencoder
from .straight_through import StraightThroughHook, open_gates


class Victim(Protocol):
    """An edited model through which gradients pass."""

    pipeline: Any

    def edited(self, straight: bool = False) -> contextlib.AbstractContextManager[Any]:
        """While open, the pipeline's denoiser carries the edit; `straight` lets gradients through its decisions and changes no value."""
        ...


@dataclass
class Baked:
    """A pipeline with an edited denoiser."""

    pipeline: Any
    edit: Edit | None = None
    """as the artifact holds it"""

    @contextlib.contextmanager
    def edited(self, straight: bool = False) -> Iterator[Any]:
        """It is always edited; `straight` opens its gates."""
        with open_gates(network_of(self.pipeline)) if straight else contextlib.nullcontext():
            yield self.pipeline


@dataclass
class Hooked:
    """The original pipeline, with the edit's hook while it is wanted."""

    pipeline: Any
    edit: Edit
    saes: Mapping[str, SparseAutoencoder]
    gate: str = "exact"

    @contextlib.contextmanager
    def edited(self, straight: bool = False) -> Iterator[Any]:
        """The hook is on the denoiser while the context is open."""
        hook = StraightThroughHook if straight else AblationHook
        with hook(network_of(self.pipeline), self.edit, self.saes, self.gate):
            yield self.pipeline


@contextlib.contextmanager
def undone(victim: Baked) -> Iterator[Any]:
    """The pipeline with its edit taken out by what the artifact holds of it; as before afterwards."""
    network = network_of(victim.pipeline)
    modules = [m for m in network.modules() if isinstance(m, FeatureAblation)]
    solved = {}
    if victim.edit is not None and victim.edit.weights is not None:
        inverse = torch.linalg.inv(victim.edit.weights.map.double())
        solved = {name: network.get_parameter(name) for name in text_weights(network)}
    kept = {name: weight.data for name, weight in solved.items()}
    try:
        for name, weight in solved.items():
            weight.data = (kept[name].double() @ inverse.to(weight.device)).to(weight.dtype)
        for module in modules:
            # What it adds is taken off again.
            vars(module)["forward"] = lambda tokens, *rest, **named: tokens
        yield victim.pipeline
    finally:
        for module in modules:
            vars(module).pop("forward", None)
        for name, weight in solved.items():
            weight.data = kept[name]


def bare(pipeline: Any) -> Any:
    """The same pipeline in float32, without safety checker: what is attacked is the edit. Its weights ask for no gradient."""
    family = family_of(pipeline)
    left_out = {"safety_checker": None} if "safety_checker" in pipeline.components else {}
    found = rebuilt(pipeline, **left_out) if left_out and pipeline.safety_checker is not None else pipeline
    for name in family.networks:
        getattr(found, name).float().requires_grad_(False).eval()
    return found
