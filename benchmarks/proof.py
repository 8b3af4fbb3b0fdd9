"""How the proof judges what is sound and what is slightly wrong: `python -m benchmarks.proof --help`, from the repository's root.

`--random N` makes N random small pipelines with random SAEs and edits (`tests/random_edits.py`), in fp32 and fp16, as checkpoint and as ONNX
graph. Each is held to an independent float64 computation, must be proven where that agrees, and must not be with any of the mutants.
`--demo` exports every concept of the embedded demo and ten pairs, as `saeuron-export --concepts NAME --format trt --target rtx:sm89` does.
`--stand-in` does the same with `nudity,vangogh` on random models of SD 1.4's layout. Prints Markdown tables; exit code 1 if the proof was wrong anywhere.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.demo.render import OBJECTS, STYLES
from tests.random_edits import MUTANTS, PROMPTS, Float64, Wanted, edit_in_float64, make, spoil_graph, spoiled

from saeuron.editor.common.names import dtype_of
from saeuron.editor.common.typed import plain
from saeuron.editor.edit.bake import bake
from saeuron.editor.edit.hook import TokenEdit
from saeuron.export.formats import onnx
from saeuron.validation.artifact.golden import Golden
from saeuron.validation.artifact.seam import BARS, FEATURE, SHARE, digest, rows_of
from saeuron.validation.backends.onnx_runner import OnnxRunner
from saeuron.validation.backends.torch_runner import TorchRunner
from saeuron.validation.proof import parity
from saeuron.validation.proof.forwards import distance
from saeuron.validation.proof.reference import make_golden
from saeuron.validation.proof.seam_reference import on_tokens

IN_GRAPH = ("one feature lost", "gains halved", "tables one step off", "one hookpoint lost")
"""mutants that change tables only, which a graph keeps in one piece"""


def independent(wanted: Wanted, golden: Golden, runner: Any, precision: str) -> tuple[float, int]:
    """The largest distance of an edited token from the float64 computation on the same input, as a share of its change.

    Tokens with other decisions or active latents are left out, and each number may be off by the rounding with which it is stored.

    Returns:
        the distance; tokens compared.
    """
    worst, count, unit = 0.0, 0, float(torch.finfo(dtype_of(precision)).eps)
    for case in golden.cases:
        for hookpoint, shown in runner.observe(case.inputs).seams.items():
            h, y, mine = (rows_of(v) for v in (shown.input, shown.output, shown.fires))
            exact, _, fires, member = edit_in_float64(
                wanted, hookpoint, case.timestep, h, None if shown.before is None else rows_of(shown.before), dtype_of(precision)
            )
            same = (fires == mine).all(1)
            if shown.members is not None:
                same &= digest(member) == digest(rows_of(shown.members))
            change = np.linalg.norm(exact - h, axis=1)
            apart = np.linalg.norm(np.maximum(np.abs(y - exact) - unit * np.abs(exact), 0), axis=1)
            apart = np.maximum(apart - room_of_reading(wanted, hookpoint, case.timestep, h, dtype_of(precision), fires), 0)
            held = same & fires.any(1)
            worst, count = max(worst, float((apart[held] / change[held]).max(initial=0.0))), count + int(held.sum())
    return worst, count


def room_of_reading(wanted: Wanted, hookpoint: str, timestep: float, h: np.ndarray, dtype: Any, fires: np.ndarray) -> np.ndarray:
    """How far float32 sums of any order, each rounded at every step, can move a token where latents are read in float32 `[L]`.

    The bound of numerical analysis (d · 2⁻²⁴ · Σ|w||x|), not the proof's own estimate.
    """
    sae, part = wanted.saes[hookpoint], wanted.edit.hookpoints[hookpoint]
    if sae.config.k is not None:
        return np.zeros(len(h))
    w = {name: p.detach().to(dtype).double().numpy() for name, p in sae.named_parameters()}
    features = part.features.numpy()
    gains = part.gains[part.rows(torch.tensor([timestep]))[0]].double().numpy()
    x = h.astype(np.float64) - w["b_dec"] * sae.config.subtract_bias
    latents = h.shape[1] * 2.0**-24 * (np.abs(x) @ np.abs(w["W_enc"][features]).T + np.abs(w["b_enc"][features]))
    return np.asarray((fires * np.abs(gains - 1) * latents) @ np.linalg.norm(w["W_dec"][features], axis=1))


def whole(wanted: Wanted, golden: Golden, runner: Any) -> float:
    """Distance of fp32 outputs from the whole UNet in float64, as a share of the effect, where no decision turned."""
    exact = Float64(wanted, torch.float32)
    apart = effect = 0.0
    for case in golden.cases[::3]:
        shown = runner.observe(case.inputs)
        wide = exact(case.sample, case.timestep, case.inputs["encoder_hidden_states"])
        if any((f.reshape(shown.seams[h].fires.shape) != shown.seams[h].fires).any() for h, f in exact.fires.items()):
            continue
        apart += distance(shown.output, wide) ** 2
        effect += distance(wide, exact(case.sample, case.timestep, case.inputs["encoder_hidden_states"], neutral=True)) ** 2
    return math.sqrt(apart / effect) if effect else math.nan


def verdict(golden: Golden, runner: Any, reference: Any = None) -> dict[str, Any]:
    """The proof's parts that are about the edit."""
    runner.skips = {"components": "not of interest here"}
    report = plain(parity.prove(golden, [runner], reference=reference))
    return {"passed": report["passed"], "failures": report["failures"], **report["backends"][runner.name]}


