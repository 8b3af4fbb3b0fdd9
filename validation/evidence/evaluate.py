"""Evaluates an artifact, or any other edited pipeline: whether the concept is gone and the rest is kept, on pictures by any backend, beside the unedited model's.

Three protocols: UnlearnCanvas's (every object in every style and plain, with every seed; a judge says what it sees), and on a user's
prompts NudeNet's detections, or utility (CLIP score, FID). Pictures and verdicts are kept, so a killed run goes on, and every figure can
be counted again from `verdicts.csv`.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...editor.common.errors import SaeuronError, first_line
from ...editor.common.files import read_json
from ...editor.common.process import Process
from ...editor.common.typed import read_as
from ..artifact.installed import missing
from ..judges.judge import NOT_JUDGED, LabelJudge
from ..judges.nudenet import NUDE
from .comparison import compare, compared, pixels_of
from .distances import Distances
from .evaluation_plan import EvaluationPlan, make_plan
from .evaluation_settings import EvaluationSettings
from .picture_backends import HOOK, UNEDITED
from .results import FORMAT, Backend, Begun, Evaluation, Figures
from .smears import CALIBRATION, recorded
from .subject import Drawing
from .verdicts import RESULT, VERDICTS, Store, VerdictRow, Wanted, check_folder

if TYPE_CHECKING:
    from .tokens import Counter

__all__ = ["EvaluationSettings", "EvaluationPlan", "check_output", "evaluate", "make_plan"]
_ALONE = Process()


def evaluate(
    plan: EvaluationPlan, output: Path, overwrite: bool = False, process: Process = _ALONE,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None, tokens: bool = True,
) -> Evaluation | None:  # fmt: skip
    """Make the pictures, look at them, count.

    Args:
        plan: see `make_plan`.
        output: folder of pictures, verdicts.csv and evaluation.json; a run with the same settings goes on there.
        overwrite: begin anew.
        process: this process's share, for several under `torchrun`.
        progress: told a backend's name, its pictures done and in all.
        tokens: whether the tokens of blocks are looked at too, where the unedited model draws (`smears`).

    Returns:
        what evaluation.json holds; None in every process but the first.

    Raises:
        SaeuronError: a changed artifact, a folder of another evaluation, what a backend refuses.
    """
    check_output(plan, output, overwrite)
    plan.subject.check()
    counting = plan.counting
    distances = Distances(plan.judges, plan.options.fid, plan.options.reference)
    store = Store(output, counting.columns, plan.settings, process, overwrite)
    before = _held(output)
    held = {} if before is None else before.backends
    rows: dict[str, list[VerdictRow]] = {}
    backends: dict[str, Backend] = {}
    stages = {name: concepts for (_, concepts), name in zip(plan.backends, plan.names, strict=True) if concepts}
    counter = None
    if tokens and not missing() and (UNEDITED in plan.names or (store.folder / CALIBRATION).is_file()):
        from .tokens import counter_of

        counter = counter_of(plan, store, partial(progress, "calibration"))
    for (kind, concepts), name in zip(plan.backends, plan.names, strict=True):
        if kind not in (UNEDITED, HOOK):
            plan.pictures_by.forget()
        if kind == UNEDITED and any(k == HOOK for k, _ in plan.backends):
            opened = partial(_with_original, plan.pictures_by)
        else:
            opened = partial(plan.pictures_by.open, kind, concepts)
        rows[name], made, seconds = store.make(
            name, plan.wanted, opened, partial(_look, plan, counter), plan.settings.steps, plan.options.batch_size, partial(progress, name)
        )
        # Where nothing ran now, what made them is on record.
        on_record = not made and not process.rank and name in held
        backends[name] = held[name] if on_record else Backend(**plan.pictures_by.runs_on(kind), made=made, seconds=seconds)
        backends[name].pictures = len(plan.wanted)
        backends[name].shared_table_entries = plan.pictures_by.original().edit.shared(concepts) if concepts else None
    plan.pictures_by.forget()
    if process.rank:
        return None
    lost = []
    for name in [n for n in held if n not in rows]:
        there = [row for w in plan.wanted if (row := store.have(name, w)) is not None]
        if len(there) < len(plan.wanted):
            lost.append(name)
            continue
        rows[name], backends[name] = there, held[name]
        if held[name].kept is not None:
            stages[name] = tuple(held[name].concepts)
    # Rows of a backend that was killed before it had ended count for nothing, either.
    lost += sorted({backend for backend, _ in store.rows} - {*rows, *lost})
    order = [n for n in dict.fromkeys([UNEDITED, *held, *rows]) if n in rows]
    rows = {name: rows[name] for name in order}
    store.merge()
    for name, figures in _counted(plan, store, rows, stages).items():
        backends[name].take(figures)
    backends = {name: backends[name] for name in order}
    result = Evaluation(
        format=FORMAT, settings=plan.settings, batch_size=plan.options.batch_size, version=_version(), backends=backends, left_out=lost,
        comparison=compare({name: rows[name] for name in compared(backends)}, partial(pixels_of, store.folder)),
    )  # fmt: skip
    if plan.protocol == "nudity":
        result.nude_classes, result.threshold = list(NUDE), plan.options.threshold
    else:
        result.fid_weights_sha256, result.reference = distances.fid_weights_sha256, distances.reference
        files = {name: [store.folder / row["file"] for row in made] for name, made in rows.items()}
        result.distances = distances.between(files, plan.rest)
    result.counting, result.trust = counting.rules, counting.trust(rows)
    calibrated = store.folder / CALIBRATION
    result.tokens = recorded(calibrated) if calibrated.is_file() else None
    store.write(result)
    return result


def _look(plan: EvaluationPlan, counter: Counter | None, files: Sequence[Path], wanted: Sequence[Wanted]) -> list[VerdictRow]:
    tokens = [""] * len(files) if counter is None else counter.take(len(files))
    return [{**row, "tokens": said} for row, said in zip(plan.look(files, wanted), tokens, strict=True)]


def _held(folder: Path) -> Evaluation | None:
    """A finished evaluation that this one goes on from."""
    path = folder / RESULT
    if not path.is_file() or not read_as(Begun, read_json(path), path).finished:
        return None
    held = read_as(Evaluation, read_json(path), path)
    for name, b in held.backends.items():
        if None in (b.runtime, b.device, b.loop, b.pictures, b.made, b.seconds) or (b.kept is not None and not b.concepts):
            raise SaeuronError(f"{path} doesn't say what made the pictures of {name}, or of what they are; --overwrite begins anew")
    return held


def _counted(
    plan: EvaluationPlan, store: Store, rows: dict[str, list[VerdictRow]], stages: dict[str, tuple[str, ...]]
) -> dict[str, Figures]:
    if plan.protocol == "unlearncanvas" and isinstance(judge := plan.judges[0], LabelJudge):
        known = {"seen_object": {*judge.objects, NOT_JUDGED}, "seen_style": {*judge.styles, "", NOT_JUDGED}}
        for row in (row for made in rows.values() for row in made):
            for column, labels in known.items():
                if row[column] not in labels:
                    raise _unreadable(store, f"{row['file']}: {column} is '{row[column][:40]}', which this judge never says")
    try:
        return plan.counting.figures(rows, stages)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _unreadable(store, first_line(error)) from None


def _unreadable(store: Store, why: str) -> SaeuronError:
    return SaeuronError(f"'{store.folder / VERDICTS}' was changed ({why}); --overwrite makes and judges all pictures anew")


def _with_original(pictures_by: Drawing) -> Any:
    pictures_by.original()  # the hook needs it next
    return pictures_by.open(UNEDITED)


def check_output(plan: EvaluationPlan, output: Path, overwrite: bool) -> None:
    """Raise `SaeuronError` unless the evaluation can be written to `output`."""
    root = plan.subject.folder.resolve()
    if output.resolve().is_relative_to(root):
        raise SaeuronError(f"'{output}' lies inside the model's folder, which stays as it is; choose another --output")
    if root.is_relative_to(output.resolve()):
        raise SaeuronError(f"'{output}' holds the model's folder; choose another --output")
    check_folder(output, plan.settings, overwrite)
    held = None if overwrite else _held(output)
    if held is None:
        return
    for said, given, option in (
        (held.reference, plan.options.reference, "--reference"), (held.fid_weights_sha256, plan.options.fid, "--fid"),
    ):  # fmt: skip
        if said is not None and given is None:
            raise SaeuronError(f"'{output}' holds distances by {option}, which would be lost; give {option} again, or another --output")


def _version() -> str | None:
    try:
        return importlib.metadata.version("saeuron-export")
    except importlib.metadata.PackageNotFoundError:
        return None
