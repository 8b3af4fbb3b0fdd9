"""What a report says, as plain text and numbers: no HTML, no Markdown. Every statement is derived from the files it is about."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...editor.by_hand import BY_HAND
from ...editor.edit_header import EditHeader, read_edit_header
from ...editor.errors import SaeuronError
from ...editor.files import file_sha256, read_json
from .. import manifest
from ..golden import Shown, read_pictures
from .measured import attack_section, evaluation_section
from .open_points import not_checked
from .proofs import parity_section
from .settings import settings_section
from .sources import Attack, Evaluation, read_attack, read_evaluation
from .verdict import verdict

_SENSITIVE = re.compile(r"nud|naked|nsfw|porn|sexual|erotic", re.IGNORECASE)


def make_content(root: Path, evaluation: Path | None = None, attack: Path | None = None) -> dict[str, Any]:
    """Everything that a report says.

    Args:
        root: artifact folder, whose files were checked.
        evaluation: folder that `saeuron evaluate` wrote.
        attack: file that `saeuron attack` wrote.

    Raises:
        SaeuronError: no artifact, files of another one, or damaged ones.
    """
    record = manifest.read(root)
    sha256 = file_sha256(root / manifest.NAME)
    evaluated = None if evaluation is None else read_evaluation(evaluation, record, sha256)
    attacked = None if attack is None else read_attack(attack, record, sha256)
    header = read_edit_header(root / "edit" / "edit.safetensors")
    golden, proof = root / "edit" / "golden.safetensors", root / "validation" / "report.json"
    report = read_json(proof) if record.get("validation") is not None else None
    shown = read_pictures(golden) if golden.is_file() else []
    try:
        return _content(root, record, header, report, shown, evaluated, attacked, sha256)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SaeuronError(f"{proof}: its form is not known ({type(error).__name__}: {error}); prove the artifact again") from None


def _content(
    root: Path, record: dict[str, Any], header: EditHeader, report: dict[str, Any] | None, shown: Sequence[Shown],
    evaluation: Evaluation | None, attack: Attack | None, sha256: str,
) -> dict[str, Any]:  # fmt: skip
    by_hand = bool(record["settings"]) and all(w["status"] == BY_HAND for w in record["settings"])
    names = ", ".join(record["concepts"]) or ", ".join(dict.fromkeys(w["name"] for w in record["settings"]))
    sensitive = any(_SENSITIVE.search(name) for name in [names, *(w["name"] for w in record["settings"])])
    sensitive |= evaluation is not None and evaluation.settings["protocol"] == "nudity"
    return {
        "artifact": root.resolve().name, "title": f"{record['model']['source']} {'steered' if by_hand else 'without'} {names}",
        "verdict": verdict(record, report, names, by_hand, evaluation, attack), "removed": _removed(record, header, names, by_hand),
        "pictures": _pictures(shown, record, sensitive), "parity": parity_section(report), "evaluation": evaluation_section(evaluation), "attack": attack_section(attack),
        "settings": settings_section(record, evaluation, attack, sha256), "warnings": record["warnings"], "failures": [str(f) for f in (report or {}).get("failures", [])],
        "not_checked": not_checked(record, report, shown, evaluation, attack),
    }  # fmt: skip


def _removed(record: dict[str, Any], header: EditHeader, names: str, by_hand: bool) -> dict[str, Any]:
    points = record["edit"].get("hookpoints") or {}
    rows = []
    for wish in record["settings"]:
        steps = header.chosen.get(wish["hookpoint"], {}).get(wish["name"], [])
        union = sorted({feature for step in steps for feature in step})
        rows.append({
            "concept": wish["name"], "hookpoint": wish["hookpoint"], "select": wish["select"], "count": len(union), "features": ", ".join(map(str, union)),
            "multiplier": "–" if wish["multiplier"] is None else f"{wish['multiplier']:g}", "timesteps": len(steps), "status": wish["status"],
        })  # fmt: skip
    totals = [
        {"hookpoint": name, "features": entry.get("features", "–"), "latents": header.latents.get(name, "–"), "timesteps": entry.get("timesteps", "–")}
        for name, entry in points.items()
    ]  # fmt: skip
    return {"names": names, "verb": "Steered" if by_hand else "Removed", "model": record["model"], "rows": rows, "hookpoints": totals}


def _pictures(shown: Sequence[Shown], record: dict[str, Any], sensitive: bool) -> dict[str, Any] | None:
    pairs = [
        {
            "prompt": prompt, "guidance": f"{run.guidance:g}", "steps": run.steps, "before": run.unedited[i], "after": run.hook[i],
            "height": run.hook.shape[1], "width": run.hook.shape[2],
        }
        for run in shown for i, prompt in enumerate(run.prompts)
    ]  # fmt: skip
    if not pairs:
        return None
    return {"pairs": pairs, "sensitive": sensitive, "formats": record["formats"]}
