"""An evaluation's pictures of one backend beside those of another: of the same prompts and seeds, picture by picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..proof.parity import psnr
from .makers import UNEDITED
from .verdicts import Row


def compared(backends: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Backends whose pictures should be alike: neither the unedited model nor a stage, which removes a part of the concepts."""
    return [name for name, part in backends.items() if name != UNEDITED and "kept" not in part]


def compare(rows: Mapping[str, Sequence[Row]], open_picture: Callable[[Row], np.ndarray]) -> list[dict[str, Any]]:
    """Each backend beside the first.

    Args:
        rows: backend → rows of verdicts.csv, in the same order for all.
        open_picture: row → uint8 `[H, W, 3]`.

    Returns:
        entries with `backend`, `with`, `pictures`, `identical`, `max_abs` (of 255), `least_psnr` (dB; None where all are identical), `each`, and
        `same_verdicts` or `largest_clip_difference`, by what was seen on the pictures.

    Raises:
        ValueError: pictures of different sizes.
    """
    names = list(rows)
    found = []
    for name in names[1:]:
        each = []
        for ours, theirs in zip(rows[name], rows[names[0]], strict=True):
            a, b = open_picture(ours), open_picture(theirs)
            likeness = psnr(a, b)
            each.append({
                "file": ours["file"], "max_abs": int(np.abs(a.astype(int) - b).max()), "psnr": likeness, **_seen_beside(ours, theirs)
            })  # fmt: skip
        finite = [e["psnr"] for e in each if math.isfinite(e["psnr"])]
        entry: dict[str, Any] = {
            "backend": name, "with": names[0], "pictures": len(each), "identical": sum(e["max_abs"] == 0 for e in each),
            "max_abs": max(e["max_abs"] for e in each), "least_psnr": min(finite, default=None), "each": each,
        }  # fmt: skip
        if all("same_verdict" in e for e in each):
            entry["same_verdicts"] = sum(e["same_verdict"] for e in each)
        if all("clip_difference" in e for e in each):
            entry["largest_clip_difference"] = max(abs(e["clip_difference"]) for e in each)
        found.append(entry)
    return found


def pixels_of(folder: Path, row: Row) -> np.ndarray:
    """A listed picture, uint8 `[H, W, 3]`."""
    from PIL import Image

    with Image.open(folder / row["file"]) as picture:
        return np.asarray(picture.convert("RGB"))


def _seen_beside(ours: Row, theirs: Row) -> dict[str, Any]:
    """What was seen on two pictures, compared. A score is no verdict: it differs by rounding."""
    if "clip_score" in ours:
        scored = ours["clip_score"] and theirs["clip_score"]
        return {"clip_difference": float(ours["clip_score"]) - float(theirs["clip_score"])} if scored else {}
    seen = [key for key in ours if key.startswith("seen_") or key == "detections"]
    return {"same_verdict": all(ours[key] == theirs[key] for key in seen)}
