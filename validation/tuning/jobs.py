"""Which pictures a concept is tuned and reported on, in the order in which rounds take them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import NamedTuple

from ...editor.common.errors import SaeuronError
from ...editor.features.prompt_sets import ConceptPrompts


class Job(NamedTuple):
    """A picture to draw."""

    asked: str
    """the set that its prompt is of"""
    prompt: str
    seed: int


def jobs(words: ConceptPrompts, seeds: Sequence[int], test: bool) -> list[Job]:
    """Pictures of a concept and of what it is compared with, in turns: any first part of the list holds about as many of both.

    Args:
        words: the concept's prompts.
        seeds: of tuning or of the report. To tune on, the other sets get the first one alone.
        test: the test prompts, all with every seed.

    Raises:
        SaeuronError: no prompts of this kind.
    """
    own = words.test_prompts if test else words.prompts
    others = {name: c.test_prompts if test else c.prompts for name, c in words.contrast.items()}
    others = {name: prompts for name, prompts in others.items() if prompts}
    what = "test_prompts" if test else "prompts"
    if not own or not others:
        raise SaeuronError(
            f"concept '{words.name}': {'it has' if not own else 'the sets that it is compared with have'} no {what}, so there is nothing to judge it on; add {what} to its preset"
        )
    mine = [Job(words.name, prompt, seed) for seed in seeds for prompt in own]
    rest = [job for seed in (seeds if test else seeds[:1]) for job in _diagonal(others, seed)]
    return [job for pair in zip_longest(mine, rest) for job in pair if job is not None]


def _diagonal(sets: Mapping[str, Sequence[str]], seed: int) -> list[Job]:
    """One prompt of each set in turn; each set begins at another place of its list, so that what the prompts share varies too."""
    longest = max(len(prompts) for prompts in sets.values())
    return [
        Job(name, prompts[(turn + place) % len(prompts)], seed)
        for turn in range(longest) for place, (name, prompts) in enumerate(sets.items()) if turn < len(prompts)
    ]  # fmt: skip
