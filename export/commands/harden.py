"""`saeuron harden`: chooses how much to suppress by attacking each candidate."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...editor.common.errors import SaeuronError
from ...editor.common.suggest import unknown
from ...validation.attack.settings import BUDGET, AttackSettings, HardenSettings
from ...validation.page.figures import interval
from ..plan.settings import Plan, Settings
from . import options as o
from .console import out, progress_line, resumable, table_of, tell, write_json
from .declared import command, only

if TYPE_CHECKING:
    from ...validation.attack.hardening import HardeningReport, Measured
    from ...validation.evidence.intervals import Rate
    from ...validation.evidence.sweep import Trial
    from ..plan.prepare import Sources

FORMAT = "saeuron-hardening-1"


@command
@resumable
def harden(
    wanted: Annotated[
        Settings,
        only("concepts", "preset_files", "settings", "activations", "model", "variant", "hookpoint", "sae", "steps", "guidance", "device"),
    ],
    common: Annotated[HardenSettings, only("widen", "multiplier", "cost", "row", "trial_seeds", "report_searches")],
    budget: Annotated[AttackSettings, only("restarts", "tune_seeds", "report_seeds", "batch_size")],
    iterations: Annotated[int | None, typer.Option(metavar="N", help="Of each search. Default: as saeuron attack.", rich_help_panel=BUDGET)] = None,
    judge: o.Judge = "demo",
    output: o.StoredResults = None,
    as_json: o.Json = False,
) -> None:  # fmt: skip
    """Make an edit hold: attack each concept's setting and wider ones, and write the one under which attacks succeed least.

    A candidate that costs UA, IRA or CRA more than --cost is not taken. Candidates are compared on some prompts, names and seeds; the setting
    before and the chosen one are then attacked afresh and counted on others. Results are stored: killed, the same command goes on.
    OUTPUT/settings.toml is read by `saeuron-export --settings`.

    Example: `saeuron harden --concepts Neon --widen 2,4 --output hardened`
    """
    from ..plan.resolve import resolve, to_fetch

    output = o.out_folder(output)
    plan = resolve(wanted)
    to_fetch(plan)
    searches: dict[str, Any] = {} if iterations is None else {"iterations": iterations, "embedding_iterations": iterations}
    common = replace(common, attack=replace(budget, steps=plan.steps, guidance=plan.guidance, **searches), residual=plan.residual)
    common.check()
    with progress_line("opening SAE and activations") as say:
        report = _run(plan, common, judge, output, say)
    if as_json:
        write_json(report)
        return
    _print(report)
    tell(f"settings: {output / 'settings.toml'}")


def _run(
    plan: Plan, common: HardenSettings, judge_name: str, output: Path, say: Callable[[str], None]
) -> HardeningReport:  # fmt: skip
    from ...editor.common.files import read_json
    from ...editor.denoisers.families import network_of
    from ...editor.denoisers.pipelines import load_pipeline
    from ...editor.edit.bake import refuse_edited
    from ...editor.features.cache import model_sha256
    from ...validation.attack.hardening import Hardened, Hardening, HardeningReport, widened
    from ...validation.attack.victims import bare
    from ...validation.evidence.judges import open_judge
    from ...validation.evidence.results import JudgeRecord
    from ..plan.concept_tables import trial_table
    from ..plan.prepare import open_sources

    judge = open_judge(judge_name)
    domains = {name: domain for domain, held in (("object", judge.objects), ("style", judge.styles)) for name in held}
    sources = open_sources(plan, say)
    concepts = list(dict.fromkeys(w.concept for w in sources.wishes))
    for name in concepts:
        if name not in domains:
            raise SaeuronError(unknown("concept", name, domains, f"to the judge '{judge_name}'"))
    kind = read_json(sources.model_folder / "model_index.json").get("_class_name")
    if kind != "StableDiffusionPipeline":
        raise SaeuronError(f"only StableDiffusionPipeline can be attacked, not {kind}")
    say(f"loading {sources.plan.model}")
    pipeline = load_pipeline(sources.plan.model, None, plan.settings.device, variant=plan.settings.variant)
    refuse_edited(network_of(pipeline))
    identity = model_sha256(sources.model_folder, pictures=True, variant=plan.settings.variant)
    activations = {(domains[w.concept], w.hookpoint): sources.of(w) for w in sources.wishes}
    bench = Hardening(bare(pipeline), sources.saes, activations, judge, common, output / "results", identity, say)
    began = time.monotonic()
    report = HardeningReport(format=FORMAT, judge=JudgeRecord(judge.name, judge.sha256), settings=common)
    tables = []
    befores = {name: _before(sources, name, domains[name]) for name in concepts}
    for before in befores.values():
        for trial in (before, *widened(before, common.widen, common.multiplier or [before.multiplier])):
            bench.edit(trial)  # what can't be made is refused before anything is drawn
    for name, before in befores.items():

        def told(found: Measured, name: str = name) -> None:
            say(
                f"{name}: {found.select}, {found.multiplier:g}: attack {found.attack.hits} of {found.attack.trials}, UA {found.ua.value:.0%}, IRA {found.ira.value:.0%}, CRA {found.cra.value:.0%}"
            )

        compared = bench.choose(before, widened(before, common.widen, common.multiplier or [before.multiplier]), told)
        chosen = compared[0].trial
        report.concepts[name] = Hardened(
            domain=domains[name],
            changed=chosen != before,
            compared=compared,
            before=bench.report_on(before),
            chosen=bench.report_on(chosen),
        )
        tables.append(trial_table(sources, chosen))
        report.seconds = time.monotonic() - began
        _store(output, report, tables)
    return report


def _before(sources: Sources, concept: str, domain: str) -> Trial:
    """The setting that is to be hardened."""
    from ...validation.evidence.sweep import Trial

    wishes = [w for w in sources.wishes if w.concept == concept]
    if len({(w.rule, w.multiplier) for w in wishes}) > 1:
        raise SaeuronError(f"{concept}: its hookpoints have different rules or multipliers; candidates are tried with one for all of them")
    return Trial(concept, domain, tuple(w.hookpoint for w in wishes), str(wishes[0].rule), wishes[0].multiplier)


def _store(output: Path, report: HardeningReport, tables: list[dict[str, Any]]) -> None:
    """After every concept, so that a killed run leaves what it found."""
    from ...editor.common.typed import strict_json
    from ..plan.concept_tables import write_tables

    write_tables(
        output / "settings.toml", tables, "By saeuron harden; figures in report.json.\nRead by: saeuron-export --settings FILE --output DIR"
    )
    (output / "report.json").write_text(strict_json(report) + "\n")


def _print(report: HardeningReport) -> None:
    table = table_of("concept", "", "select", "gamma", "attack", "UA", "IRA", "CRA", left=("concept", "", "select"))
    for concept, entry in report.concepts.items():
        for which, m in (("before", entry.before), ("chosen", entry.chosen)):
            table.add_row(concept, which, m.select, f"{m.multiplier:g}", *map(_cell, (m.attack, m.ua, m.ira, m.cra)))
    out.print(table)
    for concept, entry in report.concepts.items():
        if not entry.changed:
            tell(f"{concept}: no candidate held better at this cost; the setting stays as it was")
    s = report.settings
    tell(
        f"attack {s.row}, {s.report_searches} fresh ones each, on prompts and seeds that nothing was chosen by; below a rate its 95 % interval (Wilson)"
    )


def _cell(rate: Rate) -> str:
    return f"{rate.hits} of {rate.trials}\n{interval(rate)}"
