"""CLIP score: how well pictures fit their prompts, by a CLIP model of the user's (arXiv 2104.08718)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..judges.embedder import Embedder
from . import prompt_file
from .distances import opened
from .intervals import Mean
from .results import Figures
from .verdicts import VerdictRow, Wanted

COLUMNS = (*prompt_file.COLUMNS, "clip_score", "tokens_cut")


class ClipScore:
    """100 times the cosine between CLIP's embeddings of a picture and of its prompt, from -100 to 100.

    This is what papers on unlearning list as CLIP score. Hessel et al. multiply the cosine by 2.5, and cut at 0.

    Args:
        where: see `Embedder`.
        device: torch device.

    Raises:
        SaeuronError: see `Embedder`.
    """

    def __init__(self, where: str, device: str = "cpu") -> None:
        self._clip = Embedder(where, device)
        self.name, self.sha256 = self._clip.name, self._clip.sha256

    def look(self, files: Sequence[Path], wanted: Sequence[Wanted]) -> list[VerdictRow]:
        """Score of each picture, and how many tokens of its prompt CLIP had no place for."""
        prompts = [w.prompt for w in wanted]
        cosines = (self._clip.pictures(opened(files)) * self._clip.texts(prompts)).sum(1)
        cut = [max(0, n - self._clip.length) for n in self._clip.tokens(prompts)]
        return [{"clip_score": f"{100 * cosine:.4f}", "tokens_cut": str(n)} for cosine, n in zip(cosines, cut, strict=True)]


def figures(rows: Sequence[VerdictRow], before: Sequence[VerdictRow] | None) -> Figures:
    """Mean score of a backend's pictures, and its mean change picture by picture.

    Args:
        rows: of verdicts.csv.
        before: the unedited model's, of the same prompts and seeds in the same order; None: without a change.
    """
    scores = [float(row["clip_score"]) for row in rows]
    changes = None if before is None else [now - float(row["clip_score"]) for now, row in zip(scores, before, strict=True)]
    return Figures(
        clip_score=Mean.of(scores), clip_change=None if changes is None else Mean.of(changes),
        prompts_cut=sum(row["tokens_cut"] != "0" for row in rows),
    )  # fmt: skip
