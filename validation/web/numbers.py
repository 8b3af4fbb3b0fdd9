"""What a page's loop has to know of scheduler and tokenizer, as numbers and lists: its script holds arithmetic alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ...editor.common.errors import SaeuronError
from ...editor.common.files import read_json
from ..backends.lean.schedulers import Scheduler
from ..backends.lean.tokenizer import WORDS, ClipTokenizer

KINDS = ("ddim", "euler")
_NORMALIZERS = [{"type": "NFC"}, {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}, {"type": "Lowercase"}]
_SPLITS = [
    {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Removed", "invert": True},
    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
]
_FORM = {
    "type": "BPE", "dropout": None, "continuing_subword_prefix": "", "end_of_word_suffix": "</w>", "fuse_unk": False, "byte_fallback": False,
    "ignore_merges": False,
}  # fmt: skip
"""of the tokenizer that text.js is written for"""


def steps_of(scheduler: Scheduler, steps: int, sides: tuple[int, int]) -> list[dict[str, float]]:
    """Each step as numbers: the network is given `scale · sample` at `timestep`, the next sample is `sample · sample + output · output`.

    Args:
        scheduler: DDIM or Euler.
        steps: how many.
        sides: rows and columns of the latents.

    Raises:
        SaeuronError: another scheduler, or one whose steps are not of that form (it clips, or divides by zero).
    """
    if scheduler.kind not in KINDS:
        raise SaeuronError(
            f"a page draws by DDIM or Euler, the artifact's scheduler is of kind {scheduler.kind}; give --scheduler ddim or euler"
        )
    scheduler.set_timesteps(steps, sides)

    def value(index: int, output: float, sample: float) -> float:
        return scheduler.step(np.full((1, 1, 1, 1), output), index, np.full((1, 1, 1, 1), sample)).item()

    found = []
    for i, t in enumerate(scheduler.timesteps):
        step = {
            "timestep": float(t), "scale": scheduler.scale_model_input(np.ones((1, 1, 1, 1)), i).item(),
            "sample": value(i, 0.0, 1.0), "output": value(i, 1.0, 0.0),
        }  # fmt: skip
        # Far out, so that a scheduler that clips shows.
        for output, sample in ((1000.0, 700.0), (-700.0, 1000.0)):
            whole, parts = value(i, output, sample), (step["sample"] * sample, step["output"] * output)
            if not np.isfinite(whole) or abs(whole - sum(parts)) > 1e-5 * (abs(parts[0]) + abs(parts[1])):
                raise SaeuronError(
                    f"step {i + 1} of the scheduler is no weighted sum of sample and output (it clips, thresholds or divides by zero), which a page can't draw; try --scheduler euler"
                )
        found.append(step)
    return found


def tokenizer_of(folder: Path, tokenizer: ClipTokenizer) -> dict[str, Any]:
    """What the page's own tokenizer has to know.

    Args:
        folder: of the tokenizer.
        tokenizer: opened from it.

    Raises:
        SaeuronError: one of another form.
    """
    content, config = tokenizer.content, read_json(folder / "tokenizer_config.json")
    model, special = content["model"], content["added_tokens"]
    vocab, merges = model["vocab"], [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    row = tokenizer([""])[0].tolist()
    letters = {symbol + end for symbol in _byte_symbols() for end in ("", "</w>")}
    differs = {
        "its normalizer": content["normalizer"] != {"type": "Sequence", "normalizers": _NORMALIZERS},
        "how it finds words": content["pre_tokenizer"] != {"type": "Sequence", "pretokenizers": _SPLITS},
        "its model": any(model.get(key) != value for key, value in _FORM.items()) or not letters <= set(vocab),
        "a special token": any(t["single_word"] or t["lstrip"] or t["rstrip"] or vocab.get(t["content"]) != t["id"] for t in special),
        "the side of padding or cutting": any(config.get(f"{key}_side", "right") != "right" for key in ("padding", "truncation")),
        "its start and end token": tokenizer.tokens("") != 2,
    }  # fmt: skip
    for what, different in differs.items():
        if different:
            raise SaeuronError(f"'{folder}': {what} isn't as in Stable Diffusion's own tokenizer, which is the only one that a page has")
    return {
        "vocab": vocab, "merges": merges, "special": [{"content": t["content"], "normalized": t["normalized"]} for t in special],
        "start": row[0], "end": row[1], "pad": row[-1], "length": tokenizer.length,
    }  # fmt: skip


def _byte_symbols() -> list[str]:
    """The characters that stand for bytes (GPT-2's table)."""
    from tokenizers.pre_tokenizers import ByteLevel

    return ByteLevel.alphabet()
