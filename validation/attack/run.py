"""Attacks the concepts of an artifact or of any other edited pipeline: opens what is needed, goes on where it was stopped, and writes report and pictures."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ...editor.common.errors import SaeuronError
from ...editor.common.files import file_sha256, plain_text, read_json
from ...editor.common.suggest import unknown
from ...editor.common.typed import read_as, strict_json
from ...editor.common.writing import whole_file
from ...editor.denoisers.families import family_of
from ..evidence.picture_backends import UNEDITED
from ..evidence.pipeline_subject import PIPELINE, PipelineSubject
from ..evidence.results import JudgeRecord
from ..evidence.subject import ArtifactSubject, Subject
from ..judges.choose import WORDS, open_judges, open_labels
from .attack import AttackProtocol, Shown, attack, check_kind
from .cases import AttackCase, cases, cases_by_words
from .protocols import registry
from .results import FORMAT, Attacked, AttackReport, Example
from .settings import ATTACKS, AttackSettings

if TYPE_CHECKING:
    from .victims import Victim

DEFAULT = ("prefix", "embedding", "straight-through", "seeds")
Say = Callable[[str], None]


class AttackPlan(NamedTuple):
    """What a run will attack, and how; see `make_plan`."""

    subject: Subject
    settings: AttackSettings
    judge: Any
    cases: list[AttackCase]
    attacks: tuple[str, ...]
    paraphrases: Sequence[str]
    protocols: tuple[AttackProtocol, ...] = ()


def make_plan(artifact: str | Path | Subject, settings: AttackSettings) -> AttackPlan:
    """Check everything that can be without a model; opens the judge.

    Args:
        artifact: its folder; or what is attacked instead.
        settings: what attacks what, judged by whom, within which budget.

    Raises:
        SaeuronError: what can't be attacked, or not so.
    """
    subject: Subject = ArtifactSubject(artifact) if isinstance(artifact, str | Path) else artifact
    s = settings
    lines = _lines(s.paraphrases)
    ours, protocols = registry.chosen(s.protocol, subject.sampling.guidance if s.guidance is None else s.guidance)
    for protocol in protocols:
        protocol.check_settings(s)
    if not ours and (s.attacks or lines):
        raise SaeuronError("--attacks and --paraphrases are of --protocol ours; name that too")
    chosen = [*(s.attacks or DEFAULT), *(["paraphrases"] if lines else [])] if ours else []
    for name in chosen:
        if name not in ATTACKS:
            raise SaeuronError(unknown("attack", name, ATTACKS))
    if "paraphrases" in chosen and not lines:
        raise SaeuronError("the attack 'paraphrases' needs --paraphrases FILE, one prompt a line")
    wanted = s.concepts or tuple(subject.concepts)
    for name in wanted:
        if name not in subject.concepts:
            raise SaeuronError(unknown("concept", name, subject.concepts, f"in '{subject.path}'"))
    if not wanted:
        raise SaeuronError(f"'{subject.path}' names no concept: its edit was made by hand")
    _check_through(subject, s)
    check_kind(subject.kind, protocols)
    rows = family_of({"_class_name": subject.kind}).denoiser.rows(True)
    sampling = subject.sampling
    steps, guidance = sampling.steps if s.steps is None else s.steps, sampling.guidance if s.guidance is None else s.guidance
    settings = replace(s, steps=steps, guidance=guidance, guided_rows=rows)
    judge, found = _judge_and_cases(subject, settings, wanted)
    return AttackPlan(subject, settings, judge, found, tuple(dict.fromkeys(chosen)), lines, tuple(protocols))


def _check_through(subject: Subject, s: AttackSettings) -> None:
    """Raise `SaeuronError` for a way that the subject can't be attacked through."""
    if not isinstance(subject, ArtifactSubject):
        if s.through != AttackSettings.through or s.saes:
            raise SaeuronError("--through and --sae are for artifacts; a pipeline is attacked through its own weights, so leave them out")
        return
    formats = subject.record.formats
    if s.through == "checkpoint" and "checkpoint" not in formats:
        raise SaeuronError(
            f"'{subject.path}' has no torch weights (formats: {', '.join(formats)}); differentiable attacks need the checkpoint (export it with --format checkpoint) or the hook (--through hook)"
        )
    if s.saes and s.through != "hook":
        raise SaeuronError("--sae is for --through hook; the checkpoint holds its own features")


