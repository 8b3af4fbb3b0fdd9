"""`saeuron-export`: the main job."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from ..plan.settings import Plan, Settings
from . import options as o
from .build import print_engines
from .console import Version, out, print_warning, progress_line, report_failures, resumable, tell, write_json
from .declared import command


@command
def export(
    wanted: Settings, dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan; write nothing.", rich_help_panel=o.OUTPUT)] = False,
    as_json: o.Json = False, version: Version = False,
) -> None:  # fmt: skip
    """Remove concepts from a Stable Diffusion pipeline and write one proven artifact.

    With --tune and --evidence the settings are tuned first, and the artifact is evaluated, attacked and reported on afterwards. Killed, the same
    command goes on; --dry-run says what each stage takes.

    Example: `saeuron-export --concepts Neon --format checkpoint,onnx --output without-neon` (embedded demo).
    Example: `saeuron-export --concepts Cactus --tune --evidence quick --output without-cactus`

    Exit code 0: done and proven (with --no-validate: done); 1: done but not proven; 2: can't be done, nothing written.
    """
    from ...validation.trust import signature
    from ..formats.tensorrt import ready
    from ..plan.checks import check_packages
    from ..plan.folder import check_output
    from ..plan.resolve import resolve, to_fetch

    # The job checks these again; here they come before torch is imported, which takes seconds.
    plan = resolve(wanted)
    if not wanted.staged:  # else it may be this very job's, which goes on
        check_output(wanted.output, wanted.overwrite)
    if not dry_run:
        check_packages(plan.settings.formats, wanted.validate)
    if wanted.sign is not None:
        signature.check_private_key(wanted.sign)
    to_fetch(plan)
    if plan.settings.engines:
        ready(plan.settings.engines, plan.settings.quantize)
    if dry_run:
        _dry_run(plan, as_json)
        return
    from ...validation.page.verdict import reach
    from ...validation.proof import report

    with progress_line("starting") as progress:
        from ..plan.stage_state import work_folder
        from ..ship.stages import export_artifact

        make = resumable(export_artifact) if wanted.staged else export_artifact
        result = make(plan, progress)
    for warning in result.manifest.warnings:
        print_warning(warning)
    if as_json:
        write_json({
            "output": str(result.path), "proven": result.proven, "manifest": result.manifest, "report": result.report, "verdict": result.verdict,
        })  # fmt: skip
    else:
        if result.report:
            out.print(report.table(result.report))
        quantised = result.manifest.quantised
        verdict = (
            f"proven: {quantised.verdict}{reach(result.report)}"
            if result.report and result.proven and quantised
            else f"proven equal to the dynamic hook{reach(result.report)}"
            if result.report and result.proven
            else "NOT VALIDATED (--no-validate)"
            if result.report is None
            else "NOT PROVEN"
        )
        tell(f"{result.path}: {verdict}")
        print_engines(result.path, result.manifest)
        if result.verdict:
            for fact in result.verdict["facts"][1:]:  # the proof, which is the first one, was told above
                tell(f"{fact['about']}: {fact['text']}")
            tell(f"{result.path}/validation/report.html; tuning, evaluation and attack lie in {work_folder(result.path)}")
    report_failures(result.report)
    if result.report is not None and not result.proven:
        raise typer.Exit(1)


def _dry_run(plan: Plan, as_json: bool) -> None:
    from ..plan.dry_run import describe

    found = describe(plan)
    if as_json:
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
        return
    for line in found["lines"]:
        tell(line)
