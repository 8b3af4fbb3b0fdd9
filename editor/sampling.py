"""The denoising loop with explicit latents, and captures of a block's output; the loop itself is diffusers' own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from PIL import Image

from .hookpoints import find_hookpoint, output_tensor
from .names import normalise


class Capture(NamedTuple):
    """One forward of the UNet."""

    timestep: float
    outputs: dict[str, torch.Tensor]
    """hookpoint → feature map `[B, C, H, W]`"""


def initial_latents(pipeline: Any, seeds: Sequence[int], height: int | None = None, width: int | None = None) -> torch.Tensor:
    """Unit-variance noise `[B, C, h, w]`, one CPU generator a seed, so that batching never changes a picture.

    Args:
        pipeline: any diffusers pipeline with `unet` and `vae_scale_factor`.
        seeds: one a picture.
        height: pixels; default: the UNet's own sample size.
        width: pixels.
    """
    unet, factor = pipeline.unet, pipeline.vae_scale_factor
    size = unet.config.sample_size
    default = (size, size) if isinstance(size, int) else tuple(size)
    h = default[0] if height is None else height // factor
    w = default[1] if width is None else width // factor
    shape = (unet.config.in_channels, h, w)
    rows = [torch.randn(shape, generator=torch.Generator().manual_seed(int(s))) for s in seeds]
    return torch.stack(rows).to(unet.device, unet.dtype)


def generate(
    pipeline: Any, prompts: Sequence[str], seeds: Sequence[int], steps: int, guidance: float,
    height: int | None = None, width: int | None = None, output_type: str = "pil", batch_size: int = 16,
) -> list[Image.Image] | torch.Tensor:  # fmt: skip
    """Run a pipeline from explicit latents.

    Args:
        pipeline: a text-to-image diffusers pipeline.
        prompts: one a picture.
        seeds: one a picture.
        steps: denoising steps.
        guidance: classifier-free guidance scale; 1 or less switches it off.
        height: pixels.
        width: pixels.
        output_type: `pil` or `latent`.
        batch_size: pictures at a time.

    Returns:
        pictures, or final latents `[B, C, h, w]`.
    """
    pipeline.set_progress_bar_config(disable=True)
    results: list[Any] = []
    for start in range(0, len(prompts), batch_size):
        part = slice(start, start + batch_size)
        latents = initial_latents(pipeline, seeds[part], height, width)
        images = pipeline(
            prompt=list(prompts[part]), latents=latents, num_inference_steps=steps, guidance_scale=guidance,
            height=latents.shape[-2] * pipeline.vae_scale_factor, width=latents.shape[-1] * pipeline.vae_scale_factor,
            output_type=output_type,
        ).images  # fmt: skip
        results.extend(images)
    return torch.stack(results) if output_type == "latent" else results


@contextmanager
def capture(unet: torch.nn.Module, names: Sequence[str]) -> Iterator[list[Capture]]:
    """Collect the outputs of hookpoints at every forward of `unet`."""
    seen: list[Capture] = []
    current: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            current[name] = output_tensor(output).detach()

        return hook

    def finish(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        seen.append(Capture(timestep_of(args, kwargs), dict(current)))
        current.clear()

    handles = [find_hookpoint(unet, n).register_forward_hook(keep(normalise(n))) for n in names]
    handles.append(unet.register_forward_hook(finish, with_kwargs=True))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def timestep_of(args: tuple, kwargs: dict) -> float:
    """The (first) timestep a UNet was called with."""
    value = kwargs["timestep"] if "timestep" in kwargs else args[1]
    return float(torch.as_tensor(value).reshape(-1)[0])
