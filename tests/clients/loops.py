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
    start = torch.from_numpy(run.initial if initial is None else initial).to(pipeline.unet.dtype)
    height, width = (side * pipeline.vae_scale_factor for side in start.shape[-2:])
    # For schedulers that draw noise: as they stand once the initial latents have been drawn from them.
    generators = [torch.Generator().manual_seed(seed) for seed in run.seeds]
    for generator in generators:
        torch.randn(*start.shape[1:], generator=generator)
    return pipeline(
        prompt=run.prompts,
        latents=start,
        generator=generators or None,
        num_inference_steps=steps or run.steps,
        guidance_scale=run.guidance,
        height=height,
        width=width,
        output_type="latent",
    ).images.detach()


def use_euler(pipeline: Any) -> None:
    """Give a pipeline an Euler scheduler whose inner timesteps lie between integers, where an int64 input goes wrong."""
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config, timestep_spacing="linspace")


def compare_golden_loops(report: Report, pipeline: Any, golden: Golden) -> None:
    """Hold the final latents and pictures of every golden loop to the hook's."""
    for run in golden.runs:
        latents = final_latents(pipeline, run)
        decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor, return_dict=False)[0].detach().float()
        pictures = (pipeline.image_processor.postprocess(decoded, output_type="np") * 255).round().astype(np.uint8)
        where = f"own scheduler, guidance {run.guidance:g}, {pictures.shape[1]}x{pictures.shape[2]}"
        report.compare(f"latents ({where})", latents.float().numpy(), run.hook, run.neutral, run.unedited, run.drift)
        report.compare(f"pictures ({where})", pictures, run.hook_pictures, run.unedited_pictures, run.unedited_pictures, run.drift)
