"""Reads what a report is made of beside the artifact: an evaluation and an attack. All names of their fields stand here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ...editor.common.errors import SaeuronError
from ...editor.common.files import read_json
from ...editor.common.typed import read_as
from ...editor.edit.edit_header import EditHeader
from ...editor.edit.gains import BY_HAND
from ..artifact import manifest, shape
from ..artifact.golden import Shown
from ..artifact.manifest import Manifest
from ..artifact.shape import Choice, Each, Fields, Items, Maybe
from ..evidence import intervals as counting
from ..evidence.makers import UNEDITED
from ..proof.results import Proof
from .consistent import FIGURES_OF, check_backends, check_rows
from .features import Features
from .recount import recount

FIGURES = ("ua", "ira", "cra", "cra_unstyled", "cra_target")
EDITED_ROW = "edited"
"""of an attack: the edit, under plain prompts"""
UNEDITED_PARAPHRASES = "unedited-paraphrases"
PLAIN_ROWS = ("unedited", EDITED_ROW, UNEDITED_PARAPHRASES)
"""rows of an attack in which nothing is attacked"""
_EVALUATION, _ATTACK = "saeuron-evaluation-1", "saeuron-attack-1"

_RATE = {"trials": int, "rate": Maybe(float), "low": Maybe(float), "high": Maybe(float)}
_COUNTED = Fields({**_RATE, "hits": int})
_MEAN = Fields({"mean": Maybe(float), "low": Maybe(float), "high": Maybe(float), "count": int})
_PART = Fields({}, {
    "pictures": int, "clip_score": _MEAN, "clip_change": _MEAN, "prompts_cut": int, "retained": Each(_COUNTED), "shared_table_entries": int,
    "concepts": Each(Fields({}, {"domain": str, **dict.fromkeys(FIGURES, Maybe(_COUNTED))})), "nude": _COUNTED, "detections": Each(int),
    "runtime": str, "device": str, "loop": str, "kept": Each(_COUNTED),
})  # fmt: skip
_DISTANCE = Fields({"name": str, "backend": str, "against": str, "all": Maybe(float), "rest": Maybe(float)})
_COMPARISON = Fields({
    "backend": str, "with": str, "pictures": int, "identical": int, "max_abs": int, "least_psnr": Maybe(float),
}, {"same_verdicts": int, "largest_clip_difference": float})  # fmt: skip
_SETTINGS = Fields(
    {
        "artifact": str, "manifest_sha256": str, "edit_sha256": str, "protocol": Choice(tuple(FIGURES_OF)), "judge": Fields({"name": str, "sha256": str}, {"judged": Items(str)}),
        "steps": int, "guidance": float, "seeds": Items(int),
    }, {"objects": Items(str), "styles": Items(str), "precision": str, "content_sha256": str, "engines_sha256": Each(str)},
)  # fmt: skip
_EVALUATION_FIELDS = Fields(
    {"settings": _SETTINGS, "backends": Each(_PART)},
    {"distances": Items(_DISTANCE), "comparison": Items(_COMPARISON), "threshold": float, "left_out": Items(str)},
)
_ROW = Fields({
    "attack": str, "successes": int, "hits": int, "budget": Each(int), **_RATE,
    "prompts": Items(str), "each": Items(Fields({"prompt": str, "seed": int, "shows_concept": bool})),
}, {"found": dict})  # fmt: skip
_ATTACK_FIELDS = Fields({
    "artifact": str, "manifest_sha256": str, "edit_sha256": str, "through": str, "judge": Fields({"name": str, "sha256": str}),
    "settings": Fields({"report_seeds": Items(int), "search_seeds": Items(int)}),
    "concepts": Each(Fields({"domain": str, "rows": Items(_ROW)})),
}, {"content_sha256": str})  # fmt: skip


class Rate(NamedTuple):
    """A share of trials with its interval; without trials all three shares are None."""

    rate: float | None
    low: float | None
    high: float | None
    hits: int
    trials: int


class Mean(NamedTuple):
    """A mean with its interval; None where there are too few values."""

    mean: float | None
    low: float | None
    high: float | None
    values: int


class Stage(NamedTuple):
    """What was counted on the pictures of one backend."""

    name: str
    edited: bool
    """whether these are pictures of the whole edit: neither the unedited model's nor a part's of the concepts"""
    concepts: dict[str, dict[str, Rate | None]]
    """concept → one of `FIGURES` → rate; None where there is no such figure"""
    nude: Rate | None
    detections: dict[str, int]
    """NudeNet's, by class"""
    ran: str
    """what ran it"""
    clip: Mean | None = None
    """CLIP score"""
    change: Mean | None = None
    """of the CLIP score, from the unedited model"""
    prompts_cut: int = 0
    """prompts longer than CLIP reads"""
    kept: dict[str, Rate] | None = None
    """of a part of the concepts: the artifact's other ones → accuracy on their pictures; None where all are removed"""
    retained: dict[str, Rate] | None = None
    """domain → accuracy on pictures that ask for none of the removed"""
    shared: int = 0
    """entries of the edit's tables that a concept outside of the stage strengthened"""


