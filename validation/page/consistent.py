"""Checks that the parts of an evaluation or attack fit one another and the artifact."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path

from ...editor.common.errors import SaeuronError
from ...editor.features.prompt_sets import ConceptPrompts
from ..attack.protocols.listed import Listed
from ..attack.protocols.registry import ROWS
from ..attack.results import AttackRow, Seeds
from ..attack.settings import ATTACKS, LEARNED
from ..evidence import by_words
from ..evidence.picture_backends import HOOK, UNEDITED, stage
from ..evidence.results import Evaluation, SettingsRecord

_FIGURES_OF = {
    "unlearncanvas": ("accuracy", "concepts", "mean", "kept", "retained", "shared_table_entries"),
    "concepts": ("sightings",),
    "nudity": ("nude", "detections"),
    "utility": ("clip_score", "clip_change", "prompts_cut"),
}
"""protocol → fields of a backend that hold figures"""
_MORE = "unedited-paraphrases"


def check_backends(path: Path, content: Evaluation, concepts: Sequence[str]) -> None:
    """Raise `SaeuronError` unless every backend has its protocol's figures alone, on all of the artifact's concepts; a stage on those in its name.

    Args:
        path: of evaluation.json.
        content: what it says.
        concepts: that the artifact removes.
    """
    protocol = content.settings.protocol
    others = [key for of, keys in _FIGURES_OF.items() if of != protocol for key in keys]
    for name, part in content.backends.items():
        if foreign := [key for key in others if getattr(part, key) not in (None, {})]:
            raise SaeuronError(f"'{path}': {foreign[0]} of {name} is no figure of the protocol '{protocol}'")
        if protocol == "concepts":
            _check_sightings(path, name, content, concepts)
        if protocol != "unlearncanvas":
            continue
        judged = list(part.concepts)
        if name.startswith(f"{HOOK}["):
            if (
                name != stage([c for c in concepts if c in judged])
                or not set(judged) <= set(concepts)
                or part.kept is None
                or part.shared_table_entries is None
            ):
                raise SaeuronError(f"'{path}': {name} is not the stage that its figures are of ({', '.join(judged) or 'no concept'})")
        elif set(judged) != set(concepts):
            raise SaeuronError(
                f"'{path}': {name} is judged on {', '.join(judged) or 'nothing'}, the artifact removes {', '.join(concepts)}"
            )
        elif part.kept is not None:
            raise SaeuronError(f"'{path}': {name} removes all concepts, so it keeps none, but it has the figures of a stage")


def _check_sightings(path: Path, name: str, content: Evaluation, concepts: Sequence[str]) -> None:
    """Raise unless a backend is judged by every judge on all concepts that this one can see, and each concept by one at least."""
    if len({judge.name for judge in content.settings.judges}) < len(content.settings.judges):
        raise SaeuronError(f"'{path}': two judges have one name, by which figures are told apart")
    wanted = {judge.name: {c for c in concepts if c in (judge.concepts or ())} for judge in content.settings.judges}
    if blind := set(concepts) - {c for seen in wanted.values() for c in seen}:
        raise SaeuronError(f"'{path}': no judge sees {min(blind)}, which the artifact removes")
    if set(content.settings.compared or ()) != set(concepts):
        raise SaeuronError(f"'{path}' is of other concepts than the artifact removes ({', '.join(concepts)})")
    said = {judge: set(seen) for judge, seen in content.backends[name].sightings.items()}
    if said != wanted:
        raise SaeuronError(f"'{path}': {name} is not judged by {', '.join(wanted)} on every concept that they see")


def check_prompts(path: Path, settings: SettingsRecord, words: Mapping[str, ConceptPrompts]) -> dict[str, list[str]]:
    """Raise `SaeuronError` unless an evaluation by words is on all test prompts that the artifact holds: who leaves some out chooses the figures.

    Args:
        path: of evaluation.json.
        settings: that it was made with.
        words: prompts of the artifact's concepts.

    Returns:
        name of a set → its test prompts.
    """
    sets = by_words.prompt_sets(words)
    if settings.sets != {name: len(prompts) for name, prompts in sets.items()} or settings.compared != by_words.compared(words, sets):
        raise SaeuronError(f"'{path}' is on other sets of prompts than the artifact holds; evaluate again with --overwrite")
    return sets


def check_rows(path: Path, concept: str, rows: Sequence[AttackRow], seeds: Seeds) -> None:
    """Raise `SaeuronError` unless an attack's rows are those that an attack has, each on all its prompts and seeds, with the counts that follow.

    Args:
        path: of the attack's file.
        concept: whose rows.
        rows: all that it has.
        seeds: of the attack.
    """
    by = {row.attack: row for row in rows}
    if len(by) < len(rows) or not {UNEDITED, "edited"} <= by.keys() <= {UNEDITED, "edited", _MORE, *ATTACKS, *ROWS}:
        raise SaeuronError(
            f"'{path}': the rows of {concept} are {', '.join(row.attack for row in rows)}; they are {UNEDITED}, edited, and each attack once"
        )
    if (_MORE in by) != ("paraphrases" in by):
        raise SaeuronError(f"'{path}': paraphrases of {concept} need a row of the unedited model, and the other way round")
    for protocol in {ROWS[name] for name in by if name in ROWS}:
        if left := [name for name in protocol.rows if name not in by]:
            raise SaeuronError(f"'{path}': {concept} has rows of {protocol.name}, but not {left[0]}")
    for name, row in by.items():
        # A list of prompts has seeds of its own.
        listed = name in ROWS and ROWS[name] is Listed
        wanted: Iterable[tuple[str, int]] = (
            ((one.prompt, one.seed) for one in by[Listed.rows[0]].each)
            if listed
            else product(row.prompts, seeds.search_seeds if name == "seeds" else seeds.report_seeds)
        )
        pairs = sorted((one.prompt, one.seed) for one in row.each)
        if pairs != sorted(wanted) or row.budget.get("pictures") != len(pairs):
            raise SaeuronError(f"'{path}': {name} on {concept} doesn't list one picture for each of its prompts and seeds")
        if min(row.budget.values()) < 0:
            raise SaeuronError(f"'{path}': the budget of {name} on {concept} is no count")
        right = AttackRow.of(name, row.each, budget={}, prompts=[])
        for key in ("trials", "successes", "hits"):
            said, value = getattr(row, key), getattr(right, key)
            if said != value:
                raise SaeuronError(f"'{path}': {key} of {name} on {concept} is {said}, but its pictures give {value}")
    ours = [name for name, kind in ROWS.items() if kind is not Listed]
    for names, beside in (((*LEARNED, *ours, "edited"), UNEDITED), (("paraphrases",), _MORE), (Listed.rows[1:], Listed.rows[0])):
        for name in names:
            if name in by and by[name].prompts != by[beside].prompts:
                raise SaeuronError(f"'{path}': {name} on {concept} has other prompts than {beside}, so the two can't stand side by side")
