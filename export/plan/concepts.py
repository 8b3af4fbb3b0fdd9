"""The concepts of a plan: presets, changed by a settings file, or made from words; and the prompts that an artifact keeps of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...editor.common.errors import SaeuronError
from ...editor.common.names import BY_DIRECTION
from ...editor.common.suggest import unknown
from ...editor.features.concepts import KINDS, Concept, ContrastSet, check_apart, expand, of_features, presets
from ...editor.features.named import by_concept
from ...editor.features.prompt_sets import ConceptPrompts, prompts_of
from .settings import Plan

DEFAULT_SELECT = "percentile:99.999"
DEFAULT_MULTIPLIER = -1.0
STRONGEST = 1e6
"""largest multiplier that is taken; what is far beyond a model's own numbers overflows"""
BEGINS = {"project": -4.0, "probe": -20.0, "token": -1.0}
"""scale of multipliers → where one begins if a preset is made for another scale; of features' means there is none but the preset's"""


def scale_of(intervention: str, gain: str) -> str:
    """What a multiplier is of: `project`, `probe`, or `multiply`'s gain; empty: nothing."""
    parts = intervention.split("+")
    return next((part for part in BY_DIRECTION if part in parts), gain if "multiply" in parts else "")


def becomes_of(texts: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Concept → what --becomes says of it, by its name or of all; raises `SaeuronError` where that isn't clear."""
    found = by_concept("--becomes", texts, names)
    for name, said in found.items():
        if not said.strip():
            raise SaeuronError(f"--becomes: nothing is said of '{name}'; for the empty prompt say 'empty'")
    return found


def with_overrides(
    name: str, known: Mapping[str, Concept], override: Mapping[str, Any], explicit: bool, sets: Sequence[ContrastSet] = ()
) -> Concept | None:  # fmt: skip
    """A concept that is known, changed by the settings file, or one that the settings file gives whole.

    Args:
        name: of the concept.
        known: `named.known_concepts`.
        override: the concept's table in the settings file.
        explicit: whether activations are named; a concept then needs no preset, and None is returned where there is none.
        sets: contrast sets of the settings file; what a concept without a preset is compared with.

    Raises:
        SaeuronError: no preset, or prompts to choose by and to judge with that meet.
    """
    override = {
        k: expand(v, name) if k in ("prompts", "test_prompts") else of_features(v) if k == "features" else v for k, v in override.items()
    }
    if name in known:
        preset = replace(known[name], **override)
        if "prompts" in override:
            preset = replace(preset, compared={**preset.compared, name: preset.prompts})
        if "test_prompts" in override:
            preset = replace(preset, tested={**preset.tested, name: preset.test_prompts})
    elif override and ("activations" in override or explicit or any(s.domain == override.get("domain") for s in sets)):
        blank = {
            "model": "", "domain": "unknown", "sae": "", "hookpoint": "", "select": DEFAULT_SELECT, "multiplier": DEFAULT_MULTIPLIER,
        }  # fmt: skip
        preset = Concept(name=name, **{**blank, **override})
        own = [s for s in sets if s.domain == preset.domain and s.name != name]
        if own and preset.prompts:
            preset = replace(
                preset, compared={name: preset.prompts, **{s.name: s.prompts for s in own}},
                tested={name: preset.test_prompts, **{s.name: s.test_prompts for s in own}}, contrast_sets=tuple(s.name for s in own),
            )  # fmt: skip
    elif explicit:
        return None
    else:
        raise SaeuronError(
            unknown("concept", name, known)
            + f". For a concept without a preset say what it is (--kind {'|'.join(KINDS)}), or give --activations (and --model, --sae, --hookpoint), or a preset of your own with --preset-file"
        )
    if "prompts" in override or "test_prompts" in override:
        check_apart(
            {**preset.compared, name: preset.prompts}, {**preset.tested, name: preset.test_prompts}, f"settings file, concept '{name}'"
        )
    return preset


def prompts_by_use(plan: Plan) -> dict[str, list[str]]:
    """What they are of → the prompts that a model has to read: of concepts, of what these are compared with, of the proof."""
    found = {"--proof-prompt": list(plan.settings.proof_prompts)}
    for concept in plan.concepts.values():
        sets = ({concept.name: concept.prompts}, {concept.name: concept.test_prompts}, concept.compared, concept.tested)
        for name, prompts in (pair for held in sets for pair in held.items()):
            found.setdefault(f"concept '{concept.name}'" + (f", '{name}'" if name != concept.name else ""), []).extend(prompts)
    for wish in (*plan.weights, *(w.pairs for w in plan.wishes if w.pairs)):
        becomes = found.setdefault(f"what concept '{wish.concept}' becomes", [])
        becomes += (other for pairs in wish.choices.values() for _, other in pairs)
    return found


def prompts_on_record(plan: Plan) -> dict[str, ConceptPrompts]:
    """Name → prompts, for `edit/concepts.json`; of an edit file's concepts, those that have a preset. What has no prompts is left out."""
    found = plan.concepts
    if plan.edit is not None:
        known = presets(plan.settings.preset_files, plan.model)
        found = {name: known[name] for name in plan.edit.concepts if name in known}
    return {name: prompts_of(concept) for name, concept in found.items() if concept.prompts}
