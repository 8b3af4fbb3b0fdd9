"""`--dry-run`: the plan as far as it can be known from what lies on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..editor.errors import SaeuronError
from .folder import check_output
from .prepare import estimate, prepare
from .settings import Plan, Settings, path_of, resolve

_FILES = {
    "checkpoint": [
        "unet/diffusion_pytorch_model.safetensors",
        "unet/saeuron_unet_<hash>.py",
        "text_encoder/model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ],
    "onnx": ["unet/model.onnx", "text_encoder/model.onnx", "vae_decoder/model.onnx", "vae_encoder/model.onnx"],
}
_ALWAYS = ["model_index.json", "scheduler/", "tokenizer/", "edit/edit.safetensors", "edit/golden.safetensors", "saeuron.json", "README.md"]


def describe(settings: Settings) -> dict[str, Any]:
    """The plan: settings, files, sizes, disk, memory, chosen features.

    Returns:
        a dictionary for `--json`; its `lines` are for people.

    Raises:
        SaeuronError: the same bad input that an export would refuse.
    """
    plan = resolve(settings)
    check_output(settings.output, settings.overwrite)
    files = [*_ALWAYS, *(f for name in settings.formats for f in _FILES[name]), *(["validation/report.json"] if settings.validate else [])]
    found: dict[str, Any] = {
        "output": str(settings.output), "model": plan.model, "saes": plan.saes, "residual": plan.residual, "gate": settings.gate, "precision": settings.precision,
        "concepts": [{"name": w.concept, "hookpoint": w.hookpoint, "select": str(w.rule), "multiplier": w.multiplier, "status": w.status} for w in plan.wishes],
        "files": files,
    }  # fmt: skip
    remote = _remote(plan)
    if remote:
        found["to_fetch"] = remote
    else:
        prepared = prepare(plan)
        sizes = estimate(prepared)
        found["bytes"] = sizes
        # Pipeline, its edited twin's SAE and the graph being written lie in memory together.
        found["memory_bytes"] = int(2.2 * max(sizes.values())) + 2**30
        found["warnings"] = prepared.warnings
        found["features"] = {
            name: {c: {"per_step": [len(row) for row in rows], "distinct": sorted({f for row in rows for f in row})} for c, rows in part.chosen.items()}
            for name, part in prepared.edit.hookpoints.items()
        }  # fmt: skip
    found["lines"] = _lines(found)
    return found


def _remote(plan: Plan) -> list[str]:
    for wish in plan.wishes:
        if not Path(path_of(wish.activations)).is_file():
            raise SaeuronError(f"activations: '{wish.activations}' does not exist or is no file")
    named = [plan.model, *plan.saes.values()]
    missing = [n for n in dict.fromkeys(named) if n != "demo" and not Path(path_of(n)).exists()]
    for name in missing:
        if name.count("/") != 1 or name.startswith((".", "/")):
            raise SaeuronError(f"'{name}' does not exist here and is no Hub id (owner/name)")
    return missing


def _lines(plan: dict[str, Any]) -> list[str]:
    lines = [f"model      {plan['model']}", f"edit       residual {plan['residual']}, gate {plan['gate']}, precision {plan['precision']}"]
    for c in plan["concepts"]:
        lines.append(f"concept    {c['name']} at {c['hookpoint']}, {c['select']}, multiplier {c['multiplier']:g} ({c['status']})")
    for hookpoint, concepts in plan.get("features", {}).items():
        for name, chosen in concepts.items():
            counts = chosen["per_step"]
            lines.append(
                f"features   {name} at {hookpoint}: {min(counts)}–{max(counts)} a step, {len(chosen['distinct'])} in all: {', '.join(map(str, chosen['distinct'][:12]))}{' …' if len(chosen['distinct']) > 12 else ''}"
            )
    if "to_fetch" in plan:
        lines.append(f"to fetch   {', '.join(plan['to_fetch'])} (sizes and features are known once these are here)")
    else:
        lines.append(
            f"disk       {sum(plan['bytes'].values()) / 2**20:,.0f} MiB ({', '.join(f'{k} {v / 2**20:,.0f}' for k, v in plan['bytes'].items())})"
        )
        lines.append(f"memory     about {plan['memory_bytes'] / 2**30:.1f} GiB")
        lines += [f"warning    {w}" for w in plan["warnings"]]
    lines += [f"file       {plan['output']}/{name}" for name in plan["files"]]
    return lines
