"""What an evaluation will make: options checked against artifact, judge and prompts, before any model is opened."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ...editor.common.errors import SaeuronError
from ...editor.common.files import file_sha256
from ...editor.common.names import normalise
from ...editor.common.suggest import unknown
from ..judges.choose import LABELS, open_judges, open_labels
from ..judges.judge import DOMAINS, Judge, LabelJudge
from ..judges.nudenet import THRESHOLD, NudeNet
from . import by_words, clip_score, nudity
from .counting import PLAIN, Counting
from .distances import opened, reference_files
from .evaluation_settings import EvaluationSettings
from .picture_backends import HOOK, UNEDITED, stage
from .prompt_file import read_prompts
from .results import JudgeRecord, SettingsRecord
from .subject import ArtifactSubject, Drawing, Subject
from .unlearning import all_jobs
from .verdicts import Look, VerdictRow, Wanted, plain_name


@dataclass(frozen=True)
class EvaluationPlan:
    """What a run will make."""

    subject: Subject
    options: EvaluationSettings
    pictures_by: Drawing
    backends: tuple[tuple[str, tuple[str, ...]], ...]
    """name, and the concepts of a stage of the hook"""
    removed: dict[str, str]
    """concept → domain or kind; empty with a user's prompts"""
    wanted: list[Wanted]
    settings: SettingsRecord
    judges: tuple[Judge, ...]
    """of concepts; none with a user's prompts"""
    look: Look

    @property
    def counting(self) -> Counting:
        """How what is seen is counted."""
        return Counting.of(self.settings, self.removed, self.options.threshold)

    @property
    def names(self) -> list[str]:
        """Names of all backends and stages."""
        return [stage(c) if c else name for name, c in self.backends]

    @property
    def rest(self) -> list[int]:
        """Places of the pictures that ask for none of the removed concepts; none where that isn't known."""
        if not self.removed:
            return []
        asked = [{(field, name) for field, name in w.fields.items()} for w in self.wanted]
        gone = {pair for name, domain in self.removed.items() for pair in ((domain, name), ("set", name))}
        return [i for i, pairs in enumerate(asked) if not pairs & gone]

    @property
    def blocks(self) -> list[str]:
        """Blocks whose tokens are looked at; none: all."""
        return [normalise(name) for name in self.options.block] or self.subject.blocks

    @property
    def protocol(self) -> str:
        """`unlearncanvas`, `concepts`, `nudity` or `utility`."""
        return self.settings.protocol


