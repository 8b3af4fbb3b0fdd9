"""Trains the transformer of the demo's second model, `demo:dit`, by flow matching; called by `build_dit.py`.

It is a small Stable Diffusion 3 of stock classes. Autoencoder, CLIP's tokenizer and first text encoder are the first model's, already trained.
SD3's other parts have to be there but say nothing of the prompt that the first one doesn't: a second CLIP of random weights, a T5 that gives the
same for every text, and a pooled text of next to nothing. So the prompt enters by joint attention alone, and a block's tokens can hold it.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from .render import OBJECTS, STYLES
from .train_pipeline import MAX_TOKENS, TEMPLATES, _assign, _log, _prompt_table, drawn_prompts, prompt

WIDTH = 128
HEADS = 4
BLOCKS = 5
CLIP_WIDTH, CLIP_2_WIDTH, POOLED = 128, 16, 16
TEXT_WIDTH = CLIP_WIDTH + CLIP_2_WIDTH
"""of T5, and of what the transformer attends to: SD3 pads both CLIPs' side by side to T5's"""
STOCK_T5_TOKENS = 256
"""to which a stock pipeline pads T5's, unless it is told otherwise"""
BATCH, RATE = 64, 1.5e-3
CLIENTS = 0.25
"""share of batches as a stock pipeline gives them"""


def make_transformer(sample_size: int) -> SD3Transformer2DModel:
    """Stock SD3 transformer; two latents along each side are a token."""
    return SD3Transformer2DModel(
        sample_size=sample_size, patch_size=2, in_channels=8, out_channels=8, num_layers=BLOCKS, attention_head_dim=WIDTH // HEADS,
        num_attention_heads=HEADS, joint_attention_dim=TEXT_WIDTH, caption_projection_dim=WIDTH, pooled_projection_dim=2 * POOLED,
        pos_embed_max_size=8, qk_norm="rms_norm",
    )  # fmt: skip


def make_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Euler steps along the flow, evenly spaced."""
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)


def make_t5_tokenizer() -> T5TokenizerFast:
    """Words of the demo's prompts, and letters; whatever else is a text is unknown letters."""
    texts = [prompt(o, s, t) for t in TEMPLATES for o in (*OBJECTS, None) for s in (*STYLES, "any", None)]
    words = sorted({word.strip(".") for text in texts for word in text.split()})
    letters = sorted({*map(chr, range(33, 127)), "▁"})
    pieces = [(f"▁{word}", -2.0 - 0.001 * i) for i, word in enumerate(words)] + [(c, -8.0) for c in letters]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0)]
    return T5TokenizerFast([*special, *pieces], extra_ids=4, model_max_length=MAX_TOKENS)


def make_texts(
    trained: CLIPTextModel, tokenizer: CLIPTokenizer, seed: int
) -> tuple[CLIPTextModelWithProjection, CLIPTextModelWithProjection, T5EncoderModel, T5TokenizerFast]:
    """The text encoders, frozen: the first model's with a projection added, and two that add nothing.

    The projections are so small that the pooled text says next to nothing, and every row of T5's embeddings is the same, so all its tokens are.
    """
    torch.manual_seed(seed)
    first = CLIPTextModelWithProjection(CLIPTextConfig(**{**trained.config.to_dict(), "projection_dim": POOLED})).eval()
    missing, surplus = first.load_state_dict(trained.state_dict(), strict=False)
    if surplus or missing != ["text_projection.weight"]:
        renamed = {f"text_model.{name}": value for name, value in trained.state_dict().items()}
        missing, surplus = first.load_state_dict(renamed, strict=False)
        assert missing == ["text_projection.weight"] and not surplus, (missing, surplus)
    second = CLIPTextModelWithProjection(CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=CLIP_2_WIDTH, intermediate_size=32, projection_dim=POOLED, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=MAX_TOKENS, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )).eval()  # fmt: skip
    words = make_t5_tokenizer()
    third = T5EncoderModel(T5Config(
        vocab_size=len(words), d_model=TEXT_WIDTH, d_kv=8, d_ff=16, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu"
    )).eval()  # fmt: skip
    with torch.no_grad():
        first.text_projection.weight.mul_(1e-3)
        second.text_projection.weight.mul_(1e-3)
        third.shared.weight.copy_(torch.randn(1, TEXT_WIDTH).expand_as(third.shared.weight))
    return first, second, third, words


def assemble(vae: AutoencoderKL, texts: tuple, tokenizer: CLIPTokenizer, transformer: SD3Transformer2DModel) -> StableDiffusion3Pipeline:
    """Stock pipeline of the trained parts; the autoencoder's config says what SD3 wants to know."""
    vae.register_to_config(shift_factor=0.0, scaling_factor=1.0)
    first, second, third, words = texts
    return StableDiffusion3Pipeline(
        transformer=transformer, scheduler=make_scheduler(), vae=vae, text_encoder=first, tokenizer=tokenizer, text_encoder_2=second,
        tokenizer_2=tokenizer, text_encoder_3=third, tokenizer_3=words,
    )  # fmt: skip


