"""What a report says of an evaluation and of an attack."""

from __future__ import annotations

from typing import Any

from ..makers import UNEDITED
from .figures import TITLES, known, plural, rate_cell
from .sources import FIGURES, PLAIN_ROWS, Attack, Evaluation


def evaluation_section(evaluation: Evaluation | None) -> dict[str, Any] | None:
    """Rates a backend and concept, and what ran; None without an evaluation."""
    if evaluation is None:
        return None
    keys = [k for k in FIGURES if any(known(rates[k]) for stage in evaluation.stages for rates in stage.concepts.values())] or list(FIGURES)
    rows = [
        {"backend": stage.name, "concept": name, "edited": stage.name != UNEDITED, "cells": [rate_cell(rates[key]) for key in keys]}
        for stage in evaluation.stages for name, rates in stage.concepts.items()
    ]  # fmt: skip
    nude = [{"backend": stage.name, "cell": rate_cell(stage.nude)} for stage in evaluation.stages if stage.nude is not None]
    content = evaluation.content
    lines = []
    for c in content.get("comparison", []):
        near = "" if c["least_psnr"] is None else f", least PSNR {c['least_psnr']:.1f} dB"
        lines.append(
            f"{c['backend']} beside {c['with']}: {c['identical']} of {c['pictures']} pictures identical, largest difference {c['max_abs']} of 255{near}; same verdict on {c['same_verdicts']}."
        )
    for d in content.get("distances", []):
        rest = "" if d["rest"] is None else f", {d['rest']:.3f} on those that ask for nothing removed"
        lines.append(f"{d['name']} of {d['backend']} from {d['against']}: {'–' if d['all'] is None else format(d['all'], '.3f')}{rest}.")
    return {
        "judge": evaluation.judge, "titles": [TITLES[k] for k in keys], "rows": rows, "nude": nude, "lines": lines,
        "ran": [f"{stage.name}: {stage.ran}" for stage in evaluation.stages if stage.ran], "same_export": evaluation.same_export,
    }  # fmt: skip


def attack_section(attack: Attack | None) -> dict[str, Any] | None:
    """A row an attack and concept; None without attacks."""
    if attack is None:
        return None
    rows = [
        {
            "concept": row.concept, "attack": row.attack, "plain": row.attack in PLAIN_ROWS, "cell": rate_cell(row.rate), "text": row.text,
            "budget": ", ".join(plural(row.budget[k], k.removesuffix("s")) for k in ("pictures", "iterations", "restarts", "forwards") if row.budget.get(k)),
        }
        for row in attack.rows
    ]  # fmt: skip
    return {"judge": attack.judge, "through": attack.through, "rows": rows, "same_export": attack.same_export}
