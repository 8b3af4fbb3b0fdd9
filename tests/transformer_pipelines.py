"""Tiny random pipelines of transformers (SD3, FLUX, Sana), of stock classes."""

import inspect
from pathlib import Path
from typing import Any

import torch
from benchmarks.demo.train_pipeline import make_tokenizer

WIDTH = 32
"""of their blocks' tokens"""


def t5_tokenizer(words: list[str]) -> Any:
    from transformers import T5TokenizerFast

    pieces = sorted({f"▁{w}" for w in words} | {c for w in words for c in w} | {"▁", "."})
    return T5TokenizerFast([("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -10.0), *((p, -1.0 - 0.01 * i) for i, p in enumerate(pieces))], extra_ids=4, model_max_length=512)  # fmt: skip


def t5(tokenizer: Any, width: int) -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=len(tokenizer) + 5, d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu"
    )
    return T5EncoderModel(config).eval()


def vae(channels: int) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=channels,
        norm_num_groups=4, scaling_factor=1.5, shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False,
    ).eval()  # fmt: skip


def clip(tokenizer: Any, width: int, layers: int, projected: bool) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=32, num_hidden_layers=layers, num_attention_heads=2, projection_dim=width,
        max_position_embeddings=24, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def make_sd3(folder: Path, **scheduler: Any) -> Path:
    """A tiny random SD3.5-medium: the first block has a second attention, the last gives no text."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    torch.manual_seed(5)
    tokenizer = make_tokenizer(folder / "words")
    words = t5_tokenizer(["a", "picture", "of", "cat", "dog", "image", "an", "style", "in"])
    network = SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, out_channels=4, num_layers=3, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=40,
        caption_projection_dim=WIDTH, pooled_projection_dim=28, pos_embed_max_size=24, dual_attention_layers=(0,), qk_norm="rms_norm",
    ).eval()  # fmt: skip
    _grow(network)
    StableDiffusion3Pipeline(
        transformer=network, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, **scheduler), vae=vae(4), text_encoder=clip(tokenizer, 16, 2, True), tokenizer=tokenizer,
        text_encoder_2=clip(tokenizer, 12, 2, True), tokenizer_2=tokenizer, text_encoder_3=t5(words, 40), tokenizer_3=words,
    ).save_pretrained(folder / "model")  # fmt: skip
    return folder / "model"


def make_flux(folder: Path, guided: bool = True) -> Path:
    """A tiny random FLUX.1: dev, which is told the guidance, or schnell."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    torch.manual_seed(6)
    tokenizer = make_tokenizer(folder / "words")
    words = t5_tokenizer(["a", "picture", "of", "cat", "dog", "image", "an", "style", "in"])
    network = FluxTransformer2DModel(
        in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=40, pooled_projection_dim=16,
        guidance_embeds=guided, axes_dims_rope=(4, 6, 6),
    ).eval()  # fmt: skip
    _grow(network)
    scheduler = (
        FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True) if guided else FlowMatchEulerDiscreteScheduler(shift=1.0)
    )
    FluxPipeline(
        transformer=network, scheduler=scheduler, vae=vae(4), text_encoder=clip(tokenizer, 16, 2, False), tokenizer=tokenizer,
        text_encoder_2=t5(words, 40), tokenizer_2=words,
    ).save_pretrained(folder / "model")  # fmt: skip
    return folder / "model"


def gemma_tokenizer(words: list[str]) -> Any:
    """Byte pairs that join the letters of each word, one by one."""
    from transformers import GemmaTokenizerFast

    letters = sorted({"▁", *map(chr, range(33, 127)), "\n"})
    vocab = {token: i for i, token in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *letters])}
    merges = []
    for word in words:
        made = "▁"
        for letter in word:
            if made + letter not in vocab:
                merges.append((made, letter))
                vocab[made + letter] = len(vocab)
            made += letter
    return GemmaTokenizerFast(vocab=vocab, merges=merges, model_max_length=24)


def gemma(tokenizer: Any, width: int) -> Any:
    from transformers import Gemma2Config, Gemma2Model

    config = Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
        sliding_window=8, query_pre_attn_scalar=16, max_position_embeddings=1024,
    )  # fmt: skip
    return Gemma2Model(config).eval()


