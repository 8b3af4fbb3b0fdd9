"""Writes and measures the embedded demo's presets: `python -m benchmarks.demo_presets --help`.

`--from SWEEP_DIR` (repeatable) takes the settings that `saeuron sweep` chose; where several sweeps hold a concept, the one that
was best on the tuning seeds. `--measure FILE` measures the presets as they are shipped, on the sweeps' report seeds, through the
dynamic hook, and writes the table of docs/demo.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.demo.render import OBJECTS, STYLES
from benchmarks.demo.train_pipeline import TEMPLATES, prompt
from msgspec.structs import asdict, astuple
from rich.console import Console

from saeuron.editor import demo
from saeuron.editor.denoisers.pipelines import load_pipeline
from saeuron.editor.features import concepts
from saeuron.editor.features.cache import model_sha256
from saeuron.editor.features.concepts import presets
from saeuron.export.plan.concept_tables import write_tables
from saeuron.export.plan.prepare import open_sources
from saeuron.export.plan.resolve import resolve
from saeuron.export.plan.settings import Settings
from saeuron.validation.evidence.judges import open_judge
from saeuron.validation.evidence.sweep import Score, Sweep, Trial
from saeuron.validation.evidence.sweep_settings import SweepSettings

_PRESETS = Path(concepts.__file__).parent / "presets"
_ORDER = (*STYLES, *OBJECTS)


def collected_prompts(domain: str) -> list[str]:
    """Prompts of a domain's presets, other than the evaluation's; `{name}` stands for the concept."""
    templates = TEMPLATES[1:3]
    if domain == "style":
        return [prompt(o, "{name}", t) for t in templates for o in OBJECTS]
    return [prompt("{name}", s, t) for t in templates for s in (None, *STYLES)]


def write(sweeps: list[Path]) -> None:
    """One preset file a domain, from the sweeps' choices."""
    best: dict[str, dict[str, Any]] = {}
    for folder in sweeps:
        report = json.loads((folder / "report.json").read_text())
        shares = report["settings"]["weights"]
        for name, entry in report["concepts"].items():
            worth = sum(w * entry["tuning"][k] for w, k in zip((*shares, 1e-3), ("ua", "ira", "cra", "cra_target"), strict=True))
            if name not in best or worth > best[name]["worth"]:
                best[name] = {**entry, "worth": worth}
    for domain in ("style", "object"):
        tables = [
            {"name": name, "hookpoint": ",".join(best[name]["hookpoints"]), "select": best[name]["select"], "multiplier": best[name]["multiplier"]}
            for name in _ORDER
            if name in best and best[name]["domain"] == domain
        ]  # fmt: skip
        defaults = {
            "model": "demo", "domain": domain, "sae": "demo:saes", "activations": f"demo:{domain}-{{hookpoint}}.safetensors", "residual": "keep",
            "status": "tuned", "steps": demo.STEPS, "guidance": demo.GUIDANCE, "collect_steps": demo.STEPS, "collect_guidance": demo.GUIDANCE,
            "prompts": collected_prompts(domain),
        }  # fmt: skip
        write_tables(
            _PRESETS / f"demo_{domain}s.toml", tables, f"The embedded demo's {domain}s, tuned by saeuron sweep (docs/training.md); figures in docs/demo.md.",
            defaults,
        )  # fmt: skip


def measure(table: Path, store: Path) -> None:
    """UA, IRA and CRA of every shipped preset; stored results are used again."""
    console = Console(stderr=True)
    known = {n: c for n, c in presets().items() if c.model == "demo"}
    sources = open_sources(resolve(Settings(concepts=tuple(known), output=Path("unused"))), console.print)
    bench = Sweep(
        load_pipeline("demo"), sources.saes, {(w.domain, w.hookpoint): sources.of(w) for w in sources.wishes}, open_judge("demo"),
        SweepSettings(demo.STEPS, demo.GUIDANCE), store, model_sha256(demo.PIPELINE, pictures=True),
    )  # fmt: skip
    plain = bench.unedited()
    console.print(f"unedited: {plain}")
    scores: dict[str, Score] = {}
    for name in _ORDER:
        c = known[name]
        scores[name] = bench.report(Trial(name, c.domain, tuple(c.hookpoint.split(",")), c.select, c.multiplier))
        console.print(name, asdict(scores[name].figures))
    head = ("concept", "domain", "features a step and block", "multiplier", "UA", "IRA", "CRA", "other domain on the target")
    rows = [head, ("---",) * len(head)]
    for name, score in scores.items():
        trial = score.trial
        rows.append(
            (name, trial.domain, trial.select.partition(":")[2], f"{trial.multiplier:g}", *(f"{v:.1%}" for v in astuple(score.figures)))
        )
    for what, members in (("styles", STYLES), ("objects", OBJECTS), ("all", _ORDER)):
        means = [sum(column) / len(column) for column in zip(*(astuple(scores[n].figures) for n in members), strict=True)]
        rows.append((f"mean of {what}", "", "", "", *(f"{v:.1%}" for v in means)))
    table.write_text("".join(f"| {' | '.join(row)} |\n" for row in rows))


def main() -> None:
    """Write, measure, or both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="sweeps", type=Path, action="append", default=[], metavar="SWEEP_DIR")
    parser.add_argument("--measure", type=Path, metavar="FILE", help="Markdown table")
    parser.add_argument("--store", type=Path, default=Path("demo-presets-results"), help="results of --measure")
    options = parser.parse_args()
    if options.sweeps:
        write(options.sweeps)
    if options.measure:
        measure(options.measure, options.store)


if __name__ == "__main__":
    main()
