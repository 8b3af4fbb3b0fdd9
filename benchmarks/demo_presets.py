"""Writes and measures the embedded demo's presets: `python -m benchmarks.demo_presets --help`.

`--from DIR` (repeatable) takes what `saeuron tune` chose; where several runs hold a concept, the one that was worth most on the tuning seeds.
`--measure FILE` measures settings by the demo's classifier, one concept at a time, on every object in every style and plain with the report seeds,
through the dynamic hook: those of `--settings FILE`, or else the presets as they are shipped. It writes the table of docs/demo.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.demo.render import OBJECTS, STYLES
from benchmarks.demo.train_pipeline import TEMPLATES, prompt
from rich.console import Console

from saeuron.editor import demo
from saeuron.editor.denoisers.families import network_of
from saeuron.editor.denoisers.pipelines import load_pipeline
from saeuron.editor.denoisers.sampling import generate
from saeuron.editor.edit.edit import Suppression, make_edit
from saeuron.editor.edit.hook import AblationHook
from saeuron.editor.features import concepts
from saeuron.editor.features.concepts import presets
from saeuron.export.plan.concept_tables import write_tables
from saeuron.export.plan.prepare import Sources, open_sources
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
    return [prompt("{name}", s, TEMPLATES[0]) for s in (*STYLES, None)]


def write(runs: list[Path]) -> None:
    """One preset file a domain, from what tuning chose."""
    best: dict[str, dict[str, Any]] = {}
    for folder in runs:
        for name, entry in json.loads((folder / "report.json").read_text())["concepts"].items():
            worth = entry["tried"][0]["worth"]
            if name not in best or worth > best[name]["worth"]:
                best[name] = {**entry["chosen"], "worth": worth}
    for domain, names in (("style", STYLES), ("object", OBJECTS)):
        tables = [
            {"name": n, "hookpoint": ",".join(best[n]["hookpoints"]), "select": best[n]["select"], "multiplier": best[n]["multiplier"]}
            for n in names if n in best
        ]  # fmt: skip
        defaults = {
            "model": "demo", "domain": domain, "sae": "demo:saes", "activations": f"demo:{domain}-{{hookpoint}}.safetensors", "residual": "keep",
            "kind": domain, "status": "tuned", "steps": demo.STEPS, "guidance": demo.GUIDANCE, "collect_steps": demo.STEPS,
            "collect_guidance": demo.GUIDANCE, "prompts": collected_prompts(domain), "test_prompts": tested_prompts(domain),
        }  # fmt: skip
        write_tables(
            _PRESETS / f"demo_{domain}s.toml", tables, f"The embedded demo's {domain}s, tuned by saeuron tune (docs/training.md); figures in docs/demo.md.",
            defaults,
        )  # fmt: skip


def _measured(sources: Sources, name: str, pipeline: Any, judge: DemoJudge, store: Path) -> dict[str, float]:
    """One concept's figures; stored results are used again."""
    wishes = [w for w in sources.wishes if w.concept == name]
    edit = make_edit(
        [Suppression(name, w.hookpoint, w.rule, w.multiplier) for w in wishes],
        {(name, w.hookpoint): sources.of(w) for w in wishes},
        sources.plan.residual,
    )
    kept = store / f"{edit.sha256()[:24]}.json"
    if not kept.is_file():
        jobs = all_jobs(judge.objects, [*judge.styles, None], _SEEDS)
        with AblationHook(network_of(pipeline), edit, sources.saes):
            made = generate(
                pipeline, [judge.prompt(o, s) for o, s, _ in jobs], [x for *_, x in jobs], demo.STEPS, demo.GUIDANCE, batch_size=64
            )
        found = rates(look(judge, jobs, list(made)), {name: judge.domain(name)})[name]
        store.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps({key: getattr(found, key).value for key in _KEYS}))
    return json.loads(kept.read_text())


def measure(table: Path, store: Path, settings: Path | None) -> None:
    """UA, IRA and CRA by the classifier."""
    console = Console(stderr=True)
    wanted = () if settings else tuple(n for n, c in presets().items() if c.model == "demo")
    sources = open_sources(resolve(Settings(concepts=wanted, settings=settings, output=Path("unused"))), console.print)
    pipeline, judge = load_pipeline("demo"), DemoJudge()
    head = ("concept", "domain", "features a step and block", "multiplier", "UA", "IRA", "CRA", "other domain on the target")
    rows, scores = [head, ("---",) * len(head)], {}
    for name in (n for n in _ORDER if n in sources.plan.settings.concepts):
        scores[name] = _measured(sources, name, pipeline, judge, store)
        console.print(name, scores[name])
        wish = next(w for w in sources.wishes if w.concept == name)
        figures = [f"{scores[name][key]:.1%}" for key in _KEYS]
        rows.append((name, judge.domain(name), str(wish.rule).partition(":")[2], f"{wish.multiplier:g}", *figures))
    for what, members in (("styles", STYLES), ("objects", OBJECTS), ("all", _ORDER)):
        held = [scores[n] for n in members if n in scores]
        if held:
            means = [sum(one[key] for one in held) / len(held) for key in _KEYS]
            rows.append((f"mean of {what}", "", "", "", *(f"{v:.1%}" for v in means)))
    table.write_text("".join(f"| {' | '.join(row)} |\n" for row in rows))


def main() -> None:
    """Write, measure, or both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="runs", type=Path, action="append", default=[], metavar="DIR", help="output of saeuron tune")
    parser.add_argument("--measure", type=Path, metavar="FILE", help="Markdown table")
    parser.add_argument("--settings", type=Path, metavar="FILE", help="measure these settings (settings.toml of saeuron tune)")
    parser.add_argument("--store", type=Path, default=Path("demo-presets-results"), help="results of --measure")
    options = parser.parse_args()
    if options.runs:
        write(options.runs)
    if options.measure:
        measure(options.measure, options.store, options.settings)


if __name__ == "__main__":
    main()
