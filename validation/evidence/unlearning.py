"""UnlearnCanvas's accuracies of a judge of objects and styles: UA, IRA, CRA (METHOD: arXiv 2402.11846)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ...editor.common.typed import Record
from ..judges.judge import DOMAINS, LabelJudge
from .intervals import Rate

FIGURES = ("ua", "ira", "cra", "cra_unstyled", "cra_target")
"""rates of a concept"""
Job = tuple[str, str | None, int]
"""object, style (None: plain), seed"""


class Picture(NamedTuple):
    """What was asked for and what the judge saw; a style of None is the plain look."""

    object: str | None
    style: str | None
    seen_object: str
    seen_style: str | None


def look(judge: LabelJudge, jobs: Sequence[Job], pictures: Sequence[Any]) -> list[Picture]:
    """What was asked for beside what the judge sees."""
    seen = judge.classify(pictures)
    return [Picture(o, style, a, b) for (o, style, _), a, b in zip(jobs, seen.objects, seen.styles, strict=True)]


def all_jobs(objects: Sequence[str], styles: Sequence[str | None], seeds: Sequence[int]) -> list[Job]:
    """Every object in every style with every seed."""
    return [(o, s, seed) for o in objects for s in styles for seed in seeds]


class Rates(Record, forbid_unknown_fields=True):
    """The removal of one concept as counts, several being removed at once."""

    domain: str
    """`style` or `object`"""
    ua: Rate
    ira: Rate
    cra: Rate
    """each picture counts once"""
    cra_unstyled: Rate | None
    """the released scripts' CRA of a style: unstyled pictures alone (each of them 50 times, which leaves the share as it is); None for an
    object, whose released script counts each picture once since October 2025"""
    cra_target: Rate
    """the other domain's accuracy on the target's own pictures"""


def rate(pictures: Sequence[Picture], domain: str) -> Rate:
    """Pictures whose `object` or `style` the judge recognises as asked."""
    return Rate.of(sum(getattr(p, domain) == getattr(p, f"seen_{domain}") for p in pictures), len(pictures))


def without(pictures: Sequence[Picture], removed: Mapping[str, str]) -> list[Picture]:
    """Pictures that ask for none of the removed concepts (name → domain)."""
    return [p for p in pictures if not any(getattr(p, domain) == name for name, domain in removed.items())]


def rates(pictures: Sequence[Picture], removed: Mapping[str, str], judged: Sequence[str] = DOMAINS) -> dict[str, Rates]:
    """Score the removal of several concepts at once: UA on each one's own pictures, IRA and CRA on those that ask for none of them.

    Args:
        pictures: made by the edited model.
        removed: name → domain, every removed concept.
        judged: the domains that the judge looks at; a rate of another one has no trials.
    """
    rest = without(pictures, removed)
    unstyled = [p for p in rest if p.style is None]

    def of(chosen: Sequence[Picture], domain: str) -> Rate:
        return rate(chosen, domain) if domain in judged else Rate.of(0, 0)

    found = {}
    for name, domain in removed.items():
        other = "object" if domain == "style" else "style"
        target = [p for p in pictures if getattr(p, domain) == name]
        kept = of(target, domain)
        found[name] = Rates(
            domain, Rate.of(kept.trials - kept.hits, kept.trials), of(rest, domain), of(rest, other),
            of(unstyled, other) if domain == "style" else None, of(target, other),
        )  # fmt: skip
    return found
