"""What an SAE training depends on: one dataclass for the command's options, the record and the docs. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

from ..common.errors import SaeuronError

_LARGEST = 10**15
"""beyond it, no count of tokens, latents or steps is meant"""


@dataclass(frozen=True)
class TrainSettings:
    """What a training depends on; k, rate, batch and dead latents default to the published values."""

    expansion: int = 16
    """Latents are this many times the hookpoint's channels."""
    k: int = 32
    """Active latents a token."""
    batch_topk: bool = True
    """BatchTopK: the k · tokens largest latents of a micro-batch stay, instead of k of each token."""
    tokens: int = 400_000_000
    """Tokens seen in all."""
    batch: int = 4096
    """Tokens an optimiser step."""
    micro_batches: int = 1
    """Parts of a step: one after another in one process, or shared out (a multiple of the number of processes)."""
    rate: float = 4e-4
    """Adam's learning rate."""
    warmup: int = 0
    """Steps over which the rate rises from zero."""
    decay_from: float = 0.0
    """Share of the steps after which the rate falls linearly to zero."""
    dead_after: int = 10_000_000
    """Tokens without firing after which a latent is dead."""
    input_unit_norm: bool = False
    """Centre each token and divide it by its standard deviation before encoding."""
    precision: str = "fp32"
    """Autocast of the encoder: fp32, fp16 or bf16; masters stay fp32."""
    pictures: int = 32
    """Pictures a buffer, over all their denoising steps."""
    passes: int = 1
    """Times that a buffer is gone through before the next one is made."""
    held_out: int = 32
    """Pictures that the report is measured on, never trained on."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    seed: int = 0
    """Of the initial weights; pictures have a seed of their own."""

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return -(-self.tokens // self.batch)

    def check(self, processes: int = 1) -> None:
        """Raise `SaeuronError` for values that can't be meant."""
        positive = (
            "expansion",
            "k",
            "tokens",
            "batch",
            "micro_batches",
            "pictures",
            "passes",
            "held_out",
            "checkpoint_every",
            "dead_after",
        )
        for name in positive:
            if getattr(self, name) < 1:
                raise SaeuronError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in (*positive, "warmup"):
            if getattr(self, name) > _LARGEST:
                raise SaeuronError(f"{name} is {str(getattr(self, name))[:20]}…; it must be at most {_LARGEST}")
        if not 0 < self.rate < 1 or not 0 <= self.decay_from < 1 or self.warmup < 0:
            raise SaeuronError("rate lies in (0, 1), decay_from in [0, 1), and warmup is not negative")
        if self.batch % self.micro_batches or self.micro_batches % processes:
            raise SaeuronError(
                f"a step of {self.batch} tokens in {self.micro_batches} micro-batches can't be shared out to {processes} processes; batch must be a multiple of micro_batches, and that of the processes"
            )
        if self.precision not in ("fp32", "fp16", "bf16"):
            raise SaeuronError(f"precision '{self.precision}' is not known; it is one of fp32, fp16, bf16")
