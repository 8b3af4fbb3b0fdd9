"""What a report says of the proof."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .curve import make_curve, number
from .figures import percent, share


def parity_section(report: dict[str, Any]) -> dict[str, Any]:
    """Backends, checks and the curve."""
    rows = []
    for name, p in report["backends"].items():
        f, g, c, runs = p["forwards"], p["gates"], p["components"], p["runs"]
        judged = [r for r in runs["rows"] if r["conclusive"]]
        cells = {
            "forwards": f"worst {share(f['worst'])} (bar {share(f['bar'])}) in {f['forwards']}; the edit fired in {f['fired']}" if f["forwards"] else "–",
            "gates": f"{g['decisions']} decisions, {percent(number(g['equal']))} equal, {g['flips_beyond_rounding']} flipped beyond rounding" if g.get("observable") else "–",
            "components": f"worst {share(max(map(number, c['relative'].values())))} (bar {share(c['bar'])})" if c.get("relative") else "–",
            "runs": _runs(runs["rows"], judged),
        }  # fmt: skip
        for key, part in (("forwards", f), ("gates", g), ("components", c), ("runs", runs)):
            if "not_checked" in part:
                cells[key] = f"not checked: {part['not_checked']}"
        marks = {key: _mark(part["passed"], "not_checked" in part) for key, part in (("forwards", f), ("gates", g), ("components", c))}
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
    said = f"As a control, the unedited model must fail the same comparison: it was caught in {control['forwards_caught']} of {control['forwards']} forwards and {control['runs_caught']} of {control['runs_judged']} free runs."
    return {
        "rows": rows, "scope": str(report["scope"]), "precision": report["precision"], "control": said, "control_passed": bool(control["passed"]),
        "curve": make_curve(report["backends"], share),
    }  # fmt: skip


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
