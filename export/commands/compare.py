"""`saeuron compare`: edited models side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...validation.compare.settings import CompareSettings
from ..plan.folder import check_parent
from . import options as o
from .console import escaped, out, progress_line, resumable, table_of, tell, write_json
from .declared import command, only

if TYPE_CHECKING:
    from ...validation.compare.results import Comparison

Models = Annotated[
    list[str] | None,
    typer.Argument(metavar="MODEL...", help="Artifacts, diffusers pipelines (DIR|ID) and files of UNet weights over --model; each perhaps NAME=MODEL."),
]  # fmt: skip


@command
@resumable
def compare(
    settings: Annotated[
        CompareSettings,
        only(
            "concepts", "kind", "instead", "model", "judge", "objects", "styles", "seeds", "steps", "guidance", "attack", "iterations",
            "embedding_iterations", "restarts", "tune_seeds", "report_seeds", "search_seeds", "rounds", "device", "batch_size",
        ),
    ],
    models: Models = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="DIR", help="compare.html, .md and .json, pictures.png, and each model's evaluation and attack.", rich_help_panel=o.OUTPUT)] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin anew where a comparison is.", rich_help_panel=o.OUTPUT)] = False,
    dry_run: o.DryRun = False,
    as_json: o.Json = False,
) -> None:  # fmt: skip
    """Set artifacts and other edited models side by side: one table and one page.

    Each is evaluated, and attacked if asked for, on the same prompts and seeds by the same judges, beside the unedited model; forwards are
    timed in turn. What lies in the folder already is taken, so a killed run goes on, and a model can be added.

    Example: `saeuron compare without-neon esd=esd-neon --concepts Neon --model demo --attack embedding -o neon-compared`
    """
    from ...validation.compare.plan import make_plan
    from ...validation.compare.run import check_folder
    from ...validation.compare.run import compare as run

    folder = o.out_folder(output)
    check_parent(folder)
    with progress_line("looking at the models") as say:
        plan = make_plan(models or (), settings)
        check_folder(plan, folder, overwrite)
        found = None if dry_run else run(plan, folder, overwrite, say)
    if found is None:
        _print_plan(plan.describe(folder), as_json)
    elif as_json:
        write_json(found)
    else:
        _print(found)
        tell(f"{folder / 'compare.html'}, the same in compare.md and compare.json")


def _print_plan(said: dict[str, Any], as_json: bool) -> None:
    if as_json:
        write_json(said)
        return
    for name, of in said["models"].items():
        attack = of.get("attack")
        spent = f"; attack: {attack['pictures']} pictures, {attack['forwards']} forwards of one latent, {attack['gradients']} with a gradient{', done' if attack['done'] else ''}" if attack else ""  # fmt: skip
        tell(f"{name} ({of['kind']}): {of['pictures']} pictures, {of['done']} done{spent}")
    tell(f"{said['steps']} steps, guidance {said['guidance']:g}; unedited: {said['original']}")


def _print(found: Comparison) -> None:
    from ...validation.compare.table import NOTE, header, rows, said

    tell(said(found))
    titles = header(found)
    table = table_of(*titles, left=("model", "concept"))
    for row in rows(found):
        table.add_row(*(escaped(text) + (f"\n{escaped(below)}" if below else "") for text, below in row))
    out.print(table)
    tell(NOTE)
