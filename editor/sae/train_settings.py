"""What an SAE training depends on: one dataclass for the command's options, the record and the docs. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..common.declared import Checked, like, option
from ..common.errors import SaeuronError
from ..common.names import PRECISIONS
from ..common.seeds import LARGEST_SEED
from ..denoisers.sampling_settings import Sampling

_TRAINING = "Training"
_LARGEST = 10**15
"""beyond it, no count of tokens, latents or steps is meant"""


def _count(default: int) -> Any:
    return option(default, panel=_TRAINING, least=1, most=_LARGEST)


@dataclass(frozen=True)
class TrainSettings(Checked):
    """What a training depends on; k, rate, batch and dead latents default to the published values."""

    expansion: int = _count(16)
    """Latents are this many times the hookpoint's channels."""
    k: int = _count(32)
    """Active latents a token."""
    batch_topk: bool = option(True, panel=_TRAINING)
    """BatchTopK: the k · tokens largest latents of a micro-batch stay, instead of k of each token."""
    tokens: int = _count(400_000_000)
    """Tokens seen in all."""
    batch: int = _count(4096)
    """Tokens an optimiser step."""
    micro_batches: int = _count(1)
    """Parts of a step: one after another in one process, or shared out (a multiple of the number of processes)."""
    rate: float = option(4e-4, panel=_TRAINING, above=0, below=1)
    """Adam's learning rate."""
    warmup: int = option(0, panel=_TRAINING, least=0, most=_LARGEST)
    """Steps over which the rate rises from zero."""
    decay_from: float = option(0.0, panel=_TRAINING, least=0, below=1)
    """Share of the steps after which the rate falls linearly to zero."""
    dead_after: int = _count(10_000_000)
    """Tokens without firing after which a latent is dead."""
    input_unit_norm: bool = option(False, panel=_TRAINING)
    """Centre each token and divide it by its standard deviation before encoding."""
    precision: str = option("fp32", panel=_TRAINING, known=PRECISIONS)
    """Autocast of the encoder: fp32, fp16 or bf16; masters stay fp32."""
    pictures: int = _count(32)
    """Pictures a buffer, over all their denoising steps."""
    passes: int = _count(1)
    """Times that a buffer is gone through before the next one is made."""
    held_out: int = _count(32)
    """Pictures that the report is measured on, never trained on."""
    checkpoint_every: int = _count(500)
    """Steps between checkpoints."""
    seed: int = option(0, panel=_TRAINING, least=0, most=LARGEST_SEED)
    """Of the initial weights; pictures have a seed of their own."""

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return -(-self.tokens // self.batch)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(1)

    def check(self, processes: int) -> None:
        """Raise `SaeuronError` unless a step can be shared out."""
        if self.batch % self.micro_batches or self.micro_batches % processes:
            raise SaeuronError(
                f"a step of {self.batch} tokens in {self.micro_batches} micro-batches can't be shared out to {processes} processes; batch must be a multiple of micro_batches, and that of the processes"
            )


@dataclass(frozen=True)
class TrainSampling(Sampling):
    """How the pictures are made that the activations come from."""

    steps: int = like(Sampling, "steps", 50, name="sampling_steps")
    seed: int = like(Sampling, "seed", name="picture_seed")
    """Of prompts and noise."""
