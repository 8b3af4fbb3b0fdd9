"""Draws and judges pictures of candidates through the dynamic hook, and stores what was seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...editor.common.errors import SaeuronError
from ...editor.common.typed import Record
from ...editor.common.writing import whole_file
from ...editor.denoisers.families import network_of
from ...editor.denoisers.sampling import generate
from ...editor.edit.edit import Edit
from ...editor.edit.hook import AblationHook
from ...editor.edit.probe import ConceptRows
from ...editor.edit.weights import WeightEdit
from ...editor.features.activations import ConceptActivations
from ...editor.sae.sae import SparseAutoencoder
from ..evidence.distances import opened
from ..evidence.intervals import Mean
from ..evidence.sightings import removal
from ..evidence.smears import unsure
from ..judges.judge import Judge, named_scores
from .candidates import Candidate
from .jobs import Job
from .results import Figures
from .settings import TuneSettings
from .store import Store

METHOD = 3
"""part of the names of stored work"""


class Looked(Record):
    """What was seen on the pictures of one unit."""

    seen: dict[str, list[list[str]]]
    """judge → picture by picture, the concepts that it sees"""
    scores: dict[str, list[float]]
    """judge → picture by picture, its score of the candidate's concept; 0 for the unedited model, and for a judge that can't see it"""
    sure: dict[str, list[float]]
    """judge, and domain → picture by picture, the score of the likeliest of all names; none of a judge that names nothing"""
    change: list[float]
    """picture by picture: mean absolute difference from the unedited one, as a share of the full range"""


class Bench:
    """Measures candidates of any concept.

    Args:
        pipeline: the unedited pipeline in float32.
        saes: hookpoint → SAE.
        activations: (concept, hookpoint) → activations.
        judges: who looks.
        settings: what all pictures have in common.
        store: folder of stored results; several processes may share it.
        identity: hash of the model's files.
        weights: concept → what becomes of its words, where that is tried.
        rows: (concept, hookpoint) → rows of `probe` that are there already.
    """

    def __init__(
        self, pipeline: Any, saes: Mapping[str, SparseAutoencoder], activations: Mapping[tuple[str, str], ConceptActivations], judges: Sequence[Judge],
        settings: TuneSettings, store: Path, identity: str, weights: Mapping[str, WeightEdit] | None = None,
        rows: Mapping[tuple[str, str], ConceptRows] | None = None,
    ) -> None:  # fmt: skip
        self.pipeline, self.saes, self.activations, self.judges = pipeline, dict(saes), dict(activations), list(judges)
        self.settings, self.weights, self.rows = settings, dict(weights or {}), dict(rows or {})
        s, judged = settings, [[j.name, j.sha256] for j in judges]
        self.store = Store(store, [METHOD, identity, s.steps, s.guidance, s.batch_size, judged])
        self.drawn = 0
        """pictures drawn by this process"""
        self.looked = 0
        """pictures of candidates that were looked at, drawn or stored"""
        self._edits: dict[Candidate, Edit] = {}
        self._unlikes: dict[tuple[Job, ...], float] = {}

    def edit(self, candidate: Candidate) -> Edit:
        """The candidate's edit.

        Raises:
            SaeuronError: no activations of the concept at a hookpoint, or as `make_edit`.
        """
        if candidate not in self._edits:
            for hookpoint in candidate.hookpoints:
                if (candidate.concept, hookpoint) not in self.activations | self.rows:
                    raise SaeuronError(
                        f"concept '{candidate.concept}': no activations of it at '{hookpoint}'; give --activations, or other --hookpoint"
                    )
            weights = self.weights.get(candidate.concept)
            self._edits[candidate] = candidate.edit(self.activations, self.settings.residual, weights, self.rows)
        return self._edits[candidate]

    def named(self, candidate: Candidate | None) -> Any:
        """What a candidate's pictures depend on beside prompts and seeds, for the names of stored work; of the unedited model: None."""
        return candidate and [self.edit(candidate).sha256(), {h: s.sha256() for h, s in self.edit(candidate).saes(self.saes).items()}]

    def unedited(self, jobs: Sequence[Job], told: Callable[[int], None] = lambda n: None) -> Looked:
        """What is seen on the unedited model's pictures; these are kept, for comparisons."""
        return self._looked(None, jobs, told)

    def look(self, candidate: Candidate, jobs: Sequence[Job], told: Callable[[int], None] = lambda n: None) -> Looked:
        """What is seen on a candidate's pictures."""
        return self._looked(candidate, jobs, told)

    def figures(self, candidate: Candidate, jobs: Sequence[Job], told: Callable[[int], None] = lambda n: None) -> Figures:
        """A candidate's figures on these pictures."""
        before, after = self.unedited(jobs), self.look(candidate, jobs, told)
        return self.figures_of(candidate.concept, jobs, before, after)

    def figures_of(self, concept: str, jobs: Sequence[Job], before: Looked, after: Looked) -> Figures:
        """Figures of pictures that were looked at."""
        asked = [job.asked for job in jobs]
        own, elsewhere = ([i for i, name in enumerate(asked) if (name == concept) is wanted] for wanted in (True, False))
        judges = [j for j in self.judges if concept in j.concepts]
        change = [after.change[i] for i in elsewhere]
        unlike, changed = self._unlike(tuple(jobs[i] for i in elsewhere)), float(np.mean(change))
        return Figures(
            judges={j.name: removal(concept, asked, _sets(before.seen[j.name]), _sets(after.seen[j.name])) for j in judges},
            scores={j.name: float(np.mean([after.scores[j.name][i] for i in own])) if own else 0.0 for j in judges},
            change=Mean.of(change), likeness=max(0.0, 1 - changed / unlike) if unlike else float(not changed), pictures=len(jobs),
            nothing_seen=unsure(before.sure, after.sure),
        )  # fmt: skip

    def files(self, jobs: Sequence[Job]) -> list[Path]:
        """The unedited model's pictures, once they were drawn."""
        return [self._picture(job) for job in jobs]

    @torch.no_grad()
    def draw(self, candidate: Candidate | None, jobs: Sequence[Job]) -> list[Any]:
        """PIL pictures of a candidate, or of the unedited model."""
        s, network = self.settings, network_of(self.pipeline)
        with nullcontext() if candidate is None else AblationHook(network, self.edit(candidate), self.saes):
            made = generate(self.pipeline, [j.prompt for j in jobs], [j.seed for j in jobs], s.steps, s.guidance, batch_size=s.batch_size)
        self.drawn += len(jobs)
        return list(made)

    def _unlike(self, jobs: tuple[Job, ...]) -> float:
        """How far two unedited pictures of different prompts lie apart, in the mean; 0 where there are none. The same for every candidate."""
        if jobs in self._unlikes:
            return self._unlikes[jobs]
        pictures = [_pixels(p) for p in opened(self.files(jobs))]
        pairs = [
            (a, b)
            for (a, x), (b, y) in zip(zip(pictures, jobs, strict=True), zip(pictures[1:], jobs[1:], strict=True), strict=False)
            if x.prompt != y.prompt
        ]
        self._unlikes[jobs] = float(np.mean([np.abs(a - b).mean() for a, b in pairs])) if pairs else 0.0
        return self._unlikes[jobs]

    def _looked(self, candidate: Candidate | None, jobs: Sequence[Job], told: Callable[[int], None]) -> Looked:
        """Unit by unit: each is drawn by one process, the others take what it stored."""
        size = self.settings.batch_size
        found = Looked({j.name: [] for j in self.judges}, {j.name: [] for j in self.judges}, {}, [])
        # A round ends with a whole unit, so the next one finds them all.
        for start in range(0, len(jobs), size):
            unit = jobs[start : start + size]
            held = self._unit(candidate, unit)
            for name, seen in held.seen.items():
                found.seen[name] += seen
                found.scores[name] += held.scores[name]
            for name, values in held.sure.items():
                found.sure.setdefault(name, []).extend(values)
            found.change += held.change
            self.looked += 0 if candidate is None else len(unit)
            told(len(unit))
        return found

    def _unit(self, candidate: Candidate | None, unit: Sequence[Job]) -> Looked:
        def make() -> Looked:
            pictures = self.draw(candidate, unit)
            if candidate is None:
                self._keep_pictures(unit, pictures)
                change = [0.0] * len(unit)
            else:
                plain = opened(self.files(unit))
                change = [round(float(np.abs(_pixels(a) - _pixels(b)).mean()), 6) for a, b in zip(pictures, plain, strict=True)]
            seen, scores, sure = {}, {}, {}
            for judge in self.judges:
                found = judge.see(pictures)
                seen[judge.name] = [[c for c, hit in zip(judge.concepts, row, strict=True) if hit] for row in found.seen]
                known = candidate is not None and candidate.concept in judge.concepts
                column = found.scores[:, judge.concepts.index(candidate.concept)] if candidate and known else np.zeros(len(unit))
                scores[judge.name] = [round(float(score), 4) for score in column]
                for name, values in named_scores(judge, found).items():
                    sure[name] = [round(float(value), 6) for value in values]
            return Looked(seen, scores, sure, change)

        def whole(held: Looked) -> bool:
            sizes = {len(held.change), *(len(of) for each in (held.seen, held.scores, held.sure) for of in each.values())}
            return sizes == {len(unit)} and set(held.seen) == set(held.scores) == {j.name for j in self.judges}

        def there() -> bool:
            return candidate is not None or all(file.is_file() for file in self.files(unit))

        return self.store.take([self.named(candidate), [list(job) for job in unit]], Looked, make, whole, there)

    def _keep_pictures(self, unit: Sequence[Job], pictures: Sequence[Any]) -> None:
        for job, picture in zip(unit, pictures, strict=True):
            with whole_file(self._picture(job)) as file:
                picture.save(file, format="PNG")

    def _picture(self, job: Job) -> Path:
        return self.store.folder.parent / "unedited" / f"{self.store.key([job.prompt, job.seed])}.png"


def _sets(seen: Sequence[Sequence[str]]) -> list[frozenset[str]]:
    return [frozenset(names) for names in seen]


def _pixels(picture: Any) -> np.ndarray:
    return np.asarray(picture.convert("RGB"), np.float32) / 255
