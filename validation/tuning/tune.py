"""Tunes the edit of one concept: successive halving over candidates, then a report on other prompts and seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from ...editor.common.errors import SaeuronError
from ...editor.features.prompt_sets import ConceptPrompts
from ..evidence.distances import opened
from ..evidence.frechet import Inception, frechet
from ..evidence.intervals import Mean
from ..evidence.sightings import BALANCED, Trust, trust
from ..judges.embedder import Embedder
from .attacked import Attack
from .bench import Bench
from .candidates import ATTACKED, FINAL, Candidate, Round, rounds
from .jobs import Job, jobs
from .results import Figures, Tried, Tuned, best_first
from .settings import TuneSettings

Say = Callable[[str], None]
LEAST_MEASURED = 32
"""pictures, below which one error of a judge decides whether it is believed"""


class Task(NamedTuple):
    """A concept to tune, planned: nothing of it was drawn yet."""

    words: ConceptPrompts
    candidates: list[Candidate]
    tuning: list[Job]
    report: list[Job]
    rounds: list[Round]

    @property
    def looks(self) -> int:
        """Pictures of candidates that are looked at."""
        return sum(r.candidates * r.pictures for r in self.rounds) + len(self.report)

    @property
    def pictures(self) -> dict[str, int]:
        """How many are drawn at most: of the unedited model, to choose by, and for the report."""
        last, chosen = 0, 0
        for r in self.rounds:
            chosen, last = chosen + r.candidates * (r.pictures - last), r.pictures
        return {"unedited": max(last, self.measured) + len(self.report), "choosing": chosen, "report": len(self.report)}

    @property
    def measured(self) -> int:
        """Pictures of the unedited model that the judges are measured on: those that are chosen by, but no fewer than `LEAST_MEASURED`."""
        return min(len(self.tuning), max(LEAST_MEASURED, self.rounds[-1].pictures))


def make_task(words: ConceptPrompts, candidates: Sequence[Candidate], settings: TuneSettings, before: Candidate | None = None) -> Task:
    """Plan a concept's tuning; opens nothing.

    Args:
        words: the concept's prompts.
        candidates: what is tried.
        settings: seeds, budget, pictures at a time.
        before: the setting that there is; it takes part.

    Raises:
        SaeuronError: no prompts to judge on, or too small a budget.
    """
    s = settings
    tried = list(dict.fromkeys([*([before] if before else []), *candidates]))
    tuning, report = jobs(words, s.tune_seeds, False), jobs(words, s.report_seeds, True)
    return Task(words, tried, tuning, report, rounds(len(tried), len(tuning), s.budget, s.batch_size, ATTACKED if s.attack else FINAL))


class Scorers(NamedTuple):
    """What measures the report's pictures elsewhere, where it is wished for."""

    clip: Embedder | None = None
    inception: Inception | None = None

    @classmethod
    def of(cls, settings: TuneSettings, device: str) -> Scorers:
        """Open them; raises `SaeuronError` for files that can't be read."""
        clip, fid = settings.clip, settings.fid
        return cls(None if clip is None else Embedder(clip, device), None if fid is None else Inception(fid))


_NONE = Scorers()


def believe(bench: Bench, tasks: Sequence[Task], say: Say = lambda text: None) -> tuple[dict[str, dict[str, Trust]], bool]:
    """Measure the judges on the unedited model's pictures, before any candidate is drawn.

    Returns:
        concept → judge → trust, and whether all can be believed.

    Raises:
        SaeuronError: a judge whose balanced accuracy is below `BALANCED`, unless it is wanted anyway.
    """
    found: dict[str, dict[str, Trust]] = {}
    doubts = []
    for task in tasks:
        name = task.words.name
        listed = task.tuning[: task.measured]
        done = _Counter(say, f"{name}: measuring the judges on the unedited model", len(listed))
        seen = bench.unedited(listed, done)
        asked = [job.asked for job in listed]
        found[name] = {j.name: trust(name, asked, [frozenset(s) for s in seen.seen[j.name]]) for j in bench.judges if name in j.concepts}
        doubts += [(name, judge, t) for judge, t in found[name].items() if t.balanced is None or t.balanced < BALANCED]
    if doubts and not bench.settings.judge_anyway:
        name, judge, t = doubts[0]
        share = "nothing" if t.balanced is None else f"{t.balanced:.0%} (95 % interval {t.low:.0%} to {t.high:.0%})"
        raise SaeuronError(
            f"the judge '{judge}' tells {share} of the unedited model's pictures of '{name}' from those without it "
            f"(seen on {t.shown.hits} of {t.shown.trials}, absent on {t.absent.hits} of {t.absent.trials}); below {BALANCED:.0%} its figures say little: take another judge or other prompts, or --judge-anyway"
        )
    return found, not doubts


