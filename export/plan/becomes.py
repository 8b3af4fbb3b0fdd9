"""What a concept's words become where its weights are edited: pairs of prompts, and the edit that is solved from them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...editor.common.errors import SaeuronError
from ...editor.demo import path_of
from ...editor.features.concepts import Concept
from .settings import Collecting, Plan, WeightWish, Wish

if TYPE_CHECKING:
    from ...editor.edit.weights import WeightEdit

NEIGHBOUR, EMPTY, PLAIN = "neighbour", "empty", "plain"


def weight_wish(concept: Concept, status: str) -> WeightWish:
    """A concept's prompts, each with what it may become.

    Args:
        concept: with its prompts and those of its domain; its `becomes` says what its words become.
        status: `tuned` or `untuned`.

    Raises:
        SaeuronError: no prompts, or no such set; words that don't fit into the prompts.
    """
    name, where = concept.name, f"concept '{concept.name}': intervention {concept.intervention}"
    if not concept.prompts:
        raise SaeuronError(f"{where} needs its prompts: give it a preset (--preset-file), or --kind")
    kept = {n: tuple(p) for n, p in concept.compared.items() if n != name}
    sets = {n: p for n, p in kept.items() if len(p) == len(concept.prompts)}
    wanted = concept.becomes or (f"without {name}" if f"without {name}" in sets else PLAIN if _plain(concept) else NEIGHBOUR)
    if wanted == name:
        raise SaeuronError(f"{where}: it can't become itself")
    if wanted == NEIGHBOUR:
        if not sets:
            raise SaeuronError(
                f"{where}: no set that it is compared with has a prompt for each of its own; say what it becomes (--becomes)"
            )
        others = sets
    elif wanted in sets:
        others = {wanted: sets[wanted]}
    elif wanted == EMPTY:
        others = {wanted: ("",) * len(concept.prompts)}
    elif wanted == PLAIN:
        others = {wanted: _plain(concept)}
        if not others[wanted]:
            raise SaeuronError(f"{where}: not all of its prompts say 'in {name} style', so nothing says how they are without it")
    else:
        others = {wanted: tuple(_said(p, name, wanted) for p in concept.prompts)}
        if same := [p for p, other in zip(concept.prompts, others[wanted], strict=True) if p == other]:
            named = ", ".join([NEIGHBOUR, PLAIN, EMPTY, *sets])
            raise SaeuronError(
                f"{where}: '{same[0]}' doesn't name it, so '{wanted}' can't stand in its place; --becomes takes {named}, or words in place of its name"
            )
    return WeightWish(name, {n: tuple(zip(concept.prompts, p, strict=True)) for n, p in others.items()}, kept, status)


def together(wishes: Sequence[WeightWish]) -> list[WeightWish]:
    """Wishes that are fulfilled in one edit: no concept becomes one that is removed too, and none of these stays.

    Raises:
        SaeuronError: a concept that could become nothing else.
    """
    removed = {wish.concept for wish in wishes}
    found = []
    for wish in wishes:
        choices = {name: pairs for name, pairs in wish.choices.items() if name not in removed}
        if not choices:
            raise SaeuronError(
                f"concept '{wish.concept}': intervention weights: it can't become {', '.join(wish.choices)}, which is removed too; say what it becomes (--becomes {wish.concept}=…)"
            )
        found.append(replace(wish, choices=choices, kept={n: p for n, p in wish.kept.items() if n not in removed}))
    return found


def probed(concept: Concept) -> Collecting:
    """How the mean tokens of a concept of `probe` come about: beside all that it is compared with, and without any style where it is one.

    Raises:
        SaeuronError: a concept without prompts, or without anything to compare it with.
    """
    sets = dict(concept.compared)
    if concept.name not in sets or len(sets) < 2:
        raise SaeuronError(
            f"concept '{concept.name}': intervention probe needs its prompts, and others to compare them with: give it a preset (--preset-file), or --kind"
        )
    plain = _plain(concept)
    if plain and PLAIN not in sets:
        sets[PLAIN] = plain
    return Collecting(concept.domain, sets, concept.collect_steps, concept.collect_guidance, within=True)


def _plain(concept: Concept) -> tuple[str, ...]:
    """The prompts of a style without it; none if one says it otherwise."""
    found = tuple(_said(p, f" in {concept.name} style", "") for p in concept.prompts)
    return () if any(p == other for p, other in zip(concept.prompts, found, strict=True)) else found


def _said(prompt: str, words: str, instead: str) -> str:
    """A prompt with other words in place of some, whatever their case; underscores stand for spaces."""
    return re.sub(re.escape(words.replace("_", " ")), lambda found: instead, prompt, flags=re.IGNORECASE)


def paired(plan: Plan, folder: Path) -> Plan:
    """The plan with what each concept of `project` is compared with: of several things the nearest, as the model's text encoders have it.

    Args:
        plan: what is asked for.
        folder: the model's.
    """
    waiting = [w for w in plan.wishes if w.pairs]
    if not waiting:
        return plan
    from ...editor.denoisers.pipelines import load_texts
    from ...editor.edit.weights import nearest

    pairs = {w.concept: w.pairs for w in waiting if w.pairs}
    # Where all are removed, too, one of them serves: nothing is turned into what a direction is taken from.
    choices = {
        name: {other: held for other, held in wish.choices.items() if plan.apart or other not in pairs} or wish.choices
        for name, wish in pairs.items()
    }
    texts = load_texts(folder, plan.settings.variant, plan.settings.device) if any(len(c) > 1 for c in choices.values()) else None
    chosen = {name: next(iter(held)) if len(held) == 1 else nearest(texts, held) for name, held in choices.items()}

    def of(wish: Wish) -> Wish:
        if not wish.pairs:
            return wish
        other = chosen[wish.concept]
        if wish.activations and _holds(wish.activations, (wish.concept, other)):
            return replace(wish, pairs=None, beside=other)
        return replace(wish, activations="", collecting=collecting_of(plan, wish, other), pairs=None, beside=other)

    return replace(plan, wishes=tuple(of(wish) for wish in plan.wishes))


def collecting_of(plan: Plan, wish: Wish, other: str) -> Collecting:
    """How the mean tokens of a wish of `project` come about, beside one of its choices."""
    assert wish.pairs
    known = plan.concepts[wish.concept]
    prompts = {wish.concept: known.prompts, other: tuple(to for _, to in wish.pairs.choices[other])}
    return Collecting(f"{wish.concept} and {other}", prompts, known.collect_steps, known.collect_guidance)


def _holds(file: str, names: Sequence[str]) -> bool:
    """Whether a file of mean tokens holds these; a preset's may be of other blocks and concepts than are asked for, and then they are collected."""
    from ...editor.features.activations import ConceptActivations

    path = Path(path_of(file))
    if not path.is_file():
        if not file.startswith("demo:"):
            raise SaeuronError(
                f"mean tokens: '{file}' does not exist or is no file; correct the key mean_tokens, or leave it out to have them collected"
            )
        return False
    return set(names) <= set(ConceptActivations.load(path).concepts)


def solve(wishes: Sequence[WeightWish], folder: Path, variant: str | None = None, device: str = "cpu") -> WeightEdit:
    """The edit of the weights of a model, by its own text encoders in float32.

    Args:
        wishes: concepts, at least one.
        folder: the pipeline's.
        variant: of the weight files.
        device: torch device.

    Raises:
        SaeuronError: files that can't be read; see `make_weights`.
    """
    from ...editor.denoisers.pipelines import load_texts
    from ...editor.edit.weights import make_weights, nearest

    pipeline = load_texts(folder, variant, device)
    pairs, becomes = {}, {}
    kept: dict[str, tuple[str, ...]] = {}
    for wish in together(wishes):
        becomes[wish.concept] = next(iter(wish.choices)) if len(wish.choices) == 1 else nearest(pipeline, wish.choices)
        pairs[wish.concept] = wish.choices[becomes[wish.concept]]
        kept |= {name: prompts for name, prompts in wish.kept.items() if name not in kept}
    return make_weights(pipeline, pairs, becomes, kept)
