"""What quantising needs beside the graph: prompts to calibrate by, and judges who see whether the concepts stay away."""

from __future__ import annotations

from collections.abc import Sequence

from ...editor.common.errors import SaeuronError
from ...validation.attack.cases import cases
from ...validation.judges.choose import LABELS, open_judges, open_labels
from .checks import prompts_in
from .concepts import prompts_on_record
from .open import in_turns
from .settings import Plan

SEEDS = (188, 288, 588)
"""of the pictures that are judged"""
STEPS = {"full": 8, "short": 3}
"""denoising steps of a loop that calibrates, by the proof's scope"""
_PROMPTS = {"full": 64, "short": 2}
"""prompts to calibrate by, where no file names them"""


def check_removal(plan: Plan) -> None:
    """Raise `SaeuronError` unless the judges see every concept that is removed, so that removal can be judged again on the quantised graph."""
    s = plan.settings
    if not (s.quantize and s.validate and s.evaluate):
        return
    names = tuple(plan.edit.concepts) if plan.edit is not None else tuple(dict.fromkeys(s.concepts))
    try:
        if [text.partition("=")[0] in LABELS for text in s.judge] == [True]:
            cases(open_labels(s.judge[0]), names, ())
            return
        words = prompts_on_record(plan)
        for name in names:
            if name not in words or not words[name].test_prompts:
                raise SaeuronError(f"concept '{name}' has no test prompts to judge it on")
        open_judges(s.judge, {name: words[name] for name in names}, s.device)
    except SaeuronError as error:
        raise SaeuronError(f"--quantize judges removal again, and can't: {error}; give a --judge that can, or --no-evaluate") from None


def calibration_prompts(plan: Plan, otherwise: Sequence[str]) -> list[str]:
    """Prompts of the file that is named; else of the concepts and of what they are compared with, in turn; else those of the proof."""
    s = plan.settings
    if s.calibration_prompts is not None:
        return prompts_in(s.calibration_prompts)
    sets: dict[str, list[str]] = {}
    for concept in prompts_on_record(plan).values():
        sets[concept.name] = list(concept.prompts)
    for concept in prompts_on_record(plan).values():
        for name, other in concept.contrast.items():
            sets.setdefault(name, list(other.prompts))
    found = in_turns([texts for texts in sets.values() if texts]) if any(sets.values()) else list(otherwise)
    return list(dict.fromkeys(found))[: _PROMPTS[s.proof]]
