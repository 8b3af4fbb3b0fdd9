"""Figures of what judges see on pictures by sets of prompts: the concept's own, those of other concepts, and scenes without it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence, Set

from ...editor.common.typed import Number, Record
from .intervals import Rate

BALANCED = 0.9
"""least balanced accuracy on the unedited model's pictures of a judge that is believed"""
Seen = Sequence[frozenset[str]]
"""picture by picture: the concepts that a judge sees"""


class Removal(Record, kw_only=True):
    """What a judge sees of one concept, before and after an edit, on pictures of the same prompts and seeds."""

    removed: Rate
    """pictures of the concept's own prompts on which it is not seen"""
    elsewhere: Rate
    """pictures of the other sets' prompts on which it is seen"""
    kept: Rate
    """on pictures of the other sets: of the judge's other concepts that are seen before the edit, those that still are; each sighting counts once"""
    beside: Rate
    """the same on pictures of the concept's own prompts"""


class Trust(Record, kw_only=True):
    """How well a judge tells the unedited model's pictures of a concept from those of the sets that it is compared with."""

    shown: Rate
    """pictures of the concept's prompts on which it is seen"""
    absent: Rate
    """pictures of the other sets on which it is not seen"""
    balanced: Number | None
    """mean of the two, the balanced accuracy; None where one of them has no pictures"""
    low: Number | None
    high: Number | None
    """its 95 % interval, of the two Wilson intervals (Newcombe 1998, method 10)"""


def removal(concept: str, asked: Sequence[str], before: Seen | None, after: Seen, removed: Iterable[str] = ()) -> Removal:
    """Figures of one concept.

    Args:
        concept: its name, which is also its set's.
        asked: picture by picture, the set whose prompt was drawn.
        before: what is seen on the unedited model's pictures; None: they weren't drawn, so nothing says what was kept.
        after: on the edited model's, in the same order.
        removed: concepts that are removed too: nothing of them is to be kept.
    """
    gone = {concept, *removed}
    own = [i for i, name in enumerate(asked) if name == concept]
    rest = [i for i, name in enumerate(asked) if name not in gone]
    return Removal(
        removed=Rate.of(sum(concept not in after[i] for i in own), len(own)),
        elsewhere=Rate.of(sum(concept in after[i] for i in rest), len(rest)),
        kept=_kept(gone, rest, before, after), beside=_kept(gone, own, before, after),
    )  # fmt: skip


def trust(concept: str, asked: Sequence[str], before: Seen) -> Trust:
    """How far a judge can be believed; arguments as for `removal`."""
    found = removal(concept, asked, before, before)
    shown = Rate.of(found.removed.trials - found.removed.hits, found.removed.trials)
    absent = Rate.of(found.elsewhere.trials - found.elsewhere.hits, found.elsewhere.trials)
    if not shown.trials or not absent.trials:
        return Trust(shown=shown, absent=absent, balanced=None, low=None, high=None)
    centre = (shown.value + absent.value) / 2
    below = math.hypot(shown.value - (shown.low or 0), absent.value - (absent.low or 0)) / 2
    above = math.hypot((shown.high or 0) - shown.value, (absent.high or 0) - absent.value) / 2
    return Trust(shown=shown, absent=absent, balanced=centre, low=max(0.0, centre - below), high=min(1.0, centre + above))


def _kept(gone: Set[str], places: Sequence[int], before: Seen | None, after: Seen) -> Rate:
    seen = [(i, name) for i in places for name in before[i] if name not in gone] if before is not None else []
    return Rate.of(sum(name in after[i] for i, name in seen), len(seen))
