"""Draws and judges pictures of candidates through the dynamic hook; everything is stored under a hash of all that it depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...editor.common.errors import SaeuronError
from ...editor.common.files import read_json
from ...editor.common.typed import Record, read_as, strict_json
from ...editor.common.writing import alone, whole_file
from ...editor.denoisers.families import network_of
from ...editor.denoisers.sampling import generate
from ...editor.edit.hook import AblationHook
from ...editor.features.activations import ConceptActivations
from ...editor.sae.sae import SparseAutoencoder
from ..evidence.distances import opened
from ..evidence.intervals import Mean
from ..evidence.sightings import removal
from ..judges.judge import Judge
from .candidates import Candidate
from .jobs import Job
from .results import Figures
from .settings import TuneSettings

METHOD = 1
"""part of the names of stored work"""


class Looked(Record):
    """What was seen on the pictures of one unit."""

    seen: dict[str, list[list[str]]]
    """judge → picture by picture, the concepts that it sees"""
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
    """

    def __init__(
        self, pipeline: Any, saes: Mapping[str, SparseAutoencoder], activations: Mapping[tuple[str, str], ConceptActivations], judges: Sequence[Judge],
        settings: TuneSettings, store: Path, identity: str,
    ) -> None:  # fmt: skip
        self.pipeline, self.saes, self.activations, self.judges = pipeline, dict(saes), dict(activations), list(judges)
        self.settings, self.store, self._identity = settings, store, identity
        self.drawn = 0
        """pictures drawn by this process"""
        self.looked = 0
        """pictures of candidates that were looked at, drawn or stored"""

    def edit(self, candidate: Candidate) -> Any:
        """The candidate's edit; raises `SaeuronError` as `make_edit` does."""
        held = {h: self.activations[candidate.concept, h] for h in candidate.hookpoints}
        return candidate.edit(held, self.settings.residual)

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
        elsewhere = [i for i, name in enumerate(asked) if name != concept]
        change = [after.change[i] for i in elsewhere]
        unlike = self._unlike([jobs[i] for i in elsewhere])
        return Figures(
            judges={
                j.name: removal(concept, asked, _sets(before.seen[j.name]), _sets(after.seen[j.name])) for j in self.judges if concept in j.concepts
            },
            change=Mean.of(change), likeness=1.0 if not unlike else max(0.0, 1 - float(np.mean(change)) / unlike), pictures=len(jobs),
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

    def _unlike(self, jobs: Sequence[Job]) -> float:
        """How far two unedited pictures of different prompts lie apart, in the mean; 0 with fewer than two pictures."""
        pictures = [_pixels(p) for p in opened(self.files(jobs))]
        pairs = [
            (a, b)
            for (a, x), (b, y) in zip(zip(pictures, jobs, strict=True), zip(pictures[1:], jobs[1:], strict=True), strict=False)
            if x.prompt != y.prompt
        ]
        return float(np.mean([np.abs(a - b).mean() for a, b in pairs])) if pairs else 0.0

    def _looked(self, candidate: Candidate | None, jobs: Sequence[Job], told: Callable[[int], None]) -> Looked:
        """Unit by unit: each is drawn by one process, the others take what it stored."""
        size = self.settings.batch_size
        edit = None if candidate is None else [self.edit(candidate).sha256(), {h: self.saes[h].sha256() for h in candidate.hookpoints}]
        found = Looked({j.name: [] for j in self.judges}, [])
        # A round ends with a whole unit, so the next one finds them all.
        for start in range(0, len(jobs), size):
            unit = jobs[start : start + size]
            held = self._unit(candidate, edit, unit)
            for name, seen in held.seen.items():
                found.seen[name] += seen
            found.change += held.change
            self.looked += 0 if candidate is None else len(unit)
            told(len(unit))
        return found

    def _unit(self, candidate: Candidate | None, edit: Any, unit: Sequence[Job]) -> Looked:
        judged = [[j.name, j.sha256] for j in self.judges]
        key = self._key([edit, [list(job) for job in unit], judged])
        path = self.store / f"{key}.json"
        if (held := self._stored(path, candidate, unit)) is not None:
            return held
        with alone(self.store / f"{key}.making"):
            # Another process may have made it meanwhile.
            if (held := self._stored(path, candidate, unit)) is not None:
                return held
            pictures = self.draw(candidate, unit)
            if candidate is None:
                self._keep_pictures(unit, pictures)
                change = [0.0] * len(unit)
            else:
                plain = opened([self._picture(job) for job in unit])
                change = [float(np.abs(_pixels(a) - _pixels(b)).mean()) for a, b in zip(pictures, plain, strict=True)]
            seen = {}
            for judge in self.judges:
                rows = judge.see(pictures).seen
                seen[judge.name] = [[c for c, hit in zip(judge.concepts, row, strict=True) if hit] for row in rows]
            made = Looked(seen, [round(c, 6) for c in change])
            with whole_file(path) as file:
                file.write_text(strict_json(made) + "\n")
            return made

    def _keep_pictures(self, unit: Sequence[Job], pictures: Sequence[Any]) -> None:
        for job, picture in zip(unit, pictures, strict=True):
            with whole_file(self._picture(job)) as file:
                picture.save(file, format="PNG")

    def _picture(self, job: Job) -> Path:
        return self.store.parent / "unedited" / f"{self._key(['picture', job.prompt, job.seed])}.png"

    def _stored(self, path: Path, candidate: Candidate | None, unit: Sequence[Job]) -> Looked | None:
        if not path.is_file() or (candidate is None and not all(self._picture(job).is_file() for job in unit)):
            return None
        try:
            held = read_as(Looked, read_json(path), path)
        except SaeuronError as error:
            raise SaeuronError(f"stored result is damaged: {error}; remove it to measure it again") from None
        if (
            len(held.change) != len(unit)
            or any(len(seen) != len(unit) for seen in held.seen.values())
            or set(held.seen) != {j.name for j in self.judges}
        ):
            raise SaeuronError(
                f"stored result is damaged: '{path}' is not of {len(unit)} pictures and these judges; remove it to measure it again"
            )
        return held

    def _key(self, what: list[Any]) -> str:
        s = self.settings
        everything = [METHOD, self._identity, s.steps, s.guidance, s.batch_size, *what]
        return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:24]


def _sets(seen: Sequence[Sequence[str]]) -> list[frozenset[str]]:
    return [frozenset(names) for names in seen]


def _pixels(picture: Any) -> np.ndarray:
    return np.asarray(picture.convert("RGB"), np.float32) / 255
