"""Reads what a report is made of beside the artifact: an evaluation and an attack. All names of their fields stand here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ...editor.errors import SaeuronError
from ...editor.files import read_json

FIGURES = ("ua", "ira", "cra")


class Rate(NamedTuple):
    """A share of trials with its interval."""

    rate: float
    low: float
    high: float
    trials: int


class Evaluation(NamedTuple):
    """An evaluation of this artifact."""

    judge: str
    backends: dict[str, dict[str, dict[str, Rate]]]
    """backend → concept → one of `FIGURES` → rate"""
    content: dict[str, Any]
    """the file as it is"""


class Attack(NamedTuple):
    """An attack on this artifact."""

    judge: str
    through: str
    concepts: dict[str, dict[str, Rate]]
    """concept → attack → rate of successes"""
    content: dict[str, Any]


def read_evaluation(folder: Path, record: Mapping[str, Any]) -> Evaluation:
    """Read `evaluation.json` in `folder`.

    Args:
        folder: output of an evaluation.
        record: manifest of the artifact that it must be of.

    Raises:
        SaeuronError: missing, of another artifact, or without a field that is needed.
    """
    path = folder / "evaluation.json"
    content = _read(path, record)
    found: dict[str, dict[str, dict[str, Rate]]] = {}
    for name, part in _table(content, "backends", path).items():
        at = f"backends.{name}"
        concepts = _table(_dict(part, at, path), "concepts", path, at)
        found[name] = {
            concept: {
                key: _rate(figures[key], f"{at}.concepts.{concept}.{key}", path)
                for key in FIGURES
                if key in _dict(figures, f"{at}.concepts.{concept}", path)
            }
            for concept, figures in concepts.items()
        }
    return Evaluation(_judge(content, path), found, content)


def read_attack(path: Path, record: Mapping[str, Any]) -> Attack:
    """Read an attack's file; `record` as for `read_evaluation`.

    Raises:
        SaeuronError: missing, of another artifact, or without a field that is needed.
    """
    content = _read(path, record)
    found = {
        concept: {
            name: _rate(entry, f"concepts.{concept}.{name}", path) for name, entry in _dict(attacks, f"concepts.{concept}", path).items()
        }
        for concept, attacks in _table(content, "concepts", path).items()
    }
    return Attack(_judge(content, path), str(_field(content, "through", path)), found, content)


def _read(path: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    if not path.is_file():
        raise SaeuronError(f"'{path}' does not exist")
    content = _dict(read_json(path), "", path)
    sha256 = _field(content, "edit_sha256", path)
    if sha256 != record["edit"]["sha256"]:
        raise SaeuronError(
            f"'{path}' is of another artifact: its edit is {str(sha256)[:12]}, this one's is {record['edit']['sha256'][:12]}"
        )
    return content


def _judge(content: dict[str, Any], path: Path) -> str:
    judge = _field(content, "judge", path)
    return judge if isinstance(judge, str) else str(_field(_dict(judge, "judge", path), "name", path, "judge"))


def _rate(value: Any, at: str, path: Path) -> Rate:
    entry = _dict(value, at, path)
    numbers = []
    for key in Rate._fields:
        number = _field(entry, key, path, at)
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise SaeuronError(f"'{path}': '{at}.{key}' is no number")
        numbers.append(number)
    return Rate(*numbers)


def _field(content: dict[str, Any], key: str, path: Path, at: str = "") -> Any:
    if key not in content:
        raise SaeuronError(f"'{path}' lacks the field '{f'{at}.' if at else ''}{key}'")
    return content[key]


def _table(content: dict[str, Any], key: str, path: Path, at: str = "") -> dict[str, Any]:
    return _dict(_field(content, key, path, at), f"{at}.{key}" if at else key, path)


def _dict(value: Any, at: str, path: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SaeuronError(f"'{path}': {at or 'the whole'} is no table of names and values")
    return value
