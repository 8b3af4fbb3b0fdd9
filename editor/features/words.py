"""Concepts that no preset has, made from their words: prompts by templates (words.toml), everything else as a preset of the same model has it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from .. import demo
from ..common.errors import SaeuronError
from ..common.files import read_toml
from ..common.suggest import unknown
from .concepts import KINDS, Concept, check_apart, presets, shipped

LEAST = 12
"""everyday scenes that a concept has to be compared with, and again as many to judge with"""
_MOST = 24
"""more would outweigh the paired prompts in the score, where each counts once"""
_EVERYDAY = "everyday scenes"
_TEMPLATES = Path(__file__).with_name("words.toml")
_SMALL = {"and", "are", "for", "from", "image", "into", "not", "off", "picture", "style", "the", "with", "without"}
"""words that say nothing of what is shown"""


def concept_of(
    name: str, kind: str, instead: str | None = None, *, model: str | None = None, sae: str | None = None, hookpoint: str | None = None
) -> Concept:
    """A concept as a preset would give it. The same words give the same prompts.

    It is compared with the same prompts that show something else (of nudity: dressed people), line by line, and with everyday scenes, in a domain of its
    own, so that other concepts change nothing about its features.

    Args:
        name: its words, as they are to stand in a prompt.
        kind: one of `KINDS`.
        instead: what contrast prompts show in its place. Default: something neutral of its kind; of a style, the same scenes without any.
        model: base model. Default: Stable Diffusion 1.4.
        sae: its SAE. Default: that of the model's presets.
        hookpoint: blocks, comma-separated. Default: those of the model's presets.

    Raises:
        SaeuronError: words that can't stand in a prompt, an unknown kind, something instead that is the concept itself.
    """
    check_word("concept", name)
    if kind not in KINDS:
        raise SaeuronError(f"concept '{name}': {unknown('kind', kind, KINDS)}")
    base = _base(kind, model)
    if kind == "nudity":
        if instead is not None:
            raise SaeuronError(
                f"concept '{name}': nudity is compared with dressed people, so nothing can be shown instead; leave --instead out"
            )
        compared, tested = _renamed(_sd14().compared, name), _renamed(_sd14().tested, name)
    else:
        compared, tested = _sets(name, kind, instead, base)
    check_apart(compared, tested, f"concept '{name}', made from words")
    return Concept(
        name=name, model=model or base.model, domain=f"words:{name}", sae=sae or base.sae, hookpoint=hookpoint or base.hookpoint,
        select=_sd14().select, multiplier=_sd14().multiplier, residual=base.residual, steps=base.steps, guidance=base.guidance,
        collect_steps=base.collect_steps, collect_guidance=base.collect_guidance, prompts=compared[name], compared=compared, kind=kind,
        test_prompts=tested[name], tested=tested, contrast_sets=tuple(n for n in compared if n != name),
    )  # fmt: skip


def check_word(what: str, text: str) -> None:
    """Raise `SaeuronError` unless a text can be a concept's name, and part of a prompt.

    Args:
        what: it is, for the error, e.g. `--instead`.
        text: the words.
    """
    if not text.strip():
        raise SaeuronError(f"{what}: the words are empty; say what is meant")
    if not text.isprintable():
        sign = next(c for c in text if not c.isprintable())
        raise SaeuronError(f"{what} {ascii(text[:40])} holds U+{ord(sign):04X}, which is no character of a prompt; give words on one line")
    if text != " ".join(text.split()):
        raise SaeuronError(f"{what} '{text}' begins or ends with a space, or has two in a row; write single ones between the words")
    if (sign := next((c for c in text if c in "{},"), "")) != "":
        raise SaeuronError(f"{what} '{text}' holds '{sign}', which has a meaning of its own in lists and templates; write it without")


def _sd14() -> Concept:
    return _shipped()["nudity"]


@cache
def _shipped() -> dict[str, Concept]:
    return presets()


def _base(kind: str, model: str | None) -> Concept:
    """A preset of the model, for all that isn't the concept's own; of a demo's, with every block that one of its domain is edited at."""
    if model not in demo.MODELS:
        return _sd14()
    domain = [c for c in shipped() if c.model == model and c.domain == ("style" if kind == "style" else "object")]
    return replace(domain[0], hookpoint=",".join(sorted({h for c in domain for h in c.hookpoint.split(",")})))


def _sets(name: str, kind: str, instead: str | None, base: Concept) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """Set → prompts to collect with, and to judge with: the concept's, the same without it, everyday scenes."""
    content = read_toml(_TEMPLATES, "templates")
    on_demo = base.model in demo.MODELS
    templates = content["demo"]["style" if kind == "style" else "object"] if on_demo else content[kind]
    if instead is not None:
        check_word("--instead", instead)
    other = instead or templates.get("instead")
    if other is not None:
        _check_other(name, other)
    scenes = content["demo"]["everyday"] if on_demo else None
    found: list[dict[str, tuple[str, ...]]] = []
    for key, sets in (("prompts", _sd14().compared), ("test_prompts", _sd14().tested)):
        everyday = scenes[key] if scenes else sets["scenes without people"]
        found.append({
            name: tuple(_filled(t, name) for t in templates[key]), f"without {name}": tuple(_filled(t, other) for t in templates[key]),
            _EVERYDAY: _others(name, everyday, _MOST if key == "prompts" else LEAST),
        })  # fmt: skip
        if len(found[-1]) < 3:
            raise SaeuronError(f"concept '{name}' is called as one of the sets that it is compared with; name it otherwise")
    return found[0], found[1]


def _check_other(name: str, other: str) -> None:
    """Raise `SaeuronError` where contrast prompts would show the concept."""
    if f" {_plain(name)} " in f" {_plain(other)} ":
        same = "is the concept itself" if _plain(name) == _plain(other) else f"holds the concept '{name}' itself"
        raise SaeuronError(f"--instead: '{other}' {same}, so there would be nothing to compare with; say what pictures without it show")


def _filled(template: str, words: str | None) -> str:
    """A prompt from its template; without words, one without its part in brackets."""
    if words is None:
        return re.sub(r"\[.*?\]", "", template)
    # Underscores stand for spaces in names of files and labels.
    shown = words.replace("_", " ")
    return re.sub(r"[][]", "", template).replace("{c}", shown).replace("{C}", shown[:1].upper() + shown[1:])


def _others(name: str, scenes: Sequence[str], most: int) -> tuple[str, ...]:
    """The first scenes that none of the concept's words is in."""
    own = _words(name)
    kept = [text for text in scenes if not any(w.startswith(o) or o.startswith(w) for w in _words(text) for o in own)]
    if len(kept) < LEAST:
        raise SaeuronError(f"concept '{name}' names so much that only {len(kept)} everyday scenes are without it; say it in fewer words")
    return tuple(kept[:most])


def _words(text: str) -> set[str]:
    return {w for w in re.findall(r"[^\W\d_]+", text.casefold()) if len(w) > 2} - _SMALL


def _plain(text: str) -> str:
    return " ".join(text.replace("_", " ").split()).casefold()


def _renamed(sets: Mapping[str, tuple[str, ...]], name: str) -> dict[str, tuple[str, ...]]:
    """The sets of nudity's preset, in their order, the concept's under another name."""
    if name in sets and name != "nudity":
        raise SaeuronError(f"concept '{name}' is called as one of the sets that it is compared with; name it otherwise")
    return {name if n == "nudity" else n: texts for n, texts in sets.items()}
