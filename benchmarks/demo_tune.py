"""Chooses the demo's settings per concept and measures them on other seeds: `python benchmarks/demo_tune.py --help`.

Each concept tries hookpoints × feature counts × multipliers through the dynamic hook at `residual=keep`, judged by the
demo's classifier on tuning seeds; the best is measured again on report seeds and written as the demo's presets. Concepts
that the output file already reports are kept, so a killed run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from saeuron.editor import demo
from saeuron.editor.activations import ConceptActivations
from saeuron.editor.demo.classifier import DemoClassifier
from saeuron.editor.demo.render import OBJECTS, STYLES
from saeuron.editor.demo.train_pipeline import prompt
from saeuron.editor.edit import Suppression, make_edit
from saeuron.editor.hook import AblationHook
from saeuron.editor.sae import SparseAutoencoder
from saeuron.editor.sampling import generate
from saeuron.editor.selection import Rule
from saeuron.validation.unlearning import Picture, Unlearning, accuracy, unlearning

TUNE_SEEDS, REPORT_SEEDS = (42, 43, 44), (188, 288, 588)
GRID = {"style": ((1, 2), (-0.1, -0.3, -1.0, -3.0)), "object": ((12, 32, 64), (-15.0, -40.0))}
"""domain → feature counts, multipliers; styles answer to one strong latent, objects to many weak ones"""
Pair = tuple[str, str | None]
LOOKS = (*STYLES, None)
Job = tuple[Pair, int]
ALL: list[Pair] = [(o, s) for o in OBJECTS for s in LOOKS]
REPORT: list[Job] = [(pair, seed) for pair in ALL for seed in REPORT_SEEDS]


def tuning(concept: str) -> list[Job]:
    """The target's pairs with all tuning seeds, and a quarter of the others with one, in a pattern that shows every name."""
    target = [(p, seed) for p in ALL if concept in p for seed in TUNE_SEEDS]
    rest = [
        ((o, s), TUNE_SEEDS[0]) for i, o in enumerate(OBJECTS) for j, s in enumerate(LOOKS) if (i + j) % 4 == 0 and concept not in (o, s)
    ]
    return target + rest


class Bench:
    """Pipeline, judge, SAEs and activations of the demo."""

    def __init__(self, root: Path, judge: Path) -> None:
        from diffusers import StableDiffusionPipeline

        self.pipeline = StableDiffusionPipeline.from_pretrained(root / "pipeline")
        self.judge = DemoClassifier.load(judge)
        names = sorted(p.name for p in (root / "saes").iterdir())
        self.saes = {h: SparseAutoencoder.load(root / "saes", h) for h in names}
        self.activations = {(d, h): ConceptActivations.load(root / f"{d}-{h}.safetensors") for d in ("style", "object") for h in names}

    def pictures(self, jobs: list[Job], edit: Any = None) -> list[Picture]:
        """Pictures of each pair and seed, judged."""
        asked, noise = [pair for pair, _ in jobs], [seed for _, seed in jobs]
        texts = [prompt(o, s) for o, s in asked]
        if edit is None:
            made = generate(self.pipeline, texts, noise, demo.STEPS, demo.GUIDANCE, batch_size=72)
        else:
            with AblationHook(self.pipeline.unet, edit, self.saes):
                made = generate(self.pipeline, texts, noise, demo.STEPS, demo.GUIDANCE, batch_size=72)
        seen = self.judge.classify(made)
        return [Picture(o, s, a, b) for (o, s), a, b in zip(asked, seen.objects, seen.styles, strict=True)]

    def measure(self, concept: str, domain: str, hookpoint: str, count: int, multiplier: float, jobs: list[Job]) -> Unlearning:
        """UA, IRA, CRA of one setting."""
        wish = Suppression(concept, hookpoint, Rule("count", count), multiplier)
        edit = make_edit([wish], {(concept, hookpoint): self.activations[domain, hookpoint]})
        return unlearning(self.pictures(jobs, edit), concept, domain)


