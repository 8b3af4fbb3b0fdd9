"""Intervention `project`: takes the direction of a concept out of a block's tokens, with no SAE (CASteer, arXiv 2503.09630).

At each calibrated timestep `v` is the unit vector from the mean token of prompts that show something else to that of the same prompts with the concept.
A token `x` becomes

    x + (m − 1) max(0, ⟨x, v⟩) v

where `m` is the concept's multiplier: 0 takes the component out, −1 turns it round (CASteer's β is 1 − m). Of norm `kept` it is then brought back to
the norm of `x`, as in CASteer. But for that, it is what an edit makes of features of an SAE whose rows are these directions: one feature a timestep and
concept, chosen at its own timestep alone. So hook, baked module, graphs, engines and proof need nothing else of their own for it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..common.errors import SaeuronError
from ..features.activations import ConceptActivations
from ..sae.formats.config import SaeConfig, SaeFile
from ..sae.sae import SparseAutoencoder
from .probe import ConceptRows, Rows, mean_tokens, probe_rows


def token_parts(width: int) -> SparseAutoencoder:
    """An SAE whose latents are the positive and the negative part of each channel, so that concept activations by it are mean tokens."""
    rows = torch.cat([torch.eye(width), -torch.eye(width)])
    return sae_of(Rows(rows, torch.zeros(2 * width), rows), f"the {width} channels of a block")


def concept_rows(intervention: str, held: ConceptActivations, concept: str, hookpoint: str) -> ConceptRows:
    """What is read and written of a concept at a block.

    Args:
        intervention: of `names.BY_DIRECTION`.
        held: mean tokens of the concept and of what it is compared with.
        concept: its name.
        hookpoint: the block, for errors.

    Raises:
        SaeuronError: no pair, or a concept that moves no token.
    """
    rows = probe_rows(held, concept) if intervention == "probe" else _project_rows(held, concept, hookpoint)
    return ConceptRows(held.timesteps, (rows,))


class Directions:
    """The rows of one block: which feature acts when, and what each is multiplied by."""

    def __init__(
        self, hookpoint: str, multipliers: Mapping[str, float], known: Mapping[str, ConceptRows], acting: Mapping[str, torch.Tensor]
    ) -> None:
        """Put the rows of one block together.

        Args:
            hookpoint: the block.
            multipliers: concept → what the component along its directions is multiplied by.
            known: concept → its rows.
            acting: concept → at which timesteps it acts, bool `[T]`.

        Raises:
            SaeuronError: rows of different timesteps.
        """
        rows: list[Rows] = []
        self.timesteps = known[next(iter(multipliers))].timesteps.clone()
        steps, number = len(self.timesteps), len(self.timesteps) * sum(len(known[concept].rows) for concept in multipliers)
        self.thresholds = torch.full((steps, number), torch.inf)
        self.gains = torch.ones(steps, number)
        self.chosen: dict[str, list[list[int]]] = {}
        for concept, multiplier in multipliers.items():
            held, now = known[concept], acting[concept]
            if not torch.equal(held.timesteps, self.timesteps):
                raise SaeuronError(
                    f"hookpoint '{hookpoint}': directions were collected at different timesteps; collect them with one step count"
                )
            features = torch.arange(len(held.rows) * steps).reshape(-1, steps) + len(rows) * steps
            rows += held.rows
            for own in features:
                at = torch.arange(steps)[now], own[now]
                self.thresholds[at], self.gains[at] = 0.0, float(multiplier)
            self.chosen[concept] = [own.tolist() if yes else [] for own, yes in zip(features.T, now, strict=True)]
        self.sae = sae_of(Rows(*(torch.cat(held) for held in zip(*rows, strict=True))), f"directions at {hookpoint}")


def _project_rows(held: ConceptActivations, concept: str, hookpoint: str) -> Rows:
    if len(held.concepts) != 2:
        raise SaeuronError(f"concept '{concept}': intervention project needs mean tokens of it and of one thing it is compared with")
    own, tokens = held.concepts.index(concept), mean_tokens(held)
    apart = tokens[own] - tokens[1 - own]
    if not bool((apart.norm(dim=-1) > 0).all()):
        raise SaeuronError(
            f"concept '{concept}': block '{hookpoint}' gives the same mean token with it and without, so nothing can be taken out there"
        )
    rows = torch.nn.functional.normalize(apart, dim=-1)
    return Rows(rows, torch.zeros(len(rows)), rows)


def rows_in(sae: SparseAutoencoder) -> Rows:
    """What an edit file holds of directions."""
    return Rows(*(value.detach().cpu().contiguous() for value in (sae.W_enc, sae.b_enc, sae.W_dec)))


def opened(rows: Rows, where: str) -> SparseAutoencoder:
    """The SAE of rows that lie in an edit file; raises `SaeuronError` for another form."""
    encoder, bias, decoder = rows
    if (
        any(held.dtype != torch.float32 or not held.numel() or not bool(held.isfinite().all()) for held in rows)
        or encoder.ndim != 2 or encoder.shape != decoder.shape or bias.shape != encoder.shape[:1]
    ):  # fmt: skip
        raise SaeuronError(f"{where}: damaged edit (directions of another form)")
    return sae_of(rows, where)


def sae_of(rows: Rows, where: str) -> SparseAutoencoder:
    """The SAE that has these rows; `where` is said in errors."""
    n, d = rows.encoder.shape
    config = SaeConfig(d, n, None, activation="jumprelu", subtract_bias=False)
    held = {"W_enc": rows.encoder, "b_enc": rows.bias, "W_dec": rows.decoder, "b_dec": torch.zeros(d), "threshold": torch.zeros(n)}
    return SparseAutoencoder.from_file(SaeFile(config, held, where))
