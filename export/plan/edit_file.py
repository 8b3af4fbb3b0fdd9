"""Exports an edit that lies in a file: opened, compared with its SAEs, refused where it can't be proven; nothing is written here."""

from __future__ import annotations

from typing import Any

from ...editor.common.errors import SaeuronError
from ...editor.common.files import read_json
from ...editor.denoisers.families import family_of
from ...editor.denoisers.pipelines import check_prompts, open_folder, scheduler_in
from ...editor.denoisers.schedulers import check_loop, check_reach, timesteps
from ...editor.edit.bake import check_gate
from ...editor.edit.edit import Edit
from ...editor.edit.edit_header import EditHeader
from ...editor.edit.provenance import SaeUsed, SamplingUsed, Setting
from ...editor.sae.sae import SparseAutoencoder
from .concepts import prompts_by_use
from .open import Prepared, in_turns, open_saes, safety_checker
from .resolve import public_name
from .settings import Plan

# A short proof looks at this many forwards of the hook's own trajectory (validation/proof/reference.py).
_SHORT = 2


def prepare_edit(plan: Plan) -> Prepared:
    """Open the edit file and all that it needs.

    Raises:
        SaeuronError: anything missing, damaged or inconsistent; an edit that strengthens features, unless that is allowed.
    """
    s = plan.settings
    assert plan.edit is not None and s.edit is not None
    folder = open_folder(plan.model, None, s.variant, (s.height, s.width))
    scheduler = scheduler_in(folder)
    check_loop(scheduler, plan.steps)
    check_prompts(folder, prompts_by_use(plan))
    saes = open_saes(folder, plan.saes)
    edit, where = Edit.load(s.edit), str(s.edit)
    for hookpoint, sae in saes.items():
        _check_sae(edit, plan.edit, hookpoint, sae, where)
        _check_tables(edit, hookpoint, where, s.allow_amplify)
        if s.gate == "threshold" and sae.config.activation == "topk" and bool((edit.hookpoints[hookpoint].gate_thresholds <= 0).any()):
            raise SaeuronError(
                f"--gate threshold: '{where}' has no calibrated thresholds at '{hookpoint}' (edits by hand have none), so without the top-k test it would act on every positive latent; use --gate exact"
            )
    check_gate(s.gate, edit)
    known = edit.provenance
    measured = bool(known.activations)
    for hookpoint, part in edit.hookpoints.items():
        # An edit by hand may act at every timestep, whatever its units, or at a few of them.
        if measured or bool((part.thresholds != part.thresholds[:1]).any()):
            check_reach(scheduler, plan.steps, part.timesteps, f"those of '{where}' at '{hookpoint}'", ends=measured)
    if s.validate and s.proof == "short":
        _check_short(edit, timesteps(scheduler, plan.steps)[:_SHORT], where)
    has_checker, warnings = safety_checker(folder, s.formats)
    known.concepts = _settings(edit, s.gate != "threshold")
    known.saes = {h: SaeUsed.of(sae, public_name(plan.saes[h])) for h, sae in saes.items()}
    known.prompts = prompts = list(s.proof_prompts) or in_turns(list(plan.prompts.values()))
    known.sampling = SamplingUsed(plan.steps, plan.guidance)
    if any(c.status != "tuned" for c in known.concepts):
        names = ", ".join(dict.fromkeys(c.name for c in known.concepts if c.status != "tuned"))
        warnings.append(f"the edit comes from a file; what it does to pictures was not measured for {names}")
    if plan.residual == "upstream":
        warnings.append("residual 'upstream' reproduces the released hook, which also changes pictures without the concept")
    return Prepared(plan, folder, family_of(read_json(folder / "model_index.json")), has_checker, edit, saes, prompts, warnings)


def _check_sae(edit: Edit, header: EditHeader, hookpoint: str, sae: SparseAutoencoder, where: str) -> None:
    latents, recorded = edit.hookpoints[hookpoint].latents, header.provenance.saes.get(hookpoint)
    if latents != sae.config.num_latents:
        raise SaeuronError(f"'{where}' was made for an SAE of {latents} latents, but the SAE at '{hookpoint}' has {sae.config.num_latents}")
    if recorded and recorded.sha256 != sae.sha256():
        raise SaeuronError(
            f"'{where}' was made with another SAE than the one at '{hookpoint}' (hashes differ), so its features mean other things; name the SAE it belongs to"
        )


def _check_tables(edit: Edit, hookpoint: str, where: str, allow_amplify: bool) -> None:
    part = edit.hookpoints[hookpoint]
    acting = part.thresholds.isfinite()
    strengthened = part.features[((part.gains > 1) & acting).any(0)].tolist()
    if strengthened and not allow_amplify:
        raise SaeuronError(
            f"'{where}' strengthens features {', '.join(map(str, strengthened[:6]))} at '{hookpoint}'; export it with --allow-amplify if you mean it"
        )
    # What belongs to no concept would not have to show itself in the proof.
    owned = {(row, f) for rows in part.chosen.values() for row, features in enumerate(rows) for f in features}
    held = {(row, int(part.features[column])) for row, column in acting.nonzero().tolist()}
    if owned != held:
        raise SaeuronError(
            f"'{where}' doesn't say which concept each feature at '{hookpoint}' belongs to, so it can't be proven; make it again"
        )


def _check_short(edit: Edit, timesteps: Any, where: str) -> None:
    for concept in edit.concepts:
        rows = ((p, p.rows(timesteps.float()).tolist()) for p in edit.hookpoints.values() if concept in p.chosen)
        if not any(part.chosen[concept][row] for part, found in rows for row in found):
            raise SaeuronError(
                f"--proof short looks at timesteps {', '.join(str(int(t)) for t in timesteps)} only, where '{where}' does nothing to '{concept}'; use --proof full"
            )


def _settings(edit: Edit, measured: bool) -> list[Setting]:
    """Settings of each concept: as recorded, or that there is no record. With `measured` false, what was tuned is no longer said to be."""
    held = edit.provenance.concepts
    pairs = {(concept, hookpoint) for hookpoint, part in edit.hookpoints.items() for concept in part.chosen}
    if {(c.name, c.hookpoint) for c in held} != pairs:
        return [
            Setting(concept, hookpoint, "from an edit file", None, "untuned")
            for hookpoint, p in edit.hookpoints.items()
            for concept in p.chosen
        ]
    # Only the settings as they were, whole, were measured.
    lost = () if measured else ("tuned",)
    return [Setting(c.name, c.hookpoint, c.select, c.multiplier, "untuned" if c.status in lost else c.status) for c in held]
