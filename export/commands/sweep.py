"""`saeuron sweep`: tries settings, judges pictures, writes the best per concept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table

from ...editor.common.errors import SaeuronError
from ...editor.common.names import normalise
from ...editor.common.suggest import unknown
from ...editor.edit.gains import LARGEST
from ...editor.features.rule import Rule
from ..plan.settings import Plan
from . import options as o
from .console import clean, names, out, progress_line, resumable, write_json

if TYPE_CHECKING:
    from ...validation.evidence.sweep import Score

_GRID = "Grid"
_SELECTS = "count:1,count:2,count:4,count:12,count:32"
_MULTIPLIERS = "-0.3,-1,-3,-15,-40"


@clean
@resumable
def sweep(
    concepts: o.Concepts = "",
    preset_file: o.PresetFiles = None,
    activations: o.Activations = None,
    select: Annotated[str, typer.Option(metavar="A,B", help="Rules to try: percentile:P and count:N.", rich_help_panel=_GRID)] = _SELECTS,
    multiplier: Annotated[str, typer.Option(metavar="A,B", help="Multipliers to try.", rich_help_panel=_GRID)] = _MULTIPLIERS,
    hookpoint: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Hookpoint to try, or A,B for both at once; repeatable. Default: the preset's.", rich_help_panel=_GRID
        ),
    ] = None,
    weights: Annotated[
        str, typer.Option(metavar="UA,IRA,CRA", help="What is maximised; the released code's is .5,.5,0.", rich_help_panel=_GRID)
    ] = "0.5,0.5,0",
    judge: Annotated[
        str, typer.Option(metavar="NAME", help="demo, unlearncanvas=DIR with its two classifiers, or onnx=DIR.", rich_help_panel=o.HOW)
    ] = "demo",
    tune_seeds: Annotated[str, typer.Option(metavar="A,B", help="Seeds that settings are chosen by.", rich_help_panel=o.HOW)] = "42,43,44",
    report_seeds: Annotated[str, typer.Option(metavar="A,B", help="Other seeds, for the figures.", rich_help_panel=o.HOW)] = "188,288,588",
    rest: Annotated[
        float, typer.Option(metavar="SHARE", help="Share of the pictures without the target that a trial makes.", rich_help_panel=o.HOW)
    ] = 0.25,
    batch_size: Annotated[int, typer.Option(metavar="N", help="Pictures at a time.", rich_help_panel=o.HOW)] = 64,
    residual: Annotated[
        str | None, typer.Option(metavar="MODE", help="keep, upstream, drop. Default: the preset's.", rich_help_panel=o.HOW)
    ] = None,
    steps: Annotated[int | None, typer.Option(metavar="N", help="Denoising steps. Default: the preset's.", rich_help_panel=o.HOW)] = None,
    guidance: Annotated[float | None, typer.Option(metavar="SCALE", help="Default: the preset's.", rich_help_panel=o.HOW)] = None,
    model: o.Model = None,
    variant: o.Variant = None,
    sae: o.Sae = None,
    device: o.Device = "cpu",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="DIR", help="settings.toml, report.json and stored results; used again.", rich_help_panel=o.OUTPUT
        ),
    ] = None,
    as_json: o.Json = False,
) -> None:
    """Try rule × value × multiplier for each concept, and write the best.

    Every trial generates pictures through the dynamic hook and asks a judge what is on them: UA (the target is gone), IRA (the rest of
    its domain is kept), CRA (the other domain is kept). The best on the tuning seeds is measured again on the report seeds. Results are
    stored: killed, the same command goes on, and a finer grid reuses them. OUTPUT/settings.toml is read by `saeuron-export --settings`.

    Example: `saeuron sweep --concepts Neon,House --select count:1,count:12 --multiplier=-1,-15 --output sweep`
    """
    from ..plan.resolve import resolve, to_fetch
    from ..plan.settings import Settings

    if output is None:
        raise SaeuronError("no output folder: give --output DIR")
    o.check_out_folder(output)
    rules = [str(Rule.parse(r)) for r in names(select)]
    gammas = o.numbers_of(multiplier, "--multiplier")
    if any(abs(g) > LARGEST for g in gammas):
        raise SaeuronError(f"--multiplier '{multiplier}': float32 can't hold it")
    if any(g > 0 for g in gammas):
        raise SaeuronError("--multiplier: a positive multiplier strengthens a concept; a sweep tries negative ones")
    shares = o.numbers_of(weights, "--weights")
    if len(shares) != 3 or min(shares) < 0 or sum(shares) <= 0:
        raise SaeuronError(f"--weights '{weights}': expected three shares of UA, IRA and CRA, e.g. 0.5,0.5,0")
    if not 0 < rest <= 1 or batch_size < 1:
        raise SaeuronError("--rest lies in (0, 1], --batch-size is at least 1")
    seeds = [o.seeds_of(text, option) for text, option in ((tune_seeds, "--tune-seeds"), (report_seeds, "--report-seeds"))]
    places = [tuple(normalise(h.strip()) for h in text.split(",")) for text in hookpoint or []]
    together = ",".join(dict.fromkeys(h for place in places for h in place)) or None
    wanted = Settings(
        concepts=names(concepts), output=output, model=model, variant=variant, sae=tuple(sae or ()), hookpoint=together, activations=tuple(activations or ()),
        residual=residual, steps=steps, guidance=guidance, device=device, preset_files=tuple(preset_file or ()),
    )  # fmt: skip
    plan = resolve(wanted)
    to_fetch(plan)
    with progress_line("opening SAE and activations") as say:
        from ...validation.evidence.sweep import SweepSettings

        common = SweepSettings(
            plan.steps, plan.guidance, plan.residual, seeds[0], seeds[1], rest, (shares[0], shares[1], shares[2]), batch_size
        )
        common.check()
        report = _run(plan, common, judge, places, rules, gammas, output, say)
    if as_json:
        write_json(report)
    else:
        _print(report)
        out.print(f"settings: {output / 'settings.toml'}", highlight=False, soft_wrap=True)


def _run(
    plan: Plan,
    common: Any,
    judge_name: str,
    places: list[tuple[str, ...]],
    rules: list[str],
    gammas: list[float],
    output: Path,
    say: Any,
) -> dict[str, Any]:
    from ...editor.denoisers.families import network_of
    from ...editor.denoisers.pipelines import load_pipeline
    from ...editor.edit.bake import refuse_edited
    from ...editor.features import cache
    from ...validation.evidence.judges import open_judge
    from ...validation.evidence.sweep import Sweep, grid
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

    report: dict[str, Any] = {
        "unedited": bench.unedited(unedited), "judge": judge_name, "settings": vars(common), "counting": "every picture counts once, plain ones included", "concepts": {},
    }  # fmt: skip
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
        report["concepts"][name] = _entry(bench.measured - known, best, final, scores)
        tables.append(trial_table(sources, best.trial))
        _store(output, report, tables)
    return report


def _entry(measured: int, best: Score, final: Score, scores: list[Score]) -> dict[str, Any]:
    t = best.trial
    return {
        "domain": t.domain, "hookpoints": list(t.hookpoints), "select": t.select, "multiplier": t.multiplier, "tuning": best.figures._asdict(),
        "report": final.figures._asdict(), "pictures": final.pictures, "trials": len(scores), "measured": measured,
    }  # fmt: skip


def _store(output: Path, report: dict[str, Any], tables: list[dict[str, Any]]) -> None:
    """After every concept, so that a killed sweep leaves what it found."""
    from ...validation.artifact.typed import strict_json
    from ..plan.concept_tables import write_tables

    write_tables(
        output / "settings.toml", tables,
        "By saeuron sweep; figures in report.json.\nRead by: saeuron-export --settings FILE --output DIR, or as --preset-file FILE",
    )  # fmt: skip
    (output / "report.json").write_text(strict_json(report) + "\n")


def _print(report: dict[str, Any]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("concept", "select", "gamma", "UA", "IRA", "CRA", "hookpoints"):
        table.add_column(name, justify="right" if name in ("gamma", "UA", "IRA", "CRA") else "left", overflow="fold")
    for name, entry in report["concepts"].items():
        r = entry["report"]
        table.add_row(
            name,
            entry["select"],
            f"{entry['multiplier']:g}",
            f"{r['ua']:.1%}",
            f"{r['ira']:.1%}",
            f"{r['cra']:.1%}",
            ", ".join(entry["hookpoints"]),
        )
    entries = list(report["concepts"].values())
    means = [sum(e["report"][k] for e in entries) / len(entries) for k in ("ua", "ira", "cra")]
    table.add_row("mean", "", "", *(f"{m:.1%}" for m in means), "")
    out.print(table)
    plain = report["unedited"]
    out.print(
        f"unedited: objects {plain['object']:.1%}, styles {plain['style']:.1%} recognised; every picture counts once", highlight=False
    )
