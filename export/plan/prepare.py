"""Opens what a plan names and makes the Edit; nothing is written here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ...editor.common.errors import SaeuronError
from ...editor.common.files import read_json
from ...editor.common.suggest import unknown
from ...editor.demo import path_of
from ...editor.denoisers.denoiser import Denoiser
from ...editor.denoisers.families import family_of, network_of, sizes_in, telling_in
from ...editor.denoisers.pipelines import check_folder, check_prompts, load_pipeline, locate, open_folder, scheduler_in
from ...editor.denoisers.sampling_settings import Sampling
from ...editor.denoisers.schedulers import check_loop, check_reach
from ...editor.edit.bake import check_gate, refuse_edited
from ...editor.edit.edit import Edit, Suppression, make_edit
from ...editor.edit.how import check_gain_by_token
from ...editor.edit.probe import ConceptRows
from ...editor.edit.provenance import ActivationsUsed, Provenance, SaeUsed, SamplingUsed, Setting
from ...editor.edit.weights import WeightEdit
from ...editor.features.activations import ConceptActivations, ddim_timesteps
from ...editor.features.cache import model_sha256
from ...editor.features.collecting import cached_file, ensure
from ...editor.sae.sae import SparseAutoencoder
from ...validation.artifact.manifest import SamplingRecord
from ..formats import tensorrt
from .becomes import paired, solve
from .concepts import prompts_by_use
from .edit_file import check_short
from .open import Prepared, in_turns, open_saes, safety_checker
from .progress import Remaining
from .resolve import public_name
from .rows import check_rows_model, open_rows, unserved, with_source
from .settings import Collecting, Plan, Wish


@dataclass
class Sources:
    """What a plan names, opened: enough to choose features, before anything is chosen."""

    plan: Plan
    """with a file for every wish's activations"""
    model_folder: Path
    saes: dict[str, SparseAutoencoder]
    wishes: list[Wish]
    """those of the plan whose concept is in their activations, or in a file of rows"""
    activations: dict[tuple[str, str], ConceptActivations]
    """(hookpoint, file) → activations"""
    rows: dict[tuple[str, str], ConceptRows]
    """(concept, hookpoint) → rows that were there"""

    @property
    def by_place(self) -> dict[tuple[str, str], ConceptActivations]:
        """(Concept, hookpoint) → the activations that it is chosen by; what has its rows has none."""
        return {(w.concept, w.hookpoint): self.of(w) for w in self.wishes if not w.rows}

    def of(self, wish: Wish) -> ConceptActivations:
        """The activations that a wish is chosen by."""
        held = self.activations[wish.hookpoint, wish.activations]
        return held.pair(wish.concept, wish.beside) if wish.beside else held


def open_sources(
    plan: Plan, progress: Callable[[str], None] = lambda text: None, size: tuple[int | None, int | None] | None = None
) -> Sources:
    """Open SAEs and activations, collecting those that no file is named for.

    Args:
        plan: what is asked for.
        progress: told what is done.
        size: see `pipelines.open_folder`.

    Raises:
        SaeuronError: anything missing, damaged or inconsistent.
    """
    folder = open_model(plan, size)
    plan = paired(plan, folder)
    family, scheduler = family_of(read_json(folder / "model_index.json")), scheduler_in(folder)
    saes = saes_of(plan, folder)
    for line in unserved(plan):
        progress(line)
    told = telling_in(folder, scheduler, plan.settings.height, plan.settings.width)
    rows = open_rows(plan.wishes, {h: sae.config.d_in for h, sae in saes.items()})
    for (concept, hookpoint), known in rows.items():
        check_reach(scheduler, plan.steps, known.timesteps, f"those of the directions of '{concept}' at '{hookpoint}'", True, told)
    plan = _with_activations(plan, folder, saes, progress)
    wishes, activations = _open_activations(plan, saes, lambda steps: ddim_timesteps(family.calibrating(scheduler).config, steps))
    for (hookpoint, _), held in activations.items():
        check_reach(scheduler, plan.steps, held.timesteps, f"those of the activations at '{hookpoint}'", True, told)
    return Sources(plan, folder, saes, wishes, activations, rows)


def saes_of(plan: Plan, folder: Path) -> dict[str, SparseAutoencoder]:
    """The plan's SAEs by hookpoint, opened; raises `SaeuronError` as `open_saes`, and for one by which a wish can't be done."""
    saes = open_saes(folder, plan.saes)
    for wish in plan.wishes:
        check_gain_by_token(wish.how, plan.settings.gate, wish.hookpoint, saes[wish.hookpoint].config.k)
    return saes