def tune(
    bench: Bench, task: Task, trusted: Mapping[str, Trust], attacked: Attack | None = None, scorers: Scorers = _NONE, say: Say = lambda text: None
) -> Tuned:  # fmt: skip
    """Choose among a task's candidates, and measure the chosen one on test prompts and report seeds.

    Args:
        bench: what measures.
        task: see `make_task`.
        trusted: of the concept, see `believe`.
        attacked: see `attacker`; None: no attack.
        scorers: CLIP and FID for the report.
        say: told what goes on.
    """
    s, name, drawn = bench.settings, task.words.name, bench.drawn
    tried: dict[Candidate, Tried] = {}
    left = list(task.candidates)
    for number, one in enumerate(task.rounds, 1):
        left = [t.candidate for t in best_first([tried[c] for c in left])][: one.candidates] if tried else left
        listed = task.tuning[: one.pictures]
        for place, candidate in enumerate(left, 1):
            say(f"{name}: round {number} of {len(task.rounds)}, candidate {place} of {len(left)}{_best(tried)}")
            figures = bench.figures(candidate, listed)
            tried[candidate] = Tried(candidate, figures, figures.worth(s.shares), number)
    order = best_first(list(tried.values()))
    if attacked is not None:
        for place, t in enumerate(order[:ATTACKED], 1):
            say(f"{name}: attacking candidate {place} of {min(ATTACKED, len(order))}")
            figures = replace(t.figures, attacked=attacked(t.candidate, False))
            tried[t.candidate] = Tried(t.candidate, figures, figures.worth(s.shares), len(task.rounds) + 1)
        order = best_first(list(tried.values()))
    chosen = order[0]
    say(f"{name}: measuring {chosen.candidate} on the test prompts")
    report = _reported(bench, task, chosen.candidate, say)
    if attacked is not None:
        say(f"{name}: attacking {chosen.candidate} on the test prompts")
        report = replace(report, attacked=attacked(chosen.candidate, True))
    found = Tuned(
        chosen=chosen.candidate, trust=dict(trusted), tuning=chosen.figures, report=report, tried=order, pictures=task.pictures["choosing"],
    )  # fmt: skip
    if any(scorers):
        say(f"{name}: CLIP score and FID elsewhere")
        _elsewhere(bench, task, found, scorers)
    say(f"{name}: {bench.drawn - drawn} pictures drawn")
    return found


def _reported(bench: Bench, task: Task, candidate: Candidate, say: Say) -> Figures:
    done = _Counter(say, f"{task.words.name}: report", 2 * len(task.report))
    bench.unedited(task.report, done)
    return bench.figures(candidate, task.report, done)


def _elsewhere(bench: Bench, task: Task, found: Tuned, scorers: Scorers) -> None:
    """CLIP score and FID of the report's pictures without the concept."""
    rest = [job for job in task.report if job.asked != task.words.name]
    before, after = opened(bench.files(rest)), bench.draw(found.chosen, rest)
    if scorers.clip is not None:
        texts = scorers.clip.texts([job.prompt for job in rest])
        scores = [(100 * (scorers.clip.pictures(made) * texts).sum(1)).tolist() for made in (before, after)]
        found.clip_before, found.clip_after = Mean.of(scores[0]), Mean.of(scores[1])
    if scorers.inception is not None:
        found.fid = frechet(scorers.inception.features(before), scorers.inception.features(after))


def _best(tried: Mapping[Candidate, Tried]) -> str:
    if not tried:
        return ""
    first = best_first(list(tried.values()))[0]
    removed = min(r.removed.value for r in first.figures.judges.values())
    return f"; best so far {first.candidate}: removed {removed:.0%}"


class _Counter:
    """Tells how many pictures of a list are done."""

    def __init__(self, say: Say, what: str, total: int) -> None:
        self._say, self._what, self._total, self._done = say, what, total, 0

    def __call__(self, pictures: int) -> None:
        self._done += pictures
        self._say(f"{self._what}: {self._done} of {self._total} pictures")
