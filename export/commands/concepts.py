"""`saeuron concepts`: lists the concepts that have presets."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from ...editor.common.errors import SaeuronError
from . import options as o
from .console import clean, escaped, out, table_of


@clean
def concepts(
    model: Annotated[str | None, typer.Option(metavar="DIR|ID", help="Only those of this base model.")] = None,
    domain: Annotated[str | None, typer.Option(metavar="NAME", help="Only those of this domain, e.g. style.")] = None,
    preset_file: o.PresetFiles = None,
    as_json: o.Json = False,
) -> None:
    """List the concepts that have presets.

    Example: `saeuron concepts --domain style`
    """
    from dataclasses import asdict

    from ...editor.common.suggest import unknown
    from ...editor.features.concepts import presets

    keys = ("name", "model", "domain", "sae", "hookpoint", "select", "multiplier", "residual", "status")
    rows = [{k: v for k, v in asdict(c).items() if k in keys} for c in presets(preset_file or ()).values()]
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


def _print_presets(group: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    """One model's presets; what they share stands above, so that the table fits 80 columns."""
    model, sae, hookpoint, residual = map(escaped, group)
    out.print(
        f"[bold]{model or 'any model: give --model'}[/] at {hookpoint.replace(',', ', ')}\nSAE {sae}, residual {residual}",
        highlight=False,
        soft_wrap=True,
    )
    table = table_of("name", "domain", "select", "multiplier", "status", left=("name", "domain", "select", "status"))
    for row in rows:
        table.add_row(row["name"], row["domain"], row["select"], f"{row['multiplier']:g}", row["status"])
    out.print(table)
