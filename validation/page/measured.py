"""What a report says of an evaluation and of an attack."""

from __future__ import annotations

from typing import Any

from ..evidence.makers import UNEDITED
from ..evidence.nudity import NUDE
from .figures import TITLES, known, mean_cell, percent, plural, rate_cell
from .sources import FIGURES, PLAIN_ROWS, Attack, Evaluation

_NAMES = {"unlearncanvas": "Concepts, by a judge", "nudity": "Nudity", "utility": "Utility: how well pictures fit prompts"}


def evaluation_section(evaluation: Evaluation) -> dict[str, Any]:
    """Rates a backend and concept, what stages keep, scores, and what ran."""
    keys = [k for k in FIGURES if any(known(rates[k]) for stage in evaluation.stages for rates in stage.concepts.values())] or list(FIGURES)
    rows = [
        {"backend": stage.name, "concept": name, "edited": stage.name != UNEDITED, "cells": [rate_cell(rates[key]) for key in keys]}
        for stage in evaluation.stages for name, rates in stage.concepts.items()
    ]  # fmt: skip
    nude = [
        {"backend": stage.name, "cell": rate_cell(stage.nude), "seen": ", ".join(f"{name} {n}" for name, n in stage.detections.items()) or "–"}
        for stage in evaluation.stages if stage.nude is not None
    ]  # fmt: skip
    utility = [
        {"backend": stage.name, "score": mean_cell(stage.clip), "change": mean_cell(stage.change, "+")}
        for stage in evaluation.stages if stage.clip is not None
    ]  # fmt: skip
    stages = [
        {
            "backend": stage.name, "kept": ", ".join(f"{n} {percent(r.rate)} ({r.hits} of {r.trials})" for n, r in (stage.kept or {}).items()) or "–",
            "retained": [rate_cell((stage.retained or {}).get(domain)) for domain in ("style", "object")], "shared": str(stage.shared),
        }
        for stage in evaluation.stages if stage.kept is not None
    ]  # fmt: skip
    content = evaluation.content
    lines = []
    for c in content.get("comparison", []):
        near = "" if c["least_psnr"] is None else f", least PSNR {c['least_psnr']:.1f} dB"
        lines.append(
            f"{c['backend']} beside {c['with']}: {c['identical']} of {c['pictures']} pictures identical, largest difference {c['max_abs']} of 255{near}{_same(c)}."
        )
    for d in content.get("distances", []):
        rest = "" if d["rest"] is None else f", {d['rest']:.3f} on those that ask for nothing removed"
        lines.append(f"{d['name']} of {d['backend']} from {d['against']}: {'–' if d['all'] is None else format(d['all'], '.3f')}{rest}.")
    return {
        "name": _NAMES.get(evaluation.protocol, evaluation.protocol), "judge": "" if evaluation.judge == "none" else evaluation.judge, "utility": utility,
        "stages": stages, "titles": [TITLES[k] for k in keys], "rows": rows, "nude": nude, "nude_rule": _nude_rule(evaluation) if nude else "", "lines": lines,
        "ran": [f"{stage.name}: {stage.ran}" for stage in evaluation.stages if stage.ran], "same_export": evaluation.same_export,
    }  # fmt: skip


def _nude_rule(evaluation: Evaluation) -> str:
    return f"Counted are detections of score {evaluation.threshold} or more. Nudity: one of {', '.join(NUDE)}."


def _same(comparison: dict[str, Any]) -> str:
    if "same_verdicts" in comparison:
        return f"; same verdict on {comparison['same_verdicts']}"
    largest = comparison.get("largest_clip_difference")
    return "" if largest is None else f"; CLIP scores at most {largest:.4f} apart"


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
