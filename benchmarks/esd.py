"""Erases a concept from a model by fine-tuning, as ESD does (arXiv 2303.07345, eq. 7): `python -m benchmarks.esd --help`.

Written from the paper, to have an eraser of another kind to compare with: the result is a plain diffusers folder, `saeuron evaluate --pipeline DIR` takes it.
The edited network learns, at x_t that itself draws from the concept's prompt, ε_edit(x_t, c) → ε(x_t, ∅) − η (ε(x_t, c) − ε(x_t, ∅)), ε being the original's.
A network that predicts v (the demo) has ε = α v + σ x_t. With one x_t on all sides, the target is the same combination of its v; the loss is taken there, where it
weighs all noise levels alike. Taken in ε it has the weight α², which is nothing where nearly all is noise, and there a small model decides what it draws.
Trained are the cross-attention's weights (`x`, the paper's choice for styles) or all others (`u`, its choice for objects).
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.denoisers.pipelines import load_pipeline
from saeuron.editor.features.concepts import presets

CROSS = "attn2."
"""part of the names of cross-attention's weights in diffusers"""


def trained(unet: torch.nn.Module, method: str) -> dict[str, torch.nn.Parameter]:
    """Name → parameter, of those that a method trains: `x` cross-attention, `u` the others."""
    return {name: value for name, value in unet.named_parameters() if (CROSS in name) == (method == "x")}


def target(concept: torch.Tensor, empty: torch.Tensor, eta: float) -> torch.Tensor:
    """What the edited network is to say: the empty prompt's prediction (ε or v), pushed away from the concept's by η."""
    return empty - eta * (concept - empty)


def contexts(pipeline: Any, prompts: list[str]) -> torch.Tensor:
    """Text states `[B, L, D]`."""
    ids = pipeline.tokenizer(
        prompts, padding="max_length", max_length=pipeline.tokenizer.model_max_length, truncation=True, return_tensors="pt"
    )
    return pipeline.text_encoder(ids.input_ids)[0]


def erase(pipeline: Any, original: torch.nn.Module, prompts: list[str], options: argparse.Namespace) -> None:
    """Train the UNet of `pipeline` in place; `original` is the network as it was."""
    unet, scheduler = pipeline.unet, pipeline.scheduler
    if (kind := scheduler.config.prediction_type) not in ("epsilon", "v_prediction"):
        raise SaeuronError(f"the model predicts '{kind}'; only epsilon and v_prediction are known here")
    generator, chance = torch.Generator().manual_seed(options.seed), random.Random(options.seed)
    unet.requires_grad_(False)
    weights = trained(unet, options.method)
    for value in weights.values():
        value.requires_grad_(True)
    optimizer = torch.optim.Adam(weights.values(), lr=options.rate)
    with torch.no_grad():
        known, empty = contexts(pipeline, prompts), contexts(pipeline, [""])
    side, channels = unet.config.sample_size, unet.config.in_channels
    empties = empty.expand(options.batch, -1, -1)
    for step in range(options.steps):
        context = known[[chance.randrange(len(prompts)) for _ in range(options.batch)]]
        scheduler.set_timesteps(options.draw_steps)
        last = chance.randrange(len(scheduler.timesteps))
        x = torch.randn(options.batch, channels, side, side, generator=generator) * scheduler.init_noise_sigma
        with torch.no_grad():
            # The edited network's own path to x_t, with guidance, as the paper has it.
            for timestep in scheduler.timesteps[:last]:
                both = unet(scheduler.scale_model_input(torch.cat([x, x]), timestep), timestep, torch.cat([empties, context])).sample
                without, with_ = both.chunk(2)
                x = scheduler.step(without + options.guidance * (with_ - without), timestep, x).prev_sample
            timestep = scheduler.timesteps[last]
            scaled = scheduler.scale_model_input(x, timestep)
            without, with_ = original(torch.cat([scaled, scaled]), timestep, torch.cat([empties, context])).sample.chunk(2)
            wanted = target(with_, without, options.eta)
        loss = torch.nn.functional.mse_loss(unet(scaled, timestep, context).sample, wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % max(1, options.steps // 10) == 0:
            print(f"step {step} of {options.steps}: loss {loss.item():.5f}", file=sys.stderr)
    unet.requires_grad_(False)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concept", required=True, help="one that has a preset; its prompts are trained on, its test prompts aren't")
    parser.add_argument("--model", help="default: the preset's")
    parser.add_argument("--method", choices=("x", "u"), default="x", help="x: cross-attention (the default), u: all other weights")
    parser.add_argument("--eta", type=float, default=1.0, help="η, the negative guidance")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rate", type=float, default=1e-4, help="of Adam; a network of full size takes 1e-5")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--draw-steps", type=int, default=20, help="denoising steps of the path to x_t")
    parser.add_argument("--guidance", type=float, default=3.0, help="of that path")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="folder of the pipeline; one that isn't there yet")
    parser.add_argument("--unet", type=Path, metavar="FILE.safetensors", help="also the trained weights alone, as erasers publish them")
    options = parser.parse_args()
    known = presets()
    if options.concept not in known:
        parser.error(f"no preset of '{options.concept}'")
    if options.output.exists():
        parser.error(f"'{options.output}' exists")
    concept = known[options.concept]
    model = options.model or concept.model
    began = time.monotonic()
    try:
        pipeline, original = load_pipeline(model), load_pipeline(model).unet.requires_grad_(False)
        erase(pipeline, original, list(concept.prompts), options)
    except SaeuronError as error:
        sys.exit(f"error: {error}")
    pipeline.save_pretrained(options.output)
    if options.unet is not None:
        save_file({name: value.detach().contiguous() for name, value in trained(pipeline.unet, options.method).items()}, options.unet)
    print(
        f"{options.concept}: ESD-{options.method}, η {options.eta:g}, {options.steps} steps of Adam at {options.rate:g}, batch {options.batch}: {time.monotonic() - began:.0f} s; {options.output}"
    )


if __name__ == "__main__":
    main()
