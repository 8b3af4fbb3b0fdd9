"""Opens what a plan names and makes the Edit; nothing is written here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..editor.activations import ConceptActivations, ddim_timesteps
from ..editor.bake import check_gate, refuse_edited
from ..editor.cache import model_sha256
from ..editor.collect import Sampling
from ..editor.collecting import cached_file, ensure
from ..editor.conditions import conditions_of, unet_arguments
from ..editor.edit import Edit, Suppression, make_edit
from ..editor.errors import SaeuronError
from ..editor.families import Family, family_of
from ..editor.files import read_header, read_json
from ..editor.hookpoints import find_hookpoint, output_tensor
from ..editor.pipelines import check_folder, load_pipeline, locate
from ..editor.sae import SparseAutoencoder
from ..editor.sae_formats import check_width
from ..editor.suggest import unknown
from . import tensorrt
from .progress import Remaining
from .settings import Collecting, Plan, Wish, path_of, public_name

_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
_WIDTHS = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8}


@dataclass
class Prepared:
    """A plan with its files opened."""

    plan: Plan
    model_folder: Path
    family: Family
    has_checker: bool
    """whether the base model has a safety checker"""
    edit: Edit
    saes: dict[str, SparseAutoencoder]
    prompts: list[str]
    """prompts that show the concepts, one of each first"""
    sources: dict[str, Any] = field(default_factory=dict)
    """provenance of SAEs and activations"""
    warnings: list[str] = field(default_factory=list)


@dataclass
class Sources:
    """What a plan names, opened: enough to choose features, before anything is chosen."""

    plan: Plan
    """with a file for every wish's activations"""
    model_folder: Path
    saes: dict[str, SparseAutoencoder]
    wishes: list[Wish]
    """those of the plan whose concept is in their activations"""
    activations: dict[tuple[str, str], ConceptActivations]
    """(hookpoint, file) → activations"""

    def of(self, wish: Wish) -> ConceptActivations:
        """The activations that a wish is chosen by."""
        return self.activations[wish.hookpoint, wish.activations]


def open_sources(plan: Plan, progress: Callable[[str], None] = lambda text: None) -> Sources:
    """Open SAEs and activations, collecting those that no file is named for.

    Raises:
        SaeuronError: anything missing, damaged or inconsistent.
    """
    folder = locate(plan.model)
    check_folder(folder)
    saes = open_saes(folder, plan.saes)
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    plan = _with_activations(plan, folder, saes, progress)
    wishes, activations = _open_activations(plan, saes, scheduler)
    return Sources(plan, folder, saes, wishes, activations)


def check_engine_shapes(plan: Plan) -> None:
    """Raise `SaeuronError` for engines of sizes that the model can't take; its configs are read, nothing else."""
    wanted, s = plan.settings.engines, plan.settings
    if wanted:
        folder = locate(plan.model)
        check_folder(folder)
        tensorrt.check_shapes(folder, {"guidance": plan.guidance, "height": s.height, "width": s.width}, wanted.shapes)


def prepare(plan: Plan, progress: Callable[[str], None] = lambda text: None) -> Prepared:
    """Open model configs, SAEs and activations, and choose the features.

    Raises:
        SaeuronError: anything missing, damaged or inconsistent.
    """
    if plan.edit is not None:
        from .edit_file import prepare_edit

        return prepare_edit(plan)
    sources = open_sources(plan, progress)
    plan, folder, saes, wishes, activations = sources.plan, sources.model_folder, sources.saes, sources.wishes, sources.activations
    has_checker, warnings = safety_checker(folder, plan.settings.formats)
    suppressions = [Suppression(w.concept, w.hookpoint, w.rule, w.multiplier) for w in wishes]
    edit = make_edit(
        suppressions,
        {(w.concept, w.hookpoint): activations[w.hookpoint, w.activations] for w in wishes},
        plan.residual,
        plan.settings.allow_amplify,
    )
    check_gate(plan.settings.gate, edit)
    edit.provenance = {
        "concepts": [{"name": w.concept, "hookpoint": w.hookpoint, "select": str(w.rule), "multiplier": w.multiplier, "status": w.status} for w in wishes],
        "saes": {h: {"source": public_name(plan.saes[h]), "sha256": s.sha256(), "latents": s.config.num_latents, "k": s.config.k} for h, s in saes.items()},
        "activations": [{"hookpoint": h, "file": a.provenance.get("file"), "sha256": a.provenance.get("file_sha256"), "concepts": a.concepts} for (h, _), a in activations.items()],
    }  # fmt: skip
    if any(w.status == "untuned" for w in wishes):
        names = ", ".join(dict.fromkeys(w.concept for w in wishes if w.status == "untuned"))
        warnings.append(f"untuned settings for {names}: how well they remove the concept was not measured")
    if plan.residual == "upstream":
        warnings.append("residual 'upstream' reproduces the released hook, which also changes pictures without the concept")
    prompts = _prompts(plan, wishes, activations)
    # So that the edit's file is enough to export it again (--edit).
    edit.provenance |= {"prompts": prompts, "sampling": {"steps": plan.steps, "guidance": plan.guidance}}
    return Prepared(plan, folder, family_of(check_folder(folder)), has_checker, edit, saes, prompts, edit.provenance, warnings)


