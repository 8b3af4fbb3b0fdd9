"""What is tried, and how much of it: candidates, and rounds of successive halving (arXiv 1502.07943). Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import Struct

from ...editor.common.errors import SaeuronError
from ...editor.common.names import AT_BLOCKS, BY_DIRECTION, NOISIEST, SCALED, interventions
from ...editor.edit.how import How
from ...editor.features.rule import Rule

if TYPE_CHECKING:
    from ...editor.edit.edit import Edit
    from ...editor.edit.probe import ConceptRows
    from ...editor.edit.weights import WeightEdit
    from ...editor.features.activations import ConceptActivations

ANY = "count:1"
"""a rule where none is asked for: along directions there is nothing to choose"""
SHARE = 3
"""one candidate in so many goes into the next round"""
LEAST = 8
"""pictures a candidate in the first round, below which no figure tells anything"""
FINAL, ATTACKED = 3, 6
"""candidates in the last round; and where they are attacked, which tells more of them apart than plain pictures do"""


class Candidate(Struct, frozen=True):
    """One setting of one concept."""

    concept: str
    hookpoints: tuple[str, ...] = ()
    """none, nor a rule, where weights alone are edited"""
    select: str = ""
    multiplier: float = 0.0
    intervention: str = "multiply"
    how: How = How()
    start: int = NOISIEST

    def __str__(self) -> str:
        strength = f"multiplier {self.multiplier:g}" if self.at_blocks in SCALED else self.at_blocks
        how = " ".join(filter(None, [strength, str(self.how)]))
        by_sae = f"{self.select or self.at_blocks}, {how} at {', '.join(self.hookpoints)}" if self.at_blocks else ""
        return ", ".join(filter(None, ["weights" if self.weights else "", by_sae]))

    @property
    def weights(self) -> bool:
        """Whether it edits weights."""
        return "weights" in interventions(self.intervention)

    @property
    def at_blocks(self) -> str:
        """What is done at the hookpoints; empty: nothing."""
        return next((part for part in interventions(self.intervention) if part in AT_BLOCKS), "")

    @property
    def parts(self) -> set[tuple[Any, ...]]:
        """Intervention, hookpoint, rule, multiplier, how and from when on, of each part as an artifact has them on record."""
        strength = self.multiplier if self.at_blocks in SCALED else None
        by_sae = {(self.at_blocks, h, self.select, strength, self.how, self.start) for h in self.hookpoints}
        return by_sae | ({("weights", "", "", None, How(), NOISIEST)} if self.weights else set())

    def edit(
        self, activations: Mapping[tuple[str, str], ConceptActivations], residual: str, weights: WeightEdit | None = None,
        rows: Mapping[tuple[str, str], ConceptRows] | None = None,
    ) -> Edit:  # fmt: skip
        """The edit that it asks for; `activations` and `rows` as in `make_edit`, `weights` of the concept. Raises `SaeuronError` as that does."""
        from ...editor.edit.edit import Suppression, make_edit

        rule = Rule.parse(self.select or ANY)
        wishes = [Suppression(self.concept, h, rule, self.multiplier, self.at_blocks, self.how, self.start) for h in self.hookpoints]
        return make_edit(wishes, activations, residual, weights=weights if self.weights else None, given=rows)


def grid(
    concept: str, hookpoints: Sequence[tuple[str, ...]], selects: Sequence[str], multipliers: Sequence[float], kinds: Sequence[str] = ("multiply",),
    ways: Mapping[str, Sequence[How]] = MappingProxyType({"replace": (How("nearest"),)}), start: int = NOISIEST,
) -> list[Candidate]:  # fmt: skip
    """Every combination once, in a fixed order; weights alone have nothing to combine, and zero and clamp no multiplier.

    Args:
        concept: whose.
        hookpoints, selects, multipliers, kinds: to combine.
        ways: intervention → how it may be done; one that isn't there is done as ever.
        start: of all of them.
    """
    found = []
    for kind in ("+".join(interventions(kind)) for kind in kinds):
        strengths = multipliers if set(SCALED) & set(kind.split("+")) else (0.0,)
        rules = [""] if set(BY_DIRECTION) & set(kind.split("+")) else [str(Rule.parse(s)) for s in selects]
        hows = next((ways[part] for part in kind.split("+") if part in ways), (How(),))
        by_sae = [(h, s, m, kind, how) for h in hookpoints for s in rules for m in strengths for how in hows]
        found += [Candidate(concept, *c, start) for c in by_sae] if kind != "weights" else [Candidate(concept, intervention=kind)]
    return list(dict.fromkeys(found))


class Round(NamedTuple):
    """A round: the candidates in it, and the pictures that each of them has at its end."""

    candidates: int
    pictures: int


def rounds(candidates: int, most: int, budget: int, unit: int, final: int = FINAL) -> list[Round]:
    """Rounds that share a budget evenly.

    A candidate's pictures of earlier rounds count on, so a round only pays for what it adds.

    Args:
        candidates: how many there are to begin with.
        most: pictures that a candidate can have.
        budget: pictures in all.
        unit: pictures that are drawn together; a round ends with a whole unit.
        final: candidates in the last round.

    Raises:
        SaeuronError: too small a budget for one round.
    """
    counts = [candidates]
    while counts[-1] > final:
        counts.append(max(final, math.ceil(counts[-1] / SHARE)))
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
