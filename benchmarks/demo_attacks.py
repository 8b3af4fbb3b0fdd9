"""Attacks every preset of the embedded demo at one budget: `python -m benchmarks.demo_attacks --help`.

One concept's edit at a time, baked as the checkpoint holds it (or through the hook), by the code of `saeuron attack`. Each concept's figures lie in
`--store` under a hash of edit and settings, so a killed run goes on. Writes a Markdown table and a JSON file beside it.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import torch
from benchmarks.demo.render import OBJECTS, STYLES
from rich.console import Console

from saeuron.editor.common.typed import plain, read_as
from saeuron.editor.denoisers.families import rebuilt
from saeuron.editor.denoisers.pipelines import load_pipeline
from saeuron.editor.edit.bake import bake
from saeuron.editor.edit.provenance import Setting
from saeuron.editor.features.concepts import presets
from saeuron.export.plan.open import Prepared
from saeuron.export.plan.prepare import prepare
from saeuron.export.plan.resolve import resolve
from saeuron.export.plan.settings import Settings
from saeuron.validation.attack.attack import attack
from saeuron.validation.attack.cases import cases
from saeuron.validation.attack.settings import LEARNED, AttackSettings
from saeuron.validation.attack.victims import Baked, Hooked, Victim, bare
from saeuron.validation.evidence.intervals import Rate
from saeuron.validation.judges.choose import open_labels

_ROWS = ("unedited", "edited", "prefix", "embedding", "straight-through", "seeds")


def measure(name: str, options: argparse.Namespace, settings: AttackSettings, console: Console) -> dict[str, Any]:
    """One concept's rows, from the store if they are there."""
    prepared = prepare(
        resolve(Settings(concepts=(name,), settings=options.settings, intervention=options.intervention, output=Path("unused")))
    )
    budget = dataclasses.asdict(settings)
    what = [name, prepared.edit.sha256(), options.through, options.attacks, {k: v for k, v in budget.items() if k != "batch_size"}]
    key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
    stored = options.store / f"{name}-{options.through}-{key}.json"
    if stored.is_file():
        return json.loads(stored.read_text())
    pipeline = bare(load_pipeline("demo"))
    judge = open_labels("demo")
    wall, cpu = time.monotonic(), time.process_time()
    (case,) = cases(judge, [name], [name])
    rows, _ = attack(_victim(pipeline, prepared, options.through), pipeline, case, judge, settings, options.attacks, say=console.print)
    found = {
        "concept": name, "domain": case.domain, "through": options.through, "edit_sha256": prepared.edit.sha256(),
        "concepts": plain(prepared.edit.provenance.concepts), "settings": budget, "rows": plain(rows),
        "seconds": time.monotonic() - wall, "cpu_seconds": time.process_time() - cpu, "threads": torch.get_num_threads(),
    }  # fmt: skip
    options.store.mkdir(parents=True, exist_ok=True)
    partial = stored.with_suffix(".partial")
    partial.write_text(json.dumps(found) + "\n")
    partial.replace(stored)
    return found


def _victim(pipeline: Any, prepared: Prepared, through: str) -> Victim:
    if through == "hook":
        return Hooked(pipeline, prepared.edit, prepared.saes)
    return Baked(rebuilt(pipeline, unet=bake(pipeline.unet, prepared.edit, prepared.saes)))


def table(found: list[dict[str, Any]]) -> str:
    """A line a concept, sums of each domain and of all; successes of trials, then the 95 % interval."""
    rows = [r for r in _ROWS if any(r == row["attack"] for entry in found for row in entry["rows"])]
    lines = [("concept", "done", "multiplier", "blocks", *rows, "CPU s"), ("---",) * (len(rows) + 5)]
    for entry in found:
        settings = [read_as(Setting, c, "results") for c in entry["concepts"]]
        how = ", ".join(dict.fromkeys(f"{c.intervention} {c.said}" for c in reversed(settings)))
        strength = ", ".join(dict.fromkeys(f"{c.multiplier:g}" for c in settings if c.multiplier is not None))
        by = {row["attack"]: Rate.of(row["successes"], row["trials"]) for row in entry["rows"]}
        lines.append((
            entry["concept"], how, strength, str(sum(bool(c["hookpoint"]) for c in entry["concepts"])), *(_cell(by[r]) for r in rows), f"{entry['cpu_seconds']:.0f}",
        ))  # fmt: skip
    for what, members in (("styles", STYLES), ("objects", OBJECTS), ("all", (*STYLES, *OBJECTS))):
        part = [entry for entry in found if entry["concept"] in members]
        if not part:
            continue
        sums = []
        for r in rows:
            held = [row for entry in part for row in entry["rows"] if row["attack"] == r]
            sums.append(_cell(Rate.of(sum(row["successes"] for row in held), sum(row["trials"] for row in held))))
        lines.append((f"{what} ({len(part)})", "", "", "", *sums, f"{sum(entry['cpu_seconds'] for entry in part):.0f}"))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(rate: Rate) -> str:
    return f"{rate.hits}/{rate.trials} ({100 * (rate.low or 0):.0f}–{100 * (rate.high or 0):.0f} %)"


def main() -> None:
    """Attack, print, write."""
    own = AttackSettings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concepts", default=",".join((*STYLES, *OBJECTS)), metavar="A,B", help="default: all presets of the demo")
    parser.add_argument("--settings", type=Path, metavar="FILE", help="settings of another edit, as saeuron-export takes them")
    parser.add_argument("--intervention", metavar="KIND", help="attack this in the place of the preset's")
    parser.add_argument("--through", choices=("checkpoint", "hook"), default="checkpoint")
    parser.add_argument("--attacks", default=f"{','.join(LEARNED)},seeds", metavar="A,B")
    parser.add_argument("--embedding-iterations", type=int, default=own.embedding_iterations, metavar="N")
    parser.add_argument("--restarts", type=int, default=own.restarts, metavar="N")
    parser.add_argument("--report-seeds", default=",".join(map(str, own.report_seeds)), metavar="A,B")
    parser.add_argument("--seed", type=int, default=own.seed, help="of beginnings and noise of the searches")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--store", type=Path, default=Path("demo-attacks-results"), help="results that are used again")
    parser.add_argument("--output", type=Path, default=Path("demo-attacks.md"), metavar="FILE.md", help="JSON goes beside it")
    options = parser.parse_args()
    options.attacks = tuple(options.attacks.split(","))
    torch.set_num_threads(options.threads)
    settings = dataclasses.replace(
        own, embedding_iterations=options.embedding_iterations, restarts=options.restarts, seed=options.seed, report_seeds=tuple(int(s) for s in options.report_seeds.split(",")),
    )  # fmt: skip
    known = [n for n, c in presets().items() if c.model == "demo"]
    wanted = options.concepts.split(",")
    if unknown := [n for n in wanted if n not in known]:
        parser.error(f"no preset of the demo: {', '.join(unknown)}")
    console = Console(stderr=True)
    found = []
    for name in wanted:
        found.append(measure(name, options, settings, console))
        text = table(found)
        options.output.write_text(text)
        options.output.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    print(text, end="")


if __name__ == "__main__":
    main()
