"""Measures smears of edits of the embedded demo: `python -m benchmarks.demo_smears --output FILE.md`.

Through the dynamic hook, on every object in every style and plain: the share of tokens at both attention blocks that the unedited model's own
distribution doesn't hold, and of pictures on which the demo's classifier sees nothing (docs/evaluation.md). One calibration serves all rows.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from saeuron.editor import demo
from saeuron.editor.denoisers.families import network_of
from saeuron.editor.denoisers.pipelines import load_pipeline
from saeuron.editor.denoisers.sampling import generate
from saeuron.editor.edit.hook import AblationHook
from saeuron.export.plan.prepare import prepare
from saeuron.export.plan.resolve import resolve
from saeuron.export.plan.settings import Settings
from saeuron.validation.evidence.evaluation_plan import label_rows
from saeuron.validation.evidence.smears import nothing_seen, outside
from saeuron.validation.evidence.tokens import Calibration, Counter, Over, calibrate
from saeuron.validation.evidence.unlearning import all_jobs
from saeuron.validation.evidence.verdicts import VerdictRow, Wanted, units
from saeuron.validation.judges.demo import DemoJudge
from saeuron.validation.page.figures import percent

_BLOCKS = ("up_blocks.1.attentions.0", "up_blocks.1.attentions.1")
_AT = ",".join(_BLOCKS)
_BATCH = 36
_PUSHED = {"intervention": "weights+project", "multiplier": -5.0, "hookpoint": _AT}
_FEATURES = {"intervention": "multiply"}
_EDITS: tuple[tuple[str, dict[str, Any]], ...] = (
    *((name, how) for name in ("Star", "Umbrella", "Car") for how in ({}, _FEATURES, _PUSHED)),
    *(("Neon", how) for how in ({}, _FEATURES)),
    ("Neon", {"intervention": "project", "multiplier": -2.0, "hookpoint": _AT}),
    *((name, {"intervention": "weights"}) for name in ("Star", "Umbrella", "Car", "Neon")),
)


def _rows(pipeline: Any, judge: DemoJudge, wanted: Sequence[Wanted], calibration: Calibration, edit: Any) -> list[VerdictRow]:
    rows, counter, network = [], Counter(calibration), network_of(pipeline)
    with edit:
        for unit in units(wanted, _BATCH):
            with counter.over(network, len(unit), True):
                made = generate(pipeline, [w.prompt for w in unit], [w.seed for w in unit], demo.STEPS, demo.GUIDANCE, batch_size=_BATCH)
            seen, tokens = label_rows(judge, list(made)), counter.take(len(unit))
            rows += [{"file": w.name, **row, "tokens": said} for w, row, said in zip(unit, seen, tokens, strict=True)]
    return rows


def main() -> None:
    """Calibrate, draw, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="Markdown table")
    parser.add_argument("--seeds", default="188", metavar="A,B")
    options = parser.parse_args()
    console, pipeline, judge = Console(stderr=True), load_pipeline("demo"), DemoJudge()
    jobs = all_jobs(judge.objects, [*judge.styles, None], [int(seed) for seed in options.seeds.split(",")])
    wanted = [Wanted(f"{o}-{s}-{seed}", judge.prompt(o, s), seed, demo.GUIDANCE) for o, s, seed in jobs]

    def draw(unit: Sequence[Wanted], over: Over) -> None:
        with over(network_of(pipeline), len(unit), True):
            generate(
                pipeline,
                [w.prompt for w in unit],
                [w.seed for w in unit],
                demo.STEPS,
                demo.GUIDANCE,
                output_type="latent",
                batch_size=_BATCH,
            )

    begin = time.perf_counter()
    calibration = replace(calibrate(_BLOCKS, wanted, _BATCH, draw), sha256="0" * 64)
    console.print(f"calibrated in {time.perf_counter() - begin:.0f} s")
    made = {"unedited": _rows(pipeline, judge, wanted, calibration, nullcontext())}
    for name, changes in _EDITS:
        prepared = prepare(resolve(Settings(concepts=(name,), output=Path("unused"), **changes)), console.print)
        said = prepared.edit.provenance.concepts
        done = ", ".join(
            dict.fromkeys(f"{s.intervention} {'' if s.multiplier is None else f'{s.multiplier:g}'}".strip() for s in reversed(said))
        )
        made[f"{name} | {done}"] = _rows(
            pipeline, judge, wanted, calibration, AblationHook(network_of(pipeline), prepared.edit, prepared.saes)
        )
        lines = [
            "| concept | done | norm, first block | distance, first block | norm, second | distance, second | nothing seen: object | style |"
        ]
        lines += ["|" + "---|" * 8]
        for row, rows in made.items():
            tokens, seen = outside(rows), nothing_seen(row, made, "unedited")
            cells = [percent(share.mean) for at in _BLOCKS for share in (tokens[at].norm, tokens[at].distance)]
            cells += [percent(rate.rate) for rate in seen.values()] or ["–", "–"]
            lines.append(f"| {row if '|' in row else row + ' |'} | {' | '.join(cells)} |")
        options.output.write_text("\n".join(lines) + "\n")
        console.print(lines[-1])


if __name__ == "__main__":
    main()
