"""Pictures from an artifact without torch, diffusers or transformers: tokenizer, scheduler and loop in numpy around any backend."""

from __future__ import annotations

from .noise import initial_noise
from .pipeline import LeanPipeline, Networks
from .schedulers import make_scheduler
from .tokenizer import ClipTokenizer, GemmaTokenizer, T5Tokenizer

__all__ = ["ClipTokenizer", "GemmaTokenizer", "LeanPipeline", "Networks", "T5Tokenizer", "initial_noise", "make_scheduler"]
