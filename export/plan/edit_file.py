"""Exports an edit that lies in a file: opened, compared with its SAEs, refused where it can't be proven; nothing is written here."""

from __future__ import annotations

from typing import Any

import torch
from msgspec.structs import replace

from ...editor.common.errors import SaeuronError
from ...editor.common.files import read_json
from ...editor.denoisers.families import family_of, telling_in
from ...editor.denoisers.pipelines import check_prompts, open_folder, scheduler_in
from ...editor.denoisers.schedulers import Told, check_loop, check_reach, timesteps
from ...editor.edit.bake import check_gate
from ...editor.edit.edit import Edit
from ...editor.edit.edit_header import EditHeader
from ...editor.edit.provenance import SaeUsed, SamplingUsed, Setting
from ...editor.sae.sae import SparseAutoencoder, check_width
from .concepts import prompts_by_use
from .open import Prepared, in_turns, open_saes, safety_checker
from .resolve import public_name
from .settings import Plan

# A short proof looks at this many forwards of the hook's own trajectory (validation/proof/reference.py).
_SEEN = {"short": 2, "seam": 1}


def prepare_edit(plan: Plan) -> Prepared:
    """Open the edit file and all that it needs.

    Raises:
        SaeuronError: anything missing, damaged or inconsistent; an edit that strengthens features, unless that is allowed.
    """
    s = plan.settings
    assert plan.edit is not None and s.edit is not None
    folder = open_folder(plan.model, None, s.variant, (s.height, s.width))
    scheduler = scheduler_in(folder)
    told = telling_in(folder, scheduler, s.height, s.width)
    check_loop(scheduler, plan.steps, told)
    check_prompts(folder, prompts_by_use(plan))
    opened = open_saes(folder, plan.saes)
    edit, where = Edit.load(s.edit), str(s.edit)
    saes = edit.saes(opened)
    for hookpoint, sae in saes.items():
        check_width(sae, opened[hookpoint].config.d_in, hookpoint)  # of directions: the block's own width
        _check_sae(edit, plan.edit, hookpoint, sae, where)
        _check_tables(edit, hookpoint, where, s.allow_amplify)
        if s.gate == "threshold" and sae.config.activation == "topk" and bool((edit.hookpoints[hookpoint].gate_thresholds <= 0).any()):
            raise SaeuronError(
                f"--gate threshold: '{where}' has no calibrated thresholds at '{hookpoint}' (edits by hand have none), so without the top-k test it would act on every positive latent; use --gate exact"
            )
    check_gate(s.gate, edit)
    known = edit.provenance
    measured = bool(known.activations) or any(said.rows for said in known.concepts)
    for hookpoint, part in edit.hookpoints.items():
        # An edit by hand may act at every timestep, whatever its units, or at a few of them.
        if measured or bool((part.thresholds != part.thresholds[:1]).any()):
            check_reach(scheduler, plan.steps, part.timesteps, f"those of '{where}' at '{hookpoint}'", measured, told)
    if s.validate and s.proof != "full":
        check_short(edit, scheduler, plan.steps, f"'{where}'", told, s.proof)
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
    most = 0 if part.how.gain == "token" else 1  # what a token's latents multiply may become anything
    strengthened = part.features[((part.gains > most) & acting).any(0)].tolist()
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


def check_short(edit: Edit, scheduler: Any, steps: int, where: str, told: Told, scope: str) -> None:
    """Raise `SaeuronError` for an edit that a proof which is not full would not see: one that acts later than its forwards."""
    if not edit.hookpoints and scope == "seam":
        raise SaeuronError(f"--proof seam: {where} is in the weights alone, so there is no seam to look at; use --proof short or full")
    seen = timesteps(scheduler, steps, told)[: _SEEN[scope]]
    for concept in edit.concepts:
        rows = [(p, p.rows(seen.float()).tolist()) for p in edit.hookpoints.values() if concept in p.chosen]
        # Changed weights act throughout; what is edited beside them has to be seen all the same.
        if rows and not any(part.chosen[concept][row] for part, found in rows for row in found):
            raise SaeuronError(
                f"--proof {scope} looks at timesteps {', '.join(f'{float(t):g}' for t in seen)} only, where {where} does nothing to '{concept}'; use --proof full"
            )


def _intervention(edit: Edit, hookpoint: str) -> str:
    """That tables of an edit stand for, as far as they say it: `project` reads and writes along the same."""
    if (sae := edit.directions.get(hookpoint)) is not None:
        return "project" if torch.equal(sae.W_enc, sae.W_dec) else "probe"
    return "replace" if edit.hookpoints[hookpoint].how.replace_by else "multiply"


def _settings(edit: Edit, measured: bool) -> list[Setting]:
    """Settings of each concept: as recorded, or that there is no record. With `measured` false, what was tuned is no longer said to be."""
    held = edit.provenance.concepts
    becomes = edit.weights.becomes if edit.weights else {}
    pairs = {(concept, hookpoint) for hookpoint, part in edit.hookpoints.items() for concept in part.chosen} | {(c, "") for c in becomes}
    if {(c.name, c.hookpoint) for c in held} != pairs:
        return [
            Setting(concept, hookpoint, "from an edit file", None, "untuned", _intervention(edit, hookpoint), how=p.how)
            for hookpoint, p in edit.hookpoints.items()
            for concept in p.chosen
        ] + [Setting(concept, "", "", None, "untuned", "weights", said) for concept, said in becomes.items()]
    # Only the settings as they were, whole, were measured.
    lost = () if measured else ("tuned",)
    return [replace(c, status="untuned") if c.status in lost else c for c in held]
