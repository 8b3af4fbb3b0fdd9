"""The concepts of a plan: presets, changed by a settings file, or made from words; and the prompts that an artifact keeps of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...editor.common.errors import SaeuronError
from ...editor.common.suggest import unknown
from ...editor.features.concepts import KINDS, Concept, ContrastSet, check_apart, expand, presets
from ...editor.features.prompt_sets import ConceptPrompts, prompts_of
from ...editor.features.words import concept_of
from .settings import Plan, Settings

DEFAULT_SELECT = "percentile:99.999"
DEFAULT_MULTIPLIER = -1.0


def known_concepts(settings: Settings) -> dict[str, Concept]:
    """Presets, and the concepts that `--kind` makes from their words.

    Raises:
        SaeuronError: a preset file that can't be read; `--kind` or `--instead` of a concept that has a preset, or isn't asked for; words that can't be meant.
    """
    known = presets(settings.preset_files)
    names = list(dict.fromkeys(settings.concepts))
    if not all(name.strip() for name in names):
        raise SaeuronError("--concepts: a name is empty")
    kinds, instead = _said("--kind", settings.kind, names, known), _said("--instead", settings.instead, names, known)
    for name in instead:
        if name not in kinds:
            raise SaeuronError(f"--instead: of what kind is '{name}'? Give --kind too ({', '.join(KINDS)})")
    for name, kind in kinds.items():
        known[name] = made(name, kind, instead.get(name), settings.model)
    return known


def made(name: str, kind: str, instead: str | None, model: str | None, sae: str | None = None, hookpoint: str | None = None) -> Concept:
    """A concept from its words, as options give them; see `concept_of`."""
    if kind not in KINDS:
        raise SaeuronError(unknown("--kind", kind, KINDS))
    return concept_of(name, kind, instead, model=model, sae=sae, hookpoint=hookpoint)


def _said(option: str, texts: Sequence[str], names: Sequence[str], known: Mapping[str, Concept]) -> dict[str, str]:
    """Concept without a preset → what an option says of it, by its name or of all."""
    by_name: dict[str, str] = {}
    of_all: list[str] = []
    for text in texts:
        # The longest, since a name may hold a `=` itself.
        name = max((n for n in names if text.startswith(f"{n}=")), key=len, default=None)
        if name in by_name:
            raise SaeuronError(f"{option} is given twice for '{name}'")
        if name in known:
            raise SaeuronError(f"{option}: {has_preset(str(name))}")
        if name is not None:
            by_name[name] = text[len(name) + 1 :]
        elif "=" in text:
            raise SaeuronError(f"{option} '{text}': no concept '{text.partition('=')[0]}' is asked for (--concepts: {', '.join(names)})")
        else:
            of_all.append(text)
    if len(of_all) > 1:
        raise SaeuronError(f"{option} is given {len(of_all)} times for all concepts; say for which, as NAME=…")
    if not of_all:
        return by_name
    without = [name for name in names if name not in known]
    if not without:
        raise SaeuronError(f"{option}: {has_preset(names[0])}")
    return {**dict.fromkeys(without, of_all[0]), **by_name}


def has_preset(name: str) -> str:
    """Why a concept isn't made from its words."""
    return f"'{name}' has a preset, which says what it is; leave --kind and --instead out, or give the concept another name"


def with_overrides(
    name: str, known: Mapping[str, Concept], override: Mapping[str, Any], explicit: bool, sets: Sequence[ContrastSet] = ()
) -> Concept | None:  # fmt: skip
    """A concept that is known, changed by the settings file, or one that the settings file gives whole.

    Args:
        name: of the concept.
        known: `known_concepts`.
        override: the concept's table in the settings file.
        explicit: whether activations are named; a concept then needs no preset, and None is returned where there is none.
        sets: contrast sets of the settings file; what a concept without a preset is compared with.

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
    return found


def prompts_on_record(plan: Plan) -> dict[str, ConceptPrompts]:
    """Name → prompts, for `edit/concepts.json`; of an edit file's concepts, those that have a preset. What has no prompts is left out."""
    found = plan.concepts
    if plan.edit is not None:
        known = presets(plan.settings.preset_files)
        found = {name: known[name] for name in plan.edit.concepts if name in known}
    return {name: prompts_of(concept) for name, concept in found.items() if concept.prompts}
