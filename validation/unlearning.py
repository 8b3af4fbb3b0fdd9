"""Is the concept gone, is the rest kept? Accuracies of a two-domain judge (METHOD: arXiv 2402.11846, UnlearnCanvas)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Picture(NamedTuple):
    """What was asked for and what the judge saw; a style of None is the plain look."""

    object: str | None
    style: str | None
    seen_object: str
    seen_style: str | None


class Unlearning(NamedTuple):
    """Shares in [0, 1].

    Counting rule: every generated picture counts once. UA is taken on the pictures that ask for the target; IRA and CRA
    on all pictures that don't, plain ones included. `cra_target` is the other domain's accuracy on the target's own
    pictures (is the house still a house once its style is gone?).
    """

    ua: float
    ira: float
    cra: float
    cra_target: float


def accuracy(pictures: Sequence[Picture], domain: str) -> float:
    """Share of pictures whose `object` or `style` the judge recognises as asked."""
    right = [getattr(p, domain) == getattr(p, f"seen_{domain}") for p in pictures]
    return sum(right) / len(right) if right else float("nan")


def unlearning(pictures: Sequence[Picture], concept: str, domain: str) -> Unlearning:
    """Score the removal of one concept.

    Args:
        pictures: made by the edited model.
        concept: the removed one.
        domain: `style` or `object`.
    """
    other = "object" if domain == "style" else "style"
    target = [p for p in pictures if getattr(p, domain) == concept]
    rest = [p for p in pictures if getattr(p, domain) != concept]
    return Unlearning(1 - accuracy(target, domain), accuracy(rest, domain), accuracy(rest, other), accuracy(target, other))
