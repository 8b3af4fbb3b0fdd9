"""The settings that a report lists."""

from __future__ import annotations

from typing import Any

from ..artifact import manifest
from .figures import listed
from .sources import Known


def settings_section(k: Known) -> list[dict[str, Any]]:
    """Groups of names and values."""
    record, attack = k.record, k.attack
    s = record.sampling
    size = "the model's" if s.height is None or s.width is None else f"{s.width} × {s.height}"
    groups = [
        ("Artifact", [
            ("formats", ", ".join(record.formats)), ("precision", record.precision), *([("quantised", record.quantised.scheme)] if record.quantised else []), ("gate", record.gate), ("residual", record.residual),
            ("steps", str(s.steps)), ("guidance", f"{s.guidance:g}"), ("picture size", size), ("created", record.created or "–"),
        ]),
        ("Sources", [
            ("model", record.model.source), ("pipeline", record.model.pipeline),
            ("safety checker", "yes" if record.model.safety_checker else "no"), *((f"SAE at {name}", e.source) for name, e in record.saes.items()),
        ]),
        ("SHA-256", [
            *([("saeuron.json", k.manifest_sha256)] if k.manifest_sha256 else []), ("model and edit files", manifest.content_sha256(record)), ("edit", record.edit.sha256), ("original UNet", record.model.network_sha256),
            *((f"SAE at {name}", e.sha256) for name, e in record.saes.items()),
        ]),
        ("Versions", [(str(k), str(v)) for k, v in record.versions.items()]),
    ]  # fmt: skip
    for evaluation in k.evaluations:
        e = evaluation.content.settings
        entries = [
            ("protocol", e.protocol), *(entry for j in e.judges for entry in (("judge", j.name), ("judge's hash", j.sha256))), ("steps", str(e.steps)), ("guidance", f"{e.guidance:g}"),
            ("seeds", listed(e.seeds)), *((name, listed(of)) for name, of in (("objects", e.objects), ("styles", e.styles), ("sets of prompts", e.sets)) if of is not None),
        ]  # fmt: skip
        groups.append(("Evaluation" if len(k.evaluations) == 1 else f"Evaluation: {e.protocol}", entries))
    if attack is not None:
        a = attack.content
        entries = [("through", a.through), ("judge", a.judge.name), ("judge's hash", a.judge.sha256)]
        groups.append(
            ("Attack", entries + [(name.replace("_", " "), listed(v)) for name, v in a.settings.items() if v not in ("", [], ())])
        )
    return [{"title": title, "entries": entries} for title, entries in groups if entries]
