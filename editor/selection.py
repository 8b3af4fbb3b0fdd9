"""Which latents belong to a concept, at each timestep (METHOD: arXiv 2501.18052, section 3.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from .activations import ConceptActivations
from .errors import SaeuronError
from .suggest import unknown

_DELTA = 1e-8


@dataclass(frozen=True)
class Rule:
    """A selection rule: `percentile:99.999` or `count:3`."""

    kind: str
    value: float

    @classmethod
    def parse(cls, text: str) -> Rule:
        """Read `percentile:P` (0 < P < 100) or `count:N` (N ≥ 1).

        Raises:
            SaeuronError: anything else.
        """
        kind, _, number = text.partition(":")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if kind == "percentile":
            if not 0 < value < 100:
                raise SaeuronError(f"selection '{text}': a percentile lies between 0 and 100, both excluded (e.g. percentile:99.999)")
        elif kind == "count":
            if not value >= 1 or not value.is_integer():
                raise SaeuronError(f"selection '{text}': a count is a whole number of at least 1 (e.g. count:3)")
        else:
            raise SaeuronError(f"selection '{text}': expected percentile:P or count:N")
        return cls(kind, value)

    def __str__(self) -> str:
        return f"{self.kind}:{self.value:g}"


def scores(activations: ConceptActivations, concept: str) -> torch.Tensor:
    """Score of every latent for one concept against all other concepts of the file.

    `s = mu(c) / sum mu(c) - mu(rest) / sum mu(rest)`, where the rest pools prompts, each counted once.

    Returns:
        float64 `[T, n]`.

    Raises:
        SaeuronError: the concept is not in the file.
    """
    if concept not in activations.concepts:
        raise SaeuronError(unknown("concept", concept, activations.concepts, "in the activations"))
    index = activations.concepts.index(concept)
    counts = torch.tensor(activations.prompts, dtype=torch.float64)
    counts[index] = 0
    own = activations.means[index].double()
    rest = torch.einsum("c,ctn->tn", counts / counts.sum(), activations.means.double())

    def share(mean: torch.Tensor) -> torch.Tensor:
        return mean / (mean.sum(-1, keepdim=True) + _DELTA)

    return share(own) - share(rest)


def select(score: torch.Tensor, rule: Rule) -> torch.Tensor:
    """Chosen latents as a mask.

    Args:
        score: `[T, n]`.
        rule: `percentile`: strictly above the p-th percentile of all n scores at that timestep (linear interpolation);
            `count`: the N best of those with a positive score.

    Returns:
        bool `[T, n]`.
    """
    if rule.kind == "percentile":
        bar = torch.from_numpy(np.percentile(score.numpy(), rule.value, axis=-1, keepdims=True))
        return score > bar
    best = score.topk(min(int(rule.value), score.shape[-1]), dim=-1)
    mask = torch.zeros(score.shape, dtype=torch.bool)
    return mask.scatter(-1, best.indices, best.values > 0)