def uncollected(plan: Plan, folder: Path, saes: Mapping[str, SparseAutoencoder]) -> list[tuple[Collecting, list[str]]]:
    """Domains whose activations would have to be collected first, with their hookpoints."""
    model = model_sha256(folder) if any(w.collecting for w in plan.wishes) else ""
    return [
        (c, missing)
        for c, hookpoints in _domains(plan)
        if (missing := [h for h in hookpoints if not cached_file(model, h, saes[h], c.prompts, _sampling(c)).is_file()])
    ]


def _domains(plan: Plan) -> list[tuple[Collecting, list[str]]]:
    found: list[tuple[Collecting, list[str]]] = []
    for wish in plan.wishes:
        if wish.collecting is None:
            continue
        known = next((hookpoints for c, hookpoints in found if c == wish.collecting), None)
        if known is None:
            found.append((wish.collecting, [wish.hookpoint]))
        elif wish.hookpoint not in known:
            known.append(wish.hookpoint)
    return found


def _sampling(c: Collecting) -> Sampling:
    return Sampling(steps=c.steps, guidance=c.guidance)


def _with_activations(plan: Plan, folder: Path, saes: Mapping[str, SparseAutoencoder], progress: Callable[[str], None]) -> Plan:
    """The plan with files for the wishes that name none: from the cache, or collected now."""
    domains = _domains(plan)
    if not domains:
        return plan
    model, device = model_sha256(folder), plan.settings.device
    opened: list[Any] = []

    def pipeline() -> Any:
        if not opened:
            progress(f"loading {plan.model} to collect concept activations")
            opened.append(load_pipeline(plan.model, torch.float32, device))
            refuse_edited(opened[0].unet)
        return opened[0]

    wishes = list(plan.wishes)
    for collecting, hookpoints in domains:
        clock = Remaining()

        def say(done: int, total: int, concept: str, domain: str = collecting.domain, clock: Remaining = clock) -> None:
            progress(
                f"collecting activations of {domain}: {done} of {total} prompts{clock.text(done, total)}{f', {concept}' if concept else ''}"
            )

        files = ensure(pipeline, model, {h: saes[h] for h in hookpoints}, collecting.prompts, _sampling(collecting), collecting.domain, say)
        wishes = [replace(w, activations=str(files[w.hookpoint])) if w.collecting == collecting else w for w in wishes]
    for sae in saes.values():
        sae.to("cpu")
    return replace(plan, wishes=tuple(wishes))


def safety_checker(folder: Path, formats: tuple[str, ...]) -> tuple[bool, list[str]]:
    """Whether the base model has a safety checker, and what has to be said about the artifact's."""
    has_checker = _has_checker(folder, check_folder(folder))
    return has_checker, _checker_warnings(has_checker, formats)


def _has_checker(folder: Path, index: dict[str, Any]) -> bool:
    entry = index.get("safety_checker")
    named = isinstance(entry, list) and bool(entry[0])
    if named and not (folder / "safety_checker").is_dir():
        raise SaeuronError(f"'{folder}' is incomplete: model_index.json names a safety checker, but its folder is missing")
    return named


def _checker_warnings(has_checker: bool, formats: tuple[str, ...]) -> list[str]:
    if not has_checker:
        return ["the base model has no safety checker, so the artifact has none either"]
    if "checkpoint" not in formats:
        return ["the base model's safety checker is LOST: an artifact without a checkpoint has none; add --format checkpoint to keep it"]
    return []


