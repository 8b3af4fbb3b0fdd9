"""`--dry-run`: the plan as far as it can be known from what lies on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...editor.common.typed import plain, read_as
from ...editor.denoisers.families import FAMILIES
from ...editor.edit.provenance import Setting
from ...validation.artifact.concepts import NAME as CONCEPTS
from ..formats.tensorrt import components, ready
from . import stage_state
from .becomes import collecting_of
from .concepts import prompts_on_record
from .folder import check_output
from .resolve import resolve, to_fetch
from .settings import Plan, Settings

if TYPE_CHECKING:
    from .open import Prepared

_UNKNOWN = FAMILIES[0]
"""what a model is taken for as long as its folder isn't here"""


def describe(wanted: Settings | Plan) -> dict[str, Any]:
    """The plan: settings, files, sizes, disk, memory, chosen features.

    Returns:
        a dictionary for `--json`; its `lines` are for people.

    Raises:
        SaeuronError: the same bad input that an export would refuse.
    """
    plan = wanted if isinstance(wanted, Plan) else resolve(wanted)
    settings = plan.settings
    made = settings.staged and stage_state.is_made(plan)
    if not settings.staged:
        check_output(settings.output, settings.overwrite)
    if settings.quantize:
        from .removal import check_removal  # opens judges, which need more than the plan alone does

        check_removal(plan)
    found: dict[str, Any] = {
        "output": str(settings.output), "model": plan.model, "saes": plan.saes, "residual": plan.residual, "gate": settings.gate, "precision": settings.precision, "quantised": settings.quantize or None,
        "concepts": [plain(s) for s in (*(w.setting() for w in plan.weights), *(w.setting for w in plan.wishes))] or _of_edit(plan),
        "files": _files(plan, None),
    }  # fmt: skip
    if settings.engines:
        found["targets"] = [str(t) for t in ready(settings.engines, settings.quantize)]
    remote = to_fetch(plan)
    # What lies here decides how much is known: without the model and its SAEs no hash of the activations, without those no features.
    waiting = _to_collect(plan, bool(remote))
    if plan.model not in remote:
        from .prepare import check_engine_shapes, open_model

        check_engine_shapes(plan)
        if remote:
            open_model(plan, (settings.height, settings.width))  # else it is opened above or below
    if waiting:
        found["to_collect"] = waiting
    if remote:
        found["to_fetch"] = remote
    if not remote and not waiting:
        from .estimate import estimate, memory  # need torch, which the plan alone doesn't
        from .prepare import prepare

        prepared = prepare(plan)
        sizes = estimate(prepared)
        found["concepts"] = plain(prepared.edit.provenance.concepts)
        found["files"] = _files(plan, prepared)
        found["bytes"] = sizes
        found["memory_bytes"] = memory(prepared)
        found["warnings"] = prepared.warnings
        found["features"] = {
            name: {c: {"per_step": [len(row) for row in rows], "distinct": sorted({f for row in rows for f in row})} for c, rows in part.chosen.items()}
            for name, part in prepared.edit.hookpoints.items()
        }  # fmt: skip
    of_stages: list[str] = []
    if settings.staged:
        from .costs import AFTER, costs_of
        from .stages import stages_of

        folder = None if remote else open_model(plan, (settings.height, settings.width))
        stages = stages_of(plan, folder)
        costs = [cost for cost in costs_of(stages, folder, waiting) if not made or cost.stage in AFTER]
        found["stages"], found["attack_left_out"] = [plain(cost) for cost in costs], stages.left_out
        found["made"] = made
        of_stages = [f"made       {settings.output} is made already; what comes after it goes on"] if made else []
        of_stages += [f"stage      {cost}" for cost in costs] + ([f"           no attack: {stages.left_out}"] if stages.left_out else [])
    found["lines"] = _lines(found, of_stages)
    return found


def _of_edit(plan: Plan) -> list[dict[str, Any]]:
    """Concepts of an edit file; more is known once it is opened."""
    chosen = plan.edit.chosen if plan.edit else {}
    return [
        {"name": c, "hookpoint": h, "select": "from an edit file", "multiplier": None, "status": "untuned"}
        for h, by in chosen.items()
        for c in by
    ]


def _to_collect(plan: Plan, remote: bool) -> list[dict[str, Any]]:
    """Domains whose activations aren't there yet."""
    if not any(w.collecting or w.pairs for w in plan.wishes):
        return []
    if remote:
        # Which of several things project compares with isn't known before the model is here: one stands for it.
        asked = [
            (w.collecting or collecting_of(plan, w, next(iter(w.pairs.choices)) if w.pairs else ""), w.hookpoint)
            for w in plan.wishes
            if w.collecting or w.pairs
        ]
        named = {collecting.domain: (collecting, hookpoint) for collecting, hookpoint in asked}
        waiting = [(c, [hookpoint]) for c, hookpoint in named.values()]
    else:
        from .prepare import open_model, saes_of, uncollected

        folder = open_model(plan, (plan.settings.height, plan.settings.width))
        waiting = uncollected(plan, folder, saes_of(plan, folder))
    return [
        {
            "domain": c.domain,
            "sets": {n: len(p) for n, p in c.prompts.items()},
            "steps": c.steps,
            "guidance": c.guidance,
            "hookpoints": hookpoints,
        }
        for c, hookpoints in waiting
    ]


