"""`saeuron sweep`: tries settings, judges pictures, writes the best per concept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ...editor.common.errors import SaeuronError
from ...editor.common.names import normalise
from ...editor.common.suggest import unknown
from ...editor.features.rule import Rule
from ...validation.evidence.sweep_settings import Grid, SweepSettings
from ..plan.settings import Plan, Settings
from . import options as o
from .console import out, progress_line, resumable, table_of, tell, write_json
from .declared import command, only

if TYPE_CHECKING:
    from ...validation.evidence.sweep import Score, SweepReport, SweepSettings


@command
@resumable
def sweep(
    wanted: Annotated[
        Settings, only("concepts", "preset_files", "activations", "model", "variant", "sae", "residual", "steps", "guidance", "device")
    ],
    tried: Grid,
    settings: Annotated[SweepSettings, only("weights", "tune_seeds", "report_seeds", "rest", "batch_size")],
    judge: o.Judge = "demo",
    output: o.StoredResults = None,
    as_json: o.Json = False,
) -> None:
    """Try rule × value × multiplier for each concept, and write the best.

    Every trial generates pictures through the dynamic hook and asks a judge what is on them: UA (the target is gone), IRA (the rest of
    its domain is kept), CRA (the other domain is kept). The best on the tuning seeds is measured again on the report seeds. Results are
    stored: killed, the same command goes on, and a finer grid reuses them. OUTPUT/settings.toml is read by `saeuron-export --settings`.

    Example: `saeuron sweep --concepts Neon,House --select count:1,count:12 --multiplier=-1,-15 --output sweep`
    """
    from ..plan.resolve import resolve, to_fetch

    output = o.out_folder(output)
    rules = [str(Rule.parse(r)) for r in tried.select]
    places = [tuple(normalise(h.strip()) for h in text.split(",")) for text in tried.hookpoint]
    wanted = replace(wanted, hookpoint=",".join(dict.fromkeys(h for place in places for h in place)) or None)
    plan = resolve(wanted)
    to_fetch(plan)
    with progress_line("opening SAE and activations") as say:
        common = replace(settings, steps=plan.steps, guidance=plan.guidance, residual=plan.residual)
        report = _run(plan, common, judge, places, rules, tried.multiplier, output, say)
    if as_json:
        write_json(report)
    else:
        _print(report)
        tell(f"settings: {output / 'settings.toml'}")


def _run(
    plan: Plan, common: SweepSettings, judge_name: str, places: list[tuple[str, ...]], rules: list[str], gammas: Sequence[float], output: Path, say: Any
) -> SweepReport:  # fmt: skip
    from msgspec.structs import asdict

    from ...editor.denoisers.families import network_of
    from ...editor.denoisers.pipelines import load_pipeline
    from ...editor.edit.bake import refuse_edited
    from ...editor.features import cache
    from ...validation.evidence.judges import open_judge
    from ...validation.evidence.sweep import Sweep, SweepReport, Swept, grid
    from ..plan.concept_tables import trial_table
    from ..plan.prepare import open_sources
    from ..plan.progress import Remaining

    judge = open_judge(judge_name)
    domains = {name: domain for domain, held in (("object", judge.objects), ("style", judge.styles)) for name in held}
    for name in plan.settings.concepts:
        if name not in domains:
            raise SaeuronError(unknown("concept", name, domains, f"to the judge '{judge_name}'"))
    sources = open_sources(plan, say)
    by_place = {(w.concept, w.hookpoint): w for w in sources.wishes}
    activations = {(domains[w.concept], w.hookpoint): sources.of(w) for w in sources.wishes}
    say(f"loading {sources.plan.model}")
    pipeline = load_pipeline(sources.plan.model, None, plan.settings.device, variant=plan.settings.variant)
    refuse_edited(network_of(pipeline))
    bench = Sweep(
        pipeline,
        sources.saes,
        activations,
        judge,
        common,
        output / "results",
        cache.model_sha256(sources.model_folder, pictures=True, variant=plan.settings.variant),
    )
    names_of = list(plan.settings.concepts)
    trials_of = {
        name: grid(name, domains[name], places or [tuple(h for c, h in by_place if c == name)], rules, gammas) for name in names_of
    }
    bench.check(trial for trials in trials_of.values() for trial in trials)
    before = Remaining()

    def unedited(made: int, pictures: int) -> None:
        say(f"measuring the unedited model: {made} of {pictures} pictures{before.text(made, pictures)}")

    report = SweepReport(unedited=bench.unedited(unedited), judge=judge_name, settings=common, concepts={})
    tables = []
    clock, done = Remaining(), 0
    total = sum(len(t) for t in trials_of.values())
    for name in names_of:

        def progress(score: Score, name: str = name) -> None:
            nonlocal done
            done += 1
            f = score.figures
            say(
                f"{name}: trial {done} of {total}{clock.text(done, total)}: {score.trial.select}, {score.trial.multiplier:g}: UA {f.ua:.0%} IRA {f.ira:.0%} CRA {f.cra:.0%}"
            )

        known = bench.measured
        best, scores = bench.best(trials_of[name], progress)
        say(f"{name}: measuring the best on the report seeds")
        final = bench.report(best.trial)
        report.concepts[name] = Swept(
            **asdict(best.trial),
            tuning=best.figures,
            report=final.figures,
            pictures=final.pictures,
            trials=len(scores),
            measured=bench.measured - known,
        )
        tables.append(trial_table(sources, best.trial))
        _store(output, report, tables)
    return report


def _store(output: Path, report: SweepReport, tables: list[dict[str, Any]]) -> None:
    """After every concept, so that a killed sweep leaves what it found."""
    from ...editor.common.typed import strict_json
    from ..plan.concept_tables import write_tables

    write_tables(
        output / "settings.toml", tables,
        "By saeuron sweep; figures in report.json.\nRead by: saeuron-export --settings FILE --output DIR, or as --preset-file FILE",
    )  # fmt: skip
    (output / "report.json").write_text(strict_json(report) + "\n")


def _print(report: SweepReport) -> None:
    table = table_of("concept", "select", "gamma", "UA", "IRA", "CRA", "hookpoints", left=("concept", "select", "hookpoints"))
    entries = [(e, [e.report.ua, e.report.ira, e.report.cra]) for e in report.concepts.values()]
    for name, (entry, shares) in zip(report.concepts, entries, strict=True):
        table.add_row(name, entry.select, f"{entry.multiplier:g}", *(f"{s:.1%}" for s in shares), ", ".join(entry.hookpoints))
    means = [sum(column) / len(column) for column in zip(*(shares for _, shares in entries), strict=True)]
    table.add_row("mean", "", "", *(f"{m:.1%}" for m in means), "")
    out.print(table)
    plain = report.unedited
    tell(f"unedited: objects {plain['object']:.1%}, styles {plain['style']:.1%} recognised; every picture counts once")
