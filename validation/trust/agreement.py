"""Checks that manifest, edit, config and golden vectors say the same of an artifact. Needs no torch."""

from __future__ import annotations

from pathlib import Path

from ...editor.common.files import read_json
from ...editor.common.typed import Record, Whole, read_as
from ...editor.edit.edit_header import EditHeader, read_edit_header
from ..artifact.golden import Golden
from ..artifact.manifest import Manifest


class Place(Record):
    """Sizes of the SAE at an edited place."""

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
    if golden and golden.precision != record.precision:
        found.append(f"the golden vectors are {golden.precision}, the artifact is {record.precision}")
    proven = record.validation
    if golden and proven and proven.scope != golden.notes.scope:
        found.append(
            f"the manifest says that a proof of scope '{proven.scope}' was made, the golden vectors are of scope '{golden.notes.scope}'"
        )
    path = root / "unet" / "config.json"
    found += _check_config(read_as(Ablation, read_json(path).get("ablation") or {}, f"{path}, 'ablation'"), record, edit)
    return found + _check_manifest(root, record, edit)


def _check_manifest(root: Path, record: Manifest, edit: EditHeader) -> list[str]:
    """What the manifest tells a reader must be what the edit was made from."""
    said = edit.provenance
    pairs = {
        "settings": (record.settings, said.concepts),
        "saes": (record.saes, said.saes),
        "activations": (record.activations, said.activations),
        "the UNet's hash": (record.model.unet_sha256, said.unet_sha256),
    }
    found = [f"the manifest's {key} are not those on record in the edit" for key, (a, b) in pairs.items() if a != b]
    if record.model.safety_checker != (root / "safety_checker" / "config.json").is_file():
        found.append("the manifest says otherwise than the folder whether there is a safety checker")
    return found


def _check_config(ablation: Ablation, record: Manifest, edit: EditHeader) -> list[str]:
    said = {"residual": (ablation.residual, record.residual, edit.residual), "gate": (ablation.gate, record.gate)}
    found = [f"config, manifest and edit disagree on {key}: {values}" for key, values in said.items() if len(set(values)) != 1]
    if ablation.sha256 != record.edit.tensors_sha256:
        found.append("the UNet's config and the manifest disagree on the hash of the edit's tensors")
    if set(ablation.hookpoints) != set(edit.latents):
        found.append(f"the UNet is edited at {sorted(ablation.hookpoints)}, the edit is for {sorted(edit.latents)}")
    return found