def open_saes(folder: Path, sources: Mapping[str, str]) -> dict[str, SparseAutoencoder]:
    """Hookpoint → SAE, each checked against the channels of its block.

    Args:
        folder: the pipeline's.
        sources: hookpoint → SAE folder or Hub id.

    Raises:
        SaeuronError: a hookpoint that isn't in the UNet, an SAE that can't be opened or reads another number of channels.
    """
    widths = _channels(folder, list(sources))
    saes = {hookpoint: SparseAutoencoder.load(path_of(source), hookpoint) for hookpoint, source in sources.items()}
    for hookpoint, sae in saes.items():
        check_width(sae, widths[hookpoint], hookpoint)
    return saes


def _channels(folder: Path, hookpoints: list[str]) -> dict[str, int]:
    return {name: shape[0] for name, shape in maps_of(folder, hookpoints).items()}


def maps_of(folder: Path, hookpoints: list[str], height: int | None = None, width: int | None = None) -> dict[str, tuple[int, int, int]]:
    """Channels, rows and columns of each hookpoint's map, from a forward of an empty UNet on torch's meta device (no weights, no memory).

    Args:
        folder: the pipeline's.
        hookpoints: block names.
        height: pixels of the picture; default: the model's own.
        width: pixels.

    Raises:
        SaeuronError: a hookpoint that isn't there, never runs, or gives no feature map.
    """
    from diffusers import UNet2DConditionModel

    config = UNet2DConditionModel.load_config(folder / "unet")
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    found: dict[str, tuple[int, int, int]] = {}
    for name in hookpoints:
        find_hookpoint(unet, name).register_forward_hook(
            lambda m, a, out, name=name: found.__setitem__(name, _map(output_tensor(out), name))
        )
    factor = 2 ** (len(read_json(folder / "vae" / "config.json").get("block_out_channels", [1] * 4)) - 1)
    own = unet.config.sample_size
    rows, columns = (own, own) if isinstance(own, int) else tuple(own)
    rows, columns = (height // factor if height else rows), (width // factor if width else columns)
    context = torch.empty(1, 8, unet.config.cross_attention_dim, device="meta")
    conditions = {name: torch.empty(1, size, device="meta") for name, size in conditions_of(config).items()}
    sample = torch.empty(1, unet.config.in_channels, rows, columns, device="meta")
    unet(sample, torch.empty(1, device="meta"), context, **unet_arguments(conditions))
    for name in hookpoints:
        if name not in found:
            raise SaeuronError(f"hookpoint '{name}' never runs in this UNet's forward")
    return found


def _map(tensor: Any, name: str) -> tuple[int, int, int]:
    if not isinstance(tensor, torch.Tensor) or tensor.ndim != 4:
        raise SaeuronError(f"hookpoint '{name}' does not give a feature map [B, C, H, W]; choose a transformer block (…attentions.N)")
    return int(tensor.shape[1]), int(tensor.shape[2]), int(tensor.shape[3])


def _open_activations(
    plan: Plan, saes: dict[str, SparseAutoencoder], scheduler: dict[str, Any]
) -> tuple[list[Wish], dict[tuple[str, str], ConceptActivations]]:
    opened: dict[tuple[str, str], ConceptActivations] = {}
    kept: list[Wish] = []
    for wish in plan.wishes:
        key = wish.hookpoint, wish.activations
        if key not in opened:
            opened[key] = ConceptActivations.load(path_of(wish.activations), lambda steps: ddim_timesteps(scheduler, steps))
            _check_activations(opened[key], saes[wish.hookpoint], wish.hookpoint)
        if wish.concept in opened[key].concepts:
            if any((w.concept, w.hookpoint) == (wish.concept, wish.hookpoint) for w in kept):
                raise SaeuronError(
                    f"concept '{wish.concept}' is in two activations files at '{wish.hookpoint}'; give the one that it shall be compared in"
                )
            kept.append(wish)
    for name in dict.fromkeys(w.concept for w in plan.wishes):
        if not any(w.concept == name for w in kept):
            everything = list(dict.fromkeys(c for a in opened.values() for c in a.concepts))
            raise SaeuronError(unknown("concept", name, everything, "in the activations"))
    used = {(w.hookpoint, w.activations) for w in kept}
    return kept, {k: a for k, a in opened.items() if k in used}


def _check_activations(activations: ConceptActivations, sae: SparseAutoencoder, hookpoint: str) -> None:
    where = activations.provenance.get("file", "activations")
    if activations.latents != sae.config.num_latents:
        raise SaeuronError(
            f"{where} was collected with an SAE of {activations.latents} latents, but the SAE at '{hookpoint}' has {sae.config.num_latents}"
        )
    recorded = activations.provenance.get("sae_sha256")
    if recorded and recorded != sae.sha256():
        raise SaeuronError(
            f"{where} was collected with another SAE than the one at '{hookpoint}' (hashes differ), so its latents mean other things; collect it again or name the SAE it belongs to"
        )
    at = activations.provenance.get("hookpoint")
    if at and at != hookpoint:
        raise SaeuronError(f"{where} was collected at '{at}', not at '{hookpoint}'")


def _prompts(plan: Plan, wishes: list[Wish], activations: dict[tuple[str, str], ConceptActivations]) -> list[str]:
    """Prompts of the concepts, taking turns, so that the first ones show every concept."""
    if plan.settings.proof_prompts:
        return list(plan.settings.proof_prompts)
    lists = []
    for wish in wishes:
        collected = activations[wish.hookpoint, wish.activations].provenance.get("prompts", {})
        lists.append(list(plan.prompts.get(wish.concept, ())) or list(collected.get(wish.concept, ())) or [f"An image of {wish.concept}."])
    return in_turns(lists)


def in_turns(lists: Sequence[Sequence[str]]) -> list[str]:
    """The first of each list, then the second of each, and so on; each text once."""
    longest = max(len(texts) for texts in lists)
    return list(dict.fromkeys(texts[i] for i in range(longest) for texts in lists if i < len(texts)))


def estimate(prepared: Prepared) -> dict[str, int]:
    """Bytes on disk by part of the artifact, from file headers alone."""
    s = prepared.plan.settings
    numbers = sum(_numbers(prepared.model_folder / name) for name in prepared.family.networks)
    network = (numbers + _edit_numbers(prepared)) * _BYTES[s.precision]
    found = dict.fromkeys(s.formats, network)
    if s.engines:
        found["trt"] = network * len(s.engines.targets)
    if prepared.has_checker and "checkpoint" in s.formats:
        found["safety_checker"] = sum(p.stat().st_size for p in prepared.model_folder.glob("safety_checker/*.safetensors"))
    return found


def graph_bytes(prepared: Prepared) -> dict[str, int]:
    """Bytes of weights in each ONNX graph."""
    folder = prepared.model_folder
    numbers = {
        **{t.name: _numbers(folder / t.name) for t in prepared.family.text_encoders},
        "vae_decoder": _numbers(folder / "vae", ("decoder.", "post_quant_conv.")),
        "vae_encoder": _numbers(folder / "vae", ("encoder.", "quant_conv.")),
        "unet": _numbers(folder / "unet") + _edit_numbers(prepared),
    }
    width = _BYTES[prepared.plan.settings.precision]
    found = {name: number * width for name, number in numbers.items()}
    if (
        prepared.family.upcasts_vae
        and prepared.plan.settings.precision == "fp16"
        and read_json(folder / "vae" / "config.json").get("force_upcast", True)
    ):
        found |= {name: numbers[name] * _BYTES["fp32"] for name in ("vae_decoder", "vae_encoder")}
    return found


def _edit_numbers(prepared: Prepared) -> int:
    """Number of weights that the edit adds to the UNet, its small tables apart."""
    found = 0
    for hookpoint, sae in prepared.saes.items():
        part, gate = prepared.edit.hookpoints[hookpoint], prepared.plan.settings.gate
        n, chosen = sae.config.num_latents, len(part.features)
        rows = chosen if gate == "threshold" else n
        found += sae.config.d_in * (rows + (chosen if prepared.edit.residual == "keep" else n))
    return found


def _numbers(folder: Path, prefixes: tuple[str, ...] = ("",)) -> int:
    """Number of weights in a component's safetensors files (one variant) whose names start so."""
    files = [f for f in sorted(folder.glob("*.safetensors")) if ".fp16" not in f.name and "non_ema" not in f.name] or sorted(
        folder.glob("*.safetensors")
    )
    if not files:
        return sum(p.stat().st_size for p in folder.glob("*.bin")) // 4
    total = 0
    for file in files:
        for name, (dtype, shape) in read_header(file)[1].items():
            if dtype in _WIDTHS and name.startswith(prefixes):
                total += int(torch.Size(shape).numel())
    return total