def make_sana(folder: Path, flow: bool = False, **scheduler: Any) -> Path:
    """A tiny random Sana, with the scheduler that published ones have, or Euler's along the flow."""
    from diffusers import (
        AutoencoderDC,
        DPMSolverMultistepScheduler,
        FlowMatchEulerDiscreteScheduler,
        SanaPipeline,
        SanaTransformer2DModel,
    )

    torch.manual_seed(7)
    instruction = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
    said = [*" ".join(instruction).split(), "a", "picture", "of", "cat", "dog", "image", "an", "style", "in"]
    tokenizer = gemma_tokenizer(list(dict.fromkeys(said)))
    network = SanaTransformer2DModel(
        sample_size=8, in_channels=4, out_channels=4, num_layers=3, num_attention_heads=4, attention_head_dim=8, num_cross_attention_heads=2,
        cross_attention_head_dim=16, cross_attention_dim=WIDTH, caption_channels=40, mlp_ratio=2.0,
    ).eval()  # fmt: skip
    _grow(network)
    known = {"algorithm_type": "dpmsolver++", "flow_shift": 3.0, "prediction_type": "flow_prediction", "use_flow_sigmas": True}
    decoder = AutoencoderDC(
        latent_channels=4, attention_head_dim=8, encoder_block_types=("ResBlock",) * 2 + ("EfficientViTBlock",), decoder_block_types=("ResBlock",) * 2 + ("EfficientViTBlock",),
        encoder_block_out_channels=(8, 16, 16), decoder_block_out_channels=(8, 16, 16), encoder_layers_per_block=(1, 1, 1), decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), (5,)), decoder_qkv_multiscales=((), (), (5,)), scaling_factor=0.4,
    ).eval()  # fmt: skip
    SanaPipeline(
        transformer=network, vae=decoder, text_encoder=gemma(tokenizer, 40), tokenizer=tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0} | scheduler) if flow else DPMSolverMultistepScheduler(**known | scheduler),
    ).save_pretrained(folder / "model")  # fmt: skip
    return folder / "model"


def make_pixart(folder: Path, alpha: bool = False) -> Path:
    """A tiny random PixArt-Sigma, or -Alpha: of its outputs half is the spread, which pipelines drop. Its schedule leaves a signal at the start: what no one
    trained predicts no noise, and would be blown up beyond float16."""
    from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtSigmaPipeline, PixArtTransformer2DModel

    torch.manual_seed(8)
    words = t5_tokenizer(["a", "picture", "of", "cat", "dog", "image", "an", "style", "in"])
    network = PixArtTransformer2DModel(
        sample_size=16, in_channels=4, out_channels=8, num_layers=3, num_attention_heads=2, attention_head_dim=16, cross_attention_dim=WIDTH, caption_channels=40,
        norm_num_groups=1, use_additional_conditions=False,
    ).eval()  # fmt: skip
    _grow(network)
    (PixArtAlphaPipeline if alpha else PixArtSigmaPipeline)(
        transformer=network, vae=vae(4), text_encoder=t5(words, 40), tokenizer=words, scheduler=DPMSolverMultistepScheduler(beta_end=0.002)
    ).save_pretrained(folder / "model")
    return folder / "model"


def _grow(network: Any) -> None:
    """Weights as large as a trained network's, so that prompts and edits show."""
    with torch.no_grad():
        for value in network.parameters():
            value.mul_(2.0).add_(0.02 * torch.randn_like(value))


HOOKPOINTS = {
    "sd3": "transformer_blocks.1", "flux": "single_transformer_blocks.0", "schnell": "single_transformer_blocks.0", "sana": "transformer_blocks.1", "pixart": "transformer_blocks.1", "pixart_alpha": "transformer_blocks.1",
}  # fmt: skip
MAKERS = {
    "sd3": make_sd3,
    "flux": make_flux,
    "schnell": lambda folder: make_flux(folder, False),
    "sana": make_sana,
    "pixart": make_pixart,
    "pixart_alpha": lambda folder: make_pixart(folder, True),
}
"""kind → what makes a pipeline's folder below another"""


def make(kind: str, root: Path) -> dict[str, Any]:
    """`{model, sae, activations, hookpoint}` of a tiny random pipeline: one of `MAKERS`; `flux` is dev."""
    from tests.conftest import make_sae

    from saeuron.editor.denoisers.pipelines import load_pipeline
    from saeuron.editor.features.collect import Sampling, collect

    model, hookpoint, sae = MAKERS[kind](root), HOOKPOINTS[kind], make_sae()
    prompts = {"cat": ["a cat", "a picture of cat"], "dog": ["a dog", "an image of dog"]}
    sampling = Sampling(steps=6, guidance=3.0, height=32, width=32, seed=1)
    collect(load_pipeline(str(model)), {hookpoint: sae}, prompts, sampling)[hookpoint].save(root / "activations.safetensors")
    sae.save(root / "sae" / f"transformer.{hookpoint}")
    return {"model": model, "sae": root / "sae", "activations": root / "activations.safetensors", "hookpoint": hookpoint}


def settings(made: dict[str, Any], output: Path, **changes: Any) -> Any:
    """The main job on what `make` made."""
    from saeuron.export.plan.settings import Settings

    known: dict[str, Any] = {
        "concepts": ("cat",), "output": output, "model": str(made["model"]), "sae": (str(made["sae"]),), "hookpoint": made["hookpoint"],
        "activations": (str(made["activations"]),), "select": "count:8", "multiplier": -3.0, "steps": 4, "guidance": 3.0, "height": 32, "width": 32,
    }  # fmt: skip
    return Settings(**(known | changes))


def lose_a_feature(module, golden):
    """Let one of the features that fire in the golden vectors never be suppressed."""
    every = [torch.from_numpy(f).reshape(-1, f.shape[-1]).any(0) for c in golden.cases for f in c.fires.values()]
    module.thresholds[:, int(torch.stack(every).any(0).nonzero()[0])] = torch.inf
