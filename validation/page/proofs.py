"""What a report says of the proof."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..artifact.seam import Comparison
from ..proof.forwards import Forwards
from ..proof.results import FreeRun, Proof
from .curve import make_curve
from .figures import share


def parity_section(proof: Proof) -> dict[str, Any]:
    """Backends, checks and the curve."""
    rows = []
    for name, p in proof.backends.items():
        parts: dict[str, Any] = {"seam": p.seam, "forwards": p.forwards, "components": p.components, "runs": p.runs}
        judged = [r for r in p.runs.rows if r.conclusive]
        relative = p.components.relative.values()
        cells = {
            "seam": "the edit is in the weights alone" if p.seam.alone else _seam(p.seam.parts),
            "forwards": _forwards(p.forwards),
            "components": f"worst {share(max(relative))} (bar {share(p.components.bar)})" if relative else "–",
            "runs": _runs(p.runs.rows, judged),
        } | {key: f"not checked: {part.not_checked}" for key, part in parts.items() if part.not_checked}
        marks = {key: _mark(part.passed, bool(part.not_checked)) for key, part in parts.items()}
        if p.seam.alone:
            marks["seam"] = "none"
        if not judged and p.runs.passed:
            marks["runs"] = "none"
        provider = p.provider.removesuffix("ExecutionProvider")
        rows.append({"backend": name, "passed": p.passed, "cells": cells, "marks": marks, "loop": p.runs.loop, "provider": provider})
    c = proof.control
    said = f"As a control, the unedited model must fail the same comparison: it was caught in {c.seams_caught} of {c.seams} comparisons at the seam, {c.forwards_caught} of {c.forwards} forwards and {c.runs_caught} of {c.runs_judged} free runs."
    return {
        "rows": rows, "scope": proof.scope, "precision": proof.precision, "control": said, "control_passed": c.passed,
        "curve": make_curve(proof.backends, share),
    }  # fmt: skip


def _seam(parts: Sequence[Comparison]) -> str:
    if not parts:
        return "–"
    worst = max((p.worst for p in parts), key=by_size)
    total = {key: sum(getattr(p, key) for p in parts) for key in ("tokens", "decisions", "fired", "turned", "wrong")}
    return (
        f"worst {share(worst)} of a token's change (bar {share(parts[0].bar)}) in {total['tokens']} tokens; {total['fired']} of {total['decisions']} decisions fired, "
        f"{total['wrong']} wrong, {total['turned']} turned within rounding"
    )


def _forwards(f: Forwards) -> str:
    if not f.forwards:
        return "–"
    return f"{share(f.pooled)} over {f.held} (allowed {share(f.allowed)}), {share(f.share)} of the effect kept; the edit fired in {f.fired} of {f.forwards}"


def _runs(rows: Sequence[FreeRun], judged: Sequence[FreeRun]) -> str:
    if not rows:
        return "none made"
    if not judged:
        return f"{len(rows)} made, none could be judged"
    latents, effect, least = max(r.latents for r in judged), min(r.effect for r in judged), min(r.psnr for r in judged)
    pictures = "pictures identical" if math.isinf(least) else f"pictures at least {least:.1f} dB alike"
    return f"{len(judged)} of {len(rows)} judged: latents at most {share(latents)} off (the edit moves them by at least {share(effect)}), {pictures}"


def _mark(passed: bool | None, skipped: bool) -> str:
    return "none" if passed is None or skipped else "pass" if passed else "fail"


def by_size(value: float) -> float:
    """A figure by which to sort; no number is worse than any."""
    return math.inf if math.isnan(value) else value
