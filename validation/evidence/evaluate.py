"""Evaluates an artifact: whether the concept is gone and the rest is kept, on pictures by any backend, beside the unedited model's.

Three protocols: UnlearnCanvas's (every object in every style and plain, with every seed; a judge says what it sees), and on a user's
prompts NudeNet's detections, or utility (CLIP score, FID). Pictures and verdicts are kept, so a killed run goes on, and every figure can
be counted again from `verdicts.csv`.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ...editor.common.errors import SaeuronError, first_line
from ...editor.common.files import read_json
from ...editor.common.process import Process
from ..artifact import contents, shape
from ..artifact.shape import Each, Fields
from . import nudity
from .comparison import compare, compared, pixels_of
from .counting import RULES, Counting, picture
from .distances import Distances
from .evaluation_plan import Plan, make_plan
from .evaluation_settings import EvaluationSettings
from .judges import NOT_JUDGED
from .makers import HOOK, UNEDITED, Makers
from .unlearning import without
from .verdicts import FORMAT, RESULT, VERDICTS, Row, Store, check_folder

__all__ = ["EvaluationSettings", "Plan", "check_output", "evaluate", "make_plan"]
_ALONE = Process()


_MADE = ("runtime", "device", "loop", "target", "made", "seconds")
"""of a backend's entry: what made its pictures, how many the last time that any were made, and how long that took"""
_ENTRY = Fields(
    {"runtime": str, "device": str, "loop": str, "pictures": int, "made": int, "seconds": float},
    {"target": str, "concepts": Each(dict), "kept": dict, "shared_table_entries": int},
)


def evaluate(
    plan: Plan, output: Path, overwrite: bool = False, process: Process = _ALONE, progress: Callable[[str, int, int], None] = lambda name, done, total: None
) -> dict[str, Any] | None:  # fmt: skip
    """Make the pictures, look at them, count.

    Args:
        plan: see `make_plan`.
        output: folder of pictures, verdicts.csv and evaluation.json; a run with the same settings goes on there.
        overwrite: begin anew.
        process: this process's share, for several under `torchrun`.
        progress: told a backend's name, its pictures done and in all.

    Returns:
        what evaluation.json holds; None in every process but the first.

    Raises:
        SaeuronError: a changed artifact, a folder of another evaluation, what a backend refuses.
    """
    check_output(plan, output, overwrite)
    contents.check(plan.root, plan.record)
    distances = Distances(plan.judge, plan.options.fid, plan.options.reference)
    store = Store(output, plan.columns, plan.settings, process, overwrite)
    held = _held(output)
    rows: dict[str, list[Row]] = {}
    backends: dict[str, Any] = {}
    stages = {name: concepts for (_, concepts), name in zip(plan.backends, plan.names, strict=True) if concepts}
    for (kind, concepts), name in zip(plan.backends, plan.names, strict=True):
        if kind not in (UNEDITED, HOOK):
            plan.makers.forget()
        if kind == UNEDITED and any(k == HOOK for k, _ in plan.backends):
            opened = partial(_with_original, plan.makers)
        else:
            opened = partial(plan.makers.open, kind, concepts)
        rows[name], made, seconds = store.make(
            name, plan.wanted, opened, plan.look, plan.settings["steps"], plan.options.batch_size, partial(progress, name)
        )
        backends[name] = {**plan.makers.runs_on(kind), "pictures": len(plan.wanted), "made": made, "seconds": seconds}
        if concepts:
            backends[name]["shared_table_entries"] = plan.makers.original().edit.shared(concepts)
        if not made and not process.rank and name in held:
            # What made them is on record; nothing ran now.
            backends[name] |= {key: held[name][key] for key in _MADE if key in held[name]}
    plan.makers.forget()
    if process.rank:
        return None
    lost = []
    for name in [n for n in held if n not in rows]:
        there = [row for w in plan.wanted if (row := store.have(name, w)) is not None]
        if len(there) < len(plan.wanted):
            lost.append(name)
            continue
        rows[name] = there
        backends[name] = {key: held[name][key] for key in (*_MADE, "pictures", "shared_table_entries") if key in held[name]}
        if "kept" in held[name]:
            stages[name] = tuple(held[name]["concepts"])
    # Rows of a backend that was killed before it had ended count for nothing, either.
    lost += sorted({backend for backend, _ in store.rows} - {*rows, *lost})
    order = [n for n in dict.fromkeys([UNEDITED, *held, *rows]) if n in rows]
    rows = {name: rows[name] for name in order}
    store.merge()
    figures = _counted(plan, store, rows, stages)
    result: dict[str, Any] = {"format": FORMAT, "finished": True, "settings": plan.settings, "batch_size": plan.options.batch_size}
    result |= {"version": _version(), "backends": {name: {**backends[name], **figures[name]} for name in order}, "left_out": lost}
    if plan.protocol == "nudity":
        result |= {"nude_classes": list(nudity.NUDE), "threshold": plan.options.threshold}
    else:
        result |= distances.record
        files = {name: [store.folder / row["file"] for row in made] for name, made in rows.items()}
        first = [picture(row) for row in next(iter(rows.values()))] if plan.removed else []
        result["distances"] = distances.between(files, [i for i, one in enumerate(first) if without([one], plan.removed)])
    if plan.protocol == "unlearncanvas":
        result["counting"] = RULES
    result["comparison"] = compare({name: rows[name] for name in compared(result["backends"])}, partial(pixels_of, store.folder))
    store.write(result)
    return result