def caught_by(golden: Golden, runner: Any) -> tuple[bool, float]:
    """Whether a mutant fails at the seam; by how many times it misses the nearest of the bars that it misses."""
    found = parity.check_seam(golden, runner)
    assert found is not None
    return not found.passed, math.inf if found.wrong else max(
        found.worst / found.bar, abs(found.share - 1) / SHARE, found.furthest / FEATURE
    )


def one(seed: int, kind: str, precision: str, work: Path) -> tuple[list[str], int]:
    """Rows of one random pipeline at one precision, and how often the proof was wrong."""
    began = time.perf_counter()
    wanted = make(seed, kind)
    wanted.pipeline.to(dtype_of(precision))
    wanted.pipeline.set_progress_bar_config(disable=True)
    golden = make_golden(wanted.pipeline, wanted.edit, wanted.saes, PROMPTS[:2], wanted.steps, wanted.guidance, precision, wanted.gate,
                         scope="short" if seed % 5 else "full")  # fmt: skip
    reference = on_tokens(TokenEdit(wanted.edit, wanted.saes, dtype_of(precision), "cpu", wanted.gate))
    edited = copy.copy(wanted.pipeline)
    edited.unet = bake(wanted.pipeline.unet, wanted.edit, wanted.saes, wanted.gate)
    seams = onnx.write(onnx.denoiser_component(edited.unet, 24), work)
    edited.save_config(work)
    fired = {
        h: sum(c.seams[h].fires[(c.seams[h].slack == 0) & ~c.seams[h].near.any(1)].sum(0) for c in golden.cases)
        for h in wanted.edit.hookpoints
    }
    acting = [h for h in fired if np.any(fired[h])]
    rows, wrong = [], 0
    for name, runner in (("checkpoint", TorchRunner(edited)), ("onnx", OnnxRunner(work, seams=seams))):
        if name == "onnx":
            # The graph of the UNet alone was written: free runs take the rest of the pipeline.
            runner.free_run = TorchRunner(edited).free_run  # type: ignore[method-assign]
        share, count = independent(wanted, golden, runner, precision)
        network = whole(wanted, golden, runner) if precision == "fp32" else math.nan
        found = verdict(golden, runner, reference)
        agrees = share <= BARS[precision] and not network > 1e-3
        sound = found["passed"] == agrees
        wrong += not sound
        if not sound:
            print(f"seed {seed} {precision} {name}: {found['failures']}", file=sys.stderr, flush=True)
        seam, forwards = found["seam"], found["forwards"]
        tokens, own = seam["golden_tokens"], seam["own_tokens"]
        missed = []
        for label, change in MUTANTS.items():
            if not acting or (label == "one hookpoint lost" and len(fired) < 2) or (name == "onnx" and label not in IN_GRAPH):
                continue
            at = acting[-1]
            if name == "onnx":
                spoil_graph(work / "unet" / "model.onnx", work / "spoiled" / "unet" / "model.onnx", at, change, fired[at])
                caught, by = caught_by(golden, OnnxRunner(work / "spoiled", seams=seams))
            else:
                with spoiled(edited.unet, at, change, fired[at]):
                    caught, by = caught_by(golden, runner)
            missed.append(by)
            if not caught or by < 3:
                wrong += 1
                print(
                    f"seed {seed} {precision} {name}: {label} {'caught' if caught else 'MISSED'}, {by:.1f} × a bar",
                    file=sys.stderr,
                    flush=True,
                )
        rows.append(
            f"| {seed} | {wanted.said} | {precision} | {name} | {'agrees' if agrees else 'differs'} ({share:.1e}, {count} tokens{'' if math.isnan(network) else f'; outputs {network:.1e}'}) | {'proven' if found['passed'] else 'NOT proven'} | "
            f"{max(tokens['worst'], own['worst']):.1e} | {own['turned']} of {own['close']} | {seam['turned']} | {forwards['pooled']:.1e} (allowed {forwards['allowed']:.1e}) | {len(missed)}, least {min(missed, default=math.nan):.0f} × |"
        )  # fmt: skip
    print(f"seed {seed} {precision}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    return rows, wrong


def random_table(seeds: list[int], kind: str, precisions: list[str]) -> int:
    """Print the table of random pipelines."""
    print("| seed | pipeline (widths, SAE, rule, multiplier, residual, gate) | precision | backend | float64 | proof | seam | turned on the same tokens | turned in whole forwards | forwards | mutants caught |")  # fmt: skip
    print("|" + "---|" * 11, flush=True)
    wrong = 0
    for seed in seeds:
        for precision in precisions:
            with tempfile.TemporaryDirectory() as folder:
                rows, bad = one(seed, kind, precision, Path(folder))
            wrong += bad
            print("\n".join(rows), flush=True)
    print(f"\n{len(seeds)} pipelines, wrong verdicts: {wrong}")
    return wrong


def demo_table(concepts: list[str], options: list[str]) -> int:
    """Print the table of the demo's concepts, each exported by the command."""
    print("| concepts | proof | exit | seam | turned of close | forwards (allowed) | worst forward | turned in whole forwards | worst where some turned | s |")  # fmt: skip
    print("|" + "---|" * 10, flush=True)
    wrong = 0
    for name in concepts:
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            command = [
                sys.executable,
                "-m",
                "saeuron",
                "export",
                "--concepts",
                name,
                "--intervention",
                "multiply",
                *options,
                "--output",
                f"{folder}/out",
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            path = Path(folder, "out", "validation", "report.json")
            if not path.exists():
                print(f"| {name} | failed | {done.returncode} | {done.stderr.strip().splitlines()[-1][:100]} |||||||", flush=True)
                wrong += 1
                continue
            report = json.loads(path.read_text())
        wrong += done.returncode != 0
        (parts,) = report["backends"].values()
        seam, f = parts["seam"], parts["forwards"]
        own = seam["own_tokens"]
        turned = f"{float(f['worst_turned']):.2%}" if seam["turned"] else "–"
        print(
            f"| {name} | {'proven' if report['passed'] else 'NOT proven'} | {done.returncode} | {max(seam['golden_tokens']['worst'], own['worst']):.1e} | {own['turned']} of {own['close']} | "
            f"{f['pooled']:.2%} ({f['allowed']:.1%}) | {float(f['worst']):.2%} | {seam['turned']} of {seam['decisions']} | {turned} | {time.perf_counter() - began:.0f} |",
            flush=True,
        )
        for line in report["failures"]:
            print(f"{name}: {line}", file=sys.stderr, flush=True)
    print(f"\n{len(concepts)} exports, not proven: {wrong}")
    return wrong


def stand_in(home: Path) -> None:
    """A Hub cache that holds small random models under the names that the presets for SD 1.4 ask for."""
    from benchmarks.demo.train_pipeline import make_tokenizer
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from tests.conftest import make_sae
    from transformers import CLIPTextConfig, CLIPTextModel

    def snapshot(repo: str) -> Path:
        folder = home / "hub" / f"models--{repo.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text("0" * 40)
        return folder / "snapshots" / ("0" * 40)

    torch.manual_seed(3)
    model = snapshot("CompVis/stable-diffusion-v1-4")
    tokenizer = make_tokenizer(home / "tokenizer")
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    text = CLIPTextConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=77, **ends)  # fmt: skip
    unet = UNet2DConditionModel(sample_size=16, layers_per_block=2, block_out_channels=(32, 64, 64, 64), norm_num_groups=8, cross_attention_dim=32, attention_head_dim=8)  # fmt: skip
    vae = AutoencoderKL(block_out_channels=(8,) * 4, down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4, norm_num_groups=4)  # fmt: skip
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, clip_sample=False, set_alpha_to_one=False)  # fmt: skip
    StableDiffusionPipeline(
        vae=vae.eval(), text_encoder=CLIPTextModel(text).eval(), tokenizer=tokenizer, unet=unet.eval(), scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(model)  # fmt: skip
    make_sae(64, 1024, 32).save(snapshot("bcywinski/SAeUron_coco") / "unet.up_blocks.1.attentions.1")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--random", type=int, default=0, metavar="N", help="random pipelines")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="seed of the first of them")
    parser.add_argument("--kind", default="features", choices=("features", "by token", "directions"), help="of their edits")
    parser.add_argument("--precision", nargs="+", default=["fp32", "fp16"], choices=("fp32", "fp16"), help="of the random pipelines")
    parser.add_argument("--demo", action="store_true", help="every concept of the demo, and ten random pairs")
    parser.add_argument("--concepts", nargs="*", help="with --demo: these only")
    parser.add_argument("--stand-in", action="store_true", help="nudity,vangogh by name alone, on small random models in a Hub cache")
    parser.add_argument("--seed", type=int, default=0, help="of the pairs")
    parser.add_argument("--options", default="--format trt --target rtx:sm89", help="with --demo: of saeuron-export")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    wrong = 0
    if chosen.random:
        wrong += random_table(list(range(chosen.first, chosen.first + chosen.random)), chosen.kind, chosen.precision)
    if chosen.demo:
        names = [*OBJECTS, *STYLES]
        pick = np.random.default_rng(chosen.seed)
        pairs: dict[frozenset[str], str] = {}
        while len(pairs) < 10:
            pair = [str(n) for n in pick.choice(names, 2, replace=False)]
            pairs.setdefault(frozenset(pair), ",".join(pair))
        wrong += demo_table(chosen.concepts or [*names, *pairs.values()], chosen.options.split())
    if chosen.stand_in:
        with tempfile.TemporaryDirectory() as home:
            stand_in(Path(home))
            os.environ |= {"HF_HOME": home, "HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": home}
            wrong += demo_table(["nudity,vangogh"], chosen.options.split())
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
