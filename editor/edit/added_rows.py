"""One more direction a timestep in an edit that is there: of what an attack brought back (`validation/attack/harden.py`)."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..sae.sae import SparseAutoencoder
from .edit import HookpointEdit
from .probe import Rows
from .project import rows_in, sae_of


def with_more(part: HookpointEdit, sae: SparseAutoencoder, concept: str, rows: Rows) -> tuple[HookpointEdit, SparseAutoencoder]:
    """Tables and directions of a block with one more row a timestep for a concept that is there, at its strength and where it acts.

    Args:
        part: the tables.
        sae: the directions.
        concept: whose.
        rows: by timestep.
    """
    steps, held = part.gains.shape
    now = torch.tensor([bool(chosen) for chosen in part.chosen[concept]])
    first = next(i for i in range(steps) if now[i])
    strength = part.gains[first, int((part.features == part.chosen[concept][first][0]).nonzero())]
    at = torch.arange(steps)[now], torch.arange(held, held + steps)[now]

    def wider(table: torch.Tensor, fill: float, value: float) -> torch.Tensor:
        grown = torch.cat([table, torch.full((steps, steps), fill)], 1)
        grown[at] = value
        return grown

    chosen = {c: [list(row) for row in by] for c, by in part.chosen.items()}
    for step in at[0].tolist():
        chosen[concept][step].append(part.latents + step)
    more = replace(
        part, features=torch.cat([part.features, part.latents + torch.arange(steps)]), thresholds=wider(part.thresholds, torch.inf, 0.0),
        gains=wider(part.gains, 1.0, float(strength)), offsets=wider(part.offsets, 0.0, 0.0),
        gate_thresholds=wider(part.gate_thresholds, torch.inf, 0.0), latents=part.latents + steps, chosen=chosen,
    )  # fmt: skip
    both = Rows(*(torch.cat(pair) for pair in zip(rows_in(sae), rows, strict=True)))
    return more, sae_of(both, "directions")
