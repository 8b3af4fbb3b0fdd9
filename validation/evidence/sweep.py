"""Tries settings on one set of seeds, reports the best on another: rule × value × multiplier (and hookpoints), per concept.

Every measurement is stored under a hash of all that it depends on, so a killed sweep goes on, and a finer grid reuses what a
coarser one measured. The released code picks the best by (UA + IRA)/2; any weighting of UA, IRA and CRA can be given.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from msgspec import Struct

from ...editor.common.errors import SaeuronError
from ...editor.common.files import read_json
from ...editor.common.typed import Record, Whole, read_as, strict_json
from ...editor.common.writing import whole_file
from ...editor.denoisers.families import network_of
from ...editor.denoisers.sampling import generate
from ...editor.edit.edit import Edit, Suppression, make_edit
from ...editor.edit.hook import AblationHook
from ...editor.features.activations import ConceptActivations
from ...editor.features.rule import Rule
from ...editor.sae.sae import SparseAutoencoder
from .judges import Judge, look
from .sweep_settings import SweepSettings
from .unlearning import DOMAINS, Job, Picture, Unlearning, accuracy, all_jobs, unlearning

T = TypeVar("T")


class Trial(Struct, frozen=True):
    """One setting of one concept."""

    concept: str
    domain: str
    """`style` or `object`: which of the judge's two answers the concept is among"""
    hookpoints: tuple[str, ...]
    select: str
    multiplier: float


class Score(Record):
    """A trial and its figures."""

    trial: Trial
    figures: Unlearning
    pictures: Whole


class Swept(Trial, frozen=True):
    """What a sweep found best for a concept."""

    tuning: Unlearning
    report: Unlearning
    """on the tuning and on the report seeds"""
    pictures: int
    """in the report"""
    trials: int
    measured: int
    """trials measured, not read from the store"""


class SweepReport(Record, kw_only=True):
    """`report.json` of a sweep."""

    unedited: dict[str, float]
    """domain → accuracy of the judge on the unedited model's pictures"""
    judge: str
    settings: SweepSettings
    counting: str = "every picture counts once, plain ones included"
    concepts: dict[str, Swept]


