"""`saeuron select`: which features a rule chooses, before anything is generated or exported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..plan.folder import check_files
from ..plan.settings import Settings
from . import options as o
from .console import out, print_warning, progress_line, table_of, tell, write_json
from .declared import command, only

if TYPE_CHECKING:
    from ..plan.prepare import Sources


@command
def select(
    wanted: Annotated[
        Settings,
        only(
            "concepts", "kind", "instead", "preset_files", "activations", "select", "multiplier", "allow_amplify", "model", "variant", "hookpoint", "sae", "device", "overwrite",
        ),
    ],
    rows: Annotated[int, typer.Option(min=1, metavar="N", help="Most features shown a concept.", rich_help_panel=o.OUTPUT)] = 12,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Settings for `saeuron-export --settings`, as TOML.", rich_help_panel=o.OUTPUT)] = None,
    as_json: o.Json = False,
) -> None:  # fmt: skip
    """Show the features that a rule chooses for each concept: when, with which score, and what else they answer to.

    Example: `saeuron select --concepts Neon,Sepia --select count:2`
    """
    from ..plan.resolve import resolve, to_fetch

    if output is not None:
        check_files([output], wanted.overwrite)
    plan = resolve(replace(wanted, intervention="multiply"))  # whatever else a preset does: what is shown are features of its SAE
    to_fetch(plan)
    with progress_line("opening what the edit is made of") as say:
        from ..plan.prepare import open_sources

        sources = open_sources(plan, say)
        found = _describe(sources)
    if output is not None:
        _write(output, sources)
    if as_json:
        write_json(found)
    else:
        _print(found, rows)
        if output is not None:
            tell(f"settings: {output}")


def _describe(sources: Sources) -> dict[str, Any]:
    from ...editor.features.overlap import describe_features, overlaps
    from ...editor.features.selection import scores
    from ...editor.features.selection import select as choose

    entries: list[dict[str, Any]] = []
    chosen: dict[str, dict[str, list[list[int]]]] = {}
    for wish in sources.wishes:
        held = sources.of(wish)
        rows = [row.nonzero().flatten().tolist() for row in choose(scores(held, wish.concept), wish.rule)]
        chosen.setdefault(wish.hookpoint, {})[wish.concept] = rows
        entries.append({
            "concept": wish.concept, "hookpoint": wish.hookpoint, "select": str(wish.rule), "multiplier": wish.multiplier, "status": wish.status,
            "compared_with": [c for c in held.concepts if c != wish.concept], "per_step": [len(r) for r in rows],
            "features": describe_features(held, wish.concept, rows),
        })  # fmt: skip
    return {"concepts": entries, "overlaps": [{"hookpoint": h, **pair} for h, by in chosen.items() for pair in overlaps(by)]}


def _print(found: dict[str, Any], rows: int) -> None:
    for entry in found["concepts"]:
        low, high = min(entry["per_step"]), max(entry["per_step"])
        out.print(
            f"[bold]{entry['concept']}[/] at {entry['hookpoint']}: {entry['select']}, {low if low == high else f'{low}–{high}'} a step, {len(entry['features'])} in all; compared with {len(entry['compared_with'])} others",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
        if not entry["features"]:
            print_warning(f"no latent answers to '{entry['concept']}' more than to the others")
            continue
        table = table_of(
            "feature", "timesteps", "score", "mean", "others above", "most among others", left=("timesteps", "most among others")
        )
        for f in entry["features"][:rows]:
            ranges = ", ".join(f"{a}–{b}" if a != b else f"{a}" for a, b in f["ranges"][:3]) + (" …" if len(f["ranges"]) > 3 else "")
            table.add_row(
                str(f["feature"]),
                ranges,
                f"{f['score']:.4f}",
                f"{f['mean']:.3g}",
                f"{f['others_above']:.0%}",
                f"{f['next']} {f['next_mean']:.2g}",
            )
        out.print(table)
        if len(entry["features"]) > rows:
            tell(f"… and {len(entry['features']) - rows} more (--rows, --json)")
    for pair in found["overlaps"]:
        a, b = pair["concepts"]
        tell(
            f"{a} and {b} share {len(pair['features'])} features at {pair['steps']} steps of {pair['hookpoint']}: {', '.join(map(str, pair['features'][:12]))}"
        )


def _write(output: Path, sources: Sources) -> None:
    from ..plan.concept_tables import contrast_tables, settings_table, write_tables

    tables = []
    for concept in dict.fromkeys(w.concept for w in sources.wishes):
        wishes = [w for w in sources.wishes if w.concept == concept]
        tables.append(
            settings_table(
                sources.plan,
                wishes[0].concept,
                wishes,
                wishes[0].status,
                {"select": str(wishes[0].rule), "multiplier": wishes[0].multiplier, "intervention": "multiply"},
            )
        )
    write_tables(
        output, tables, "By saeuron select. Read by: saeuron-export --settings FILE --output DIR", contrast=contrast_tables(sources.plan)
    )