class Evaluation(NamedTuple):
    """An evaluation of this artifact."""

    judge: str
    stages: list[Stage]
    settings: dict[str, Any]
    content: dict[str, Any]
    """the file as it is"""
    same_export: bool
    """made of this very folder; otherwise of another export of the same edit"""
    unsure: list[str]
    """what of its figures couldn't be compared with its pictures"""

    @property
    def threshold(self) -> str:
        """Least score of NudeNet's detections that were counted."""
        return repr(self.content["threshold"])

    @property
    def protocol(self) -> str:
        """`unlearncanvas`, `nudity` or `utility`."""
        return str(self.settings["protocol"])


class AttackRow(NamedTuple):
    """One attack on one concept."""

    concept: str
    attack: str
    rate: Rate
    budget: dict[str, int]
    text: str
    """a learned prefix; empty for other attacks"""


class Attack(NamedTuple):
    """An attack on this artifact."""

    judge: str
    through: str
    rows: list[AttackRow]
    content: dict[str, Any]
    same_export: bool


class Known(NamedTuple):
    """All that a report is made of."""

    artifact: str
    """name of its folder"""
    record: Manifest
    header: EditHeader
    report: Proof | None
    """the artifact's own proof; None where it was exported without"""
    shown: list[Shown]
    evaluations: list[Evaluation]
    attack: Attack | None
    proof: Proof | None
    """another proof of it"""
    proof_name: str
    features: Features | None
    manifest_sha256: str
    """empty where the report goes into the artifact, whose manifest then changes"""
    pictures_left_out: bool = False
    """by wish: such a report can be published where the unedited model's pictures can't"""

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


def read_evaluation(folder: Path, record: Manifest, manifest_sha256: str) -> Evaluation:
    """Read `evaluation.json` in `folder`.

    Args:
        folder: output of an evaluation, or the `evaluation.json` in it.
        record: manifest of the artifact that it must be of.
        manifest_sha256: of the manifest's file.

    Raises:
        SaeuronError: missing, of another artifact, without a field that is needed, or with figures that its list of pictures doesn't give.
    """
    path = folder if folder.name == "evaluation.json" and folder.is_file() else folder / "evaluation.json"
    folder = path.parent
    content = _read(path, _EVALUATION, _EVALUATION_FIELDS)
    if content.get("finished") is False:
        raise SaeuronError(f"'{path}' is of an evaluation that hasn't ended; run the same `saeuron evaluate` again, which goes on")
    settings = content["settings"]
    _check_edit(path, settings["edit_sha256"], record)
    if settings["protocol"] == "nudity" and not 0 <= content.get("threshold", -1) <= 1:
        raise SaeuronError(f"'{path}': 'threshold' is no score from 0 to 1, so nobody could say what was counted")
    check_backends(path, content, record.concepts)
    stages = []
    for name, part in content["backends"].items():
        concepts = {
            concept: {key: _rate(figures.get(key), path) for key in FIGURES} for concept, figures in part.get("concepts", {}).items()
        }
        ran = ", ".join(str(part[key]) for key in ("runtime", "device") if key in part)
        if "loop" in part:
            ran += f"; loop of {part['loop']}"
        kept, retained = ({n: _counted(r, path) for n, r in part.get(key, {}).items()} for key in ("kept", "retained"))
        # A stage that leaves no concept of the artifact out is its whole edit.
        stages.append(Stage(
            name, name != UNEDITED and not kept, concepts, _rate(part.get("nude"), path), part.get("detections", {}), ran, _mean(part.get("clip_score")), _mean(part.get("clip_change")),
            part.get("prompts_cut", 0), kept if "kept" in part else None, retained if "retained" in part else None, part.get("shared_table_entries", 0),
        ))  # fmt: skip
    same = _of_this(settings, record, manifest_sha256) and _same_engines(content, record)
    return Evaluation(settings["judge"]["name"], stages, settings, content, same, recount(folder, content))


