"""What a comparison will do: models opened and checked against one another, before anything is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...editor.common.errors import SaeuronError
from ..artifact import manifest
from ..attack import run as attacking
from ..attack.attack import plan as budgets
from ..evidence.evaluate import make_plan as evaluation_plan
from ..evidence.evaluation_plan import EvaluationPlan
from ..evidence.picture_backends import UNEDITED
from ..evidence.pipeline_subject import PipelineSettings, PipelineSubject
from ..evidence.subject import ArtifactSubject, Subject
from ..evidence.verdicts import plain_name, stored
from ..judges.choose import LABELS
from .settings import CompareSettings


@dataclass(frozen=True)
class Entry:
    """One model, with what it will be asked."""

    name: str
    kind: str
    subject: Subject
    evaluation: EvaluationPlan
    attack: attacking.AttackPlan | None

    @property
    def backend(self) -> str:
        """Whose pictures are its own."""
        return self.subject.default

    def folder(self, output: Path) -> Path:
        """Of its evaluation."""
        return output / plain_name(self.name)

    def report(self, output: Path) -> Path:
        """File of its attack."""
        return output / f"{plain_name(self.name)}-attack.json"


@dataclass(frozen=True)
class ComparisonPlan:
    """What a run will do."""

    settings: CompareSettings
    entries: list[Entry]
    original: PipelineSubject
    steps: int
    guidance: float

    def describe(self, output: Path) -> dict[str, Any]:
        """Counts of pictures and forwards, and what is there already."""
        found: dict[str, Any] = {}
        for entry in self.entries:
            plan, held = entry.evaluation, stored(entry.folder(output), entry.evaluation.counting.columns)
            count, done = len(plan.wanted) * len(plan.names), len({file for backend, file in held if backend in plan.names})
            found[entry.name] = {"kind": entry.kind, "pictures": count, "done": done}
            if entry.attack is not None:
                rows = budgets(entry.attack.cases, entry.attack.settings, entry.attack.attacks)
                total = {k: sum(row[k] for of in rows.values() for row in of.values()) for k in ("pictures", "forwards", "gradients")}
                found[entry.name]["attack"] = {**total, "done": attacking.finished(entry.attack, entry.report(output)) is not None}
        return {"steps": self.steps, "guidance": self.guidance, "original": self.original.record.original, "models": found}


def make_plan(models: Sequence[str], settings: CompareSettings) -> ComparisonPlan:
    """Check everything that can be, for all models, before anything is drawn.

    Args:
        models: each an artifact's folder, a pipeline's folder or Hub id, or a file of UNet weights; before it perhaps `NAME=`.
        settings: concepts, prompts, seeds, judges and attacks.

    Raises:
        SaeuronError: a model that can't be compared with the others, two of one name; what an evaluation or an attack refuses.
    """
    if not models:
        raise SaeuronError("no model is named; give artifacts, pipelines and files of UNet weights")
    named = [_named(text) for text in models]
    artifacts = {text: ArtifactSubject(source) for text, (_, source) in zip(models, named, strict=True) if _is_artifact(source)}
    concepts = _concepts(settings, artifacts)
    s = replace(settings, concepts=concepts)
    model = s.model or next((a.record.model.source for a in artifacts.values()), None)
    words: dict[str, Any] = {"concepts": concepts, "kind": s.kind, "instead": s.instead}
    first = PipelineSubject(PipelineSettings(pipeline=model or "", **words), model, name=UNEDITED) if model else None
    subjects: dict[str, tuple[str, Subject]] = {}
    for text, (name, source) in zip(models, named, strict=True):
        subject: Subject
        if text in artifacts:
            kind, subject = "artifact", artifacts[text]
        elif Path(source).is_file():
            kind, subject = "weights", PipelineSubject(PipelineSettings(unet=Path(source), **words), model, name=name)
        else:
            kind, subject = "pipeline", PipelineSubject(PipelineSettings(pipeline=source, **words), model, name=name)
        called = name or subject.name
        if called == UNEDITED or plain_name(called) in {plain_name(n) for n in subjects}:
            taken = "is what the original is called" if called == UNEDITED else "is the name of two models"
            raise SaeuronError(f"'{called}' {taken}; give another one: NAME={source}")
        subjects[called] = kind, subject
    if first is None:
        held = next(of for _, of in subjects.values() if isinstance(of, PipelineSubject))
        first = PipelineSubject(PipelineSettings(pipeline=held.original or "", **words), held.original, name=UNEDITED)
    _check_sizes(subjects)
    sampling = next(iter(subjects.values()))[1].sampling
    steps = s.steps if s.steps is not None else sampling.steps
    guidance = s.guidance if s.guidance is not None else sampling.guidance
    # A judge of words compares pictures with the unedited model's one by one; else these are drawn once, for all.
    before = [text.partition("=")[0] in LABELS for text in s.judge] != [True]
    wanted = s.evaluation(steps, guidance, before)
    alone_ = {} if before else {UNEDITED: (UNEDITED, first)}
    entries = []
    for name, (kind, subject) in {**alone_, **subjects}.items():
        options = replace(wanted, model=first.original) if before and kind == "artifact" else wanted
        plan = None
        if s.attack and kind != UNEDITED:
            plan = attacking.make_plan(subject, s.attacked(steps, guidance, first.original if kind == "artifact" else None))
        entries.append(Entry(name, kind, subject, evaluation_plan(subject, options), plan))
    _check_same(entries)
    return ComparisonPlan(s, entries, first, steps, guidance)


def _named(text: str) -> tuple[str | None, str]:
    """`NAME=SOURCE` or `SOURCE`; a path that is there may hold a `=` itself."""
    name, equals, source = text.partition("=")
    return (name, source) if equals and name and source and not Path(text).exists() else (None, text)


def _is_artifact(source: str) -> bool:
    return (Path(source) / manifest.NAME).is_file()


def _concepts(settings: CompareSettings, artifacts: dict[str, ArtifactSubject]) -> tuple[str, ...]:
    """What every model was edited for: the same for all, or the pictures that ask for nothing removed would be others for each."""
    wanted = settings.concepts or next((tuple(a.concepts) for a in artifacts.values()), ())
    if not wanted:
        raise SaeuronError("pipelines don't say what was removed from them; name it: --concepts A,B")
    for text, artifact in artifacts.items():
        if set(artifact.concepts) != set(wanted):
            raise SaeuronError(
                f"'{text}' removes {', '.join(artifact.concepts) or 'nothing that has a name'}, and what is compared are edits of {', '.join(wanted)}; give edits of the same concepts"
            )
    return tuple(dict.fromkeys(wanted))


def _check_sizes(subjects: dict[str, tuple[str, Subject]]) -> None:
    sizes = {(of.sampling.height, of.sampling.width) for _, of in subjects.values()}
    if len(sizes) > 1:
        raise SaeuronError(f"the models make pictures of different sizes ({', '.join(map(str, sizes))}); export them for one size")


def _check_same(entries: Sequence[Entry]) -> None:
    """Raise `SaeuronError` unless all models are asked for the same pictures, and attacked on the same prompts."""
    for entry in entries:
        if sorted((w.prompt, w.seed) for w in entry.evaluation.wanted) != sorted((w.prompt, w.seed) for w in entries[0].evaluation.wanted):
            raise SaeuronError(
                f"'{entry.name}' would be asked for other pictures than '{entries[0].name}': they hold other prompts of the concepts; take one judge of objects and styles ({', '.join(LABELS)}), or export them with the same presets"
            )
    cases = [(e.name, sorted((c.concept, c.tuning, c.reporting) for c in e.attack.cases)) for e in entries if e.attack]
    for name, asked in cases:
        if asked != cases[0][1]:
            raise SaeuronError(f"'{name}' would be attacked on other prompts than '{cases[0][0]}'; export them with the same presets")
