"""Writes and measures the embedded demo's presets: `python -m benchmarks.demo_presets --help`.

`--from DIR` (repeatable) takes what `saeuron tune` chose of features (multiply); where several runs hold a concept, the one that was worth most on the
tuning seeds. `--hardened FILE` takes a settings file with strengths and, under `directions`, edits of `saeuron harden`, and ships their rows.
`--measure FILE` measures settings by the demo's classifier, one concept at a time, on every object in every style and plain with the report seeds,
through the dynamic hook: those of `--settings FILE`, or else the presets as they are shipped. It writes the table of docs/demo.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.demo.render import OBJECTS, STYLES
from benchmarks.demo.train_pipeline import TEMPLATES, prompt
from rich.console import Console

from saeuron.editor import demo
from saeuron.editor.common.files import read_toml
from saeuron.editor.common.names import GAINS, NORMS, REPLACE_BY
from saeuron.editor.denoisers.families import network_of
from saeuron.editor.denoisers.pipelines import load_pipeline
from saeuron.editor.denoisers.sampling import generate
from saeuron.editor.edit.directions_file import load_directions, save_directions
from saeuron.editor.edit.hook import AblationHook
from saeuron.editor.features import concepts
from saeuron.editor.features.cache import model_sha256
from saeuron.editor.features.concepts import OfFeatures, presets
from saeuron.export.plan.concept_tables import write_tables
from saeuron.export.plan.open import Prepared
from saeuron.export.plan.prepare import prepare
from saeuron.export.plan.resolve import resolve
from saeuron.export.plan.settings import Settings
from saeuron.validation.evidence.unlearning import all_jobs, look, rates
from saeuron.validation.judges.demo import DemoJudge

_PRESETS = Path(concepts.__file__).parent / "presets"
_ORDER = (*STYLES, *OBJECTS)
_SEEDS = (188, 288, 588)
_KEYS = ("ua", "ira", "cra", "cra_target")


def collected_prompts(domain: str) -> list[str]:
    """Prompts of a domain's presets, other than the evaluation's; `{name}` stands for the concept."""
    templates = TEMPLATES[1:3]
    if domain == "style":
        return [prompt(o, "{name}", t) for t in templates for o in OBJECTS]
    return [prompt("{name}", s, t) for t in templates for s in (None, *STYLES)]


def tested_prompts(domain: str) -> list[str]:
    """Test prompts: the evaluation's."""
    if domain == "style":
        return [prompt(o, "{name}", TEMPLATES[0]) for o in OBJECTS]
    return [prompt("{name}", s, TEMPLATES[0]) for s in (None, *STYLES)]


def features_of(runs: list[Path]) -> dict[str, dict[str, Any]]:
    """Concept → the features that tuning chose."""
    best: dict[str, dict[str, Any]] = {}
    for folder in runs:
        tuned = {t["name"]: t for t in read_toml(folder / "settings.toml", "settings")["concepts"]}
        for name, entry in json.loads((folder / "report.json").read_text())["concepts"].items():
            worth = entry["tried"][0]["worth"]
            if name not in best or worth > best[name]["worth"]:
                best[name] = {**tuned[name], "worth": worth}
    return {n: {"select": t["select"], "features": {key: t[key] for key in ("hookpoint", "multiplier")}} for n, t in best.items()}


def rows_of(settings: Path) -> dict[str, dict[str, Any]]:
    """Concept → strength and blocks; its rows are written into the demo, in 16 bits."""
    found, folder = {}, demo.ROOT / "directions"
    folder.mkdir(exist_ok=True)
    for table in read_toml(settings, "settings")["concepts"]:
        name, source = table["name"], Path(table["directions"].replace("{name}", table["name"]))
        save_directions(folder / f"{name}.safetensors", name, model_sha256(demo.PIPELINE), load_directions(source, name))
        found[name] = {key: table[key] for key in ("hookpoint", "intervention", "multiplier")}
    return found


def write(changes: Mapping[str, Mapping[str, Any]]) -> None:
    """One preset file a domain: what is there, with changes."""
    known = presets()
    for domain, names in (("style", STYLES), ("object", OBJECTS)):
        tables = []
        for n in names:
            c = known[n]
            held = {"name": n, "hookpoint": c.hookpoint, "select": c.select, "multiplier": c.multiplier, "intervention": c.intervention}
            # What is made for features until now keeps what it says of them.
            held["features"] = asdict(c.features or OfFeatures(c.hookpoint, c.multiplier))
            tables.append(held | changes.get(n, {}))
        defaults = {
            "model": "demo", "domain": domain, "sae": "demo:saes", "activations": f"demo:{domain}-{{hookpoint}}.safetensors",
            "directions": "demo:directions/{name}.safetensors",
            "mean_tokens": f"demo:mean-{domain}-{{hookpoint}}.safetensors", "residual": "keep",
            "kind": domain, "status": "tuned", "steps": demo.STEPS, "guidance": demo.GUIDANCE, "collect_steps": demo.STEPS,
            "collect_guidance": demo.GUIDANCE, "prompts": collected_prompts(domain), "test_prompts": tested_prompts(domain),
        }  # fmt: skip
        write_tables(
            _PRESETS / f"demo_{domain}s.toml", tables,
            f"The embedded demo's {domain}s, by benchmarks/demo_presets.py: how they were chosen, and figures, in docs/demo.md.", defaults,
        )  # fmt: skip


