"""Intervention `probe`: a linear discriminant sees the concept in a token, and moves the token away from it. Needs no SAE.

At each calibrated timestep, μ is the mean token of the prompts without the concept, v what the concept adds to it, and Σ the covariance of tokens: within
a concept, and half of that between the others (Fisher's discriminant; LEACE, arXiv 2306.03819, erases along the same Σ⁻¹v). A token `x` becomes

    s = ⟨Σ⁻¹v, x − μ⟩ / ⟨Σ⁻¹v, v⟩          0 for the others' mean, 1 for the concept's
    x + (m − 1) max(0, s − BAR) v

where `m` is the concept's multiplier. As in `project`, that is a row of an SAE; here it is read along one direction and written along another.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..common.errors import SaeuronError
from ..features.activations import ConceptActivations

BAR = 0.4
"""how far from the others' mean to the concept's a token has to be"""
_SHRUNK = 1e-3
"""share of the mean variance that is added to each direction's, so that Σ has an inverse"""


class Rows(NamedTuple):
    """What is read and written of a concept, by timestep."""

    encoder: torch.Tensor
    """float32 `[T, d]`"""
    bias: torch.Tensor
    """float32 `[T]`"""
    decoder: torch.Tensor
    """float32 `[T, d]`"""


class ConceptRows(NamedTuple):
    """All rows of a concept at a block."""

    timesteps: torch.Tensor
    """float32 `[T]`, descending"""
    rows: tuple[Rows, ...]
    """its own, then those that were added to them (`added_rows`)"""
    acting: torch.Tensor | None = None
    """bool `[T]`: where they are known; None: everywhere"""


def mean_tokens(activations: ConceptActivations) -> torch.Tensor:
    """Mean tokens float32 `[C, T, d]` of activations that were collected by `project.token_parts`."""
    positive, negative = activations.means.chunk(2, -1)
    return positive - negative


def probe_rows(activations: ConceptActivations, concept: str, shown: torch.Tensor | None = None) -> Rows:
    """The discriminant of a concept.

    Args:
        activations: mean tokens of the concept and of others, with how tokens vary within each.
        concept: one of them.
        shown: mean tokens `[T, d]` of other pictures of the concept, which an attack brought back; default: those of the activations.

    Raises:
        SaeuronError: activations without a covariance, or a concept that adds nothing.
    """
    within, where = activations.within, activations.provenance.get("hookpoint", "a block")
    if within is None:
        raise SaeuronError(f"concept '{concept}': intervention probe needs the covariance of tokens, which these activations don't hold")
    tokens, own = mean_tokens(activations).double(), activations.concepts.index(concept)
    others = [c for c in range(len(tokens)) if c != own]
    counts = torch.tensor(activations.prompts, dtype=torch.float64)[others]
    middle = (tokens[others] * counts[:, None, None]).sum(0) / counts.sum()
    added = (tokens[own] if shown is None else shown.double()) - middle
    if not bool((added.norm(dim=-1) > 0).all()):
        raise SaeuronError(f"concept '{concept}': '{where}' gives the same mean token with it and without, so nothing tells it apart there")
    read = torch.empty_like(added)
    for step, v in enumerate(added):
        apart = tokens[others, step] - middle[step]
        covariance = within[step * len(within) // len(added)].double() + (apart * counts[:, None]).T @ apart / counts.sum() / 2
        covariance.diagonal().add_(_SHRUNK * covariance.diagonal().mean())
        solved = torch.linalg.solve(covariance, v)
        read[step] = solved / (solved @ v)
    bias = -(read * middle).sum(-1) - BAR
    return Rows(read.float(), bias.float(), added.float())