def _lines(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        found = [line.strip() for line in plain_text(path).splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise SaeuronError(f"--paraphrases '{path}' is no UTF-8 text") from None
    if not found:
        raise SaeuronError(f"--paraphrases '{path}' holds no prompt")
    for text in found:
        if others := re.findall(r"\{[^{}]*\}?", text.replace("{name}", "")):
            raise SaeuronError(
                f"--paraphrases '{path}': '{others[0]}' in '{text[:60]}' stands for nothing; {{name}} stands for the concept"
            )
    return found


def _judge_and_cases(subject: Subject, s: AttackSettings, wanted: Sequence[str]) -> tuple[Any, list[AttackCase]]:
    """A judge of objects and styles asks for them itself; another one is told by the concepts' prompts."""
    if len(s.judge) != 1:
        raise SaeuronError("an attack takes one --judge, whose verdicts count; run it once for each")
    (text,) = s.judge
    if text.partition("=")[0] not in WORDS:
        labels = open_labels(text)
        return labels, cases(labels, wanted, subject.concepts)
    held = subject.words()
    for name in wanted:
        if name not in held:
            raise SaeuronError(
                f"'{subject.path}' holds no prompts of '{name}', by which the judge '{text}' would look for it; take demo, unlearncanvas=DIR or onnx=DIR"
            )
    words = {name: held[name] for name in wanted}
    (judge,) = open_judges([text], words, s.device)
    return judge, cases_by_words(words, subject.concepts)


def run(plan: AttackPlan, output: Path | None = None, say: Say = lambda text: None) -> AttackReport:
    """Attack concept by concept.

    Args:
        plan: see `make_plan`.
        output: file of the report, examples beside it (see `examples_of`); written after each concept, so that a killed run goes on with
            the next one. None: nothing is written.
        say: told what goes on.

    Raises:
        SaeuronError: a changed artifact, an original model that can't be opened, a prompt too long.
    """

    from ...editor.denoisers.pipelines import check_device

    began, device = time.monotonic(), plan.settings.device
    check_device(device)
    report = _begun(plan)
    if output is not None and (held := unfinished(output)) is not None and _same(held, report):
        whole = {UNEDITED, "edited", *plan.attacks, *(row for protocol in plan.protocols for row in protocol.rows)}
        asked = {case.concept for case in plan.cases}
        report.concepts = {n: of for n, of in held.concepts.items() if n in asked and whole <= {row.attack for row in of.rows}}
        report.seconds = held.seconds
    before = report.seconds
    say("checking files")
    plan.subject.check()
    left = [case for case in plan.cases if case.concept not in report.concepts]
    if left:
        say("opening the original model")
        original, victim = _open(plan)
        for case in left:
            rows, shown = attack(victim, original, case, plan.judge, plan.settings, plan.attacks, plan.paraphrases, say, plan.protocols)
            found = Attacked(domain=case.domain, tuning_prompts=case.tuning, rows=rows, seconds=sum(row.seconds for row in rows))
            report.concepts[case.concept] = found
            report.seconds = before + time.monotonic() - began
            if output is not None:
                if len(report.concepts) == 1:
                    # An older report would name pictures that change now.
                    output.unlink(missing_ok=True)
                found.pictures = _examples(examples_of(output), case.concept, shown)
                _write(output, report)
    report.finished = True
    if output is not None:
        _write(output, report)
        named = {Path(one.file).name for found in report.concepts.values() for one in found.pictures}
        for path in examples_of(output).glob("*.png"):
            if path.name not in named:  # of an older report
                path.unlink()
    return report


def _begun(plan: AttackPlan) -> AttackReport:
    """The report of an attack that has found nothing yet."""
    import torch

    return AttackReport(
        format=FORMAT, finished=False, **plan.subject.identity(), through=_through(plan), judge=JudgeRecord(plan.judge.name, plan.judge.sha256),
        settings=on_record(plan), threads=torch.get_num_threads(), device=plan.settings.device,
        concepts={},
    )  # fmt: skip


def finished(plan: AttackPlan, output: Path) -> AttackReport | None:
    """The whole report of this very attack, if it lies at `output`."""
    if not output.is_file():
        return None
    content = read_json(output)
    if content.get("format") != FORMAT or not content.get("finished", True):
        return None
    held = read_as(AttackReport, content, output)
    return held if _same(held, _begun(plan)) else None


def examples_of(output: Path) -> Path:
    """The folder of a report's example pictures."""
    return output.with_name(f"{output.stem}-examples")


def unfinished(output: Path) -> AttackReport | None:
    """What a killed run left at `output`."""
    if not output.is_file():
        return None
    content = read_json(output)
    if content.get("format") != FORMAT or content.get("finished", True):
        return None
    return read_as(AttackReport, content, output)


def on_record(plan: AttackPlan) -> dict[str, Any]:
    """The budget, without what is said elsewhere or only of this machine."""
    apart = ("judge", "concepts", "through", "model", "saes", "device", "guided_rows")
    protocols = [*([registry.OURS] if plan.attacks else []), *(protocol.said for protocol in plan.protocols)]
    said = {name: value for name, value in asdict(plan.settings).items() if name not in apart}
    return {
        **said,
        "search_seeds": plan.settings.searched,
        "attacks": plan.attacks,
        "paraphrases": list(plan.paraphrases),
        "protocol": protocols,
    }


def _same(held: AttackReport, ours: AttackReport) -> bool:
    """Whether they are of one attack: all but what is found and the time that it took."""
    apart = ("concepts", "seconds", "threads", "finished")
    one, other = (json.loads(strict_json(report)) for report in (held, ours))
    return {k: v for k, v in one.items() if k not in apart} == {k: v for k, v in other.items() if k not in apart}


def _through(plan: AttackPlan) -> str:
    return plan.settings.through if isinstance(plan.subject, ArtifactSubject) else PIPELINE


def _open(plan: AttackPlan) -> tuple[Any, Victim]:
    import torch

    from ..backends.load import load
    from ..proof.fresh import open_edit, open_original, open_saes
    from .victims import Baked, Hooked, bare

    s = plan.settings
    if isinstance(plan.subject, PipelineSubject):
        return bare(plan.subject.load_original(s.device)), Baked(bare(plan.subject.load(s.device)))
    assert isinstance(plan.subject, ArtifactSubject)
    root, record = plan.subject.folder, plan.subject.record
    try:
        original = bare(open_original(s.model or record.model.source, record, s.device))
    except SaeuronError as error:
        if s.model:
            raise
        raise SaeuronError(f"{error}; say where the original model lies with --model") from None
    if s.through == "hook":
        return original, Hooked(original, open_edit(root, record), open_saes(record, s.saes), record.gate)
    edited = bare(load(root, dtype=torch.float32, device=s.device, check_files=False))
    return original, Baked(edited, open_edit(root, record))


def _examples(folder: Path, concept: str, shown: Sequence[Shown]) -> list[Example]:
    """Write a concept's pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    found: list[Example] = []
    count: dict[str, int] = {}
    for one in shown:
        count[one.row] = count.get(one.row, 0) + 1
        name = re.sub(r"[^A-Za-z0-9_-]", "_", f"{concept}-{one.row}-{count[one.row]}") + ".png"
        with whole_file(folder / name) as made:
            one.picture.save(made, format="PNG")
        found.append(Example(one.prompt, one.seed, one.shows_concept, one.row, f"{folder.name}/{name}", file_sha256(folder / name)))
    return found


def _write(output: Path, report: AttackReport) -> None:
    with whole_file(output) as text:
        text.write_text(strict_json(report) + "\n")
