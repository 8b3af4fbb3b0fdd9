"""`saeuron concepts`: lists the concepts that have presets; `saeuron concepts new` writes one from words."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ...editor.common.errors import SaeuronError
from ...editor.common.names import BY_SAE
from ..plan.settings import Settings
from . import options as o
from .console import clean, escaped, out, table_of, tell
from .declared import command, only


@clean
def concepts(
    context: typer.Context,
    model: Annotated[str | None, typer.Option(metavar="DIR|ID", help="Only those of this base model.")] = None,
    domain: Annotated[str | None, typer.Option(metavar="NAME", help="Only those of this domain, e.g. style.")] = None,
    preset_file: o.PresetFiles = None,
    as_json: o.Json = False,
) -> None:
    """List the concepts that have presets; `new` writes a preset from words.

    Example: `saeuron concepts --domain style`
    """
    if context.invoked_subcommand is not None:
        if model is not None or domain is not None or preset_file or as_json:
            raise SaeuronError(f"options of 'saeuron concepts {context.invoked_subcommand}' come after its name")
        return
    from dataclasses import asdict

    from ...editor.common.suggest import unknown
    from ...editor.features.concepts import load_presets, shipped

    keys = (
        "name",
        "model",
        "domain",
        "sae",
        "hookpoint",
        "intervention",
        "select",
        "multiplier",
        "directions",
        "features",
        "residual",
        "status",
    )
    own = {name: concept for file in preset_file or () for name, concept in load_presets(Path(file)).items()}
    listed = [*(c for c in shipped() if c.name not in own), *own.values()]
    rows = [{k: v for k, v in asdict(c).items() if k in keys} for c in listed]
    for key, wanted in (("model", model), ("domain", domain)):
        if wanted is not None:
            known = dict.fromkeys(row[key] for row in rows if row[key])
            if wanted not in known:
                raise SaeuronError(unknown(key, wanted, known, "among the presets"))
            rows = [row for row in rows if row[key] == wanted]
    if as_json:
        sys.stdout.write(json.dumps(rows, indent=1) + "\n")
        return
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["sae"], row["hookpoint"], row["residual"]), []).append(row)
    for group, members in groups.items():
        _print_presets(group, members)


@command
def new(
    name: Annotated[str, typer.Argument(help="Its words, as they are to stand in a prompt.")],
    wanted: Annotated[Settings, only("model", "hookpoint", "overwrite")],
    kind: Annotated[str | None, typer.Option(metavar="KIND", help="What it is: object, style, person, nudity or text.", rich_help_panel=o.WHAT)] = None,
    instead: Annotated[str | None, typer.Option(metavar="TEXT", help="What pictures to compare with show in its place. Default: something neutral.", rich_help_panel=o.WHAT)] = None,
    sae: Annotated[str | None, typer.Option(metavar="DIR|ID", help="SAE folder or Hub id. Default: that of the model's presets.", rich_help_panel=o.WHERE)] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Preset file (TOML), to edit.", rich_help_panel=o.OUTPUT)] = None,
) -> None:  # fmt: skip
    """Write a preset from a concept's words: the prompts that `--concepts NAME --kind KIND` would take, as a file to edit.

    Example: `saeuron concepts new "Grumpy Cat" --kind object --instead "a cat" --output grumpy.toml`
    """
    from ...editor.features.concepts import KINDS, presets
    from ...editor.features.named import has_preset, made
    from ..plan.concept_tables import write_preset
    from ..plan.folder import check_files

    if kind is None:
        raise SaeuronError(f"of what kind is '{name}'? Give --kind ({', '.join(KINDS)})")
    if output is None:
        raise SaeuronError("no output: give --output FILE.toml")
    if name in presets():
        raise SaeuronError(has_preset(name))
    concept = made(name, kind, instead, wanted.model, sae, wanted.hookpoint)
    check_files([output], wanted.overwrite)
    write_preset(output, concept)
    for which, prompts in concept.compared.items():
        tell(f"prompts    {which}: {len(prompts)} to collect with, {len(concept.tested[which])} to judge with")
    tell(f'file       {output}; use it: saeuron-export --preset-file {output} --concepts "{name}"')


def _print_presets(group: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    """One model's presets; what they share stands above, so that the table fits 80 columns."""
    model, sae, hookpoint, residual = map(escaped, group)
    out.print(
        f"[bold]{model or 'any model: give --model'}[/] at {hookpoint.replace(',', ', ')}\nSAE {sae}, residual {residual}",
        highlight=False,
        soft_wrap=True,
    )
    table = table_of("name", "domain", "by", "multiplier", "status", left=("name", "domain", "by", "status"))
    for row in rows:
        by = row["select"] if set(BY_SAE) & set(row["intervention"].split("+")) else row["intervention"]
        table.add_row(row["name"], row["domain"], by, f"{row['multiplier']:g}", row["status"])
    out.print(table)