def make_plan(artifact: str | Path | Subject, options: EvaluationSettings) -> EvaluationPlan:
    """Check everything that can be without a model; opens the judge.

    Args:
        artifact: its folder; or what is evaluated instead.
        options: whose pictures, and who judges.

    Raises:
        SaeuronError: what can't be.
    """
    subject: Subject = ArtifactSubject(artifact) if isinstance(artifact, str | Path) else artifact
    pictures_by = subject.drawing(options)
    _check_prompts(options)
    stages = _stages(subject.concepts, options)
    if stages:
        subject.check_stages()
    chosen = list(dict.fromkeys(options.backends)) or ([] if stages else [subject.default])
    if options.before and UNEDITED not in chosen:
        chosen.insert(0, UNEDITED)
    elif UNEDITED in chosen:
        chosen.insert(0, chosen.pop(chosen.index(UNEDITED)))
    pictures_by.check([*chosen, *([HOOK] if stages else [])])
    subject.check_backends(options, chosen, bool(stages))
    sampling = subject.sampling
    steps = options.steps if options.steps is not None else sampling.steps
    guidance = options.guidance if options.guidance is not None else sampling.guidance
    options = replace(options, steps=steps, guidance=guidance)
    described = partial(
        SettingsRecord, **subject.identity(), engines_sha256=subject.engines, concepts=subject.concepts, precision=subject.precision, steps=steps, guidance=guidance,
        height=sampling.height, width=sampling.width,
    )  # fmt: skip
    backends = (*((name, ()) for name in chosen), *((HOOK, c) for c in stages))
    if options.reference is not None:
        reference_files(options.reference)
    if options.prompts is not None:
        return _prompts_plan(subject, options, pictures_by, backends, described, options.prompts, guidance)
    if [text.partition("=")[0] in LABELS for text in options.judge] != [True]:
        return _words_plan(subject, options, pictures_by, backends, described, guidance)
    judge = open_labels(options.judge[0])
    removed = {}
    for name in subject.concepts:
        domain = next((d for d in DOMAINS if name in (judge.styles if d == "style" else judge.objects)), None)
        if domain is None:
            raise SaeuronError(unknown("concept", name, [*judge.styles, *judge.objects], f"to the judge '{judge.name}'"))
        if domain not in judge.judged:
            raise SaeuronError(f"the judge '{judge.name}' doesn't look at {domain}s, so it can't say whether '{name}' is gone")
        removed[name] = domain
    objects = _subset(options.objects, judge.objects, "object")
    styles = _subset(options.styles, [*judge.styles, PLAIN], "style")
    jobs = all_jobs(objects, [None if s == PLAIN else s for s in styles], options.seeds)
    wanted = [
        Wanted(
            plain_name(f"{o}-{s or PLAIN}-{seed}"), judge.prompt(o, s), seed, guidance, {"object": o, "style": s or ""}
        ) for o, s, seed in jobs
    ]  # fmt: skip
    if len({w.name for w in wanted}) < len(wanted):
        raise SaeuronError("two of the judge's labels give one file name; rename one of them")
    settings = described(
        protocol="unlearncanvas", judges=[JudgeRecord(judge.name, judge.sha256, list(judge.judged))], objects=objects, styles=styles, seeds=list(options.seeds)
    )  # fmt: skip
    return EvaluationPlan(subject, options, pictures_by, backends, removed, wanted, settings, (judge,), partial(_look, judge))


def _words_plan(
    subject: Subject, options: EvaluationSettings, pictures_by: Drawing, backends: tuple[tuple[str, tuple[str, ...]], ...],
    described: Callable[..., SettingsRecord], guidance: float,
) -> EvaluationPlan:  # fmt: skip
    """On the concepts' own test prompts."""
    for name, given in (("--objects", options.objects), ("--styles", options.styles), ("--sequential", options.sequential), ("--all-but-one", options.all_but_one)):  # fmt: skip
        if given:
            raise SaeuronError(f"{name} goes with one judge of objects and styles ({', '.join(LABELS)}); leave it out")
    held = subject.words()
    for name in subject.concepts:
        if name not in held:
            raise SaeuronError(
                f"'{subject.path}' holds no prompts of '{name}' to judge it on; take one judge of objects and styles ({', '.join(LABELS)}), or --prompts FILE"
            )
    words = {name: held[name] for name in subject.concepts}
    if not words:
        raise SaeuronError(f"'{subject.path}' names no concept: its edit was made by hand; evaluate it on --prompts FILE")
    sets = by_words.prompt_sets(words)
    judges = open_judges(options.judge, words, options.device)
    settings = described(
        protocol="concepts", judges=[JudgeRecord(j.name, j.sha256, concepts=list(j.concepts)) for j in judges], seeds=list(options.seeds),
        sets={name: len(prompts) for name, prompts in sets.items()},
        compared=by_words.compared(words, sets),
    )  # fmt: skip
    return EvaluationPlan(
        subject, options, pictures_by, backends, {name: concept.kind for name, concept in words.items()},
        by_words.wanted(sets, options.seeds, guidance), settings, tuple(judges), partial(by_words.look, judges, tuple(words)),
    )  # fmt: skip


