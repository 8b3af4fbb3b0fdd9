"""Denoising loops in any pipeline with diffusers' interface, from golden latents."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import EulerDiscreteScheduler
from golden_reader import Golden, Report, Run

EULER_STEPS = 12


def final_latents(pipeline: Any, run: Run, steps: int | None = None, initial: np.ndarray | None = None) -> torch.Tensor:
    """Run a golden loop, or one like it with other `steps` or `initial` latents, by the pipeline's own scheduler."""
    pipeline.set_progress_bar_config(disable=True)
    start = torch.from_numpy(run.initial if initial is None else initial).to(network_of(pipeline).dtype)
    height, width = (side * pipeline.vae_scale_factor for side in start.shape[-2:])
    flux = hasattr(pipeline, "transformer") and not hasattr(pipeline, "tokenizer_3")
    given = pipeline._pack_latents(start, *start.shape) if flux else start
    # For schedulers that draw noise: as they stand once the initial latents have been drawn from them.
    generators = [torch.Generator().manual_seed(seed) for seed in run.seeds]
    for generator in generators:
        torch.randn(*start.shape[1:], generator=generator)
    found = pipeline(
        prompt=run.prompts,
        latents=given,
        generator=generators or None,
        num_inference_steps=steps or run.steps,
        guidance_scale=run.guidance,
        height=height,
        width=width,
        output_type="latent",
        **padding(pipeline),
    ).images.detach()
    return pipeline._unpack_latents(found, height, width, pipeline.vae_scale_factor) if flux else found


def network_of(pipeline: Any) -> Any:
    """The denoiser: SD3 and FLUX have a transformer in the UNet's place."""
    return pipeline.transformer if hasattr(pipeline, "transformer") else pipeline.unet


def padding(pipeline: Any) -> dict[str, int]:
    """To how many tokens of T5 prompts are padded: the pipeline's default, or what its tokenizer takes."""
    name, usual = ("tokenizer_3", 256) if hasattr(pipeline, "tokenizer_3") else ("tokenizer_2", 512)
    return {"max_sequence_length": min(usual, getattr(pipeline, name).model_max_length)} if hasattr(pipeline, "transformer") else {}


def use_euler(pipeline: Any) -> None:
    """Give a pipeline an Euler scheduler whose inner timesteps lie between integers, where an int64 input goes wrong."""
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config, timestep_spacing="linspace")


def compare_golden_loops(report: Report, pipeline: Any, golden: Golden) -> None:
    """Hold the final latents and pictures of every golden loop to the hook's."""
    if not golden.runs:
        report.line(False, "the golden vectors hold no loop (--proof short), so there is nothing to compare")
    for run in golden.runs:
        latents = final_latents(pipeline, run)
        config = pipeline.vae.config
        unscaled = latents / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)
        decoded = pipeline.vae.decode(unscaled, return_dict=False)[0].detach().float()
        pictures = (pipeline.image_processor.postprocess(decoded, output_type="np") * 255).round().astype(np.uint8)
        where = f"own scheduler, guidance {run.guidance:g}, {pictures.shape[1]}x{pictures.shape[2]}"
        report.compare(f"latents ({where})", latents.float().numpy(), run.hook, run.neutral, run.unedited, run.drift)
        report.compare(f"pictures ({where})", pictures, run.hook_pictures, run.unedited_pictures, run.unedited_pictures, run.drift)