def read_attack(path: Path, record: Manifest, manifest_sha256: str) -> Attack:
    """Read an attack's file; arguments as for `read_evaluation`.

    Raises:
        SaeuronError: missing, of another artifact, or without a field that is needed.
    """
    content = _read(path, _ATTACK, _ATTACK_FIELDS)
    _check_edit(path, content["edit_sha256"], record)
    rows = []
    for concept, entry in content["concepts"].items():
        check_rows(path, concept, entry["rows"], content["settings"])
        for row in entry["rows"]:
            rate = _counted({**row, "hits": row["successes"]}, path)
            rows.append(AttackRow(concept, row["attack"], rate, row["budget"], str(row.get("found", {}).get("text", ""))))
    return Attack(content["judge"]["name"], content["through"], rows, content, _of_this(content, record, manifest_sha256))


def _of_this(said: Mapping[str, Any], record: Manifest, manifest_sha256: str) -> bool:
    """Whether it is of these very files; reports and engines may have been added since."""
    if "content_sha256" in said:
        return bool(said["content_sha256"] == manifest.content_sha256(record))
    return bool(said["manifest_sha256"] == manifest_sha256)


def _same_engines(content: Mapping[str, Any], record: Manifest) -> bool:
    """Whether engines whose pictures were judged, if any, are those in the artifact."""
    said = content["settings"].get("engines_sha256")
    return said is None or not any(name.startswith("trt") for name in content["backends"]) or bool(said == manifest.engines_sha256(record))


def _read(path: Path, kind: str, fields: Fields) -> dict[str, Any]:
    if path.is_dir():
        raise SaeuronError(f"'{path}' is a folder; give the file that the command wrote")
    if not path.is_file():
        raise SaeuronError(f"'{path}' does not exist")
    content = read_json(path)
    if content.get("format") != kind:
        raise SaeuronError(f"'{path}' is of format {content.get('format')!r}; a report reads {kind!r}")
    shape.check(str(path), content, fields)
    return content


def _check_edit(path: Path, sha256: str, record: Manifest) -> None:
    ours = record.edit.sha256
    if sha256 != ours:
        raise SaeuronError(f"'{path}' is of another artifact: its edit is {sha256[:12]}, this one's is {ours[:12]}")


def _mean(entry: Mapping[str, Any] | None) -> Mean | None:
    return None if entry is None else Mean(entry["mean"], entry["low"], entry["high"], entry["count"])


def _counted(entry: Mapping[str, Any], path: Path) -> Rate:
    found = _rate(entry, path)
    assert found is not None
    return found


def _rate(entry: Mapping[str, Any] | None, path: Path) -> Rate | None:
    if entry is None:
        return None
    found = Rate(*(entry[key] for key in Rate._fields))
    if not 0 <= found.hits <= found.trials:
        raise SaeuronError(f"'{path}': {found.hits} of {found.trials} is no count")
    right = counting.Rate(found.hits, found.trials).as_dict()
    for key in ("rate", "low", "high"):
        said, wanted = getattr(found, key), right[key]
        if (said is None) != (wanted is None) or (said is not None and wanted is not None and not math.isclose(said, wanted, abs_tol=1e-6)):
            raise SaeuronError(f"'{path}': {found.hits} of {found.trials} has the {key} {wanted}, not {said}")
    return found