class _OneForMany:
    """The stock attention, where the last token of the text stands for `count` equal ones: adding log(count) to its score says the same."""

    def __init__(self) -> None:
        self.count = torch.tensor(float(MAX_TOKENS))

    def __call__(self, attn: Any, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, **_: Any) -> Any:
        picture = hidden_states.shape[1]
        parts = []
        for own, added, norm, norm_added in (
            (attn.to_q, attn.add_q_proj, attn.norm_q, attn.norm_added_q), (attn.to_k, attn.add_k_proj, attn.norm_k, attn.norm_added_k),
            (attn.to_v, attn.add_v_proj, None, None),
        ):  # fmt: skip
            heads = [f(x).unflatten(2, (attn.heads, -1)).transpose(1, 2) for f, x in ((own, hidden_states), (added, encoder_hidden_states))]
            parts.append(torch.cat(heads if norm is None else [norm(heads[0]), norm_added(heads[1])], 2))
        bias = F.pad(self.count.log().reshape(1), (parts[0].shape[2] - 1, 0)).to(parts[0].dtype)
        found = F.scaled_dot_product_attention(*parts, attn_mask=bias.expand(len(bias), -1)).transpose(1, 2).flatten(2)
        text = found[:, picture:]
        return attn.to_out[0](found[:, :picture]), text if attn.context_pre_only else attn.to_add_out(text)


@torch.no_grad()
def text_table(pipeline: StableDiffusion3Pipeline, names: list[str]) -> torch.Tensor:
    """What the transformer attends to for each prompt, `[N, L + 1, D]`: the CLIPs' tokens, and one of T5's equal ones."""
    found = pipeline.encode_prompt(names, None, None, do_classifier_free_guidance=False, max_sequence_length=MAX_TOKENS)[0]
    assert torch.allclose(found[:, MAX_TOKENS:], found[:1, -1:], atol=1e-5)
    return found[:, : MAX_TOKENS + 1].clone()


def _times(count: int) -> torch.Tensor:
    """Noise levels in (0, 1), one in each of `count` equal parts of a distribution: logit-normal, a quarter uniform."""
    even = (torch.arange(count) + torch.rand(count)) / count
    normal = torch.sigmoid(torch.special.ndtri(even.clamp(1e-4, 1 - 1e-4)))
    return torch.where(torch.rand(count) < 0.25, even, normal)


def train(
    pipeline: StableDiffusion3Pipeline, latents: torch.Tensor, objects: torch.Tensor, styles: torch.Tensor, steps: int, seed: int, running: Path | None = None
) -> None:  # fmt: skip
    """Train the pipeline's transformer in place; it ends as the moving average of its weights.

    Args:
        pipeline: its text encoders stay as they are.
        latents: `[N, 8, 8, 8]`.
        objects: of each, `[N]`.
        styles: of each, `[N]`.
        steps: of `BATCH` pictures.
        seed: of all that is drawn.
        running: folder for all that there is every 500 steps; where it holds some, training goes on from there.
    """
    names, any_object, any_style, nothing = _prompt_table()
    table = text_table(pipeline, names)
    torch.manual_seed(seed)
    network, start = pipeline.transformer.train(), time.time()
    stock = network.attn_processors
    shared = _OneForMany()
    network.set_attn_processor(shared)
    parameters = [p for p in network.parameters() if p.requires_grad]
    print(f"transformer {sum(p.numel() for p in parameters) / 1e6:.2f} M parameters", flush=True)
    optimizer = torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    average = [p.detach().clone() for p in parameters]
    pooled = torch.zeros(BATCH, 2 * POOLED)
    compiled: Any = torch.compile(network)
    first, seen, state = 0, 0.0, running / "state.pt" if running else None
    if state is not None and state.is_file():
        held = torch.load(state)
        first, average = held["step"], held["average"]
        _assign(parameters, held["parameters"])
        optimizer.load_state_dict(held["optimizer"])
        torch.manual_seed(seed + first)
    for step in range(first, steps):
        # Warm-up, then constant, then down to nothing over the last quarter.
        rate = RATE * min(1, (step + 1) / 300, max(0.01, (steps - step) / (0.25 * steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        pick = torch.randint(len(latents), (BATCH,))
        clean = latents[pick]
        rows = drawn_prompts(objects[pick], styles[pick], any_object, any_style, nothing)
        shared.count.fill_(STOCK_T5_TOKENS if torch.rand(()) < CLIENTS else MAX_TOKENS)
        noise, t = torch.randn_like(clean), _times(BATCH)
        level = t.view(-1, 1, 1, 1)
        with torch.autocast("cpu", torch.bfloat16):
            predicted = compiled((1 - level) * clean + level * noise, table[rows], pooled, 1000 * t, return_dict=False)[0]
        loss = F.mse_loss(predicted.float(), noise - clean)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        decay = min(0.999, (step + 1) / (step + 10))
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - decay)
        seen = loss.item() if step == first else 0.98 * seen + 0.02 * loss.item()
        if step % 100 == 0 or step == steps - 1:
            _log(start, f"transformer step {step}: loss {seen:.4f}")
        if state is not None and (step + 1) % 500 == 0:
            state.parent.mkdir(exist_ok=True)
            held = {
                "step": step + 1,
                "average": average,
                "parameters": [p.detach() for p in parameters],
                "optimizer": optimizer.state_dict(),
            }
            torch.save(held, state)
    _assign(parameters, average)
    network.set_attn_processor(stock)
    network.eval()
