"""What a report says, as plain text and numbers: no HTML, no Markdown. Every statement is derived from the files it is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...editor.common.errors import SaeuronError
from ...editor.common.files import file_sha256
from ...editor.edit.edit_header import read_edit_header
from ...editor.edit.provenance import ways
from ...editor.features.prompt_sets import ConceptPrompts
from ..artifact import manifest
from ..artifact.concepts import read_concepts
from ..artifact.golden import read_pictures
from ..artifact.manifest import GOLDEN, Manifest
from .feature_section import feature_section
from .features import read_features
from .figures import SENSITIVE
from .measured import attack_section, evaluation_section, tuning_section
from .open_points import not_checked
from .proofs import parity_section
from .settings import settings_section
from .sources import Evaluated, Known, own_proof, read_attack, read_evaluation, read_proof, read_tuning
from .verdict import verdict


def make_content(
    root: Path, evaluations: Sequence[Path] = (), attack: Path | None = None, proof: Path | None = None, features: Path | None = None, inside: bool = False,
    pictures: bool = True, tuning: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Everything that a report says.

    Args:
        root: artifact folder, whose files were checked.
        evaluations: folders that `saeuron evaluate` wrote, each of another protocol.
        attack: file that `saeuron attack` wrote.
        proof: file of another proof, of `saeuron validate --json`.
        features: folder that `saeuron features` wrote.
        inside: the report goes into the artifact, so it can't name the manifest's hash.
        pictures: show any; all are, or show, the unedited model's.
        tuning: file that `saeuron tune` wrote, of the artifact's settings.

    Raises:
        SaeuronError: no artifact, files of another one, or damaged ones; pictures of features that are to be left out.
    """
    if features is not None and not pictures:
        raise SaeuronError("--features adds pictures of the unedited model, which --no-pictures leaves out; give one of the two")
    record = manifest.read(root)
    sha256 = file_sha256(root / manifest.NAME)
    header = read_edit_header(root / "edit" / "edit.safetensors")
    golden, own = root / "edit" / "golden.safetensors", root / "validation" / "report.json"
    known = Known(
        root.resolve().name, record, header, own_proof(own) if record.validation is not None else None,
        read_pictures(golden) if pictures and golden.is_file() else [],
        _read_evaluations(evaluations, record, sha256, read_concepts(root)), None if attack is None else read_attack(attack, record, sha256),
        None if proof is None else read_proof(proof, record), "" if proof is None else proof.name,
        None if features is None else read_features(features, record, header), "" if inside else sha256, not pictures, None if tuning is None else read_tuning(tuning, record),
    )  # fmt: skip
    return _content(known)


def _read_evaluations(folders: Sequence[Path], record: Manifest, sha256: str, words: Mapping[str, ConceptPrompts]) -> list[Evaluated]:
    found: dict[str, Evaluated] = {}
    for folder in folders:
        read = read_evaluation(folder, record, sha256, words)
        protocol = read.content.settings.protocol
        if protocol in found:
            raise SaeuronError(f"'{folder}' is a second evaluation by the protocol '{protocol}'; a report takes one of each")
        found[protocol] = read
    return list(found.values())


def _content(k: Known) -> dict[str, Any]:
    texts = [k.names, *(w.name for w in k.record.settings)]
    sensitive = any(SENSITIVE.search(text) for text in texts) or any(e.content.settings.protocol == "nudity" for e in k.evaluations)
    proofs = [("", k.report), (k.proof_name, k.proof)]
    return {
        "artifact": k.artifact, "title": f"{k.record.model.source} {'steered' if k.by_hand else 'without'} {k.names}",
        "verdict": verdict(k), "removed": _removed(k), "tuning": tuning_section(k.tuning), "features": feature_section(k.features, sensitive), "pictures": _pictures(k, sensitive),
        "parity": [{"name": name, **parity_section(report)} for name, report in proofs if report is not None], "own_proof": k.report is not None,
        "evaluations": [evaluation_section(e) for e in k.evaluations], "attack": attack_section(k.attack), "settings": settings_section(k), "warnings": k.record.warnings,
        "failures": [f"{name}: {line}" if name else str(line) for name, report in proofs if report is not None for line in report.failures],
        "no_pictures": _no_pictures(k), "not_checked": not_checked(k),
    }  # fmt: skip


def _removed(k: Known) -> dict[str, Any]:
    points = k.record.edit.hookpoints
    rows = []
    for wish in k.record.settings:
        steps = k.header.chosen.get(wish.hookpoint, {}).get(wish.name, [])
        union = sorted({feature for step in steps for feature in step})
        rows.append({
            "concept": wish.name, "hookpoint": wish.hookpoint or "cross-attention", "select": f"{wish.intervention}: {wish.said}", "count": len(union) if wish.select else "–", "features": ", ".join(map(str, union)) if wish.select else "",
            "multiplier": "–" if wish.multiplier is None else f"{wish.multiplier:g}", "timesteps": len(steps), "status": wish.status,
        })  # fmt: skip
    totals = [
        {"hookpoint": name, "features": entry.features, "latents": k.header.latents.get(name, "–"), "timesteps": entry.timesteps}
        for name, entry in points.items()
    ]  # fmt: skip
    return {
        "names": k.names,
        "verb": "Steered" if k.by_hand else "Removed",
        "ways": f"{k.names}, by multiplying features of a sparse autoencoder" if k.by_hand else ways(k.record.settings),
        "model": k.record.model,
        "rows": rows,
        "hookpoints": totals,
    }


def _no_pictures(k: Known) -> str:
    """Why a report without pictures before and after has none."""
    if k.pictures_left_out:
        return "left out on purpose (--no-pictures)"
    return "the proof holds no free runs" if GOLDEN in k.record.files else "the golden vectors, which hold them, are not in the artifact"


def _pictures(k: Known, sensitive: bool) -> dict[str, Any] | None:
    pairs = [
        {
            "prompt": prompt, "guidance": f"{run.guidance:g}", "steps": run.steps, "before": run.unedited_pictures[i], "after": run.hook_pictures[i],
            "height": run.hook_pictures.shape[1], "width": run.hook_pictures.shape[2],
        }
        for run in k.shown for i, prompt in enumerate(run.prompts)
    ]  # fmt: skip
    if not pairs:
        return None
    return {"pairs": pairs, "sensitive": sensitive, "formats": k.record.formats}
