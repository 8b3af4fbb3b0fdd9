"""Rebuilds the demo's second model, a small SD3, from a seed: `python -m benchmarks.demo.build_dit --work DIR`.

Stages are as in `build.py`. Autoencoder, text encoder, tokenizer and judge are the first model's, as they lie in the package.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from transformers import CLIPTextModel, CLIPTokenizer

from saeuron.editor.demo import GUIDANCE, PIPELINE, ROOT, STEPS
from saeuron.editor.denoisers.pipelines import load_pipeline
from saeuron.editor.denoisers.sampling import generate
from saeuron.editor.sae.train_settings import TrainSettings
from saeuron.validation.judges.demo import DemoJudge

from . import train_dit as training
from . import train_pipeline
from .build import SEED, _pictures, make_activations, make_saes, prefix_clip, run, stage_render
from .render import OBJECTS, STYLES

STEPS_TRAINED = 2200
HOOKPOINTS = ("transformer_blocks.2", "transformer_blocks.2:text")


def _parts() -> tuple[AutoencoderKL, tuple, CLIPTokenizer]:
    tokenizer = CLIPTokenizer.from_pretrained(PIPELINE / "tokenizer")
    texts = training.make_texts(CLIPTextModel.from_pretrained(PIPELINE / "text_encoder"), tokenizer, SEED + 11)
    return AutoencoderKL.from_pretrained(PIPELINE / "vae"), texts, tokenizer


def stage_latents(work: Path) -> None:
    """Encode the training pictures."""
    data, objects, styles = _pictures(work)
    torch.save((train_pipeline.encode(AutoencoderKL.from_pretrained(PIPELINE / "vae"), data), objects, styles), work / "latents.pt")


def stage_transformer(work: Path) -> None:
    """Train the transformer on the latents; it goes on where it was interrupted."""
    vae, texts, tokenizer = _parts()
    latents, objects, styles = torch.load(work / "latents.pt")
    torch.manual_seed(SEED + 12)
    pipeline = training.assemble(vae, texts, tokenizer, training.make_transformer(latents.shape[-1]))
    training.train(pipeline, latents, objects, styles, STEPS_TRAINED, SEED + 13, work / "dit_running")
    pipeline.transformer.save_pretrained(work / "transformer")


def stage_round(work: Path) -> None:
    """Store transformer and autoencoder in 16 bits; everything after is measured on the rounded model.

    The text encoders stay float32, as the first model's does, and for the same reason.
    """
    vae, texts, tokenizer = _parts()
    transformer = SD3Transformer2DModel.from_pretrained(work / "transformer")
    shutil.rmtree(work / "dit", ignore_errors=True)
    training.assemble(vae.half(), texts, tokenizer, transformer.half()).save_pretrained(work / "dit" / "pipeline")
    for name in ("vae", "transformer"):  # where they were opened from is of no use to anyone
        path = work / "dit" / "pipeline" / name / "config.json"
        told = json.loads(path.read_text())
        path.write_text(json.dumps({key: value for key, value in told.items() if key != "_name_or_path"}, indent=2) + "\n")
    for name in ("text_encoder", "text_encoder_2"):
        prefix_clip(work / "dit" / "pipeline" / name / "model.safetensors")


def stage_judge(work: Path) -> None:
    """Say how often the judge sees what was asked for: every object in every style and plain, with three seeds, also as a stock client calls it."""
    pipeline, judge = _opened(work), DemoJudge()
    jobs = [(o, s, seed) for seed in (188, 288, 588) for o in OBJECTS for s in (*STYLES, None)]
    texts, seeds = [judge.prompt(o, s) for o, s, _ in jobs], [seed for *_, seed in jobs]
    for tokens in (train_pipeline.MAX_TOKENS, training.STOCK_T5_TOKENS):
        pipeline.tokenizer_3.model_max_length = tokens
        found = judge.probabilities(generate(pipeline, texts, seeds, STEPS, GUIDANCE, batch_size=36))
        right = {
            domain: [labels[row.argmax()] == job[place] for row, job in zip(shares, jobs, strict=True)]
            for place, (domain, (labels, shares)) in enumerate((d, found[d]) for d in ("object", "style"))
        }
        both = sum(map(all, zip(*right.values(), strict=True)))
        print(f"{tokens} tokens of T5: {', '.join(f'{d} {sum(r)}' for d, r in right.items())}, both {both} of {len(jobs)}", flush=True)


def stage_saes(work: Path) -> None:
    """Train one SAE a hookpoint, all on the same pictures."""
    settings = TrainSettings(
        expansion=4, k=16, tokens=1_228_800, batch=2048, rate=1e-3, decay_from=0.2, warmup=50, dead_after=300_000, pictures=320, passes=12, held_out=64
    )  # fmt: skip
    make_saes(_opened(work), HOOKPOINTS, settings, work / "saes", work / "dit" / "saes")


def stage_activations(work: Path) -> None:
    """Collect concept activations."""
    make_activations(_opened(work), "demo:dit", HOOKPOINTS, work / "dit")


def stage_install(work: Path) -> None:
    """Copy the result into the package."""
    shutil.rmtree(ROOT / "dit", ignore_errors=True)
    shutil.copytree(work / "dit", ROOT / "dit")


def _opened(work: Path) -> Any:
    return load_pipeline(str(work / "dit" / "pipeline"))


STAGES = {
    "render": stage_render, "latents": stage_latents, "transformer": stage_transformer, "round": stage_round, "judge": stage_judge, "saes": stage_saes,
    "activations": stage_activations, "install": stage_install,
}  # fmt: skip

if __name__ == "__main__":
    run(STAGES, __doc__)
