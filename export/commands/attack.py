"""`saeuron attack`: does a removed concept come back under attack?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...validation.attack.results import CONTROL
from ...validation.attack.settings import AttackSettings
from ...validation.evidence.pipeline_subject import PipelineSettings
from ...validation.page.figures import interval, percent
from ..plan.folder import check_attack_output
from ..plan.resolve import check_sources
from . import options as o
from .console import out, print_warning, progress_line, table_of, tell, write_json
from .declared import command, only
from .subjects import Artifact, pipeline_lines, subject_of

if TYPE_CHECKING:
    from ...validation.attack.results import AttackReport


@command
def attack(
    settings: Annotated[
        AttackSettings,
        only(
            "judge", "concepts", "protocol", "attacks", "paraphrases", "through", "model", "saes", "device", "steps", "guidance", "tokens", "iterations",
            "embedding_iterations", "restarts", "tune_seeds", "report_seeds", "search_seeds", "seed", "share", "batch_size",
        ),
    ],
    other: Annotated[PipelineSettings, only("pipeline", "unet", "kind", "instead")],
    artifact: Artifact = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE.json", help="The report; example pictures go to FILE-examples/.", rich_help_panel=o.OUTPUT)] = None,
    overwrite: o.Overwrite = False,
    dry_run: o.DryRun = False,
    as_json: o.Json = False,
) -> None:  # fmt: skip
    """Attack the edited model, and count how often a judge sees the removed concept.

    Each figure stands beside those of the unedited model and of the edit without attack, with a 95 % Wilson interval. Attacks learn from
    some prompts and seeds and are counted on others. They run in float32, on the model's weights, without safety checker.

    `--protocol` attacks as published papers do; docs/attacks.md has each one's budget and stopping rule.

    Example: `saeuron attack without-neon --protocol ours,unlearndiffatk -o attack.json`; an eraser's weights: `saeuron attack
    --unet esd-neon.safetensors --model demo --concepts Neon`
    """
    from ...validation.attack import run as a
    from ...validation.attack.attack import plan as budgets

    check_attack_output(output, overwrite)
    if settings.model:
        check_sources([("model", settings.model)])
    with progress_line("opening the judge") as say:
        wanted = replace(other, concepts=settings.concepts)
        plan = a.make_plan(subject_of(artifact, wanted, settings.model, original=True), settings)
        report = None if dry_run else a.run(plan, output, say)
    if report is None:
        _print_plan(budgets(plan.cases, plan.settings, plan.attacks, len(plan.paraphrases), plan.protocols), as_json)
        return
    if as_json:
        write_json(report)
        return
    _print(report)
    if output is not None:
        tell(f"{output}, pictures in {a.examples_of(output)}")


def _print_plan(planned: dict[str, dict[str, Any]], as_json: bool) -> None:
    total = {k: sum(row[k] for rows in planned.values() for row in rows.values()) for k in ("pictures", "forwards", "gradients")}
    if as_json:
        write_json({"concepts": planned, "total": total})
        return
    columns = ("prompts", "seeds", "pictures", "iterations", "restarts", "forwards", "gradients")
    table = table_of("concept", "row", *columns, left=("concept", "row"))
    for concept, rows in planned.items():
        for row, spent in rows.items():
            table.add_row(concept, row, *(str(spent.get(c, "")) for c in columns))
    out.print(table)
    tell(
        f"in all {total['pictures']} pictures counted, {total['forwards']} forwards of one latent, {total['gradients']} with a gradient, and the targets of the searches"
    )


def _print(report: AttackReport) -> None:
    table = table_of("concept", "row", "shown", "of", "rate", "95 % interval", "forwards", "s", left=("concept", "row"))
    for concept, entry in report.concepts.items():
        for row in entry.rows:
            table.add_row(
                concept, row.attack, str(row.successes), str(row.trials), percent(row.rate), interval(row.share), str(row.budget["forwards"]), f"{row.seconds:.0f}",
            )  # fmt: skip
    out.print(table)
    for concept, entry in report.concepts.items():
        for row in entry.rows:
            if (plain := row.found.without_attack) is not None:
                tell(f"{concept}: {row.attack}: {plain} without attack + {row.successes - plain} by it, of {row.trials}")
            for encoder, one in row.found.prefixes.items():
                typed = "" if one.typed else " (by its ids only: typed, it is cut otherwise)"
                tell(f"{concept}: learned prefix{f' of {encoder}' if encoder else ''} '{one.text}'{typed}")
        unedited = entry.rows[0]
        if unedited.successes < unedited.trials / 2:
            print_warning(f"{concept}: the judge sees it in few of the unedited model's pictures, so these figures say little")
    for line in pipeline_lines(report.pipeline):
        tell(line)
    rows = {row.attack for entry in report.concepts.values() for row in entry.rows}
    notes = (
        ("seeds", f"a row 'seeds' counts prompts of which one in {len(report.settings['search_seeds'])} seeds shows the concept"),
        (CONTROL, f"a row '{CONTROL}…' is the unedited model's, beside what the edited one is given"),
        ("leak", "whoever holds an artifact can take its edit out, as 'leak' did"),
    )
    said = [text for name, text in notes if any(row.startswith(name) for row in rows)]
    tell("; ".join([f"through the {report.through}, {report.seconds:.0f} s on {report.threads} threads", *said]))
