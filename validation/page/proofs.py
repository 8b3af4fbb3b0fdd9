"""What a report says of the proof."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .curve import make_curve, number
from .figures import share


def parity_section(report: dict[str, Any]) -> dict[str, Any]:
    """Backends, checks and the curve."""
    rows = []
    for name, p in report["backends"].items():
        f, seam, c, runs = p["forwards"], p["seam"], p["components"], p["runs"]
        judged = [r for r in runs["rows"] if r["conclusive"]]
        cells = {
            "seam": _seam(seam),
            "forwards": _forwards(f),
            "components": f"worst {share(max(map(number, c['relative'].values())))} (bar {share(c['bar'])})" if c.get("relative") else "–",
            "runs": _runs(runs["rows"], judged),
        }  # fmt: skip
        for key, part in (("seam", seam), ("forwards", f), ("components", c), ("runs", runs)):
            if "not_checked" in part:
                cells[key] = f"not checked: {part['not_checked']}"
        marks = {key: _mark(part["passed"], "not_checked" in part) for key, part in (("seam", seam), ("forwards", f), ("components", c))}
        marks["runs"] = "none" if not judged and runs["passed"] else _mark(runs["passed"], "not_checked" in runs)
        rows.append(
            {
                "backend": name,
                "passed": bool(p["passed"]),
                "cells": cells,
                "marks": marks,
                "loop": runs.get("loop", ""),
                "provider": str(p.get("provider", "")).removesuffix("ExecutionProvider"),
            }
        )
    control = report["control"]
    said = f"As a control, the unedited model must fail the same comparison: it was caught in {control['seams_caught']} of {control['seams']} comparisons at the seam, {control['forwards_caught']} of {control['forwards']} forwards and {control['runs_caught']} of {control['runs_judged']} free runs."
    return {
        "rows": rows, "scope": str(report["scope"]), "precision": report["precision"], "control": said, "control_passed": bool(control["passed"]),
        "curve": make_curve(report["backends"], share),
    }  # fmt: skip


def _seam(seam: Mapping[str, Any]) -> str:
    parts = [seam[name] for name in ("golden_tokens", "own_tokens") if seam[name]]
    if not parts:
        return "–"
    worst = max((number(p["worst"]) for p in parts), key=lambda w: math.inf if math.isnan(w) else w)
    total = {key: sum(p[key] for p in parts) for key in ("tokens", "decisions", "fired", "turned", "wrong")}
    return (
        f"worst {share(worst)} of a token's change (bar {share(parts[0]['bar'])}) in {total['tokens']} tokens; {total['fired']} of {total['decisions']} decisions fired, "
        f"{total['wrong']} wrong, {total['turned']} turned within rounding"
    )


def _forwards(f: Mapping[str, Any]) -> str:
    if not f["forwards"]:
        return "–"
    return f"{share(f['pooled'])} over {f['held']} (allowed {share(f['allowed'])}), {share(f['share'])} of the effect kept; the edit fired in {f['fired']} of {f['forwards']}"


def _runs(rows: Sequence[Mapping[str, Any]], judged: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "none made"
    if not judged:
        return f"{len(rows)} made, none could be judged"
    latents, effect = max(number(r["latents"]) for r in judged), min(number(r["effect"]) for r in judged)
    least = min(number(r["psnr"]) for r in judged)
    pictures = "pictures identical" if math.isinf(least) else f"pictures at least {least:.1f} dB alike"
    return f"{len(judged)} of {len(rows)} judged: latents at most {share(latents)} off (the edit moves them by at least {share(effect)}), {pictures}"


def _mark(passed: bool | None, skipped: bool) -> str:
    return "none" if passed is None or skipped else "pass" if passed else "fail"