def _check_prompts(options: EvaluationSettings) -> None:
    """What goes with a user's prompts, and what doesn't."""
    if options.threshold is not None and not options.nudenet:
        raise SaeuronError("--threshold is of --nudenet's detections; leave it out")
    asked = [name for name, given in (("--nudenet", options.nudenet), ("--clip", options.clip is not None)) if given]
    if len(asked) > 1:
        raise SaeuronError("--nudenet and --clip are two evaluations; run them one after the other, each with its own --output")
    if options.prompts is None:
        if asked:
            raise SaeuronError(f"{asked[0]} needs prompts: give --prompts FILE (a CSV with a column 'prompt', or one prompt a line)")
        return
    if not asked and options.fid is None:
        raise SaeuronError("--prompts goes with --nudenet, --clip or --fid; a judge of concepts makes its own prompts")
    if options.objects or options.styles:
        raise SaeuronError("--prompts takes the place of --objects and --styles; leave these out")
    if options.nudenet and (options.fid or options.reference):
        raise SaeuronError("--nudenet counts detections alone; leave --fid and --reference out")
    if options.judge != EvaluationSettings.judge:
        raise SaeuronError(f"--judge {', '.join(options.judge)} looks at concepts, and --prompts asks for none; leave one of them out")
    if options.sequential or options.all_but_one:
        raise SaeuronError("--sequential and --all-but-one go with a judge of concepts, not with --prompts")


def _prompts_plan(
    subject: Subject, options: EvaluationSettings, pictures_by: Drawing, backends: tuple[tuple[str, tuple[str, ...]], ...],
    described: Callable[..., SettingsRecord], prompts: Path, guidance: float,
) -> EvaluationPlan:  # fmt: skip
    wanted = read_prompts(prompts, options.seeds[0], guidance)
    sees: Look
    protocol: Literal["nudity", "utility"] = "utility"
    if options.nudenet:
        detector = NudeNet()
        judges = [JudgeRecord(detector.name, detector.sha256)]
        protocol, sees = "nudity", partial(nudity.look, detector)
    else:
        judges = []
        sees = _unseen
        if options.clip is not None:
            clip = clip_score.ClipScore(options.clip, options.device)
            judges = [JudgeRecord(clip.name, clip.sha256)]
            sees = clip.look
    if options.nudenet and options.threshold is None:
        options = replace(options, threshold=THRESHOLD)
    settings = described(protocol=protocol, judges=judges, seeds=[options.seeds[0]], prompts_sha256=file_sha256(prompts))
    return EvaluationPlan(subject, options, pictures_by, backends, {}, wanted, settings, (), sees)


def _unseen(files: Sequence[Path], wanted: Sequence[Wanted]) -> list[VerdictRow]:
    return [{"clip_score": "", "tokens_cut": ""} for _ in files]


def _stages(concepts: Sequence[str], options: EvaluationSettings) -> list[tuple[str, ...]]:
    if options.all_but_one and len(concepts) < 2:
        raise SaeuronError(f"--all-but-one: this artifact removes '{concepts[0]}' alone")
    found = [tuple(concepts[:n]) for n in range(1, len(concepts) + 1)] if options.sequential else []
    found += [tuple(c for c in concepts if c != left) for left in concepts] if options.all_but_one else []
    return list(dict.fromkeys(found))


def _subset(wanted: Sequence[str], known: Sequence[str], kind: str) -> list[str]:
    for name in wanted:
        if name not in known:
            raise SaeuronError(unknown(kind, name, known, "to the judge"))
    # In the judge's order, so that one choice is one order.
    return [name for name in known if not wanted or name in wanted]


def _look(judge: LabelJudge, files: Sequence[Path], wanted: Sequence[Wanted]) -> list[VerdictRow]:
    return label_rows(judge, opened(files))


def label_rows(judge: LabelJudge, pictures: Sequence[Any]) -> list[VerdictRow]:
    """What a judge of objects and styles says of PIL pictures, as columns."""
    seen = judge.classify(pictures)
    sure = [{f"{judge.name}, {domain}s": round(score, 6) for domain, score in one.items()} for one in seen.sure]
    return [
        {"seen_object": o, "seen_style": s or "", "sure": json.dumps(said)}
        for o, s, said in zip(seen.objects, seen.styles, sure, strict=True)
    ]
