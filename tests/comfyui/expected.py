"""What diffusers' UNet gives where ComfyUI's is compared with it, without any code of ComfyUI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import saeuron

PLACE = "up_blocks.0.attentions.1"


def _sigmas(pipeline: Any) -> torch.Tensor:
    """Of all timesteps, from the scheduler's own noise levels; float64."""
    kept = pipeline.scheduler.alphas_cumprod.double()
    return ((1 - kept) / kept).sqrt()


@torch.no_grad()
def euler(artifact: Path, said: dict[str, torch.Tensor], guidance: float = 5.0) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Euler's steps from ComfyUI's noise levels and start, with diffusers' UNet.

    Returns:
        the last latents, as KSampler gives them; hookpoint → the share of forwards in which each feature fired, `[pictures, L, U]` by timestep's rows summed.
    """
    pipeline = saeuron.load(artifact)
    known, sigmas = _sigmas(pipeline), said["sigmas"].double()
    x = said["noise"].double() * (1 + sigmas[0] ** 2).sqrt()
    context = torch.cat([said["uncond"].expand(len(x), -1, -1), said["cond"].expand(len(x), -1, -1)])
    fired: dict[str, list[Any]] = {}
    for name, block in pipeline.unet.ablations.items():
        block.gate.register_forward_hook(lambda m, a, out, name=name: fired.setdefault(name, []).append(out))
    times = []
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        t = float((known.log() - sigma.log()).abs().argmin())
        times.append(t)
        scaled = (x / (sigma**2 + 1).sqrt()).float()
        negative, positive = pipeline.unet(torch.cat([scaled, scaled]), t, context).sample.double().chunk(2)
        predicted = negative + guidance * (positive - negative)
        x = x + predicted * (following - sigma)
    shares = {}
    for name, decisions in fired.items():
        block, hookpoint = pipeline.unet.ablations[name], name.replace("-", ".")
        rows = [int((block.timesteps - t).abs().argmin()) for t in times]
        shares[hookpoint] = torch.stack([d.float() for d in decisions]), torch.tensor(rows), block.features
    return (x / pipeline.vae.config.scaling_factor).float(), shares


def by_concept(shares: Any, chosen: dict[str, list[list[int]]]) -> torch.Tensor:
    """Share of forwards in which any feature of a concept fired, `[pictures, concepts, L]`."""
    decisions, rows, features = shares
    made = []
    for concept in sorted(chosen):
        masks = torch.stack([torch.isin(features, torch.tensor(chosen[concept][row])) for row in rows])
        any_of = (decisions * masks[:, None, None].float()).amax(-1)  # [steps, 2 · pictures, L]
        made.append(any_of.unflatten(1, (2, -1)).mean((0, 1)))
    return torch.stack(made, 1)


def write_lora(path: Path, artifact: Path) -> Path:
    """A LoRA, in kohya's names, on layers of the edited block and of another."""
    torch.manual_seed(3)
    tensors = {}
    for layer in (
        "up_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q",
        "up_blocks.0.attentions.1.proj_in",
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v",
    ):
        weight = saeuron.load(artifact).unet.get_submodule(layer).weight
        tail = (1, 1) if weight.ndim == 4 else ()
        tensors[f"lora_unet_{layer.replace('.', '_')}.lora_up.weight"] = 0.3 * torch.randn(weight.shape[0], 4, *tail)
        tensors[f"lora_unet_{layer.replace('.', '_')}.lora_down.weight"] = 0.3 * torch.randn(4, weight.shape[1], *tail)
    save_file(tensors, path)
    return path


def write_residuals(path: Path) -> Path:
    """What a ControlNet adds: to each skip connection and to the middle."""
    generator = torch.Generator().manual_seed(8)
    shapes = [(32, 8), (32, 8), (32, 4), (64, 4)]
    made = {f"output.{i}": 0.5 * torch.randn(2, c, s, s, generator=generator) for i, (c, s) in enumerate(shapes)}
    save_file({**made, "middle": 0.5 * torch.randn(2, 64, 4, 4, generator=generator)}, path)
    return path


@torch.no_grad()
def others(artifact: Path, said: dict[str, torch.Tensor], lora: Path, residuals: Path) -> dict[str, torch.Tensor]:
    """The denoised latents of one forward, plain, with a LoRA and with a ControlNet's residuals."""
    found = {}
    added, extra = load_file(lora), load_file(residuals)
    for name in ("plain", "lora", "control"):
        unet = saeuron.load(artifact).unet
        if name == "lora":
            for key in [k for k in added if k.endswith("lora_up.weight")]:
                layer = next(n for n, _ in unet.named_modules() if key.startswith(f"lora_unet_{n.replace('.', '_')}.") and n)
                weight = unet.get_submodule(layer).weight
                product = added[key].flatten(1) @ added[key.replace("lora_up", "lora_down")].flatten(1)
                weight.data += product.reshape(weight.shape)
        more = {}
        if name == "control":
            more = {
                "down_block_additional_residuals": [extra[f"output.{i}"] for i in range(len(extra) - 1)],
                "mid_block_additional_residual": extra["middle"],
            }
        sigma = said["sigma"].double()
        x = (said["x"] * said["sigma"]).double()
        predicted = unet((x / (sigma**2 + 1).sqrt()).float(), 501.0, said["context"], **more).sample
        found[name] = (x - predicted.double() * sigma).float()
    return found
