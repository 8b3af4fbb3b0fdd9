"""The concepts of a plan: presets, changed by a settings file, and the prompts that an artifact keeps of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...editor.common.errors import SaeuronError
from ...editor.common.suggest import unknown
from ...editor.features.concepts import Concept, check_apart, expand, presets
from ...editor.features.prompt_sets import ConceptPrompts, prompts_of
from .settings import Plan

DEFAULT_SELECT = "percentile:99.999"
DEFAULT_MULTIPLIER = -1.0


def with_overrides(name: str, known: dict[str, Concept], override: dict[str, Any], explicit: bool) -> Concept | None:
    """A preset changed by the settings file, or one that the settings file gives whole.

    Args:
        name: of the concept.
        known: presets by name.
        override: the concept's table in the settings file.
        explicit: whether activations are named; a concept then needs no preset, and None is returned where there is none.

    Raises:
        SaeuronError: no preset, or prompts to choose by and to judge with that meet.
    """
    override = {k: expand(v, name) if k in ("prompts", "test_prompts") else v for k, v in override.items()}
    if name in known:
        preset = replace(known[name], **override)
        if "prompts" in override:
            preset = replace(preset, compared={**preset.compared, name: preset.prompts})
        if "test_prompts" in override:
            preset = replace(preset, tested={**preset.tested, name: preset.test_prompts})
    elif override and ("activations" in override or explicit):
        blank = {
            "model": "", "domain": "unknown", "sae": "", "hookpoint": "", "select": DEFAULT_SELECT, "multiplier": DEFAULT_MULTIPLIER,
        }  # fmt: skip
        preset = Concept(name=name, **{**blank, **override})
    elif explicit:
        return None
    else:
        raise SaeuronError(
            unknown("concept", name, known)
            + ". For a concept without a preset give --activations (and --model, --sae, --hookpoint), or a preset of your own with --preset-file"
        )
    if "prompts" in override or "test_prompts" in override:
        check_apart(
            {**preset.compared, name: preset.prompts}, {**preset.tested, name: preset.test_prompts}, f"settings file, concept '{name}'"
        )
    return preset


def prompts_on_record(plan: Plan) -> dict[str, ConceptPrompts]:
    """Name → prompts, for `edit/concepts.json`; of an edit file's concepts, those that have a preset. What has no prompts is left out."""
    found = plan.concepts
    if plan.edit is not None:
        known = presets(plan.settings.preset_files)
        found = {name: known[name] for name in plan.edit.concepts if name in known}
    return {name: prompts_of(concept) for name, concept in found.items() if concept.prompts}
