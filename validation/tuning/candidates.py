"""What is tried, and how much of it: candidates, and rounds of successive halving (arXiv 1502.07943). Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from msgspec import Struct

from ...editor.common.errors import SaeuronError
from ...editor.features.rule import Rule

if TYPE_CHECKING:
    from ...editor.edit.edit import Edit
    from ...editor.features.activations import ConceptActivations

SHARE = 3
"""one candidate in so many goes into the next round"""
LEAST = 8
"""pictures a candidate in the first round, below which no figure tells anything"""
FINAL = 3
"""candidates in the last round"""


class Candidate(Struct, frozen=True):
    """One setting of one concept."""

    concept: str
    hookpoints: tuple[str, ...]
    select: str
    multiplier: float

    def __str__(self) -> str:
        return f"{self.select}, multiplier {self.multiplier:g} at {', '.join(self.hookpoints)}"

    def edit(self, activations: Mapping[str, ConceptActivations], residual: str) -> Edit:
        """The edit that it asks for; `activations` by hookpoint. Raises `SaeuronError` as `make_edit` does."""
        from ...editor.edit.edit import Suppression, make_edit

        wishes = [Suppression(self.concept, h, Rule.parse(self.select), self.multiplier) for h in self.hookpoints]
        return make_edit(wishes, {(self.concept, h): activations[h] for h in self.hookpoints}, residual)


def grid(concept: str, hookpoints: Sequence[tuple[str, ...]], selects: Sequence[str], multipliers: Sequence[float]) -> list[Candidate]:
    """Every combination once, in a fixed order."""
    return list(dict.fromkeys(Candidate(concept, h, str(Rule.parse(s)), m) for h in hookpoints for s in selects for m in multipliers))


class Round(NamedTuple):
    """A round: the candidates in it, and the pictures that each of them has at its end."""

    candidates: int
    pictures: int


def rounds(candidates: int, most: int, budget: int, unit: int) -> list[Round]:
    """Rounds that share a budget evenly.

    A candidate's pictures of earlier rounds count on, so a round only pays for what it adds.

    Args:
        candidates: how many there are to begin with.
        most: pictures that a candidate can have.
        budget: pictures in all.
        unit: pictures that are drawn together; a round ends with a whole unit.

    Raises:
        SaeuronError: too small a budget for one round.
    """
    counts = [candidates]
    while counts[-1] > FINAL:
        counts.append(max(FINAL, math.ceil(counts[-1] / SHARE)))
    least = min(most, max(LEAST, unit))
    if budget < candidates * least:
        raise SaeuronError(
            f"--budget {budget} is too small: {candidates} candidates need at least {candidates * least} pictures for one round; raise it, or let saeuron tune try fewer (--select, --multiplier, --hookpoint)"
        )
    found: list[Round] = []
    left, reached = budget, 0
    for place, count in enumerate(counts):
        share = left // (len(counts) - place)
        pictures = min(most, max(least, (reached + share // count) // unit * unit))
        if pictures > reached:
            found.append(Round(count, pictures))
            left -= count * (pictures - reached)
            reached = pictures
        if left < 1 or reached == most:
            break
    return found
