"""An evaluation's pictures of one backend beside those of another: of the same prompts and seeds, picture by picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ..proof.parity import psnr
from .picture_backends import UNEDITED
from .results import Backend, Comparison, Likeness
from .verdicts import VerdictRow


def compared(backends: Mapping[str, Backend]) -> list[str]:
    """Backends whose pictures should be alike: neither the unedited model nor a stage, which removes a part of the concepts."""
    return [name for name, part in backends.items() if name != UNEDITED and part.kept is None]


def compare(rows: Mapping[str, Sequence[VerdictRow]], open_picture: Callable[[VerdictRow], np.ndarray]) -> list[Comparison]:
    """Each backend beside the first.

    Args:
        rows: backend → rows of verdicts.csv, in the same order for all.
        open_picture: row → uint8 `[H, W, 3]`.

    Raises:
        ValueError: pictures of different sizes.
    """
    names = list(rows)
    found = []
    for name in names[1:]:
        each: list[Likeness] = []
        for ours, theirs in zip(rows[name], rows[names[0]], strict=True):
            a, b = open_picture(ours), open_picture(theirs)
            likeness = Likeness(file=ours["file"], max_abs=int(np.abs(a.astype(int) - b).max()), psnr=psnr(a, b))
            if "clip_score" not in ours:
                seen = [key for key in ours if key.startswith("seen") or key == "detections"]
                likeness.same_verdict = all(ours[key] == theirs[key] for key in seen)
            elif ours["clip_score"] and theirs["clip_score"]:
                # A score is no verdict: it differs by rounding.
                likeness.clip_difference = float(ours["clip_score"]) - float(theirs["clip_score"])
            each.append(likeness)
        same = [e.same_verdict for e in each if e.same_verdict is not None]
        apart = [abs(e.clip_difference) for e in each if e.clip_difference is not None]
        found.append(Comparison(
            backend=name, beside=names[0], pictures=len(each), identical=sum(e.max_abs == 0 for e in each), max_abs=max(e.max_abs for e in each),
            least_psnr=min((e.psnr for e in each if isinstance(e.psnr, float) and math.isfinite(e.psnr)), default=None), each=each,
            same_verdicts=sum(same) if len(same) == len(each) else None, largest_clip_difference=max(apart) if len(apart) == len(each) else None,
        ))  # fmt: skip
    return found


def pixels_of(folder: Path, row: VerdictRow) -> np.ndarray:
    """A listed picture, uint8 `[H, W, 3]`."""
    from PIL import Image

    with Image.open(folder / row["file"]) as picture:
        return np.asarray(picture.convert("RGB"))