class Sweep:
    """Measures trials through the dynamic hook.

    Args:
        pipeline: the unedited pipeline.
        saes: hookpoint → SAE.
        activations: (domain, hookpoint) → activations.
        judge: who looks at the pictures.
        settings: what is common.
        store: folder of stored results.
        identity: hash of the model's files; results of another model are never reused.

    Raises:
        SaeuronError: a seed both for tuning and for the report.
    """

    def __init__(
        self, pipeline: Any, saes: Mapping[str, SparseAutoencoder], activations: Mapping[tuple[str, str], ConceptActivations], judge: Judge,
        settings: SweepSettings, store: Path, identity: str,
    ) -> None:  # fmt: skip
        self.pipeline, self.saes, self.activations, self.judge = pipeline, dict(saes), dict(activations), judge
        self.settings, self.store = settings, store
        self._identity = identity
        self.measured = 0
        """trials measured, not read from the store"""

    def tuning_jobs(self, trial: Trial) -> list[Job]:
        """The target's pictures with every tuning seed, and a share of the others with the first."""
        pairs = [(o, s) for o in self.judge.objects for s in (*self.judge.styles, None)]
        wanted = [(o, s, seed) for o, s in pairs if trial.concept in (o, s) for seed in self.settings.tune_seeds]
        stride = max(1, round(1 / self.settings.rest))
        # Along diagonals, so that every object and every style is among them.
        rest = [
            (o, s, self.settings.tune_seeds[0])
            for i, o in enumerate(self.judge.objects)
            for j, s in enumerate((*self.judge.styles, None))
            if (i + j) % stride == 0 and trial.concept not in (o, s)
        ]
        return wanted + rest

    def report_jobs(self) -> list[Job]:
        """Every object in every style and plain, with every report seed."""
        return all_jobs(self.judge.objects, (*self.judge.styles, None), self.settings.report_seeds)

    def edit(self, trial: Trial) -> Edit:
        """The trial's edit."""
        wishes = [Suppression(trial.concept, h, Rule.parse(trial.select), trial.multiplier) for h in trial.hookpoints]
        return make_edit(wishes, {(trial.concept, h): self.activations[trial.domain, h] for h in trial.hookpoints}, self.settings.residual)

    def check(self, trials: Iterable[Trial]) -> None:
        """Raise for a trial that can't be made or judged; draws nothing.

        Raises:
            SaeuronError: the names of its pictures alone leave none that IRA or CRA could be read from; or see `make_edit`.
        """
        for trial in trials:
            self.edit(trial)
            # As if the judge saw everything as asked: which figures there are depends on the names alone.
            asked = [Picture(o, s, o, s) for o, s, _ in self.tuning_jobs(trial)]
            if math.isnan(self.worth(unlearning(asked, trial.concept, trial.domain))):
                raise SaeuronError(
                    f"{trial.concept}: a share of {self.settings.rest:g} of the other pictures leaves none that IRA or CRA can be read from; raise --rest"
                )

    def measure(self, trial: Trial, jobs: Sequence[Job]) -> Score:
        """One trial's figures, from the store if they are there."""
        edit = self.edit(trial)
        saes = {h: self.saes[h].sha256() for h in trial.hookpoints}
        key = self._key([edit.sha256(), saes, jobs])
        found = self._stored(key, Score)
        if found is None:
            with AblationHook(network_of(self.pipeline), edit, self.saes):
                pictures = self._pictures(jobs)
            found = Score(trial, unlearning(pictures, trial.concept, trial.domain), len(pictures))
            self._keep(key, found)
            self.measured += 1
        # Another trial may have given the same edit.
        return Score(trial, found.figures, found.pictures)

    def unedited(self, progress: Callable[[int, int], None] = lambda done, total: None) -> dict[str, float]:
        """Accuracy of the judge on the unedited model's pictures, by domain: the ceiling of IRA and CRA."""
        jobs = self.report_jobs()
        key = self._key(["unedited", jobs])
        found = self._stored(key, dict[str, float])
        if found is None:
            pictures = self._pictures(jobs, progress)
            found = {domain: accuracy(pictures, domain) for domain in DOMAINS}
            self._keep(key, found)
        return found

    def worth(self, figures: Unlearning) -> float:
        """What a sweep maximises; at equal worth, the target's own pictures' other domain decides."""
        a, b, c = self.settings.weights
        return a * figures.ua + b * figures.ira + c * figures.cra + 1e-3 * figures.cra_target

    def best(self, trials: Iterable[Trial], progress: Callable[[Score], None] = lambda score: None) -> tuple[Score, list[Score]]:
        """Measure every trial on the tuning seeds; the best and all of them. Trials that choose no feature are left out."""
        trials = list(trials)
        self.check(trials)
        scores = []
        for trial in trials:
            score = self.measure(trial, self.tuning_jobs(trial))
            progress(score)
            scores.append(score)
        return max(scores, key=lambda s: self.worth(s.figures)), scores

    def report(self, trial: Trial) -> Score:
        """A chosen trial on the report seeds."""
        return self.measure(trial, self.report_jobs())

    def _pictures(self, jobs: Sequence[Job], progress: Callable[[int, int], None] = lambda done, total: None) -> list[Picture]:
        s = self.settings
        found = []
        for start in range(0, len(jobs), s.batch_size):
            progress(start, len(jobs))
            part = jobs[start : start + s.batch_size]
            texts = [self.judge.prompt(o, style) for o, style, _ in part]
            made = generate(self.pipeline, texts, [seed for _, _, seed in part], s.steps, s.guidance, batch_size=s.batch_size)
            found += look(self.judge, part, list(made))
        return found

    def _key(self, what: list[Any]) -> str:
        s = self.settings
        everything = [self._identity, self.judge.name, self.judge.sha256, s.steps, s.guidance, s.batch_size, *what]
        return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:24]

    def _stored(self, key: str, kind: type[T]) -> T | None:
        path = self.store / f"{key}.json"
        if not path.is_file():
            return None
        try:
            return read_as(kind, read_json(path), path, strict=False)
        except SaeuronError as error:
            raise SaeuronError(f"stored result is damaged: {error}; remove it to measure it again") from None

    def _keep(self, key: str, found: Any) -> None:
        with whole_file(self.store / f"{key}.json") as made:
            made.write_text(strict_json(found) + "\n")


def grid(
    concept: str, domain: str, hookpoints: Sequence[tuple[str, ...]], selects: Sequence[str], multipliers: Sequence[float]
) -> list[Trial]:
    """Every combination, in a fixed order."""
    return [Trial(concept, domain, h, select, m) for h in hookpoints for select in selects for m in multipliers]
