"""Rebuilds the whole embedded demo from a seed: `python -m saeuron.editor.demo.build --work DIR`.

Stages run in order and keep what they made in DIR, so a later stage can be repeated without the earlier ones.
Only the last stage, `install`, writes into the package.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from transformers import CLIPTokenizer

from . import train_pipeline as training
from .render import dataset

SEED = 20260


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


STAGES = {"render": stage_render, "autoencoder": stage_autoencoder, "unet": stage_unet, "classifier": stage_classifier}


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
