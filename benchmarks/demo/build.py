"""Rebuilds the whole embedded demo from a seed: `python -m benchmarks.demo.build --work DIR`.

Stages run in order and keep what they made in DIR, so a later stage can be repeated without the earlier ones.
Only the last stage, `install`, writes into the package.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from saeuron.editor.demo import GUIDANCE, ROOT, STEPS
from saeuron.editor.denoisers.sampling_settings import Sampling
from saeuron.editor.features.collect import collect
from saeuron.editor.features.concepts import presets
from saeuron.editor.sae.sae import SparseAutoencoder
from saeuron.editor.sae.train_settings import TrainSettings
from saeuron.editor.sae.training import Trainer

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
    # transformers 5 saves a text encoder made from scratch without the prefix that version 4 looks for; it reads both.
    path = work / "demo" / "pipeline" / "text_encoder" / "model.safetensors"
    tensors = {k if k.startswith("text_model.") else f"text_model.{k}": v for k, v in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})


def stage_saes(work: Path) -> None:
    """Train one SAE a hookpoint, all on the same pictures; `saeuron train` does the same (docs/training.md)."""
    pipeline = StableDiffusionPipeline.from_pretrained(work / "demo" / "pipeline")
    settings = TrainSettings(
        k=16, tokens=2_457_600, batch=2048, rate=1e-3, decay_from=0.2, warmup=50, dead_after=300_000, pictures=320, passes=8, held_out=128
    )
    prompts = [line for line in (ROOT / "prompts.txt").read_text().splitlines() if line]
    shutil.rmtree(work / "saes", ignore_errors=True)
    report = Trainer(pipeline, HOOKPOINTS, prompts, settings, Sampling(STEPS, GUIDANCE, batch_size=64), work / "saes").train()
    assert report is not None
    for hookpoint in HOOKPOINTS:
        print(f"{hookpoint}: FVU {report['saes'][hookpoint]['fvu']:.4f} on held-out pictures", flush=True)
        SparseAutoencoder.load(work / "saes", hookpoint).save(work / "demo" / "saes" / hookpoint, torch.float16)


def stage_activations(work: Path) -> None:
    """Collect concept activations, one file a domain and hookpoint, on the presets' prompts; none is the evaluation's."""
    pipeline = StableDiffusionPipeline.from_pretrained(work / "demo" / "pipeline")
    saes = {hookpoint: SparseAutoencoder.load(work / "demo" / "saes", hookpoint) for hookpoint in HOOKPOINTS}
    for domain, prompts in {c.domain: c.compared for c in presets().values() if c.model == "demo"}.items():
        found = collect(pipeline, saes, prompts, Sampling(STEPS, GUIDANCE, batch_size=18), {"domain": domain})
        for hookpoint, activations in (found or {}).items():
            activations.save(work / "demo" / f"{domain}-{hookpoint}.safetensors", torch.float16)


def stage_install(work: Path) -> None:
    """Copy the result into the package."""
    for made in (work / "demo" / "pipeline", work / "demo" / "saes", work / "clip"):
        shutil.rmtree(ROOT / made.name, ignore_errors=True)
        shutil.copytree(made, ROOT / made.name)
    for file in (*(work / "demo").glob("*.safetensors"), work / "classifier.safetensors"):
        shutil.copy(file, ROOT / file.name)


STAGES = {
    "render": stage_render, "autoencoder": stage_autoencoder, "unet": stage_unet, "classifier": stage_classifier, "clip": stage_clip, "round": stage_round,
    "saes": stage_saes, "activations": stage_activations, "install": stage_install,
}  # fmt: skip


def main() -> None:
    """Run the stages named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for everything the stages make")
    parser.add_argument("--stages", default=",".join(STAGES), help="comma-separated, default: all, in order")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    for name in options.stages.split(","):
        print(f"== {name}", flush=True)
        STAGES[name](options.work)


if __name__ == "__main__":
    main()