def open_model(plan: Plan, size: tuple[int | None, int | None] | None = None) -> Path:
    """The model's folder, once its parts fit together and its schedulers can take the steps that are asked for.

    Raises:
        SaeuronError: see `pipelines.open_folder`, `schedulers.check_loop` and `pipelines.check_prompts`; rows of another model.
    """
    folder = open_folder(plan.model, None, plan.settings.variant, size)
    family, scheduler = family_of(read_json(folder / "model_index.json")), scheduler_in(folder)
    _check_interventions(plan, family.denoiser)
    told = telling_in(folder, scheduler, plan.settings.height, plan.settings.width)
    check_loop(scheduler, plan.steps, told)
    for collecting, _ in _domains(plan):
        check_loop(family.calibrating(scheduler), collecting.steps, told)
    check_prompts(folder, prompts_by_use(plan))
    check_rows_model(plan, folder)
    return folder


def _check_interventions(plan: Plan, denoiser: Denoiser) -> None:
    """Raise `SaeuronError` for what a network of this kind has nothing for."""
    if plan.weights and not denoiser.cross_attends:
        raise SaeuronError(
            f"concept '{plan.weights[0].concept}': intervention weights edits cross-attention that reads a text encoder's states as they are, and a {denoiser.noun} of this kind has none; take another --intervention, e.g. probe"
        )
    for wish in plan.wishes:
        if wish.how.replace_by and not denoiser.mapped:
            raise SaeuronError(
                f"concept '{wish.concept}': tokens of a {denoiser.noun} have no places in a map, so none can be replaced by another; take another --intervention"
            )


def check_engine_shapes(plan: Plan) -> None:
    """Raise `SaeuronError` for engines of sizes that the model can't take; its configs are read, nothing else."""
    wanted, s = plan.settings.engines, plan.settings
    if wanted:
        folder = locate(plan.model)
        check_folder(folder, s.variant)
        tensorrt.check_shapes(
            folder, SamplingRecord(steps=plan.steps, guidance=plan.guidance, height=s.height, width=s.width), wanted.shapes
        )


def prepare(plan: Plan, progress: Callable[[str], None] = lambda text: None, sources: Sources | None = None) -> Prepared:
    """Open model configs, SAEs and activations, unless they are open, and choose the features.

    Raises:
        SaeuronError: anything missing, damaged or inconsistent.
    """
    if plan.edit is not None:
        from .edit_file import prepare_edit

        return prepare_edit(plan)
    sources = sources or open_sources(plan, progress, (plan.settings.height, plan.settings.width))
    plan, folder, saes, wishes, activations = sources.plan, sources.model_folder, sources.saes, sources.wishes, sources.activations
    has_checker, warnings = safety_checker(folder, plan.settings.formats)
    suppressions = [Suppression(w.concept, w.hookpoint, w.rule, w.multiplier, w.intervention, w.how, w.start) for w in wishes]
    edit = make_edit(
        suppressions,
        sources.by_place,
        plan.residual,
        plan.settings.allow_amplify,
        weights=_weights(plan, folder, progress),
        given=sources.rows,
    )
    check_gate(plan.settings.gate, edit)
    if plan.settings.validate and plan.settings.proof != "full":
        check_short(
            edit,
            (scheduler := scheduler_in(folder)),
            plan.steps,
            "this edit",
            telling_in(folder, scheduler, plan.settings.height, plan.settings.width),
            plan.settings.proof,
        )
    saes = edit.saes(saes)
    prompts = _prompts(plan, wishes, activations)
    # Enough to export the file again (--edit).
    edit.provenance = Provenance(
        concepts=_settings(sources, edit),
        saes={h: SaeUsed.of(sae, public_name(plan.saes[h])) for h, sae in saes.items()},
        activations=[
            ActivationsUsed(h, a.concepts, a.provenance.get("file"), a.provenance.get("file_sha256")) for (h, _), a in activations.items()
        ],
        prompts=prompts, sampling=SamplingUsed(plan.steps, plan.guidance),
    )  # fmt: skip
    if any(w.intervention == "probe" for w in wishes):  # so that its rows can serve elsewhere (key directions)
        edit.provenance.model_sha256 = model_sha256(folder, variant=plan.settings.variant)
    warnings += unserved(plan)
    status = [(w.concept, w.status) for w in wishes] + [(w.concept, w.status) for w in plan.weights]
    if names := ", ".join(dict.fromkeys(name for name, said in status if said == "untuned")):
        warnings.append(f"untuned settings for {names}: no measurement that can be believed shows that they remove it")
    if plan.residual == "upstream":
        warnings.append("residual 'upstream' reproduces the released hook, which also changes pictures without the concept")
    return Prepared(plan, folder, family_of(read_json(folder / "model_index.json")), has_checker, edit, saes, prompts, warnings)


