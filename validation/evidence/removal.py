"""Whether quantising brought a concept back: two evaluations of the same prompts and seeds, of the graph in floats and of the quantised one."""

from __future__ import annotations

from ..artifact.quantised import Count, Removal
from .intervals import Rate
from .picture_backends import UNEDITED
from .results import Evaluation

BACKEND = "onnx"


def removals(before: Evaluation, after: Evaluation) -> list[Removal]:
    """What each judge says of each removed concept.

    Args:
        before: of the graph in floats and of the unedited model.
        after: of the quantised graph.
    """
    unedited, edited, quantised = before.backends[UNEDITED], before.backends[BACKEND], after.backends[BACKEND]
    found = [
        _of(before.settings.judge.name, concept, unedited.concepts[concept].ua, edited.concepts[concept].ua, of.ua)
        for concept, of in quantised.concepts.items()
    ]
    for judge, concepts in quantised.sightings.items():
        found += [
            _of(judge, concept, unedited.sightings[judge][concept].removed, edited.sightings[judge][concept].removed, of.removed)
            for concept, of in concepts.items()
        ]
    return found


def _of(judge: str, concept: str, unedited: Rate, before: Rate, after: Rate) -> Removal:
    """From shares of pictures that ask for the concept and don't show it."""
    shown = Count(unedited.trials - unedited.hits, unedited.trials)
    return Removal(
        judge=judge, concept=concept, unedited=shown, before=Count(before.hits, before.trials), after=Count(after.hits, after.trials)
    )
