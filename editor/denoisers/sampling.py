"""The denoising loop with explicit noise, its pictures, and captures of a block's output; the loop itself is diffusers' own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from ..common.errors import SaeuronError
from ..common.names import normalise
from .families import denoiser_of, family_of, network_of, sizes_of


class Capture(NamedTuple):
    """One forward of the denoiser."""

    timestep: float
    """its noise level, 0 to 1000"""
    outputs: dict[str, torch.Tensor]
    """hookpoint → tokens `[B, L, D]`"""


def initial_latents(pipeline: Any, seeds: Sequence[int], height: int | None = None, width: int | None = None) -> torch.Tensor:
    """Unit-variance noise `[B, C, h, w]`, one CPU generator a seed, so that batching never changes a picture.

    Args:
        pipeline: a pipeline of one of `families`.
        seeds: one a picture.
        height: pixels; default: the model's own.
        width: pixels.

    Raises:
        SaeuronError: see `Sizes.latents`.
    """
    network, shape = network_of(pipeline), sizes_of(pipeline).noise(height, width)
    rows = [torch.randn(*shape, generator=torch.Generator().manual_seed(int(s))) for s in seeds]
    return torch.stack(rows).to(network.device, network.dtype)


def step_generators(seeds: Sequence[int], shape: Sequence[int]) -> list[torch.Generator]:
    """One CPU generator a picture, in the state that drawing the picture's initial latents leaves it in.

    Schedulers that add noise at every step (Euler ancestral, LCM) draw from these. Started anew from the same seed, a
    generator would give the initial latents a second time.

    Args:
        seeds: one a picture.
        shape: of one picture's latents, `[C, h, w]`.
    """
    generators = [torch.Generator().manual_seed(int(s)) for s in seeds]
    for generator in generators:
        torch.randn(*shape, generator=generator)
    return generators


def denoise(
    pipeline: Any, prompts: Sequence[str] | None, latents: torch.Tensor, seeds: Sequence[int], steps: int, guidance: float,
    output_type: str = "latent", **options: Any,
) -> Any:  # fmt: skip
    """One call of a pipeline: the same arguments give the same result whatever ran before, with any scheduler.

    Args:
        pipeline: a text-to-image diffusers pipeline.
        prompts: one a picture; None with `prompt_embeds` among the options.
        latents: unit-variance noise `[B, C, h, w]`.
        seeds: one a picture, for schedulers that draw noise; empty: they draw from torch's own generator.
        steps: denoising steps.
        guidance: classifier-free guidance scale; 1 or less switches it off.
        output_type: `pil` or `latent`.
        **options: passed on.

    Returns:
        pictures, or final latents `[B, C, h, w]`.

    Raises:
        SaeuronError: pictures with values that are not finite, which would come out black: nobody may take that for a concept that is gone.
    """
    pipeline.set_progress_bar_config(disable=True)
    factor, family = pipeline.vae_scale_factor, family_of(pipeline)
    denoiser = family.denoiser
    found = pipeline(
        prompt=None if prompts is None else list(prompts), latents=denoiser.packed(latents.clone()), generator=step_generators(seeds, latents.shape[1:]) or None, num_inference_steps=steps,
        guidance_scale=guidance, height=latents.shape[-2] * factor, width=latents.shape[-1] * factor, output_type="pt" if output_type == "pil" else output_type, **family.calling(pipeline), **options,
    ).images  # fmt: skip
    if output_type != "pil":
        return denoiser.unpacked(found, (latents.shape[-2], latents.shape[-1]))
    check_finite(found)
    return pipeline.image_processor.numpy_to_pil(pipeline.image_processor.pt_to_numpy(found))


def check_finite(values: torch.Tensor, what: str = "the model") -> None:
    """Raise `SaeuronError` for latents or pictures with infinities or NaN; `what` gave them."""
    if not torch.isfinite(values).all():
        raise SaeuronError(
            f"{what} gave values that are not finite, so there is no picture; try another guidance scale, or a wider precision"
        )


def generate(
    pipeline: Any, prompts: Sequence[str], seeds: Sequence[int], steps: int, guidance: float,
    height: int | None = None, width: int | None = None, output_type: str = "pil", batch_size: int = 16,
) -> list[Image.Image] | torch.Tensor:  # fmt: skip
    """Run a pipeline from seeds, `batch_size` pictures at a time.

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
    results: list[Any] = []
    for start in range(0, len(prompts), batch_size):
        part = slice(start, start + batch_size)
        latents = initial_latents(pipeline, seeds[part], height, width)
        results.extend(denoise(pipeline, prompts[part], latents, seeds[part], steps, guidance, output_type))
    return torch.stack(results) if output_type == "latent" else results


