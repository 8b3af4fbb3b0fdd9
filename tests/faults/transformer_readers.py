"""Readers of the files that SD3, FLUX.1, Sana and PixArt are drawn from without torch; `readers.py` has the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tests.transformer_pipelines import make_flux, make_pixart, make_sana, make_sd3

from . import mutations as m
from .readers import reader


def _put(make: Callable[..., Path]) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        make(folder, use_dynamic_shifting=True) if make is make_sd3 else make(folder)

    return prepare


def _files(*more: str) -> dict[str, m.Mutation]:
    usual = (
        "model_index.json",
        "transformer/config.json",
        "vae/config.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
    )
    return {f"model/{name}": m.as_json for name in (*usual, *more)}


class _Nothing:
    """Networks that give zeros, of the widths that the text encoders have."""

    def __init__(self, widths: dict[str, tuple[int, str]]) -> None:
        self.widths = widths

    def denoise(self, inputs: Any) -> np.ndarray:
        return np.zeros_like(inputs["hidden_states"])

    def component(self, name: str, inputs: Any) -> dict[str, np.ndarray]:
        if name == "vae_decoder":
            return {"sample": np.zeros((len(inputs["latent_sample"]), 3, 8, 8), np.float32)}
        (rows, tokens), (width, pooled) = inputs["input_ids"].shape, self.widths[name]
        states = np.zeros((rows, tokens, width), np.float32)
        layers = {f"hidden_states.{i}": states for i in range(3)} if pooled == "text_embeds" else {}
        return {"last_hidden_state": states, **layers, **({pooled: states[:, 0]} if pooled else {})}


def _draw(folder: Path, networks: Any) -> None:
    from saeuron.validation.backends.lean.pipeline import LeanPipeline

    pipeline = LeanPipeline(folder / "model", networks)
    pipeline.truncated("a cat")
    if pipeline.factor <= 16 and pipeline.channels <= 64:  # noise of the usual sizes
        with np.errstate(all="ignore"):
            pipeline.decode(pipeline.denoise(["a cat"], pipeline.initial_latents([1], 32, 64), 3, 3.0))


@reader(_put(make_sd3), _files("tokenizer/tokenizer_config.json", "tokenizer_3/tokenizer_config.json"), 0.5)
def _sd3_without_torch(folder: Path) -> None:
    _draw(folder, _Nothing({"text_encoder": (16, "text_embeds"), "text_encoder_2": (12, "text_embeds"), "text_encoder_3": (40, "")}))


@reader(_put(make_flux), _files("tokenizer_2/tokenizer_config.json"), 0.5)
def _flux_without_torch(folder: Path) -> None:
    _draw(folder, _Nothing({"text_encoder": (16, "pooler_output"), "text_encoder_2": (40, "")}))


@reader(_put(make_sana), _files("tokenizer/tokenizer_config.json"), 0.5)
def _sana_without_torch(folder: Path) -> None:
    _draw(folder, _Nothing({"text_encoder": (40, "")}))


@reader(_put(make_pixart), _files("tokenizer/tokenizer_config.json"), 0.5)
def _pixart_without_torch(folder: Path) -> None:
    _draw(folder, _Nothing({"text_encoder": (40, "")}))


@reader(_put(make_flux), {"model/tokenizer_2/tokenizer.json": m.as_json}, 0.3)
def _t5_tokenizer(folder: Path) -> None:
    from saeuron.validation.backends.lean.tokenizer import T5Tokenizer

    made = T5Tokenizer(folder / "model" / "tokenizer_2", 512)
    made(["a cat", ""])
    made.tokens("a cat")
