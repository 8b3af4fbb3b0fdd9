"""Concepts by the names and words that options give: those with presets, and those that `--kind` makes from their words. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..common.declared import WHAT, Checked, option
from ..common.errors import SaeuronError
from ..common.suggest import unknown
from .concepts import KINDS, Concept, presets
from .words import concept_of


@dataclass(frozen=True)
class ConceptWords(Checked):
    """Options that say what a concept without a preset is."""

    kind: tuple[str, ...] = option((), "KIND", WHAT)
    """For concepts without a preset, which are then made from their words: object, style, person, nudity or text; or NAME=KIND, repeatable."""
    instead: tuple[str, ...] = option((), "TEXT", WHAT)
    """What pictures to compare with show in place of such a concept; or NAME=TEXT, repeatable. Default: something neutral."""


def known_concepts(
    concepts: Sequence[str], words: ConceptWords, model: str | None, preset_files: Sequence[Path | str] = ()
) -> dict[str, Concept]:
    """Presets, and the concepts that `--kind` makes from their words.

    Args:
        concepts: names that are asked for.
        words: what is said of those without a preset.
        model: base model of what is made from words; None: Stable Diffusion 1.4.
        preset_files: of presets of one's own.

    Raises:
        SaeuronError: a preset file that can't be read; `--kind` or `--instead` of a concept that has a preset, or isn't asked for; words that can't be meant.
    """
    known = presets(preset_files, model)
    names = list(dict.fromkeys(concepts))
    if not all(name.strip() for name in names):
        raise SaeuronError("--concepts: a name is empty")
    kinds, instead = _said("--kind", words.kind, names, known), _said("--instead", words.instead, names, known)
    for name in instead:
        if name not in kinds:
            raise SaeuronError(f"--instead: of what kind is '{name}'? Give --kind too ({', '.join(KINDS)})")
    for name, kind in kinds.items():
        known[name] = made(name, kind, instead.get(name), model)
    return known


def made(name: str, kind: str, instead: str | None, model: str | None, sae: str | None = None, hookpoint: str | None = None) -> Concept:
    """A concept from its words, as options give them; see `concept_of`."""
    if kind not in KINDS:
        raise SaeuronError(unknown("--kind", kind, KINDS))
    return concept_of(name, kind, instead, model=model, sae=sae, hookpoint=hookpoint)


def _said(option: str, texts: Sequence[str], names: Sequence[str], known: Mapping[str, Concept]) -> dict[str, str]:
    """Concept without a preset → what an option says of it, by its name or of all."""
    without = [name for name in names if name not in known]
    found = by_concept(option, texts, names, without)
    if texts and not without:
        raise SaeuronError(f"{option}: {has_preset(names[0])}")
    for name in found:
        if name in known:
            raise SaeuronError(f"{option}: {has_preset(name)}")
    return found


def by_concept(option: str, texts: Sequence[str], names: Sequence[str], others: Sequence[str] | None = None) -> dict[str, str]:
    """Concept → what an option says of it: `NAME=TEXT`, or a text for all `others` (default: all)."""
    by_name: dict[str, str] = {}
    of_all: list[str] = []
    for text in texts:
        # The longest, since a name may hold a `=` itself.
        name = max((n for n in names if text.startswith(f"{n}=")), key=len, default=None)
        if name in by_name:
            raise SaeuronError(f"{option} is given twice for '{name}'")
        if name is not None:
            by_name[name] = text[len(name) + 1 :]
        elif "=" in text:
            raise SaeuronError(f"{option} '{text}': no concept '{text.partition('=')[0]}' is asked for (--concepts: {', '.join(names)})")
        else:
            of_all.append(text)
    if len(of_all) > 1:
        raise SaeuronError(f"{option} is given {len(of_all)} times for all concepts; say for which, as NAME=…")
    return {**(dict.fromkeys(names if others is None else others, of_all[0]) if of_all else {}), **by_name}


def has_preset(name: str) -> str:
    """Why a concept isn't made from its words."""
    return f"'{name}' has a preset, which says what it is; leave --kind and --instead out, or give the concept another name"
