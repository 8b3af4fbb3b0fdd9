"""Rebuilds the whole embedded demo from a seed: `python -m benchmarks.demo.build --work DIR`.

Stages run in order and keep what they made in DIR, so a later stage can be repeated without the earlier ones.
Only the last stage, `install`, writes into the package.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from saeuron.editor.common.names import file_of
from saeuron.editor.demo import GUIDANCE, ROOT, STEPS
from saeuron.editor.denoisers.sampling_settings import Sampling
from saeuron.editor.edit.project import token_parts
from saeuron.editor.features.collect import collect
from saeuron.editor.features.concepts import shipped
from saeuron.editor.sae.sae import SparseAutoencoder
from saeuron.editor.sae.train_settings import TrainSettings
from saeuron.editor.sae.training import Trainer
from saeuron.export.plan.becomes import PLAIN

from . import train_pipeline as training
from .render import dataset
from .train_clip import save_clip, train_clip

SEED = 20260
HOOKPOINTS = ("up_blocks.1.attentions.0", "up_blocks.1.attentions.1")


def stage_render(work: Path) -> None:
    """Render the training pictures."""
    pictures, objects, styles = dataset(300, SEED)
    np.savez_compressed(work / "pictures.npz", pictures=pictures, objects=objects, styles=styles)


def _pictures(work: Path) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    stored = np.load(work / "pictures.npz")
    return training.pictures_tensor(stored["pictures"]), torch.from_numpy(stored["objects"]), torch.from_numpy(stored["styles"])


def stage_classifier(work: Path) -> None:
    """Train the judge on rendered pictures of its own seed."""
    training.train_classifier(1500, SEED + 1).save(work / "classifier.safetensors")


def stage_clip(work: Path, steps: int = 3000) -> None:
    """Train the CLIP on rendered pictures of its own seed, with a tokenizer like the pipeline's."""
    tokenizer: CLIPTokenizer = training.make_tokenizer(work / "tokenizer")
    shutil.rmtree(work / "clip", ignore_errors=True)
    save_clip(train_clip(tokenizer, steps, SEED + 7), tokenizer, work / "clip")


def stage_autoencoder(work: Path) -> None:
    """Train the autoencoder."""
    training.train_autoencoder(_pictures(work)[0], 1400, SEED + 2).save_pretrained(work / "vae")


def stage_unet(work: Path, steps: int = 5000) -> None:
    """Train text encoder and UNet on the autoencoder's latents, and assemble the pipeline."""
    data, objects, styles = _pictures(work)
    vae = AutoencoderKL.from_pretrained(work / "vae")
    tokenizer: CLIPTokenizer = training.make_tokenizer(work / "tokenizer")
    latents = training.encode(vae, data)
    text_encoder, unet = training.train_unet(latents, objects, styles, tokenizer, steps, SEED + 3, checkpoint=work / "unet_running")
    training.assemble(vae, text_encoder, tokenizer, unet).save_pretrained(work / "pipeline")


def stage_round(work: Path) -> None:
    """Store the large networks as fp16; everything after is measured on the rounded model.

    diffusers widens its networks to float32 on load; transformers keeps what the file says, so the text encoder stays float32.
    """
    pipeline = StableDiffusionPipeline.from_pretrained(work / "pipeline")
    pipeline.unet.half()
    pipeline.vae.half()
    shutil.rmtree(work / "demo", ignore_errors=True)
    pipeline.save_pretrained(work / "demo" / "pipeline")
    prefix_clip(work / "demo" / "pipeline" / "text_encoder" / "model.safetensors")


def prefix_clip(path: Path) -> None:
    """transformers 5 saves a text encoder made from scratch without the prefix that version 4 looks for; it reads both."""
    tensors = {k if k.startswith("text_") else f"text_model.{k}": v for k, v in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})


def stage_saes(work: Path) -> None:
    """Train one SAE a hookpoint, all on the same pictures; `saeuron train` does the same (docs/training.md)."""
    pipeline = StableDiffusionPipeline.from_pretrained(work / "demo" / "pipeline")
    settings = TrainSettings(
        k=16, tokens=2_457_600, batch=2048, rate=1e-3, decay_from=0.2, warmup=50, dead_after=300_000, pictures=320, passes=8, held_out=128
    )
    make_saes(pipeline, HOOKPOINTS, settings, work / "saes", work / "demo" / "saes")


