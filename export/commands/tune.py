"""`saeuron tune`: tries settings, judges pictures, writes the best per concept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from ...validation.page.figures import percent, rate_text
from ...validation.tuning.settings import TuneSettings
from ..plan.settings import Settings
from . import options as o
from .console import escaped, out, print_warning, progress_line, resumable, table_of, tell, write_json
from .declared import command, only

if TYPE_CHECKING:
    from ...validation.tuning.results import Figures, TuningReport
    from ...validation.tuning.tune import Task


@command
@resumable
def tune(
    wanted: Annotated[
        Settings, only("concepts", "kind", "instead", "preset_files", "settings", "activations", "model", "variant", "sae", "becomes", "start", "residual", "steps", "guidance", "device")
    ],
    settings: Annotated[
        TuneSettings,
        only(
            "judge", "judge_anyway", "budget", "attack", "tune_seeds", "report_seeds", "shares", "clip", "fid", "batch_size", "select", "multiplier", "hookpoint", "intervention", "replace_by", "spread", "gain", "norm"
        ),
    ],
    output: o.StoredResults = None,
    dry_run: o.DryRun = False,
    as_json: o.Json = False,
) -> None:  # fmt: skip
    """Choose each concept's settings: removed under a judge, at the least change elsewhere.

    Candidates (intervention × rule × multiplier × hookpoints) are drawn through the dynamic hook and compared by successive halving: all of them on a few
    pictures, the better third on more, and so on. The judges are measured on the unedited model's pictures first. The chosen candidate is
    measured on test prompts and seeds that nothing was chosen by. Results are stored: killed, the same command goes on, and the same command
    started several times shares the work. OUTPUT/settings.toml is read by `saeuron-export --settings`.

    Example: `saeuron tune --concepts Neon,House --judge demo --budget 1000 --output tuned`
    """
    from ..plan.resolve import resolve_tuning, to_fetch

    output = o.out_folder(output)
    plan = resolve_tuning(wanted, settings)
    to_fetch(plan)
    if dry_run:
        from ..plan.tuning import plan_tasks

        _plan(plan_tasks(plan, settings), as_json)
        return
    with progress_line("opening what the edit is made of") as say:
        from ..plan.tuning import open_tuning

        report = open_tuning(plan, settings, output, say).run(say)
    if as_json:
        write_json(report)
    else:
        _print(report)
        tell(f"settings: {output / 'settings.toml'}")


def _plan(tasks: Sequence[Task], as_json: bool) -> None:
    said: dict[str, dict[str, Any]] = {
        task.words.name: {"candidates": len(task.candidates), "rounds": [r._asdict() for r in task.rounds], "pictures": task.pictures}
        for task in tasks
    }
    if as_json:
        write_json(said)
        return
    for name, one in said.items():
        steps = "; ".join(f"{r['candidates']} with {r['pictures']}" for r in one["rounds"])
        p = one["pictures"]
        tell(f"{name}: {one['candidates']} candidates; pictures each by round: {steps}")
        tell(f"{name}: at most {p['choosing']} pictures to choose by, {p['unedited']} of the unedited model, {p['report']} for the report")


def _print(report: TuningReport) -> None:
    table = table_of(
        "concept", "judge", "removed", "kept", "beside", "seen elsewhere", "likeness", "under attack", left=("concept", "judge")
    )
    for name, found in report.concepts.items():
        for judge in found.report.judges:
            table.add_row(escaped(name), escaped(judge), *_cells(found.report, judge))
    out.print(table)
    tell(
        "On test prompts and report seeds. removed: not seen on its own prompts' pictures; kept: of what is seen elsewhere before the edit, still seen; beside: the same on its own pictures; likeness: 1 the same picture elsewhere, 0 any other. Below a rate: its 95 % interval (Wilson)."
    )
    for name, found in report.concepts.items():
        tell(f"{name}: {found.chosen}")
        for judge, t in found.trust.items():
            tell(
                f"{name}: {judge} tells {percent(t.balanced)} of the unedited model's pictures apart ({percent(t.low)} to {percent(t.high)})"
            )
        for judge, rate in found.report.nothing_seen.items():
            tell(f"{name}: nothing seen by {judge} on {rate_text(rate, ', 95 % interval ')}; the unedited model: 1 %")
        if found.clip_before is not None and found.clip_after is not None:
            tell(f"{name}: CLIP score elsewhere {found.clip_before.mean:.2f} before, {found.clip_after.mean:.2f} after")
        if found.fid is not None:
            tell(f"{name}: FID elsewhere from the unedited pictures {found.fid:.2f}")
    for name, found in report.concepts.items():
        if not found.removes:
            print_warning(f"{name}: nothing that was tried removes it from half of the report's pictures; its settings stay untuned")
    if not report.believed:
        print_warning("a judge was used that does not tell the unedited model's pictures apart well enough (--judge-anyway)")


def _cells(figures: Figures, judge: str) -> list[str]:
    seen = figures.judges[judge]
    attacked = (figures.attacked or {}).get(judge)
    return [*map(rate_text, (seen.removed, seen.kept, seen.beside, seen.elsewhere)), f"{figures.likeness:.2f}", rate_text(attacked)]
