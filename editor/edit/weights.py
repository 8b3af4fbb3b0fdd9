"""Intervention `weights`: the concept's words are given the keys and values of other words, in every cross-attention (UCE, arXiv 2308.14761).

Of all weights W that turn text into keys and values, W' minimises

    Σ |W' c − W c*|²  +  PRESERVE Σ |W' p − W p|²  +  RIDGE |W' − W|²

over the concept's text states c and those c* of what it becomes, and over states p of prompts that are to stay. The minimum is W' = W M with
one matrix M for all of them, which is what an edit holds:

    M = (Σ c* cᵀ + PRESERVE Σ p pᵀ + RIDGE) (Σ c cᵀ + PRESERVE Σ p pᵀ + RIDGE)⁻¹
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ..common.errors import SaeuronError
from ..denoisers.families import denoiser_of

RIDGE = PRESERVE = 0.1
_MANTISSA = 53
"""bits of float64: as many as products of two slices, summed over all columns, may need"""


@dataclass(frozen=True)
class WeightEdit:
    """What becomes of the text's keys and values."""

    map: torch.Tensor
    """M, float32 `[D, D]`, D the width of a text state"""
    becomes: Mapping[str, str]
    """concept → what its words become"""
    preserved: tuple[str, ...]
    """sets of prompts that are to stay"""
    _known: WeakKeyDictionary = field(default_factory=WeakKeyDictionary, repr=False, compare=False)
    """network → which weights it had, and what `changed` gave: a proof opens a hook a hundred times"""

    def check(self, where: str) -> None:
        """Raise `SaeuronError` unless the matrix is one; a file may come from anywhere."""
        m = self.map
        if m.dtype != torch.float32 or m.ndim != 2 or m.shape[0] != m.shape[1] or not m.numel() or not bool(m.isfinite().all()):
            raise SaeuronError(f"{where}: damaged edit (its matrix for text states is no finite square of float32)")
        if not self.becomes:
            raise SaeuronError(f"{where}: damaged edit (it changes weights for no concept)")

    def changed(self, network: nn.Module) -> dict[str, torch.Tensor]:
        """Name → new value of every weight that changes, in its own type: the same bits on every machine.

        Raises:
            SaeuronError: a network without cross-attention, or one that reads text states of another width.
        """
        names = text_weights(network)
        held, known = [network.get_parameter(name) for name in names], self._known.get(network)
        mark = [(p.data_ptr(), p.dtype, p.device, 0 if p.is_inference() else p._version) for p in held]
        if known and known[0] == mark:
            return known[1]
        found = {}
        for name in names:
            weight = network.get_parameter(name)
            if weight.shape[1] != len(self.map):
                raise SaeuronError(f"the edit's matrix is for text states of width {len(self.map)}, '{name}' reads {weight.shape[1]}")
            found[name] = product(weight.detach().cpu(), self.map).to(weight.device, weight.dtype)
        self._known[network] = (mark, found)
        return found

    @contextmanager
    def in_place(self, network: nn.Module) -> Iterator[None]:
        """The network with these weights while the context is open."""
        own = {name: network.get_parameter(name).data for name in text_weights(network)}
        for name, value in self.changed(network).items():
            network.get_parameter(name).data = value
        try:
            yield
        finally:
            for name, value in own.items():
                network.get_parameter(name).data = value


def text_weights(network: nn.Module) -> list[str]:
    """Names of the weights that turn text into keys and values; raises `SaeuronError` where there are none."""
    denoiser = denoiser_of(network)
    found = [name for name, _ in network.named_parameters() if denoiser.reads_text(name)]
    if not found:
        raise SaeuronError(
            f"this {denoiser.noun} has no cross-attention that reads a text encoder's states as they are, so there are no weights that read text; use another intervention"
        )
    return found


