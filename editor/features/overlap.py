"""Describes chosen features: timesteps, scores, other concepts that they answer to, concepts that share them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .activations import ConceptActivations
from .selection import scores


def describe_features(activations: ConceptActivations, concept: str, chosen: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    """One entry a chosen feature, those chosen at most steps first.

    Args:
        activations: the concept's.
        concept: its name.
        chosen: features at each step.

    Returns:
        `feature`; `ranges`: timesteps from, to (inclusive, descending) of unbroken runs of steps; `steps`: how many; `score`, `mean`:
        averages over those steps; `others_above`: share of (other concept, step) pairs whose mean exceeds the threshold μ̄, i.e. how
        often the feature answers to others strongly enough to be suppressed there too; `next`: the other concept that it answers to
        most, and `next_mean`.
    """
    score, means = scores(activations, concept), activations.means
    own = activations.concepts.index(concept)
    others = [i for i in range(len(activations.concepts)) if i != own]
    threshold = means.mean(0)
    steps_of: dict[int, list[int]] = {}
    for step, features in enumerate(chosen):
        for feature in features:
            steps_of.setdefault(feature, []).append(step)
    found = []
    for feature, steps in steps_of.items():
        rest = means[others][:, steps, feature]
        by_concept = rest.mean(1)
        top = int(by_concept.argmax())
        found.append({
            "feature": feature, "steps": len(steps), "ranges": _ranges(steps, activations.timesteps.tolist()),
            "score": float(score[steps, feature].mean()), "mean": float(means[own, steps, feature].mean()),
            "others_above": float((rest > threshold[steps, feature]).float().mean()),
            "next": activations.concepts[others[top]], "next_mean": float(by_concept[top]),
        })  # fmt: skip
    return sorted(found, key=lambda f: (-f["steps"], -f["score"]))


def _ranges(steps: Sequence[int], timesteps: Sequence[int]) -> list[tuple[int, int]]:
    runs: list[list[int]] = []
    for step in steps:
        if runs and step == runs[-1][1] + 1:
            runs[-1][1] = step
        else:
            runs.append([step, step])
    return [(timesteps[a], timesteps[b]) for a, b in runs]


def overlaps(chosen: Mapping[str, Sequence[Sequence[int]]]) -> list[dict[str, Any]]:
    """Pairs of concepts that chose the same feature at the same step.

    Args:
        chosen: concept → features at each step, all at one hookpoint.

    Returns:
        `concepts`, `features` (those shared), `steps` (at how many steps any is shared).
    """
    found = []
    names = list(chosen)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            shared = [set(x) & set(y) for x, y in zip(chosen[a], chosen[b], strict=True)]
            if any(shared):
                found.append({"concepts": [a, b], "features": sorted(set().union(*shared)), "steps": sum(bool(s) for s in shared)})
    return found
