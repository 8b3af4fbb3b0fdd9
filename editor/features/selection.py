"""Which latents belong to a concept, at each timestep (METHOD: arXiv 2501.18052, section 3.2)."""

from __future__ import annotations

import numpy as np
import torch

from ..common.errors import SaeuronError
from ..common.suggest import unknown
from .activations import ConceptActivations
from .rule import Rule

_DELTA = 1e-8


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
