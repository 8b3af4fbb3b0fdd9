"""Compares models: each one's evaluation and attack, taken from the folder where they are there, then one table and one page."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

from ...editor.common.errors import SaeuronError
from ...editor.common.typed import plain, strict_json
from ...editor.common.writing import alone, whole_file
from ..attack import run as attacking
from ..evidence.evaluate import check_output, evaluate
from ..evidence.picture_backends import UNEDITED
from ..evidence.pipeline_subject import PipelineSubject
from ..evidence.results import Evaluation
from ..evidence.subject import ArtifactSubject
from ..evidence.verdicts import plain_name
from .page import write_pages
from .plan import ComparisonPlan, Entry
from .results import RESULT, UNDER_ATTACK, Compared, Comparison, Cost, outside_of, rates_of

Say = Callable[[str], None]


def check_folder(plan: ComparisonPlan, output: Path, overwrite: bool) -> None:
    """Raise `SaeuronError` unless the comparison can be written to `output`, or goes on there."""
    if output.is_dir() and any(not p.name.startswith(".") for p in output.iterdir()) and not (output / RESULT).is_file():
        raise SaeuronError(f"'{output}' is no comparison ({RESULT} is missing), so it is left alone; choose another --output")
    for entry in plan.entries:
        check_output(entry.evaluation, entry.folder(output), overwrite)
        report = entry.report(output)
        if entry.attack is None or overwrite or not report.is_file() or attacking.unfinished(report) is not None:
            continue
        if attacking.finished(entry.attack, report) is None:
            raise SaeuronError(f"'{report}' holds another attack than this one; choose another --output, or --overwrite to begin anew")


def compare(plan: ComparisonPlan, output: Path, overwrite: bool = False, progress: Say = lambda text: None) -> Comparison:
    """Evaluate, attack and time each model, then write the table and the page.

    Args:
        plan: see `make_plan`.
        output: folder of compare.json, .md and .html, of pictures.png, and of each model's evaluation and attack.
        overwrite: begin anew.
        progress: told what is being done.

    Raises:
        SaeuronError: what `check_folder`, an evaluation or an attack refuses.
    """
    import torch

    check_folder(plan, output, overwrite)
    output.mkdir(parents=True, exist_ok=True)
    with alone(output, f"another comparison writes into '{output}'; wait until it has ended"):
        if not (output / RESULT).is_file():  # by which the folder is known
            _write(output / RESULT, "{}\n")
        models, evaluations = [], {}
        for entry in plan.entries:

            def counted(name: str, done: int, total: int, of: str = entry.name) -> None:
                progress(f"{of}: {name}, {done} of {total} pictures")

            found = evaluate(entry.evaluation, entry.folder(output), overwrite, progress=counted)
            assert found is not None  # of the only process
            evaluations[entry.name] = found
            models.append(_compared(entry, found, output))
            if entry.attack is not None:
                _attack(entry, models[-1], output, overwrite, progress)
        for model, entry in zip(models, plan.entries, strict=True):
            if plan.settings.rounds and entry.kind != UNEDITED:
                progress(f"{entry.name}: timing forwards")
                model.cost = _cost(plan, entry)
        if UNEDITED not in evaluations:
            models.insert(0, _of_judges_of_words(plan, evaluations))
        settings = plan.entries[0].evaluation.settings
        made = Comparison(
            concepts=list(plan.settings.concepts), original=plan.original.record.original, judges=settings.judges, steps=plan.steps,
            guidance=plan.guidance, seeds=settings.seeds, pictures=len(plan.entries[0].evaluation.wanted),
            attack=attacking.on_record(plan.entries[-1].attack) if plan.entries[-1].attack else None, device=plan.settings.device,
            threads=torch.get_num_threads(), models=models,
        )  # fmt: skip
        write_pages(plan, made, output)
        _write(output / RESULT, strict_json(made) + "\n")
    return made


def _compared(entry: Entry, found: Evaluation, output: Path) -> Compared:
    backend = found.backends[entry.backend]
    files = [entry.subject.path] if entry.kind == "weights" else [p for p in entry.subject.folder.rglob("*") if p.is_file()]
    return Compared(
        name=entry.name, kind=entry.kind, identity=plain(entry.subject.identity()), folder=entry.folder(output).name,
        bytes=sum(p.stat().st_size for p in files), seconds=backend.seconds / backend.made if backend.made and backend.seconds else None,
        rates={concept: rates_of(backend, concept) for concept in found.settings.concepts}, outside=outside_of(backend),
    )  # fmt: skip


def _of_judges_of_words(plan: ComparisonPlan, evaluations: dict[str, Evaluation]) -> Compared:
    """The unedited model, of which each evaluation has its own pictures, the same for all."""
    entry = plan.entries[0]
    found = evaluations[entry.name]
    return Compared(
        name=UNEDITED, kind=UNEDITED, identity=plain(plan.original.identity()), folder=plain_name(entry.name),
        bytes=sum(p.stat().st_size for p in plan.original.folder.rglob("*") if p.is_file()),
        rates={concept: rates_of(found.backends[UNEDITED], concept) for concept in found.settings.concepts}, outside=outside_of(found.backends[UNEDITED]),
    )  # fmt: skip


def _attack(entry: Entry, model: Compared, output: Path, overwrite: bool, say: Say) -> None:
    assert entry.attack is not None
    report = entry.report(output)
    held = None if overwrite else attacking.finished(entry.attack, report)
    found = held or attacking.run(entry.attack, report, lambda text: say(f"{entry.name}: {text}"))
    for concept, of in found.concepts.items():
        model.rates[concept] |= {f"{UNDER_ATTACK}{row.attack}": row.share for row in of.rows if row.attack in entry.attack.attacks}


def _cost(plan: ComparisonPlan, entry: Entry) -> Cost | None:
    """None of an artifact that holds graphs alone."""
    from ...editor.denoisers.families import network_of
    from ...editor.denoisers.pipelines import load_pipeline
    from ..backends.load import load
    from .cost import forward_cost

    device, subject = plan.settings.device, entry.subject
    if isinstance(subject, ArtifactSubject):
        if "checkpoint" not in subject.record.formats:
            return None
        edited = load(subject.folder, device=device, check_files=False)
    else:
        assert isinstance(subject, PipelineSubject)
        edited = subject.load(device)
    original = load_pipeline(plan.original.source, network_of(edited).dtype, device)
    found = forward_cost(edited, original, plan.settings.rounds)
    del edited, original
    gc.collect()
    return found


def _write(path: Path, text: str) -> None:
    with whole_file(path) as made:
        made.write_text(text, encoding="utf-8")