def _held(folder: Path) -> dict[str, Any]:
    """Backends of a finished evaluation that this one goes on from."""
    held = read_json(folder / RESULT).get("backends", {}) if (folder / RESULT).is_file() else {}
    shape.check(str(folder / RESULT), held, Each(_ENTRY), "backends")
    return dict(held)


def _counted(plan: Plan, store: Store, rows: dict[str, list[Row]], stages: dict[str, tuple[str, ...]]) -> dict[str, dict[str, Any]]:
    counting = Counting(plan.protocol, plan.removed, plan.judged, plan.options.threshold or 0.0, plan.options.clip is not None)
    if plan.judge is not None:
        known = {"seen_object": {*plan.judge.objects, NOT_JUDGED}, "seen_style": {*plan.judge.styles, "", NOT_JUDGED}}
        for row in (row for made in rows.values() for row in made):
            for column, labels in known.items():
                if row[column] not in labels:
                    raise _unreadable(store, f"{row['file']}: {column} is '{row[column][:40]}', which this judge never says")
    try:
        return counting.figures(rows, stages)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _unreadable(store, first_line(error)) from None


def _unreadable(store: Store, why: str) -> SaeuronError:
    return SaeuronError(f"'{store.folder / VERDICTS}' was changed ({why}); --overwrite makes and judges all pictures anew")


def _with_original(makers: Makers) -> Any:
    makers.original()  # the hook needs it next
    return makers.open(UNEDITED)


def check_output(plan: Plan, output: Path, overwrite: bool) -> None:
    """Raise `SaeuronError` unless the evaluation can be written to `output`."""
    if output.resolve().is_relative_to(plan.root.resolve()):
        raise SaeuronError(f"'{output}' lies inside the artifact, which stays as it was proven; choose another --output")
    if plan.root.resolve().is_relative_to(output.resolve()):
        raise SaeuronError(f"'{output}' holds the artifact; choose another --output")
    check_folder(output, plan.settings, overwrite)
    if overwrite or not (output / RESULT).is_file():
        return
    held = read_json(output / RESULT)
    for key, given, option in (("reference", plan.options.reference, "--reference"), ("fid_weights_sha256", plan.options.fid, "--fid")):
        if key in held and given is None:
            raise SaeuronError(f"'{output}' holds distances by {option}, which would be lost; give {option} again, or another --output")


def _version() -> str | None:
    try:
        return importlib.metadata.version("saeuron-export")
    except importlib.metadata.PackageNotFoundError:
        return None
