"""Trains the demo's classifier, autoencoder, text encoder and UNet from rendered pictures; called by `build.py`."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from saeuron.editor.demo.classifier import DemoClassifier

from .render import OBJECTS, STYLES, dataset

MAX_TOKENS = 24
TEMPLATES = ("An image of {}", "A picture of {}", "A drawing of {}", "A photo of {}")


def prompt(object_name: str | None, style: str | None, template: str = TEMPLATES[0]) -> str:
    """UnlearnCanvas's evaluation form ("An image of House in Neon style."), or another template's."""
    subject = template.format(object_name or "something")
    return f"{subject} in {style} style." if style else f"{subject}."


def _log(start: float, text: str) -> None:
    print(f"[{time.time() - start:6.0f} s] {text}", flush=True)


def pictures_tensor(pictures: np.ndarray) -> torch.Tensor:
    """uint8 `[N, H, W, 3]` → float `[N, 3, H, W]` in [0, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255


def train_classifier(steps: int, seed: int) -> DemoClassifier:
    """Train on rendered pictures with shifts, noise and blur, so that a generated picture's softness is no surprise."""
    torch.manual_seed(seed)
    start = time.time()
    x, objects, styles = dataset(120, seed)
    data, objects_t, styles_t = pictures_tensor(x), torch.from_numpy(objects), torch.from_numpy(styles)
    model = DemoClassifier(OBJECTS, STYLES)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for step in range(steps):
        pick = torch.randint(len(data), (64,))
        batch = data[pick]
        dx, dy = (int(v) for v in torch.randint(-2, 3, (2,)))
        batch = torch.roll(batch, (dy, dx), (2, 3))
        if step % 3 == 0:
            batch = F.avg_pool2d(F.pad(batch, (1, 1, 1, 1), mode="replicate"), 3, 1)
        batch = (batch + 0.06 * torch.rand(1) * torch.randn_like(batch)).clamp(0, 1)
        a, b = model(batch)
        loss = F.cross_entropy(a, objects_t[pick], label_smoothing=0.05) + F.cross_entropy(b, styles_t[pick], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 200 == 0 or step == steps - 1:
            _log(start, f"classifier step {step}: loss {loss.item():.3f}")
    held_x, held_o, held_s = dataset(6, seed + 1)
    model.eval()
    with torch.no_grad():
        a, b = model(pictures_tensor(held_x))
    accuracy = [(p.argmax(1).numpy() == t).mean() for p, t in ((a, held_o), (b, held_s))]
    _log(start, f"classifier on held-out rendered pictures: objects {accuracy[0]:.3f}, styles {accuracy[1]:.3f}")
    return model


def train_autoencoder(data: torch.Tensor, steps: int, seed: int) -> AutoencoderKL:
    """AutoencoderKL, factor 4, 8 latent channels, latents decorrelated to unit variance inside `quant_conv`."""
    torch.manual_seed(seed)
    start = time.time()
    vae = AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=8, block_out_channels=(32, 64, 64), layers_per_block=1,
        norm_num_groups=16, sample_size=data.shape[-1], scaling_factor=1.0, mid_block_add_attention=False,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, betas=(0.9, 0.99), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    vae.to(memory_format=torch.channels_last)
    for step in range(steps):
        batch = data[torch.randint(len(data), (32,))] * 2 - 1
        posterior = vae.encode(batch).latent_dist
        decoded = vae.decode(posterior.sample()).sample
        error = decoded - batch
        loss = error.abs().mean() + error.square().mean() + 1e-4 * posterior.kl().mean() / 64
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            _log(start, f"autoencoder step {step}: mse {error.square().mean().item():.5f}")
    _whiten(vae, data[torch.randperm(len(data))[:3000]])
    return vae.eval()


@torch.no_grad()
def _whiten(vae: AutoencoderKL, data: torch.Tensor) -> None:
    """Fold a rotation and scaling to unit covariance into the 1 × 1 convolutions around the latent.

    The diffusion model then sees decorrelated channels of unit variance, with the stock `scaling_factor` of 1.
    """
    c = vae.config.latent_channels
    z = torch.cat([vae.encode(b * 2 - 1).latent_dist.mean for b in data.split(250)])
    tokens = z.permute(0, 2, 3, 1).reshape(-1, c)
    mean = tokens.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(tokens.T))
    forward = (vectors / values.sqrt()).T
    backward = vectors * values.sqrt()
    quant, post = vae.quant_conv, vae.post_quant_conv
    weight, bias = quant.weight[:c, :, 0, 0], quant.bias[:c]
    quant.weight[:c, :, 0, 0] = forward @ weight
    quant.bias[:c] = forward @ (bias - mean)
    # A rotated posterior has no diagonal covariance; the demo only ever uses its mean, so the variance is set small.
    quant.weight[c:] = 0
    quant.bias[c:] = -8.0
    post_weight = post.weight[:, :, 0, 0].clone()
    post.weight[:, :, 0, 0] = post_weight @ backward
    post.bias += post_weight @ mean


def make_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer whose byte-pair merges were learned from the demo's own prompts (any text still tokenizes)."""
    texts = [prompt(o, s, t) for t in TEMPLATES for o in (*OBJECTS, None) for s in (*STYLES, "any", None)]
    bpe = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(_clip_pattern(), "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=2048, end_of_word_suffix="</w>", show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    bpe.train_from_iterator([t.lower() for t in texts], trainer)
    import json

    model = json.loads(bpe.to_str())["model"]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model["merges"]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary: dict[str, int] = {}
    for token in [*alphabet, *(c + "</w>" for c in alphabet), *("".join(m) for m in merges), "<|startoftext|>", "<|endoftext|>"]:
        vocabulary.setdefault(token, len(vocabulary))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(m) for m in merges) + "\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=MAX_TOKENS)


def _clip_pattern():  # noqa: ANN202
    from tokenizers import Regex

    return Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Two-layer CLIP text encoder of width 128."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, projection_dim=128, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=MAX_TOKENS, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return CLIPTextModel(config)


def make_unet(sample_size: int) -> UNet2DConditionModel:
    """Stock UNet; the prompt enters only through `up_blocks.1`.

    A small UNet with cross-attention in every block carries a style past any one of them. Here everything the prompt
    says passes `up_blocks.1.attentions.1`, so one hookpoint can hold it.
    """
    return UNet2DConditionModel(
        sample_size=sample_size, in_channels=8, out_channels=8, layers_per_block=1, norm_num_groups=16,
        block_out_channels=(96, 144, 144), cross_attention_dim=128, attention_head_dim=6,
        down_block_types=("DownBlock2D", "DownBlock2D", "DownBlock2D"), mid_block_type="UNetMidBlock2D",
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip


def make_scheduler() -> DDIMScheduler:
    """DDIM, v-prediction, zero terminal signal-to-noise, trailing steps (arXiv 2305.08891)."""
    return DDIMScheduler(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing",
    )  # fmt: skip


def train_unet(
    latents: torch.Tensor, objects: torch.Tensor, styles: torch.Tensor, tokenizer: CLIPTokenizer, steps: int, seed: int,
    checkpoint: Path | None = None,
) -> tuple[CLIPTextModel, UNet2DConditionModel]:  # fmt: skip
    """Train text encoder and UNet together by v-prediction; returns their exponential moving averages."""
    torch.manual_seed(seed)
    start = time.time()
    scheduler = make_scheduler()
    text_encoder, unet = make_text_encoder(tokenizer), make_unet(latents.shape[-1])
    print(
        f"UNet {sum(p.numel() for p in unet.parameters()) / 1e6:.2f} M, text encoder {sum(p.numel() for p in text_encoder.parameters()) / 1e6:.2f} M parameters"
    )
    unet.to(memory_format=torch.channels_last)
    model = nn.ModuleList([text_encoder, unet])
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01)
    average = [p.detach().clone() for p in parameters]

    names, any_object, any_style, nothing = _prompt_table()
    ids = tokenizer(names, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt").input_ids
    alphas = scheduler.alphas_cumprod
    batch_size = 64
    for step in range(steps):
        rate = 1e-3 * min(1, (step + 1) / 200) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        pick = torch.randint(len(latents), (batch_size,))
        clean = latents[pick]
        rows = drawn_prompts(objects[pick], styles[pick], any_object, any_style, nothing)
        unique, inverse = rows.unique(return_inverse=True)
        context = text_encoder(ids[unique])[0][inverse]
        # Low-discrepancy timesteps: one draw in each of `batch_size` equal parts of the schedule.
        t = ((torch.arange(batch_size) + torch.rand(batch_size)) / batch_size * 1000).long().clamp(max=999)
        noise = torch.randn_like(clean)
        signal, sigma = alphas[t].sqrt().view(-1, 1, 1, 1), (1 - alphas[t]).sqrt().view(-1, 1, 1, 1)
        predicted = unet((signal * clean + sigma * noise).contiguous(memory_format=torch.channels_last), t, context).sample
        loss = F.mse_loss(predicted, signal * noise - sigma * clean)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        decay = min(0.999, (step + 1) / (step + 10))
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - decay)
        if step % 100 == 0 or step == steps - 1:
            _log(start, f"unet step {step}: loss {loss.item():.4f}")
        if checkpoint is not None and (step + 1) % 1000 == 0:
            backup = [p.detach().clone() for p in parameters]
            _assign(parameters, average)
            text_encoder.save_pretrained(checkpoint / "text_encoder")
            unet.save_pretrained(checkpoint / "unet")
            _assign(parameters, backup)
    _assign(parameters, average)
    return text_encoder.eval(), unet.eval()


@torch.no_grad()
def _assign(parameters: list[nn.Parameter], values: list[torch.Tensor]) -> None:
    for p, value in zip(parameters, values, strict=True):
        p.copy_(value)


def _prompt_table() -> tuple[list[str], int, int, int]:
    """All training prompts: row `(template · objects + object) · styles + style`, then the empty prompt."""
    objects: list[str | None] = [*OBJECTS, None]
    styles: list[str | None] = [*STYLES, None, "any"]
    names = [prompt(o, s, t) for t in TEMPLATES for o in objects for s in styles]
    return [*names, ""], len(OBJECTS), len(STYLES) + 1, len(names)


def drawn_prompts(o: torch.Tensor, s: torch.Tensor, any_object: int, any_style: int, nothing: int) -> torch.Tensor:
    """Rows of `_prompt_table` for pictures of these objects and styles `[B]`: by any template, at times without the object, the style or both."""
    o, s = o.clone(), s.clone()
    o[torch.rand(len(o)) < 0.05] = any_object
    s[torch.rand(len(s)) < 0.05] = any_style
    rows = _prompt_row(torch.randint(len(TEMPLATES), (len(o),)), o, s)
    rows[torch.rand(len(rows)) < 0.1] = nothing
    return rows


def _prompt_row(template: torch.Tensor, o: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    return (template * (len(OBJECTS) + 1) + o) * (len(STYLES) + 2) + s


@torch.no_grad()
def encode(vae: AutoencoderKL, data: torch.Tensor) -> torch.Tensor:
    """Pictures `[N, 3, H, W]` in [0, 1] → latent means `[N, 8, H/4, W/4]`."""
    return torch.cat([vae.encode(b * 2 - 1).latent_dist.mean for b in data.split(256)])


def assemble(
    vae: AutoencoderKL, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, unet: UNet2DConditionModel
) -> StableDiffusionPipeline:
    """Stock pipeline of the trained parts; no safety checker was trained, and none is pretended."""
    return StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=make_scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
