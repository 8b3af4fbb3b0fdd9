"""The interface of a judge: of a picture and each concept on its list it says *seen* or not, with a score."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

DOMAINS = ("style", "object")
NOT_JUDGED = "?"
"""seen by a judge that does not look at a domain"""


class Sightings(NamedTuple):
    """What a judge says of pictures."""

    seen: np.ndarray
    """bool `[pictures, concepts]`"""
    scores: np.ndarray
    """float32 `[pictures, concepts]`, 0 to 1: how sure the judge is that it is there; each judge has a scale of its own"""
    sure: Mapping[str, np.ndarray] | None = None
    """domain, or empty → `[pictures]`, 0 to 1: the score of the likeliest of all names that it knows; None: it doesn't name what is there"""


class Judge(Protocol):
    """Says which of its concepts it sees."""

    name: str
    sha256: str
    """of its weights and words: what one judge saw is no result of another"""

    @property
    def concepts(self) -> tuple[str, ...]:
        """What it can see."""
        ...

    def see(self, pictures: Sequence[Any]) -> Sightings:
        """Look at PIL pictures."""
        ...


def named_scores(judge: Judge, found: Sightings) -> dict[str, np.ndarray]:
    """Judge's name, and domain where it has several → `[pictures]`, see `Sightings.sure`."""
    return {f"{judge.name}, {domain}s" if domain else judge.name: values for domain, values in (found.sure or {}).items()}


class Verdict(NamedTuple):
    """Names per picture; a style of None is the plain look."""

    objects: list[str]
    styles: list[str | None]
    sure: list[dict[str, float]]
    """judged domain → probability of the name"""


class LabelJudge(ABC):
    """A judge that names one object and one style in each picture, as UnlearnCanvas's protocol needs it."""

    name: str
    sha256: str
    objects: list[str]
    styles: list[str]
    """without the plain look"""
    judged: tuple[str, ...] = DOMAINS
    """the domains that it looks at, of `style` and `object`"""

    @abstractmethod
    def probabilities(self, pictures: Sequence[Any]) -> dict[str, tuple[list[Any], np.ndarray]]:
        """Judged domain → its labels (None: the plain look), and their probabilities `[pictures, labels]`."""

    @property
    def concepts(self) -> tuple[str, ...]:
        """Names of the domains that it looks at."""
        return tuple(name for domain in self.judged for name in (self.styles if domain == "style" else self.objects))

    def domain(self, concept: str) -> str:
        """`style` or `object`."""
        return "style" if concept in self.styles else "object"

    def prompt(self, object_name: str, style: str | None) -> str:
        """UnlearnCanvas's evaluation prompt; a style of None asks for the plain look."""
        return f"An image of {object_name} in {style.replace('_', ' ')} style." if style else f"An image of {object_name}."

    def classify(self, pictures: Sequence[Any]) -> Verdict:
        """Name object and style of PIL pictures."""
        named: dict[str, list[Any]] = {domain: [NOT_JUDGED] * len(pictures) for domain in DOMAINS}
        sure: list[dict[str, float]] = [{} for _ in pictures]
        for domain, (labels, shares) in self.probabilities(pictures).items():
            named[domain] = [labels[i] for i in shares.argmax(1)]
            for one, highest in zip(sure, shares.max(1), strict=True):
                one[domain] = float(highest)
        return Verdict(named["object"], named["style"], sure)

    def see(self, pictures: Sequence[Any]) -> Sightings:
        """A concept is seen where it is the likeliest label of its domain."""
        found = self.probabilities(pictures)
        seen, scores = [], []
        for concept in self.concepts:
            labels, shares = found[self.domain(concept)]
            at = labels.index(concept)
            seen.append(shares.argmax(1) == at)
            scores.append(shares[:, at])
        sure = {domain: shares.max(1) for domain, (_, shares) in found.items()}
        return Sightings(np.stack(seen, 1), np.stack(scores, 1).astype(np.float32), sure)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis, in float64."""
    lifted = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return lifted / lifted.sum(-1, keepdims=True)