def _files(plan: Plan, prepared: Prepared | None) -> list[str]:
    """What the artifact will hold; without the model's folder, only what is known of every model."""
    s, family = plan.settings, prepared.family if prepared else _UNKNOWN
    weights = {n: "model.safetensors" if family.text_encoder(n) else "diffusion_pytorch_model.safetensors" for n in family.networks}
    files = ["README.md", "saeuron.json", "edit/edit.safetensors", "edit/golden.safetensors", *(f"{name}/config.json" for name in weights)]
    if prompts_on_record(plan):
        files.append(CONCEPTS)
    if "checkpoint" in s.formats:
        files += [
            *([f"{family.denoiser.component}/saeuron_edit_<hash>.py"] if plan.wishes or (plan.edit and plan.edit.latents) else []),
            *(f"{name}/{file}" for name, file in weights.items()),
        ]
    if "onnx" in s.formats:
        files += ["vae_decoder/config.json", "vae_encoder/config.json", *(f"{name}/model.onnx" for name in family.graphs)]
    if s.engines:
        files += [f"tensorrt/{t.folder}/{name}.engine" for t in s.engines.targets for name in components(family)]
    if s.validate:
        files.append("validation/report.json")
    if s.evidence:
        files += ["validation/report.html", "validation/report.md", "validation/report-pictures/"]
    if s.sign is not None:
        files.append("model.sig")
    return sorted(
        files + (_files_of_model(s, prepared) if prepared else ["model_index.json", "scheduler/scheduler_config.json", "tokenizer/"])
    )


def _files_of_model(s: Settings, prepared: Prepared) -> list[str]:
    """The files whose names follow from the base model."""
    from ..formats import checkpoint

    files = checkpoint.small_files(prepared.model_folder)
    if "checkpoint" not in s.formats:
        files = [name for name in files if not name.startswith("feature_extractor/")]
    elif prepared.has_checker:
        files += ["safety_checker/config.json", "safety_checker/model.safetensors"]
    if "onnx" in s.formats:
        from ..formats.onnx import _INLINE_LIMIT
        from .estimate import graph_bytes

        files += [f"{name}/model.onnx_data" for name, size in graph_bytes(prepared).items() if size > _INLINE_LIMIT]
    return files


def _lines(plan: dict[str, Any], of_stages: Sequence[str]) -> list[str]:
    lines = [
        f"model      {plan['model']}",
        f"edit       residual {plan['residual']}, gate {plan['gate']}, precision {plan['precision']}{', quantised as ' + plan['quantised'] if plan['quantised'] else ''}",
    ]
    for c in plan["concepts"]:
        setting = read_as(Setting, c, "dry run")
        strength = "" if setting.multiplier is None else f", multiplier {setting.multiplier:g}"
        how = f"{setting.intervention}: {setting.said}{strength} ({setting.status})"
        lines.append(f"concept    {setting.name} at {setting.hookpoint or 'cross-attention'}, {how}")
    if "features" in plan:
        # Concepts come in the order in which they were named.
        pairs = dict.fromkeys((c["name"], c["hookpoint"]) for c in plan["concepts"] if c["hookpoint"] and c["select"])
        lines += [_feature_line(name, hookpoint, plan["features"][hookpoint][name]) for name, hookpoint in pairs]
    for c in plan.get("to_collect", []):
        sets = ", ".join(f"{n} {k}" for n, k in list(c["sets"].items())[:6]) + (" …" if len(c["sets"]) > 6 else "")
        lines.append(
            f"collect    activations of {c['domain']} at {', '.join(c['hookpoints'])}: {sum(c['sets'].values())} prompts ({sets}), {c['steps']} steps, guidance {c['guidance']:g}"
        )
    if "to_fetch" in plan:
        lines.append(f"to fetch   {', '.join(plan['to_fetch'])} (sizes, times and features are known once these are here)")
    elif "to_collect" in plan:
        lines.append("           (features, sizes and memory are known once these are collected: saeuron collect, or the export itself)")
    else:
        lines.append(
            f"disk       {sum(plan['bytes'].values()) / 2**20:,.0f} MiB ({', '.join(f'{k} {v / 2**20:,.0f}' for k, v in plan['bytes'].items())})"
        )
        lines.append(f"memory     about {plan['memory_bytes'] / 2**30:.1f} GiB")
        lines += [f"warning    {w}" for w in plan["warnings"]]
    lines += [f"engines    for {target}" for target in plan.get("targets", [])]
    lines += of_stages
    if any(stage["seconds"] for stage in plan.get("stages", ())):
        lines.append(
            "           (times: of the denoiser alone, from one forward of its shape here just now; the SAE, pictures, judges and graphs come on top)"
        )
    lines += [f"file       {plan['output']}/{name}" for name in plan["files"]]
    if "to_fetch" in plan:
        lines.append(
            "files      and what only the model tells: text_encoder_2/ and tokenizer_2/ of SDXL, safety_checker/, feature_extractor/, model.onnx_data of large graphs"
        )
    return lines


def _feature_line(concept: str, hookpoint: str, chosen: dict[str, Any]) -> str:
    low, high, distinct = min(chosen["per_step"]), max(chosen["per_step"]), chosen["distinct"]
    shown = ", ".join(map(str, distinct[:12])) + (" …" if len(distinct) > 12 else "")
    return f"features   {concept} at {hookpoint}: {low if low == high else f'{low}–{high}'} a step, {len(distinct)} in all: {shown}"
