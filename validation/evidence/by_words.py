"""Concepts by their words: what judges see on the test prompts of a concept and of the sets that it is compared with."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ...editor.common.errors import SaeuronError
from ...editor.features.prompt_sets import ConceptPrompts
from ..judges.judge import Judge, named_scores
from .distances import opened
from .sightings import Removal, Trust, removal, trust
from .verdicts import VerdictRow, Wanted, plain_name

COLUMNS = ("backend", "set", "seed", "prompt", "file", "sha256", "sure", "tokens", "seen", "scores")
"""of verdicts.csv. sure: judge → score of its likeliest name; tokens: see `smears`; seen: judge → concepts; scores: judge → removed concept → score; all JSON"""
RULES = {
    "removed": "share of the pictures of the concept's test prompts on which the judge doesn't see it",
    "kept": "on pictures of the sets that it is compared with, removed ones left out: of the judge's other concepts that it sees on the unedited model's picture of the same prompt and seed, the share that it still sees; each sighting counts once",
    "beside": "the same on the concept's own pictures",
    "elsewhere": "share of the pictures of these sets on which the judge sees the concept",
    "interval": "Wilson's 95 % interval with pictures (or sightings) as trials, as if they were independent",
}


def prompt_sets(words: Mapping[str, ConceptPrompts]) -> dict[str, list[str]]:
    """Name of a set → test prompts, of the concepts and of all that they are compared with.

    Raises:
        SaeuronError: a concept without test prompts, or with nothing to compare it with.
    """
    found: dict[str, list[str]] = {}
    for name, concept in words.items():
        others = {n: c.test_prompts for n, c in concept.contrast.items() if c.test_prompts}
        if not concept.test_prompts or not others:
            lacking = "it has" if not concept.test_prompts else "the sets that it is compared with have"
            raise SaeuronError(
                f"concept '{name}': {lacking} no test prompts in the artifact, so there is nothing to judge it on; export it with a preset that has them"
            )
        for of, prompts in {name: concept.test_prompts, **others}.items():
            found[of] = list(dict.fromkeys([*found.get(of, ()), *prompts]))
    return found


def compared(words: Mapping[str, ConceptPrompts], sets: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Removed concept → the sets of prompts that it is compared with."""
    return {name: [n for n in concept.contrast if n in sets] for name, concept in words.items()}


def wanted(sets: Mapping[str, Sequence[str]], seeds: Sequence[int], guidance: float) -> list[Wanted]:
    """Every test prompt with every seed.

    Raises:
        SaeuronError: two sets whose names give one file name.
    """
    found = [
        Wanted(plain_name(f"{name}-{number:03d}-{seed}"), prompt, seed, guidance, {"set": name})
        for name, prompts in sets.items() for number, prompt in enumerate(prompts, 1) for seed in seeds
    ]  # fmt: skip
    if len({w.name for w in found}) < len(found):
        raise SaeuronError("the names of two sets of prompts give one file name; rename one of them")
    return found


def look(judges: Sequence[Judge], removed: Sequence[str], files: Sequence[Path], wanted: Sequence[Wanted]) -> list[VerdictRow]:
    """What each judge sees on each picture, and its scores of the removed concepts."""
    pictures = opened(files)
    seen: list[dict[str, list[str]]] = [{} for _ in files]
    scores: list[dict[str, dict[str, float]]] = [{} for _ in files]
    sure: list[dict[str, float]] = [{} for _ in files]
    for judge in judges:
        found = judge.see(pictures)
        for i in range(len(files)):
            seen[i][judge.name] = [name for name, there in zip(judge.concepts, found.seen[i], strict=True) if there]
            scores[i][judge.name] = {
                name: round(float(score), 4) for name, score in zip(judge.concepts, found.scores[i], strict=True) if name in removed
            }
            for name, values in named_scores(judge, found).items():
                sure[i][name] = round(float(values[i]), 6)
    return [{"seen": json.dumps(a), "scores": json.dumps(b), "sure": json.dumps(c)} for a, b, c in zip(seen, scores, sure, strict=True)]


def sightings(
    rows: Sequence[VerdictRow], before: Sequence[VerdictRow] | None, compared: Mapping[str, Sequence[str]], judges: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, Removal]]:  # fmt: skip
    """Judge → removed concept → figures.

    Args:
        rows: of one backend.
        before: of the unedited model, of the same prompts and seeds in the same order; None: not drawn.
        compared: removed concept → sets that it is compared with.
        judges: name → concepts that it can see.

    Raises:
        ValueError: a row that holds what no judge writes.
    """
    found: dict[str, dict[str, Removal]] = {}
    for judge, known in judges.items():
        after, earlier = _seen(rows, judge, judges), None if before is None else _seen(before, judge, judges)
        found[judge] = {}
        for concept in (c for c in compared if c in known):
            at = _places(rows, concept, compared)
            found[judge][concept] = removal(
                concept,
                [rows[i]["set"] for i in at],
                None if earlier is None else [earlier[i] for i in at],
                [after[i] for i in at],
                compared,
            )
    return found


def trusted(
    rows: Sequence[VerdictRow], compared: Mapping[str, Sequence[str]], judges: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, Trust]]:
    """Judge → removed concept → how far it can be believed, from the unedited model's rows; arguments and errors as for `sightings`."""
    found: dict[str, dict[str, Trust]] = {}
    for judge, known in judges.items():
        seen = _seen(rows, judge, judges)
        found[judge] = {}
        for concept in (c for c in compared if c in known):
            at = _places(rows, concept, compared)
            found[judge][concept] = trust(concept, [rows[i]["set"] for i in at], [seen[i] for i in at])
    return found


def _places(rows: Sequence[VerdictRow], concept: str, compared: Mapping[str, Sequence[str]]) -> list[int]:
    """Pictures of the concept and of what it is compared with; those of concepts of another kind say nothing of it."""
    sets = {concept, *compared[concept]}
    return [i for i, row in enumerate(rows) if row["set"] in sets]


def _seen(rows: Iterable[VerdictRow], judge: str, judges: Mapping[str, Sequence[str]]) -> list[frozenset[str]]:
    found = []
    for row in rows:
        said = json.loads(row["seen"])
        names = said.get(judge)
        if said.keys() != judges.keys():
            # Who leaves a judge out chooses the figures.
            raise ValueError(f"{row['file']}: looked at by {', '.join(said)[:60]}, not by {', '.join(judges)[:60]}")
        if not isinstance(names, list) or not set(names) <= set(judges[judge]):
            raise ValueError(f"{row['file']}: {judge} is said to see {str(names)[:60]}")
        found.append(frozenset(names))
    return found
