"""Prompts to click: those that the artifact was proven with, and what attacks found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...editor.common.errors import SaeuronError
from ...editor.common.files import file_sha256, read_json
from ...editor.common.typed import Number, Record, read_as
from ...editor.edit.edit_header import EditHeader
from ...editor.edit.provenance import Steps
from ..artifact import manifest
from ..artifact.golden import read_prompts
from ..artifact.manifest import GOLDEN, Manifest
from ..attack.protocols.registry import ROWS
from ..attack.results import FORMAT, AttackRow, Verdict
from ..attack.settings import LEARNED
from ..page.sources import Attack, is_plain, read_attack

_ROWS = {"edited": "plain prompt", "prefix": "learned words", "seeds": "searched seed", "paraphrases": "paraphrase"}
_MOST = 500
"""shown"""


class Suggestion(NamedTuple):
    """Something to click."""

    label: str
    prompt: str
    seed: int | None = None
    """None: leave it as it is; as the next two"""
    steps: int | None = None
    guidance: float | None = None


class Found(NamedTuple):
    """What attacks found."""

    suggestions: list[Suggestion]
    notes: list[str]
    """for people: whose attack it is, and what of it can't be clicked"""


class _Used(Record):
    """Of an attack's settings."""

    steps: Steps | None = None
    guidance: Number | None = None


def examples(root: Path, record: Manifest, header: EditHeader) -> list[Suggestion]:
    """Prompts of the proof, those that name a removed concept first; none where an artifact holds none.

    Args:
        root: artifact folder.
        record: its manifest.
        header: of its edit.
    """
    prompts = header.provenance.prompts or (read_prompts(root / GOLDEN) if GOLDEN in record.files else [])
    names = [name.replace("_", " ").lower() for name in record.concepts]
    unique = list(dict.fromkeys(prompts))
    # `sorted` keeps the order among equals.
    return [Suggestion(text, text) for text in sorted(unique, key=lambda text: not any(name in text.lower() for name in names))]


def attack_files(root: Path, given: Path | None = None) -> list[Path]:
    """Reports of `saeuron attack`.

    Args:
        root: artifact folder, whose `validation/` is looked through.
        given: one file, or a folder of them, in its place.

    Raises:
        SaeuronError: nothing there.
    """
    if given is None:
        return [path for path in sorted((root / "validation").rglob("*.json")) if _is_attack(path)]
    if not given.exists():
        raise SaeuronError(f"--attack '{given}' does not exist")
    if not given.is_dir():
        return [given]
    found = [path for path in sorted(given.glob("*.json")) if _is_attack(path)]
    if not found:
        raise SaeuronError(f"--attack '{given}': no file in it is a report of `saeuron attack`")
    return found


def attacks_on(root: Path, record: Manifest, given: Path | None = None) -> list[tuple[str, Attack]]:
    """Name of the file and content of each attack on an artifact; arguments as for `attack_files`.

    Raises:
        SaeuronError: nothing there, of another artifact, or damaged.
    """
    own = file_sha256(root / manifest.NAME)
    return [(path.name, read_attack(path, record, own)) for path in attack_files(root, given)]


def found(attacks: Sequence[tuple[str, Attack]]) -> Found:
    """Pictures in which an attack's judge saw the concept, each once."""
    suggestions: dict[tuple[str, int], Suggestion] = {}
    notes = []
    for name, attack in attacks:
        content = attack.content
        used = read_as(_Used, content.settings, f"{name}, 'settings'", strict=False)
        own, learned = 0, 0
        # What published attacks find begins from pictures, changed weights or ids of tokens: nothing to type.
        for concept, row in (found for found in attack.rows if found[1].attack not in ROWS):
            for one in row.each if row.attack == "edited" or not is_plain(row.attack) else ():
                if not one.shows_concept:
                    continue
                own += 1
                if (prompt := _typed(row, one)) is None:
                    learned += 1
                    continue
                label = f"{concept} · {_ROWS.get(row.attack, row.attack)} · seed {one.seed} · {prompt}"
                suggestions.setdefault((prompt, one.seed), Suggestion(label, prompt, one.seed, used.steps, used.guidance))
        other = "" if attack.same_export else " It is of another export of the same edit."
        notes.append(
            f"{name}: the judge {content.judge.name} saw a removed concept in {own} {'picture' if own == 1 else 'pictures'}.{other}"
        )
        if learned:
            notes.append(f"{name}: {learned} of them came from learned tokens that no typed text gives; they can't be tried here.")
    shown = list(suggestions.values())[:_MOST]
    if len(suggestions) > _MOST:
        notes.append(f"Shown are the first {_MOST} of {len(suggestions)}.")
    return Found(shown, notes)


def _typed(row: AttackRow, one: Verdict) -> str | None:
    """The prompt of a picture as somebody would type it; None where tokens were learned that no text gives."""
    of = row.found
    if row.attack == "prefix" and of.text is not None and of.typed:
        return f"{of.text} {one.prompt}"
    return one.prompt if row.attack not in LEARNED and of.text is None and of.ids is None and of.vectors is None else None


def _is_attack(path: Path) -> bool:
    content: Any = read_json(path)
    return content.get("format") == FORMAT
