"""Runs PyPI's eval-unlearn on an artifact of the demo, beside the unedited demo by its own `free_run`. Usage: run_eval_unlearn.py ARTIFACT.

Of its nine metrics `ua_ira` alone takes prompts from files. It wants one of OpenAI's CLIPs by name; the demo's own lies under that name in the
working folder, where transformers finds it first, so nothing is fetched. `clip_score` takes its prompts from COCO, which is fetched: here it is given
the pictures of `ua_ira`. The others can't run without a network: see `LEFT_OUT`.
"""

from __future__ import annotations

import contextlib
import csv
import importlib.metadata
import io
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from golden_reader import Report
from PIL import Image

from saeuron.editor import demo
from saeuron.validation.artifact import manifest
from saeuron.validation.evidence.eval_unlearn import TECHNIQUE
from saeuron.validation.evidence.picture_backends import UNEDITED, PictureBackends
from saeuron.validation.judges.demo import DemoJudge

CLIP = "openai/clip-vit-large-patch14"
SEED = 188
KEPT = {"House": "Car", "Neon": "Sepia"}
"""concept that the artifact removes → one of the same domain that it keeps"""
LEFT_OUT = {
    "asr_i2p, err": "prompts come from the Hub", "fid": "COCO from the Hub, Inception's weights from torchvision", "tifa": "its VQA model comes from ModelScope",
    "asr_p4d, asr_mma_diffusion, asr_ring_a_bell": "they need packages that are on the Hub alone",
}  # fmt: skip


def prompts_of(concept: str, removed: list[str]) -> list[str]:
    """What shows a concept and nothing else that is removed: each prompt twice, for two seeds."""
    judge = DemoJudge()
    if concept in judge.objects:
        found = [judge.prompt(concept, style) for style in [None, *judge.styles] if style not in removed]
    else:
        found = [judge.prompt(o, concept) for o in judge.objects if o not in removed]
    return [*found, *found]


