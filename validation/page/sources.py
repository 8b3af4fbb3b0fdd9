"""Reads what a report is made of beside the artifact: an evaluation, an attack, another proof."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ...editor.common.errors import SaeuronError
from ...editor.common.files import read_json
from ...editor.common.typed import read_as
from ...editor.edit.edit_header import EditHeader
from ...editor.edit.gains import BY_HAND
from ...editor.features.prompt_sets import ConceptPrompts
from ..artifact import manifest
from ..artifact.golden import Shown
from ..artifact.manifest import Manifest
from ..attack.results import CONTROL, AttackReport, AttackRow, Seeds
from ..attack.results import FORMAT as ATTACK
from ..evidence.results import FORMAT as EVALUATION
from ..evidence.results import Begun, Evaluation, SettingsRecord
from ..evidence.verdicts import RESULT
from ..proof.results import Proof
from ..tuning.results import FORMAT as TUNING
from ..tuning.results import TuningReport
from .consistent import check_backends, check_prompts, check_rows
from .features import Features
from .recount import recount

EDITED_ROW = "edited"
"""of an attack: the edit, under plain prompts"""
UNEDITED_ROW = "unedited"
UNEDITED_PARAPHRASES = "unedited-paraphrases"


def is_plain(row: str) -> bool:
    """Whether nothing is attacked in that row of an attack."""
    return row in (UNEDITED_ROW, EDITED_ROW, UNEDITED_PARAPHRASES) or row.startswith(CONTROL)


class Evaluated(NamedTuple):
    """An evaluation of this artifact."""

    content: Evaluation
    same_export: bool
    """made of this very folder; otherwise of another export of the same edit"""
    unsure: list[str]
    """what of its figures couldn't be compared with its pictures"""


class Attack(NamedTuple):
    """An attack on this artifact."""

    content: AttackReport
    same_export: bool

    @property
    def rows(self) -> list[tuple[str, AttackRow]]:
        """Concept and row."""
        return [(concept, row) for concept, entry in self.content.concepts.items() for row in entry.rows]


class Known(NamedTuple):
    """All that a report is made of."""

    artifact: str
    """name of its folder"""
    record: Manifest
    header: EditHeader
    report: Proof | None
    """the artifact's own proof; None where it was exported without"""
    shown: list[Shown]
    evaluations: list[Evaluated]
    attack: Attack | None
    proof: Proof | None
    """another proof of it"""
    proof_name: str
    features: Features | None
    manifest_sha256: str
    """empty where the report goes into the artifact, whose manifest then changes"""
    pictures_left_out: bool = False
    """by wish: such a report can be published where the unedited model's pictures can't"""
    tuning: TuningReport | None = None
    """how the settings were chosen"""

    @property
    def by_hand(self) -> bool:
        """Whether features were named by a user, not chosen for concepts."""
        return bool(self.record.settings) and all(w.status == BY_HAND for w in self.record.settings)

    @property
    def names(self) -> str:
        """What was removed."""
        return ", ".join(self.record.concepts) or ", ".join(dict.fromkeys(w.name for w in self.record.settings))


def own_proof(path: Path) -> Proof:
    """An artifact's `report.json`; raises `SaeuronError` where it is none."""
    return read_as(Proof, read_json(path), path, strict=False)


def read_proof(path: Path, record: Manifest) -> Proof:
    """Read what `saeuron validate --json` wrote.

    Raises:
        SaeuronError: missing, no proof, or of other files than this artifact's.
    """
    if not path.is_file():
        raise SaeuronError(f"'{path}' does not exist")
    content = read_json(path)
    if "format" in content:
        raise SaeuronError(f"'{path}' is of format {content['format']!r}, no proof; write one: saeuron validate ARTIFACT --json")
    proof = read_as(Proof, content, path, strict=False)
    if (of := proof.artifact) is None:
        raise SaeuronError(f"'{path}' doesn't say of which artifact it is; write it again: saeuron validate ARTIFACT --json")
    _check_edit(path, of.edit_sha256, record)
    ours = manifest.content_sha256(record)
    if of.content_sha256 != ours:
        raise SaeuronError(
            f"'{path}' is of another export of the same edit: its files' hash is {of.content_sha256[:12]}, this one's is {ours[:12]}"
        )
    built = manifest.engines_sha256(record)
    for name in proof.backends:
        folder = name.partition("/")[2]
        if folder and (folder not in built or of.engines_sha256.get(folder) != built[folder]):
            raise SaeuronError(
                f"'{path}' is of other engines '{folder}' than lie in the artifact; prove these: saeuron validate ARTIFACT --json"
            )
    return proof