def _settings(sources: Sources, edit: Edit) -> list[Setting]:
    """What is on record of each concept, part by part."""
    plan, becomes = sources.plan, edit.weights.becomes if edit.weights else {}
    at_blocks = [with_source(w.setting, w, sources.rows) for w in sources.wishes]
    found = [*(w.setting(becomes[w.concept]) for w in plan.weights), *at_blocks]
    order = list(dict.fromkeys(plan.settings.concepts))
    return sorted(found, key=lambda setting: order.index(setting.name))


def _weights(plan: Plan, folder: Path, progress: Callable[[str], None]) -> WeightEdit | None:
    if not plan.weights:
        return None
    progress("solving for the weights that read text")
    return solve(plan.weights, folder, plan.settings.variant, plan.settings.device)


def uncollected(plan: Plan, folder: Path, saes: Mapping[str, SparseAutoencoder]) -> list[tuple[Collecting, list[str]]]:
    """Domains whose activations would have to be collected first, with their hookpoints."""
    plan = paired(plan, folder)
    model = model_sha256(folder, variant=plan.settings.variant) if any(w.collecting for w in plan.wishes) else ""
    return [
        (c, missing)
        for c, hookpoints in _domains(plan)
        if (
            missing := [
                h for h in hookpoints if not cached_file(model, h, saes[h], c.prompts, _sampling(c, folder, plan), c.within).is_file()
            ]
        )
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


def _sampling(c: Collecting, folder: Path, plan: Plan) -> Sampling:
    # A model without a size of its own is collected at the artifact's.
    height, width = (None, None) if sizes_in(folder).own else (plan.settings.height, plan.settings.width)
    return Sampling(steps=c.steps, guidance=c.guidance, height=height, width=width)


def _with_activations(plan: Plan, folder: Path, saes: Mapping[str, SparseAutoencoder], progress: Callable[[str], None]) -> Plan:
    """The plan with files for the wishes that name none: from the cache, or collected now."""
    domains = _domains(plan)
    if not domains:
        return plan
    variant, device = plan.settings.variant, plan.settings.device
    model = model_sha256(folder, variant=variant)
    opened: list[Any] = []

    def pipeline() -> Any:
        if not opened:
            progress(f"loading {plan.model} to collect concept activations")
            opened.append(load_pipeline(plan.model, torch.float32, device, variant=variant))
            refuse_edited(network_of(opened[0]))
        return opened[0]

    wishes = list(plan.wishes)
    for collecting, hookpoints in domains:
        clock = Remaining()

        def say(done: int, total: int, concept: str, domain: str = collecting.domain, clock: Remaining = clock) -> None:
            progress(
                f"collecting activations of {domain}: {done} of {total} prompts{clock.text(done, total)}{f', {concept}' if concept else ''}"
            )

        files = ensure(
            pipeline,
            model,
            {h: saes[h] for h in hookpoints},
            collecting.prompts,
            _sampling(collecting, folder, plan),
            collecting.domain,
            collecting.within,
            say,
        )
        wishes = [replace(w, activations=str(files[w.hookpoint])) if w.collecting == collecting else w for w in wishes]
    for sae in saes.values():
        sae.to("cpu")
    return replace(plan, wishes=tuple(wishes))


def _open_activations(
    plan: Plan, saes: dict[str, SparseAutoencoder], ddim: Callable[[int], torch.Tensor]
) -> tuple[list[Wish], dict[tuple[str, str], ConceptActivations]]:
    opened: dict[tuple[str, str], ConceptActivations] = {}
    kept: list[Wish] = []
    for wish in plan.wishes:
        if wish.rows:
            kept.append(wish)
            continue
        key = wish.hookpoint, wish.activations
        if key not in opened:
            opened[key] = ConceptActivations.load(path_of(wish.activations), ddim)
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
    used = {(w.hookpoint, w.activations) for w in kept if not w.rows}
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
    lists = [list(plan.prompts[w.concept]) for w in plan.weights]
    for wish in wishes:
        collected = {} if wish.rows else activations[wish.hookpoint, wish.activations].provenance.get("prompts", {})
        lists.append(list(plan.prompts.get(wish.concept, ())) or list(collected.get(wish.concept, ())) or [f"An image of {wish.concept}."])
    return in_turns(lists)
