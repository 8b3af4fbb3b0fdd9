"""Sets of prompts by name, as files give them. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..common.errors import SaeuronError, first_line
from ..common.files import plain_text, read_toml
from ..common.typed import Record
from .concepts import Concept


class ContrastPrompts(Record):
    """What a concept is compared with."""

    prompts: list[str]
    test_prompts: list[str]
    concept: bool
    """True for another concept of the domain, False for a contrast set"""


class ConceptPrompts(Record):
    """The prompts of a concept, and of all that it is compared with."""

    name: str
    kind: str
    prompts: list[str]
    """features are chosen by these"""
    test_prompts: list[str]
    """to judge with; none is among the prompts of any set; empty: there are none"""
    contrast: dict[str, ContrastPrompts]


def prompts_of(concept: Concept) -> ConceptPrompts:
    """The prompts of a preset, or of a concept made from words."""
    contrast = {
        name: ContrastPrompts(list(prompts), list(concept.tested.get(name, ())), name not in concept.contrast_sets)
        for name, prompts in concept.compared.items()
        if name != concept.name
    }
    return ConceptPrompts(concept.name, concept.kind, list(concept.prompts), list(concept.test_prompts), contrast)


def check_sets(prompts: Mapping[str, Sequence[str]]) -> None:
    """Raise `SaeuronError` unless there are at least two sets of prompts, none of them empty."""
    if len(prompts) < 2:
        raise SaeuronError("only one set of prompts: a score compares a concept with others; add at least one contrast set")
    for name, texts in prompts.items():
        if not texts:
            raise SaeuronError(f"'{name}' has no prompts")


def own_prompts(files: list[str]) -> dict[str, tuple[str, ...]]:
    """Name → prompts from `FILE.toml` with a [prompts] table, or `NAME=FILE.txt` with one a line.

    Raises:
        SaeuronError: a file that can't be read, or a name twice.
    """
    found: dict[str, tuple[str, ...]] = {}
    for text in files:
        name, equals, path = text.partition("=")
        for key, values in ({name: lines_of(Path(path))} if equals else _table(Path(text))).items():
            if key in found:
                raise SaeuronError(f"--prompts: '{key}' is named twice")
            found[key] = values
    return found


def lines_of(path: Path) -> tuple[str, ...]:
    """Prompts of a text file, one a line, empty lines left out."""
    try:
        texts = plain_text(path).splitlines()
    except FileNotFoundError:
        raise SaeuronError(f"prompts '{path}': there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SaeuronError(f"prompts '{path}' can't be read: {first_line(error)}") from None
    return tuple(t.strip() for t in texts if t.strip())


def _table(path: Path) -> dict[str, tuple[str, ...]]:
    content = read_toml(path, "prompts", " (a text file is given as NAME=FILE)")
    table = content.get("prompts")
    if not isinstance(table, dict) or not all(isinstance(v, list) and all(isinstance(t, str) for t in v) for v in table.values()):
        raise SaeuronError(f"prompts '{path}': expected a [prompts] table, each name with a list of texts")
    return {name: tuple(values) for name, values in table.items()}