def vae_dtype(pipeline: Any) -> torch.dtype:
    """The type in which the pipeline runs its autoencoder; SDXL's overflows in float16."""
    vae = pipeline.vae
    upcast = family_of(pipeline).upcasts_vae and vae.dtype == torch.float16 and vae.config.force_upcast
    return torch.float32 if upcast else vae.dtype


@contextmanager
def autoencoder(pipeline: Any) -> Iterator[Any]:
    """The pipeline's autoencoder in the type in which the pipeline runs it; as before afterwards."""
    vae, own, used = pipeline.vae, pipeline.vae.dtype, vae_dtype(pipeline)
    if used == own:
        yield vae
        return
    torch.nn.Module.to(vae, used)  # diffusers' own `to` warns of layers to be kept in float32, of which there are none
    try:
        yield vae
    finally:
        torch.nn.Module.to(vae, own)


@contextmanager
def observe(
    network: torch.nn.Module, reads: Mapping[str, str], look: Callable[[float, dict[str, torch.Tensor]], None],
    pictures: int | None = None, guided: bool = False,
) -> Iterator[None]:  # fmt: skip
    """Call `look(noise level, {hookpoint: tokens [B, L, D]})` after every forward of `network`; nothing is kept.

    Args:
        network: the denoiser's.
        reads: hookpoint → `output`, or `delta` for output minus input.
        look: called once a forward, inside it.
        pictures: of the one loop that runs meanwhile: only rows that follow the prompts are shown, one a picture, and a forward of none
            is passed over. None: every row of every forward.
        guided: whether the loop uses classifier-free guidance.
    """
    denoiser, calls = denoiser_of(network), itertools.count()
    current: dict[str, torch.Tensor] = {}

    def keep(name: str, kind: str) -> Any:
        def hook(module: Any, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
            tokens = denoiser.tokens(name, output)
            current[name] = (tokens - denoiser.input_tokens(name, args, kwargs) if kind == "delta" else tokens).detach()

        return hook

    def finish(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        found = dict(current)
        current.clear()
        rows = slice(None) if pictures is None else denoiser.prompted(next(calls), pictures, guided)
        if rows is not None:
            level = denoiser.noise_level(denoiser.inputs(args, kwargs))
            look(float(level[0]), {name: tokens[rows] for name, tokens in found.items()})

    handles = [
        denoiser.find_hookpoint(network, n).register_forward_hook(keep(normalise(n), kind), with_kwargs=True) for n, kind in reads.items()
    ]
    handles.append(network.register_forward_hook(finish, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def capture(network: torch.nn.Module, names: Sequence[str]) -> Iterator[list[Capture]]:
    """Collect the outputs of hookpoints at every forward of `network`."""
    seen: list[Capture] = []
    with observe(network, dict.fromkeys(names, "output"), lambda timestep, tokens: seen.append(Capture(timestep, tokens))):
        yield seen


class _Reached(Exception):
    """Ends a forward early."""


def tokens_up_to(network: torch.nn.Module, names: Sequence[str], inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Tokens of hookpoints, side by side `[B, N]`, in a forward that ends behind the last of them: what their hooks made of them."""
    denoiser = denoiser_of(network)
    found: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            found[name] = denoiser.tokens(name, output).flatten(1)
            if len(found) == len(names):
                raise _Reached

        return hook

    handles = [denoiser.find_hookpoint(network, name).register_forward_hook(keep(name)) for name in names]
    try:
        denoiser.call(network, inputs)
    except _Reached:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return torch.cat([found[name] for name in names], 1)


@contextmanager
def scheduler_of(pipeline: Any, kind: str) -> Iterator[None]:
    """A context in which the pipeline has a DDIM scheduler made from its own (`ddim`), or its own (`model`).

    Raises:
        SaeuronError: no DDIM that samples as the pipeline would.
    """
    own = pipeline.scheduler
    if kind == "ddim":
        pipeline.scheduler = family_of(pipeline).calibrating(own)
    try:
        yield
    finally:
        pipeline.scheduler = own


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """Detached copy on the CPU, floats widened to float32."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy().copy()


@torch.no_grad()
def decode(pipeline: Any, latents: torch.Tensor, finite: bool = False) -> np.ndarray:
    """Final latents → pictures uint8 `[B, H, W, 3]`, by the pipeline's own decoder and post-processing. Values that are not finite get black, unless
    `finite`: then they are an error."""
    with autoencoder(pipeline) as vae:
        unscaled = family_of(pipeline).denoiser.unscaled(latents.to(vae.dtype), vae.config)
        decoded = vae.decode(unscaled, return_dict=False)[0]
    if finite:
        check_finite(decoded)
    pictures = pipeline.image_processor.postprocess(decoded.float(), output_type="np")
    return (pictures * 255).round().astype(np.uint8)
