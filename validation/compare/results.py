"""What a comparison holds, as types; `compare.json` and `saeuron compare --json` hold a `Comparison`. Needs no torch."""

from __future__ import annotations

from typing import Any

from ...editor.common.typed import Number, Record, Whole
from ..evidence.intervals import Mean, Rate
from ..evidence.results import Backend, JudgeRecord
from ..page.figures import TITLES

FORMAT = "saeuron-comparison-1"
RESULT, MARKDOWN, PAGE, SHEET = "compare.json", "compare.md", "compare.html", "pictures.png"
"""files of a comparison"""
UNDER_ATTACK = "attack: "
"""what the title of an attack's column begins with"""
RATES = ("ua", "ira", "cra", "cra_target")
"""by a judge of objects and styles, as `unlearning.Rates` has them"""
SIGHTINGS = ("removed", "kept", "beside", "elsewhere")
"""by a judge that is told what to look for, as `sightings.Removal` has them"""


class Cost(Record):
    """A forward of an edited network beside the original's, timed in turn, at a batch of two."""

    ratio: Number
    """median of the rounds' ratios"""
    low: Number
    high: Number
    """their quartiles"""
    rounds: Whole


class Compared(Record, kw_only=True):
    """One model."""

    name: str
    kind: str
    """`unedited`, `artifact`, `pipeline` or `weights`"""
    identity: dict[str, Any]
    """as its evaluation's settings have it"""
    folder: str
    """of its evaluation, beside this file"""
    bytes: Whole
    """of its files on disk; of weights over a base, of their file alone"""
    seconds: Number | None = None
    """a picture, looking included, where it was made"""
    cost: Cost | None = None
    rates: dict[str, dict[str, Rate]]
    """concept → column → rate"""
    outside: Mean | None = None
    """share of tokens beyond the distance of 99 % of the unedited model's, at the block where it is largest (`smears.Outside`)"""


class Comparison(Record, kw_only=True):
    """All models."""

    format: str = FORMAT
    concepts: list[str]
    original: str
    judges: list[JudgeRecord]
    steps: Whole
    guidance: Number
    seeds: list[Whole]
    pictures: Whole
    """of each model"""
    attack: dict[str, Any] | None = None
    """its budget, as an attack's report has it"""
    device: str
    threads: Whole
    models: list[Compared]

    @property
    def columns(self) -> list[str]:
        """Titles of all rates, in the order in which they were found."""
        return list(dict.fromkeys(title for model in self.models for rates in model.rates.values() for title in rates))


def outside_of(backend: Backend) -> Mean | None:
    """The largest of the blocks' shares; None where no token was seen."""
    return max((block.distance for block in backend.outside.values()), key=lambda share: share.mean or 0.0, default=None)


def rates_of(backend: Backend, concept: str) -> dict[str, Rate]:
    """Column → rate of one concept on one model's pictures."""
    found: dict[str, Rate] = {}
    if concept in backend.concepts:
        found |= {TITLES[key]: getattr(backend.concepts[concept], key) for key in RATES}
    for judge, seen in backend.sightings.items():
        if concept in seen:
            found |= {f"{judge}: {key}": getattr(seen[concept], key) for key in SIGHTINGS}
    return found | {f"nothing seen by {judge}": rate for judge, rate in backend.nothing_seen.items()}