def main() -> None:
    """Tune, report, write presets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=demo.ROOT, help="folder with pipeline, saes and activations")
    parser.add_argument("--judge", type=Path, default=demo.CLASSIFIER, help="classifier file")
    parser.add_argument("--hookpoints", default="", help="comma-separated; default: all with an SAE")
    parser.add_argument("--concepts", default=",".join((*STYLES, *OBJECTS)))
    parser.add_argument("--output", type=Path, required=True, help="JSON with every trial and the report")
    parser.add_argument("--presets", type=Path, help="write the demo's presets here")
    options = parser.parse_args()
    bench, start = Bench(options.demo, options.judge), time.time()
    hookpoints = options.hookpoints.split(",") if options.hookpoints else list(bench.saes)
    result: dict[str, Any] = json.loads(options.output.read_text()) if options.output.exists() else {"trials": [], "report": {}}
    if "unedited" not in result:
        plain = bench.pictures(REPORT)
        result |= {"unedited": {d: accuracy(plain, d) for d in ("object", "style")}, "report_seeds": REPORT_SEEDS}
    print("unedited:", result["unedited"], flush=True)
    for concept in options.concepts.split(","):
        if concept not in result["report"]:
            domain = "style" if concept in STYLES else "object"
            trials = tune(bench, concept, domain, hookpoints)
            best = max(trials, key=_worth)
            chosen = {k: best[k] for k in ("hookpoint", "count", "multiplier")}
            report = bench.measure(concept, domain, **chosen, jobs=REPORT)
            result["trials"] += trials
            result["report"][concept] = {"domain": domain, **chosen, "tune_seeds": TUNE_SEEDS, **report._asdict()}
            options.output.write_text(json.dumps(result, indent=1) + "\n")
        print(f"[{time.time() - start:5.0f} s] {concept}: {result['report'][concept]}", flush=True)
    if options.presets:
        options.presets.write_text(_presets(result["report"]))


def tune(bench: Bench, concept: str, domain: str, hookpoints: list[str]) -> list[dict[str, Any]]:
    """Every setting of the grid, scored on tuning seeds."""
    counts, multipliers = GRID[domain]
    trials = []
    for hookpoint in hookpoints:
        for count in counts:
            for multiplier in multipliers:
                score = bench.measure(concept, domain, hookpoint, count, multiplier, tuning(concept))
                trials.append({"concept": concept, "hookpoint": hookpoint, "count": count, "multiplier": multiplier, **score._asdict()})
    return trials


def _worth(trial: dict[str, Any]) -> float:
    """Mean of UA, IRA and CRA; the other domain on the target's own pictures decides between near equals."""
    return (trial["ua"] + trial["ira"] + trial["cra"]) / 3 + 0.1 * trial["cra_target"]


def _presets(report: dict[str, Any]) -> str:
    lines = [
        "# The embedded demo's concepts; settings and figures by benchmarks/demo_tune.py.", "[defaults]", 'model = "demo"', 'sae = "demo:saes"', 'residual = "keep"',
        'status = "tuned"', f"steps = {demo.STEPS}", f"guidance = {demo.GUIDANCE}",
    ]  # fmt: skip
    for name in sorted(report, key=[*STYLES, *OBJECTS].index):
        r = report[name]
        texts = [prompt(o, name) for o in OBJECTS[:4]] if r["domain"] == "style" else [prompt(name, s) for s in (None, *STYLES[:3])]
        lines += [
            "", "[[concepts]]", f'name = "{name}"', f'domain = "{r["domain"]}"', f'hookpoint = "{r["hookpoint"]}"',
            f'activations = "demo:{r["domain"]}-{r["hookpoint"]}.safetensors"', f'select = "count:{r["count"]}"', f"multiplier = {r['multiplier']}", f"prompts = {json.dumps(texts)}",
        ]  # fmt: skip
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