def make_saes(pipeline: Any, hookpoints: Sequence[str], settings: TrainSettings, work: Path, folder: Path) -> None:
    """Train them in `work`, and store them in 16 bits in `folder`."""
    prompts = [line for line in (ROOT / "prompts.txt").read_text().splitlines() if line]
    shutil.rmtree(work, ignore_errors=True)
    report = Trainer(pipeline, hookpoints, prompts, settings, Sampling(STEPS, GUIDANCE, batch_size=64), work).train()
    assert report is not None
    for hookpoint in hookpoints:
        print(f"{hookpoint}: FVU {report['saes'][hookpoint]['fvu']:.4f} on held-out pictures", flush=True)
        SparseAutoencoder.load(work, hookpoint).save(folder / file_of(hookpoint), torch.float16)


def stage_activations(work: Path) -> None:
    """Collect concept activations."""
    make_activations(StableDiffusionPipeline.from_pretrained(work / "demo" / "pipeline"), "demo", HOOKPOINTS, work / "demo")


def make_activations(pipeline: Any, model: str, hookpoints: Sequence[str], folder: Path) -> None:
    """One file a domain and hookpoint, on the prompts of the model's presets; none is the evaluation's."""
    saes = {hookpoint: SparseAutoencoder.load(folder / "saes", hookpoint) for hookpoint in hookpoints}
    for domain, prompts in {c.domain: c.compared for c in shipped() if c.model == model}.items():
        found = collect(pipeline, saes, prompts, Sampling(STEPS, GUIDANCE, batch_size=18), {"domain": domain})
        for hookpoint, activations in (found or {}).items():
            activations.save(folder / f"{domain}-{file_of(hookpoint)}.safetensors", torch.float16)


def stage_mean_tokens(work: Path) -> None:
    """Collect the mean tokens of each domain's concepts, and of the objects without any style, one file a domain and hookpoint."""
    pipeline = StableDiffusionPipeline.from_pretrained(work / "demo" / "pipeline")
    for domain, prompts in {c.domain: c.compared for c in shipped() if c.model == "demo"}.items():
        sets = dict(prompts)
        if domain == "style":
            name, own = next(iter(prompts.items()))
            sets[PLAIN] = tuple(text.replace(f" in {name} style", "") for text in own)
        widths = {h: SparseAutoencoder.load(work / "demo" / "saes", h).config.d_in for h in HOOKPOINTS}
        parts = {h: token_parts(width) for h, width in widths.items()}
        found = collect(pipeline, parts, sets, Sampling(STEPS, GUIDANCE, batch_size=18), {"domain": domain})
        for hookpoint, means in (found or {}).items():
            means.save(work / "demo" / f"mean-{domain}-{hookpoint}.safetensors", torch.float16)


def stage_install(work: Path) -> None:
    """Copy the result into the package."""
    for made in (work / "demo" / "pipeline", work / "demo" / "saes", work / "clip"):
        shutil.rmtree(ROOT / made.name, ignore_errors=True)
        shutil.copytree(made, ROOT / made.name)
    for file in (*(work / "demo").glob("*.safetensors"), work / "classifier.safetensors"):
        shutil.copy(file, ROOT / file.name)


STAGES = {
    "render": stage_render, "autoencoder": stage_autoencoder, "unet": stage_unet, "classifier": stage_classifier, "clip": stage_clip, "round": stage_round,
    "saes": stage_saes, "activations": stage_activations, "mean_tokens": stage_mean_tokens, "install": stage_install,
}  # fmt: skip


def run(stages: Mapping[str, Callable[[Path], None]], doc: str | None) -> None:
    """Run the stages that the command line names, or all."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for everything the stages make")
    parser.add_argument("--stages", default=",".join(stages), help="comma-separated, default: all, in order")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    for name in options.stages.split(","):
        print(f"== {name}", flush=True)
        stages[name](options.work)


if __name__ == "__main__":
    run(STAGES, __doc__)
