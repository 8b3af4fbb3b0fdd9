"""`saeuron harden`: attacks an edit, and adds to it what came back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ...editor.common.errors import SaeuronError
from ...editor.common.typed import plain
from ...validation.attack.settings import HardenSettings
from ..plan.folder import check_files
from ..plan.settings import Settings
from . import options as o
from .console import escaped, out, progress_line, table_of, tell, write_json
from .declared import command, only


@command
def harden(
    wanted: Annotated[
        Settings,
        only("concepts", "kind", "instead", "preset_files", "settings", "model", "variant", "hookpoint", "multiplier", "start", "norm", "becomes", "steps", "guidance", "device", "intervention"),
    ],
    settings: Annotated[HardenSettings, only("judge", "rounds", "tokens", "embedding_iterations", "restarts", "tune_seeds", "batch_size", "seed")],
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE.safetensors", help="The edit.", rich_help_panel=o.OUTPUT)] = None,
    overwrite: o.Overwrite = False,
    as_json: o.Json = False,
) -> None:  # fmt: skip
    """Attack an edit by learned embeddings, and add to its discriminants (--intervention probe) what they brought back; round by round.

    A judge says which pictures under attack show the concept. Their tokens make one more discriminant, and the next attack is on the edit with that.
    Prompts and seeds are others than those of `saeuron attack` and `evaluate`, which judge the result. Without --intervention or a settings file, weights+probe is hardened, and rows that a preset has (directions) are made anew. `saeuron-export --edit FILE` makes the artifact; key directions of a settings file takes the rows.

    Example: `saeuron harden --concepts Car --multiplier -30 --judge demo --output car.safetensors`
    """
    from ..plan.resolve import resolve, to_fetch

    if output is None or output.suffix != ".safetensors":
        raise SaeuronError("give the edit a place: --output FILE.safetensors")
    check_files([output], overwrite)
    if wanted.intervention is None and wanted.settings is None:  # a settings file says it of each concept
        wanted = replace(wanted, intervention="weights+probe")
    plan = resolve(wanted, anew=True)
    to_fetch(plan)
    with progress_line("opening the model") as say:
        from ..plan.hardening import run

        rounds = run(plan, settings, output, say)
    if as_json:
        write_json({"edit": str(output), "rounds": plain(rounds)})
        return
    table = table_of("concept", "round", "brought back", "of", left=("concept",))
    for found in rounds:
        table.add_row(escaped(found.concept), str(found.number), str(found.shown), str(found.pictures))
    out.print(table)
    added = sum(found.shown > 0 for found in rounds)
    made = (
        f"from these {added} more {'discriminant was' if added == 1 else 'discriminants were'} made"
        if added
        else "none did, so nothing was added"
    )
    tell(f"Pictures under attack that show the concept: {made}. How well it holds now, saeuron attack says.")
    tell(f"edit: {output}; saeuron-export --edit {output} --output DIR")