def product(weight: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """`weight @ matrix` `[R, D] x [D, D]` in float64, to about 40 bits, the same bits on every machine.

    Both are cut into slices of so few bits (21 for 2048 columns) that no sum of products is ever rounded and its order doesn't matter (Ozaki et al., 2012).
    A holder elsewhere can thus compute the weights again and compare their hashes.
    """
    bits = (_MANTISSA - math.ceil(math.log2(len(matrix)))) // 2
    left, right = _slices(weight.double(), 1, bits), _slices(matrix.double(), 0, bits)
    parts = [a @ b for a in left for b in right]
    return parts[0] + (parts[1] + parts[2] + parts[3])


def _slices(values: torch.Tensor, axis: int, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two multiples of powers of two that are common along an axis, with `bits` bits each; what is below both is dropped."""
    _, exponents = torch.frexp(values.abs().amax(axis, keepdim=True))
    unit = torch.ldexp(torch.ones_like(exponents, dtype=torch.float64), exponents - bits)
    high = torch.trunc(values / unit) * unit
    finer = unit * 2.0**-bits
    return high, torch.trunc((values - high) / finer) * finer


@torch.no_grad()
def make_weights(
    pipeline: Any, pairs: Mapping[str, Sequence[tuple[str, str]]], becomes: Mapping[str, str], preserved: Mapping[str, Sequence[str]], batch_size: int = 16
) -> WeightEdit:  # fmt: skip
    """Solve for the weights.

    Args:
        pipeline: whose text encoders and tokenizer are asked; it needs no denoiser.
        pairs: concept → its prompts, each with the same one about what it becomes.
        becomes: concept → what that is, for the record.
        preserved: set → prompts that are to stay as they are, beside the empty one and what the concepts become.
        batch_size: prompts at a time.

    Raises:
        SaeuronError: a prompt that is the same without its concept, as the tokenizer reads it.
    """
    erased = [pair for found in pairs.values() for pair in found]
    for name, found in pairs.items():
        for prompt, other in found:
            if prompt == other or _tokens(pipeline, prompt) == _tokens(pipeline, other):
                raise SaeuronError(f"concept '{name}': '{prompt}' is the same once it is about {becomes[name]}, so nothing would change")
    moved = same = kept = torch.zeros((), dtype=torch.float64)
    for start in range(0, len(erased), batch_size):
        part = erased[start : start + batch_size]
        sources, targets = (_states(pipeline, [pair[side] for pair in part]) for side in (0, 1))
        for (prompt, other), c, to in zip(part, sources, targets, strict=True):
            here, there = _aligned(_tokens(pipeline, prompt), _tokens(pipeline, other), len(c))
            moved, same = moved + to[there].T @ c[here], same + c[here].T @ c[here]
    texts = list(dict.fromkeys(["", *(other for _, other in erased), *(text for found in preserved.values() for text in found)]))
    for start in range(0, len(texts), batch_size):
        for p in _states(pipeline, texts[start : start + batch_size]):
            kept = kept + p.T @ p
    rest = PRESERVE * kept + RIDGE * torch.eye(len(same), dtype=torch.float64)
    found = torch.linalg.solve(same + rest, (moved + rest).T).T
    return WeightEdit(found.float().contiguous(), dict(becomes), tuple(preserved))


@torch.no_grad()
def nearest(pipeline: Any, choices: Mapping[str, Sequence[tuple[str, str]]], batch_size: int = 16) -> str:
    """What lies nearest to a concept: the least squared distance of text states where the prompts differ; arguments as in `make_weights`."""

    def apart(pairs: Sequence[tuple[str, str]]) -> float:
        found = 0.0
        for start in range(0, len(pairs), batch_size):
            part = pairs[start : start + batch_size]
            for (prompt, other), c, to in zip(part, *(_states(pipeline, [pair[side] for pair in part]) for side in (0, 1)), strict=True):
                here, there = _aligned(_tokens(pipeline, prompt), _tokens(pipeline, other), len(c))
                found += float((to[there] - c[here]).square().mean())
        return found

    return min(choices, key=lambda name: apart(choices[name]))


def _states(pipeline: Any, prompts: Sequence[str]) -> torch.Tensor:
    """What cross-attention reads: float64 `[B, L, D]`."""
    device = next(pipeline.text_encoder.parameters()).device
    return (
        pipeline.encode_prompt(list(prompts), device=device, num_images_per_prompt=1, do_classifier_free_guidance=False)[0].double().cpu()
    )


def _tokens(pipeline: Any, prompt: str) -> list[int]:
    """With start and end, without padding."""
    tokenizer = pipeline.tokenizer
    return list(tokenizer(prompt, truncation=True, max_length=tokenizer.model_max_length).input_ids)


def _aligned(own: Sequence[int], other: Sequence[int], length: int) -> tuple[list[int], list[int]]:
    """Which position of one prompt takes the place of which of another, from where they differ on: an encoder's later states know of earlier words."""
    shortest = min(len(own), len(other))
    first = next((i for i in range(shortest) if own[i] != other[i]), shortest)
    tail = next((i for i in range(shortest - first) if own[-1 - i] != other[-1 - i]), shortest - first)
    said, instead = len(own) - tail - first, len(other) - tail - first
    here = list(range(first, length))
    there = [first + min(i, max(instead - 1, 0)) for i in range(said)]
    there += [min(len(other) - tail + i, length - 1) for i in range(length - first - said)]
    return here, there