def _measured(prepared: Prepared, name: str, pipeline: Any, judge: DemoJudge, store: Path) -> dict[str, list[int]]:
    """One concept's figures, hits and trials; stored results are used again."""
    edit = prepared.edit
    kept = store / f"{edit.sha256()[:24]}.json"
    if not kept.is_file():
        jobs = all_jobs(judge.objects, [*judge.styles, None], _SEEDS)
        with AblationHook(network_of(pipeline), edit, prepared.saes):
            made = generate(
                pipeline, [judge.prompt(o, s) for o, s, _ in jobs], [x for *_, x in jobs], demo.STEPS, demo.GUIDANCE, batch_size=64
            )
        found = rates(look(judge, jobs, list(made)), {name: judge.domain(name)})[name]
        store.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps({key: [getattr(found, key).hits, getattr(found, key).trials] for key in _KEYS}))
    return json.loads(kept.read_text())


def measure(table: Path, store: Path, wanted: Settings) -> None:
    """UA, IRA and CRA by the classifier, one concept's edit at a time."""
    console, pipeline, judge = Console(stderr=True), load_pipeline("demo"), DemoJudge()
    head = ("concept", "domain", "done", "multiplier", "UA", "IRA", "CRA", "other domain on the target")
    rows, scores = [head, ("---",) * len(head)], {}
    for name in (n for n in _ORDER if n in resolve(wanted, apart=True).settings.concepts):
        prepared = prepare(resolve(replace(wanted, concepts=(name,))), console.print)
        scores[name] = _measured(prepared, name, pipeline, judge, store)
        console.print(name, scores[name])
        said = prepared.edit.provenance.concepts
        strengths = dict.fromkeys(f"{s.multiplier:g}" for s in said if s.multiplier is not None)
        figures = [f"{hits}/{trials} ({hits / trials:.1%})" for hits, trials in (scores[name][key] for key in _KEYS)]
        done = ", ".join(dict.fromkeys(f"{s.intervention} {s.said}" for s in reversed(said)))
        rows.append((name, judge.domain(name), done, ", ".join(strengths), *figures))
    for what, members in (("styles", STYLES), ("objects", OBJECTS), ("all", _ORDER)):
        held = [scores[n] for n in members if n in scores]
        if held:
            means = [sum(one[key][0] / one[key][1] for one in held) / len(held) for key in _KEYS]
            rows.append((f"mean of {what}", "", "", "", *(f"{v:.1%}" for v in means)))
    table.write_text("".join(f"| {' | '.join(row)} |\n" for row in rows))


def main() -> None:
    """Write, measure, or both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="runs", type=Path, action="append", default=[], metavar="DIR", help="output of saeuron tune")
    parser.add_argument("--hardened", type=Path, metavar="FILE", help="settings with the key directions: their rows are shipped")
    parser.add_argument("--measure", type=Path, metavar="FILE", help="Markdown table")
    parser.add_argument("--settings", type=Path, metavar="FILE", help="measure these settings (settings.toml of saeuron tune)")
    parser.add_argument("--concepts", default="", metavar="A,B", help="measure these alone; default: all presets, or all in FILE")
    parser.add_argument("--intervention", metavar="KIND", help="measure this in the place of the preset's")
    parser.add_argument("--multiplier", type=float, metavar="M")
    parser.add_argument("--select", metavar="RULE")
    parser.add_argument("--replace-by", choices=REPLACE_BY)
    parser.add_argument("--spread", type=int, metavar="N")
    parser.add_argument("--gain", choices=GAINS)
    parser.add_argument("--norm", choices=NORMS)
    parser.add_argument("--store", type=Path, default=Path("demo-presets-results"), help="results of --measure")
    options = parser.parse_args()
    if options.runs:
        write(features_of(options.runs))
    if options.hardened:
        write(rows_of(options.hardened))
    if options.measure:
        every = () if options.settings else tuple(n for n, c in presets().items() if c.model == "demo")
        measure(options.measure, options.store, Settings(
            concepts=tuple(filter(None, options.concepts.split(","))) or every, settings=options.settings, intervention=options.intervention,
            multiplier=options.multiplier, select=options.select, replace_by=options.replace_by, spread=options.spread, gain=options.gain,
            norm=options.norm, output=Path("unused"),
        ))  # fmt: skip


if __name__ == "__main__":
    main()
