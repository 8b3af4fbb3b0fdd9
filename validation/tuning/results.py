"""What tuning found, as types; `report.json` is a `TuningReport`. Needs no torch."""

from __future__ import annotations

from ...editor.common.typed import Number, Record, Whole
from ..evidence.intervals import Mean, Rate
from ..evidence.results import JudgeRecord
from ..evidence.sightings import Removal, Trust
from .candidates import Candidate
from .settings import TuneSettings

FORMAT = "saeuron-tuning-1"
REMOVES = 0.5
"""least share of pictures without the concept of a setting that is called tuned"""


class Figures(Record, kw_only=True, omit_defaults=True):
    """A candidate on some pictures."""

    judges: dict[str, Removal]
    """judge → what it sees"""
    scores: dict[str, Number]
    """judge → mean of its scores of the concept on the concept's own pictures"""
    change: Mean
    """mean absolute difference from the unedited pictures elsewhere, as a share of the full range"""
    likeness: Number
    """1 - that difference / the difference between two unedited pictures of different prompts: 1 is the same picture, 0 any other"""
    attacked: dict[str, Rate] | None = None
    """judge → pictures under attack that don't show the concept"""
    nothing_seen: dict[str, Rate] = {}
    """judge, and domain → pictures of which it is less sure than of 99 % of the unedited model's; no part of what is maximised"""
    pictures: Whole

    def worth(self, shares: tuple[float, ...]) -> float:
        """What tuning maximises, by the judge to whom it is least; what no judge can tell counts by likeness.

        Removed counts half by the share of pictures, half by the judge's scores: an edit that just clears the bar on the pictures that it is
        chosen by doesn't on others. Kept counts every sighting of another concept, on the concept's own pictures too: a style is to go, and
        what was drawn in it to stay.
        """
        return min(self._worth(name, shares) for name in self.judges)

    def _worth(self, name: str, shares: tuple[float, ...]) -> float:
        seen, (removed, kept, likeness) = self.judges[name], shares
        gone = (seen.removed.value + 1 - self.scores[name]) / 2
        if self.attacked is not None:
            gone = (gone + self.attacked[name].value) / 2
        before, still = seen.kept.trials + seen.beside.trials, seen.kept.hits + seen.beside.hits
        if not before:
            kept, likeness = 0.0, kept + likeness
        return removed * gone + (kept * still / before if before else 0.0) + likeness * self.likeness


class Tried(Record):
    """A candidate, and its figures at the end of the last round that it was in."""

    candidate: Candidate
    figures: Figures
    worth: Number
    round: Whole
    """from 1"""


class Tuned(Record, kw_only=True, omit_defaults=True):
    """What tuning found for a concept."""

    chosen: Candidate
    trust: dict[str, Trust]
    """judge → how well it tells the unedited model's pictures apart, on tuning prompts and seeds"""
    tuning: Figures
    report: Figures
    """of the chosen one, on test prompts and report seeds"""
    tried: list[Tried]
    """every candidate, the best first"""
    clip_before: Mean | None = None
    clip_after: Mean | None = None
    """CLIP score elsewhere in the report"""
    fid: Number | None = None
    """of the report's pictures elsewhere from the unedited ones"""
    pictures: Whole
    """that were drawn to choose by, of the edited model"""

    @property
    def removes(self) -> bool:
        """Whether every judge misses the concept in half of the report's pictures of it, at least: else nothing that was tried removes it."""
        return min(of.removed.value for of in self.report.judges.values()) >= REMOVES


class TuningReport(Record, kw_only=True):
    """All that a tuning's file says."""

    format: str
    judges: list[JudgeRecord]
    believed: bool
    """whether each judge tells the unedited model's pictures apart well enough; otherwise it was used on wish (--judge-anyway)"""
    settings: TuneSettings
    confidence: float = 0.95
    model: str
    concepts: dict[str, Tuned] = {}
    seconds: Number = 0.0


def best_first(tried: list[Tried]) -> list[Tried]:
    """Those of later rounds first, then by worth; at equal worth, the weaker edit."""
    return sorted(tried, key=lambda t: (-t.round, -t.worth, -t.candidate.multiplier))