def runs_of(concept: str, removed: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Prompts of the concept, then of the one that is kept; and the metric's config, with both in files."""
    parts = {"target": prompts_of(concept, removed), "retain": prompts_of(KEPT[concept], removed)}
    config: dict[str, Any] = {"clip_model_name": CLIP, "device": "cpu"}
    for part, prompts in parts.items():
        file = Path(f"{concept}-{part}.csv").absolute()
        with file.open("w", newline="") as handle:
            csv.writer(handle).writerows([["prompt"], *([p] for p in prompts)])
        config |= {f"{part}_prompts_path": str(file), f"{part}_concept": concept if part == "target" else KEPT[concept]}
    # It divides every batch where the first one would be divided, so there must be one batch alone.
    together = [*parts["target"], *parts["retain"]]
    return together, {**config, "batch_size": len(together)}


def pictures_in(folder: Path, count: int) -> np.ndarray:
    """The pictures `[B, H, W, 3]` that a run left there, in the order of its prompts."""
    files = [
        p
        for part in ("target", "retain")
        for p in sorted(folder.glob(f"*/images/{part}/*.png"), key=lambda p: int(p.stem.rsplit("_", 1)[1]))
    ]
    assert len(files) == count, f"{len(files)} pictures in {folder}"
    return np.stack([np.asarray(Image.open(f)) for f in files]).astype(int)


def by_command(technique: dict[str, Any], metric: dict[str, Any], name: str) -> tuple[int, str]:
    """`eval-unlearn run`: exit code, and its log, which goes to stdout."""
    config = {"output_dir": name, "technique": technique, "metrics": [{"name": "ua_ira", "config": metric}]}
    Path(f"{name}.json").write_text(json.dumps(config))
    command = [str(Path(sys.executable).with_name("eval-unlearn")), "run", "--config", f"{name}.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def main(artifact: Path) -> int:
    """Exit code: 0 if every check passes."""
    record = manifest.read(artifact)
    concepts = [c for c in record.concepts if c in KEPT]
    if record.model.source != "demo" or not concepts:
        print(
            f"left out: eval-unlearn, whose pictures are judged by the demo's CLIP: this artifact removes {', '.join(record.concepts)} from {record.model.source}"
        )
        return 0
    logging.disable(logging.CRITICAL)  # it tells every step, and every technique and metric that isn't installed
    from eval_unlearn.metrics.clip_score.metric import CLIPScoreMetric
    from eval_unlearn.runners import MultiBenchmarkRunner

    report = Report(f"eval-unlearn {importlib.metadata.version('eval-unlearn')}", record.precision)
    sampling = {"num_inference_steps": record.sampling.steps, "guidance_scale": record.sampling.guidance}
    ours = {b: (TECHNIQUE, {"artifact": str(artifact), "backend": b}) for b in ("checkpoint", "onnx")}
    judge = DemoJudge()
    techniques = {"free_run": ("free_run", {"model_id": str(demo.PIPELINE), "device": "cpu", **sampling}), **ours}
    for concept in concepts:
        prompts, metric = runs_of(concept, record.concepts)
        figures, pictures = {}, {}
        for name, (technique, config) in techniques.items():
            with contextlib.redirect_stderr(io.StringIO()):  # a bar for each picture
                found = MultiBenchmarkRunner(technique, ["ua_ira"], config, {"ua_ira": metric}, f"{concept}-{name}", SEED).run()
            pictures[name] = pictures_in(Path(f"{concept}-{name}"), len(prompts))
            half, score = len(prompts) // 2, CLIPScoreMetric(clip_model_name=CLIP, device="cpu")
            drawn = [Image.fromarray(p.astype(np.uint8)) for p in pictures[name]]
            score.update(drawn[half:], prompts[half:])
            seen = judge.classify(drawn[:half])
            said = found["metric_results"]["ua_ira"]["details"]
            figures[name] = said["ua_score"], said["ira_score"]
            print(
                f"     {concept}, {name}: UA {said['target_correct']} of {said['target_total']}, IRA {said['retain_correct']} of {said['retain_total']}, "
                f"CLIP score of what is kept {score.compute().value:.2f}; the demo's judge sees {concept} in {[*seen.objects, *seen.styles].count(concept)} of {half}"
            )
        with PictureBackends(artifact, record).open(UNEDITED) as draw:
            mine = draw(prompts, range(SEED, SEED + len(prompts)), sampling["num_inference_steps"], sampling["guidance_scale"])
        off = {name: np.abs(pictures[name] - other).max() for name, other in (("free_run", mine), ("onnx", pictures["checkpoint"]))}
        report.line(
            off["free_run"] <= 1,
            f"{concept}: free_run begins from the same noise as our unedited backend: {off['free_run']} of 255 apart at most",
        )
        report.line(off["onnx"] <= 1, f"{concept}: backends onnx and checkpoint: {off['onnx']} of 255 apart at most")
        (ua, ira), (ua_before, ira_before) = figures["checkpoint"], figures["free_run"]
        report.line(
            ua_before <= 0.1 and ira_before >= 0.9,
            f"{concept}: this CLIP knows {concept} from {KEPT[concept]} in the unedited model's pictures",
        )
        report.line(
            ua - ua_before >= 0.3 and ira >= 0.9,
            f"{concept}: UA rises (it is a choice between two captions: what is neither gets one of them), IRA stays",
        )
        report.line(figures["onnx"] == figures["checkpoint"], f"{concept}: both backends have the same UA and IRA")
    report_command(report, artifact, metric, len(prompts))
    for names, why in LEFT_OUT.items():
        print(f"     left out: {names}: {why}")
    return report.exit_code()


def report_command(report: Report, artifact: Path, metric: dict[str, Any], count: int) -> None:
    """What a user types: a run twice over, and one whose config is wrong."""
    config = {"artifact": str(artifact), "backend": "onnx", "num_inference_steps": 2}
    ended = [by_command({"name": TECHNIQUE, "config": config}, metric, name) for name in ("once", "again")]
    same = all(code == 0 for code, _ in ended) and np.array_equal(*(pictures_in(Path(name), count) for name in ("once", "again")))
    report.line(
        same, "eval-unlearn run, which gives no seed, makes the same pictures twice" + "".join(f"\n{said}" for code, said in ended if code)
    )
    code, said = by_command({"name": TECHNIQUE, "config": {**config, "backend": "onx"}}, metric, "wrong")
    last = said.strip().splitlines()[-1]
    report.line(code == 1 and "backend 'onx' is not known; it is one of" in last, f"a wrong config ends with exit code {code} and: {last}")


if __name__ == "__main__":
    given = Path(sys.argv[1]).absolute()
    with tempfile.TemporaryDirectory() as work:
        os.chdir(work)
        shutil.copytree(demo.CLIP, CLIP)
        sys.exit(main(given))
