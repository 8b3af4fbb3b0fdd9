"""Checks that manifest, edit, config and golden vectors say the same of an artifact. Needs no torch."""

from __future__ import annotations

from pathlib import Path

from ...editor.common.files import read_json
from ...editor.common.names import DIRECTIONS
from ...editor.common.typed import Record, Whole, read_as
from ...editor.denoisers.families import family_in
from ...editor.edit.edit_header import EditHeader, read_edit_header
from ...editor.edit.how import TOLD, How
from ..artifact.concepts import NAME as CONCEPTS
from ..artifact.concepts import read_concepts
from ..artifact.golden import Golden
from ..artifact.manifest import Manifest


class Place(How, frozen=True):
    """How an edited place is edited, and sizes of the SAE there."""

    k: Whole | None = None
    latents: Whole | None = None


class Ablation(Record):
    """The edit in the network's config; what is missing disagrees with whatever it is compared with."""

    residual: str | None = None
    gate: str | None = None
    sha256: str | None = None
    hookpoints: dict[str, Place] = {}


def check_said(root: Path, record: Manifest, golden: Golden | None) -> list[str]:
    """Compare what the files say of one another.

    Args:
        root: artifact folder.
        record: its manifest.
        golden: the reference of the proof; None where the artifact was published without.

    Returns:
        one line a disagreement; empty if all agree.
    """
    edit = read_edit_header(root / "edit" / "edit.safetensors")
    found = []
    if edit.concepts != sorted(record.concepts):
        found.append(f"the manifest says concepts {record.concepts}, the edit holds {edit.concepts}")
    held = read_concepts(root)
    if extra := sorted(set(held) - set(edit.concepts)):
        found.append(f"'{CONCEPTS}' has prompts of '{extra[0]}', which the edit doesn't remove")
    becomes = {s.name: s.becomes for s in record.settings if s.intervention == "weights"}
    if record.settings and becomes != (edit.weights.becomes if edit.weights else {}):
        found.append("the settings and the edit disagree on what the concepts' words become")
    if any(s.how != edit.how_at(s.hookpoint) for s in record.settings if s.hookpoint):
        found.append("the settings and the edit disagree on how tokens are edited")
    if {h for h, sae in record.saes.items() if sae.source == DIRECTIONS} != set(edit.directions):
        found.append("the manifest and the edit disagree on where directions stand in the place of an SAE")
    if golden and golden.precision != record.precision:
        found.append(f"the golden vectors are {golden.precision}, the artifact is {record.precision}")
    proven = record.validation
    if golden and proven and proven.scope != golden.notes.scope:
        found.append(
            f"the manifest says that a proof of scope '{proven.scope}' was made, the golden vectors are of scope '{golden.notes.scope}'"
        )
    path = root / family_in(root).denoiser.component / "config.json"
    said = read_json(path).get("ablation")
    if edit.latents:
        found += _check_config(read_as(Ablation, said or {}, f"{path}, 'ablation'"), record, edit)
    elif said is not None or record.edit.tensors_sha256 or record.edit.hookpoints:
        found.append("the edit is in the weights alone, but the network's config or the manifest says that it acts at blocks too")
    return found + _check_weights(root, record, edit, golden) + _check_manifest(root, record, edit)


def _check_weights(root: Path, record: Manifest, edit: EditHeader, golden: Golden | None) -> list[str]:
    """The weights that are said to be changed, against the edit and the digests that the reference gave."""
    said, where = record.edit.weights, "the manifest's list of changed weights"
    if bool(said) != (edit.weights is not None) or (golden and golden.notes.edits_weights != bool(said)):
        return ["manifest, edit and golden vectors disagree on whether weights are edited"]
    found = [f"{where} holds '{name}', whose value stayed" for name, change in said.items() if change.before == change.after]
    if golden:
        denoiser = family_in(root).denoiser
        right = golden.weights.get(denoiser.component, {})
        if said and set(said) != {name for name in right if denoiser.reads_text(name)}:
            found.append(f"{where} doesn't name exactly the weights that read text")
        found += [
            f"{where} gives another digest for '{name}' than the golden vectors"
            for name, change in said.items()
            if name not in right or right[name].exact != change.after
        ]
    return found


def _check_manifest(root: Path, record: Manifest, edit: EditHeader) -> list[str]:
    """What the manifest tells a reader must be what the edit was made from."""
    said = edit.provenance
    pairs = {
        "settings": (record.settings, said.concepts),
        "saes": (record.saes, said.saes),
        "activations": (record.activations, said.activations),
        "the network's hash": (record.model.network_sha256, said.network_sha256),
    }
    found = [f"the manifest's {key} are not those on record in the edit" for key, (a, b) in pairs.items() if a != b]
    if record.model.safety_checker != (root / "safety_checker" / "config.json").is_file():
        found.append("the manifest says otherwise than the folder whether there is a safety checker")
    return found


def _check_config(ablation: Ablation, record: Manifest, edit: EditHeader) -> list[str]:
    said = {"residual": (ablation.residual, record.residual, edit.residual), "gate": (ablation.gate, record.gate)}
    found = [f"config, manifest and edit disagree on {key}: {values}" for key, values in said.items() if len(set(values)) != 1]
    if ablation.sha256 != record.edit.tensors_sha256:
        found.append("the network's config and the manifest disagree on the hash of the edit's tensors")
    how = {h: How(*(getattr(place, key) for key in TOLD)) for h, place in ablation.hookpoints.items()}
    if any(way != edit.how_at(h) for h, way in how.items()):
        found.append("the network's config and the edit disagree on how tokens are edited")
    if set(ablation.hookpoints) != set(edit.latents):
        found.append(f"the UNet is edited at {sorted(ablation.hookpoints)}, the edit is for {sorted(edit.latents)}")
    return found
