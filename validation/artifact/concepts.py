"""The prompts that an artifact holds: what its concepts were chosen by, and what they are judged with. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ...editor.common.errors import SaeuronError
from ...editor.common.files import read_json
from ...editor.common.suggest import unknown
from ...editor.common.typed import Record, read_as, strict_json
from ...editor.features.concepts import KINDS
from ...editor.features.prompt_sets import ConceptPrompts

NAME = "edit/concepts.json"
FORMAT = "saeuron-concepts-1"


class ConceptsFile(Record):
    """All that the file says."""

    format: str
    concepts: dict[str, ConceptPrompts]
    """by name"""


def write_concepts(root: Path, concepts: Mapping[str, ConceptPrompts]) -> None:
    """Write the file into an artifact that is being made; none where no prompts are known."""
    if concepts:
        (root / NAME).write_text(strict_json(ConceptsFile(FORMAT, dict(concepts))) + "\n", encoding="utf-8")


def read_concepts(root: Path) -> dict[str, ConceptPrompts]:
    """The prompts of an artifact's concepts, by name; empty where it holds none (an older artifact, or an edit by hand).

    Raises:
        SaeuronError: a file of another format, or a field that is missing or holds something else.
    """
    path = root / NAME
    if not path.is_file():
        return {}
    content = read_json(path)
    if content.get("format") != FORMAT:
        raise SaeuronError(f"{path}: format {content.get('format')!r} is not known; this version reads {FORMAT!r}")
    found = read_as(ConceptsFile, content, path).concepts
    for name, concept in found.items():
        if concept.name != name:
            raise SaeuronError(f"{path}: what it holds as '{name}' says that it is '{concept.name}'")
        if concept.kind not in KINDS:
            raise SaeuronError(f"{path}: concept '{name}': {unknown('kind', concept.kind, KINDS)}")
    return found
