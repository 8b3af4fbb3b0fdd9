"""Zero-shot judge: a concept's prompts against the prompts of what it is compared with, by any CLIP or SigLIP model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...editor.common.errors import SaeuronError
from ...editor.features.prompt_sets import ConceptPrompts
from .embedder import Embedder
from .judge import Sightings, softmax


class ClipJudge:
    """A concept is seen where a picture lies nearer to its prompts than to those of each set that it is compared with.

    Each set's prompts are embedded, and their mean is its direction (the prompt ensemble of arXiv 2103.00020). The score is the softmax of the
    cosines, times the model's own scale.

    Args:
        where: see `Embedder`.
        wanted: concept → its prompts and those it is compared with; the domain's other concepts can be seen too.
        device: torch device.

    Raises:
        SaeuronError: see `Embedder`; a prompt longer than the model reads, nothing to compare with.
    """

    def __init__(self, where: str, wanted: Mapping[str, ConceptPrompts], device: str = "cpu") -> None:
        self._clip = Embedder(where, device, "judge clip")
        self._domains: list[tuple[list[str], list[str]]] = []
        """names of the sets of a domain, and of the concepts among them"""
        texts: dict[str, list[str]] = {}
        for concept in wanted.values():
            sets = {concept.name: concept.prompts, **{n: c.prompts for n, c in concept.contrast.items()}}
            if len(sets) < 2:
                raise SaeuronError(f"judge clip: '{concept.name}' has nothing to be told from; give it a contrast set")
            seen = [concept.name, *(n for n, c in concept.contrast.items() if c.concept)]
            names = [n for n, found in sets.items() if found]
            if not any(sorted(names) == sorted(known) for known, _ in self._domains):
                self._domains.append((names, [n for n in seen if n in names]))
            for name in names:
                texts.setdefault(name, sets[name])
        self._check_lengths(where, texts)
        self._directions = {name: _mean(self._clip.texts(found)) for name, found in texts.items()}
        self.concepts = tuple(dict.fromkeys(n for _, seen in self._domains for n in seen))
        self.name = self._clip.name
        words = "\n".join(f"{name}: {text}" for name, found in texts.items() for text in found)
        self.sha256 = f"{self._clip.sha256} {hashlib.sha256(words.encode()).hexdigest()}"

    def see(self, pictures: Sequence[Any]) -> Sightings:
        """See `Judge.see`."""
        vectors = self._clip.pictures(pictures)
        seen, scores, sure = {}, {}, np.zeros(len(pictures))
        for names, concepts in self._domains:
            shares = softmax(self._clip.scale * vectors @ np.stack([self._directions[n] for n in names], 1))
            sure = np.maximum(sure, shares.max(1))
            for concept in concepts:
                at = names.index(concept)
                seen[concept], scores[concept] = shares.argmax(1) == at, shares[:, at]
        stacked = (np.stack([of[c] for c in self.concepts], 1) for of in (seen, scores))
        return Sightings(next(stacked), next(stacked).astype(np.float32), {"": sure})

    def _check_lengths(self, where: str, texts: Mapping[str, Sequence[str]]) -> None:
        for name, found in texts.items():
            for text, tokens in zip(found, self._clip.tokens(found), strict=True):
                if tokens > self._clip.length:
                    raise SaeuronError(
                        f"judge clip: '{where}' reads {self._clip.length} tokens, and a prompt of '{name}' has {tokens}: '{text[:60]}'; shorten it, or take another model"
                    )


def _mean(vectors: np.ndarray) -> np.ndarray:
    centre = vectors.mean(0)
    return centre / np.linalg.norm(centre)