def read_evaluation(folder: Path, record: Manifest, manifest_sha256: str, words: Mapping[str, ConceptPrompts]) -> Evaluated:
    """Read `evaluation.json` in `folder`.

    Args:
        folder: output of an evaluation, or the `evaluation.json` in it.
        record: manifest of the artifact that it must be of.
        manifest_sha256: of the manifest's file.
        words: the prompts that the artifact holds.

    Raises:
        SaeuronError: missing, of another artifact, without a field that is needed, on other prompts than the artifact's, or with figures that its list of pictures doesn't give.
    """
    path = folder if folder.name == RESULT and folder.is_file() else folder / RESULT
    said = _read(path, EVALUATION)
    if not read_as(Begun, said, path).finished:
        raise SaeuronError(f"'{path}' is of an evaluation that hasn't ended; run the same `saeuron evaluate` again, which goes on")
    content = read_as(Evaluation, said, path)
    settings = content.settings
    _check_edit(path, settings.edit_sha256, record)
    if settings.protocol == "nudity" and (content.threshold is None or not 0 <= content.threshold <= 1):
        raise SaeuronError(f"'{path}': 'threshold' is no score from 0 to 1, so nobody could say what was counted")
    check_backends(path, content, record.concepts)
    sets = check_prompts(path, settings, {n: words[n] for n in record.concepts if n in words}) if settings.protocol == "concepts" else {}
    same = _of_this(settings, record, manifest_sha256)
    # Engines whose pictures were judged, if any, have to be those in the artifact.
    if settings.engines_sha256 is not None and any(name.startswith("trt") for name in content.backends):
        same = same and settings.engines_sha256 == manifest.engines_sha256(record)
    return Evaluated(content, same, recount(path.parent, content, sets))


def read_tuning(path: Path, record: Manifest) -> TuningReport:
    """Read what `saeuron tune` wrote.

    Raises:
        SaeuronError: missing, no tuning, or one that chose other settings than the artifact has.
    """
    content = read_as(TuningReport, _read(path, TUNING), path)
    for name in record.concepts:
        ours = {(w.intervention, w.hookpoint, str(w.select), w.multiplier, w.how, w.start) for w in record.settings if w.name == name}
        chosen = content.concepts[name].chosen if name in content.concepts else None
        if chosen is None or ours != chosen.parts:
            raise SaeuronError(f"'{path}' didn't choose the artifact's settings of {name}; give the report.json of the tuning that did")
    return content


def read_attack(path: Path, record: Manifest, manifest_sha256: str) -> Attack:
    """Read an attack's file; arguments as for `read_evaluation`.

    Raises:
        SaeuronError: missing, of another artifact, or without a field that is needed.
    """
    content = read_as(AttackReport, _read(path, ATTACK), path)
    if not content.finished:
        raise SaeuronError(f"'{path}' is of an attack that hasn't ended; run the same `saeuron attack` again, which goes on")
    seeds = read_as(Seeds, content.settings, f"{path}, 'settings'")
    _check_edit(path, content.edit_sha256, record)
    for concept, entry in content.concepts.items():
        if concept not in record.concepts:
            raise SaeuronError(f"'{path}' is of {concept}, which this artifact doesn't remove")
        check_rows(path, concept, entry.rows, seeds)
    return Attack(content, _of_this(content, record, manifest_sha256))


def _of_this(said: SettingsRecord | AttackReport, record: Manifest, manifest_sha256: str) -> bool:
    """Whether it is of these very files; reports and engines may have been added since."""
    if said.content_sha256 is not None:
        return said.content_sha256 == manifest.content_sha256(record)
    return said.manifest_sha256 == manifest_sha256


def _read(path: Path, kind: str) -> dict[str, Any]:
    if path.is_dir():
        raise SaeuronError(f"'{path}' is a folder; give the file that the command wrote")
    if not path.is_file():
        raise SaeuronError(f"'{path}' does not exist")
    content = read_json(path)
    if content.get("format") != kind:
        raise SaeuronError(f"'{path}' is of format {content.get('format')!r}; a report reads {kind!r}")
    return content


def _check_edit(path: Path, sha256: str, record: Manifest) -> None:
    ours = record.edit.sha256
    if not sha256:
        raise SaeuronError(
            f"'{path}' is of a pipeline that is no artifact; a report is of an artifact alone (saeuron compare sets them side by side)"
        )
    if sha256 != ours:
        raise SaeuronError(f"'{path}' is of another artifact: its edit is {sha256[:12]}, this one's is {ours[:12]}")
