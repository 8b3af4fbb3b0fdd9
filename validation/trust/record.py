"""Checks that an artifact holds the edit on record: all its parts are compared with one another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ...editor.denoisers.families import family_in
from ...editor.edit.edit import Edit
from ..artifact import graphs, weights
from ..artifact.golden import Golden
from ..artifact.manifest import Manifest
from . import quantisation, shipped_class, tables
from .agreement import check_said
from .configs import compare_configs, compare_copies


def check_record(root: Path, record: Manifest, golden: Golden) -> list[str]:
    """Compare manifest, edit file, checkpoint tensors, ONNX initializers and golden vectors with one another.

    Args:
        root: artifact folder.
        record: its manifest.
        golden: the reference of the proof.

    Returns:
        one line a disagreement; empty if all agree.
    """
    edit, held = Edit.load(root / "edit" / "edit.safetensors"), tables.read_edit(root / "edit" / "edit.safetensors")
    found = []
    if edit.sha256() != record.edit.sha256:
        found.append("edit/edit.safetensors is not the edit on record (hashes differ)")
    found += [
        f"the directions of '{hookpoint}' in the edit are not those on record (hashes differ)"
        for hookpoint, sae in edit.directions.items()
        if hookpoint not in record.saes or sae.sha256() != record.saes[hookpoint].sha256
    ]
    found += check_said(root, record, golden)
    found += _check_concepts(edit, golden)
    family = family_in(root)
    found += compare_copies(root, family, "onnx" in record.formats)
    found += compare_configs(root, golden.notes.configs)
    needed = {*family.networks, "edit"}
    if set(golden.weights) != needed or not all(golden.weights[name] for name in needed if name != "edit" or edit.hookpoints):
        found.append(f"the golden vectors hold no digests of the original's weights for {sorted(needed - set(golden.weights))}")
    if "checkpoint" in record.formats:
        found += tables.in_checkpoint(tables.edit_tensors(root / family.denoiser.component), held, record.gate, record.precision)
        found += weights.in_checkpoint(root, golden.weights)
        found += shipped_class.check(root) if edit.hookpoints else shipped_class.check_stock(root, family)
    if "onnx" in record.formats:
        found += tables.in_graph(root / family.denoiser.component, held, record.gate, record.precision, record.onnx.seams)
        layers = record.quantised.layers.values() if record.quantised else ()
        own = golden.weights.get(family.denoiser.component, {})
        found += [
            f"onnx: '{layer.weight}' is on record as quantised from another weight than the original's"
            for layer in layers
            if layer.weight not in own or own[layer.weight].unordered != layer.digest
        ]
        found += quantisation.check(root / family.denoiser.component / "model.onnx", record)
        found += weights.in_graphs(root, golden.weights, family, {layer.digest for layer in layers})
        found += graphs.check(root, family, record.precision)
    return found


def _check_concepts(edit: Edit, golden: Golden) -> list[str]:
    """Every concept must have fired somewhere in the golden forwards, with a feature that changes something."""
    silent = []
    if any(set(case.fires) != set(edit.hookpoints) for case in golden.cases):
        return ["the golden vectors are of an edit at other hookpoints"]
    for concept in edit.concepts:
        fired = False
        for hookpoint, part in edit.hookpoints.items():
            rows = part.chosen.get(concept, [])
            for case in golden.cases:
                # Features that another concept alone has at this timestep are not this one's.
                row = int(part.rows(torch.tensor([case.timestep])))
                own = np.isin(part.features.numpy(), rows[row] if rows else [])
                own &= (part.gains[row] != 1).numpy() | (part.offsets[row] != 0).numpy() | (part.how.gain == "token")
                own &= case.seams[hookpoint].rows.any(1)
                fired |= bool(case.fires[hookpoint][..., own].any() or case.seams[hookpoint].fires[..., own].any())
        if not fired and any(concept in part.chosen for part in edit.hookpoints.values()):
            silent.append(
                f"concept '{concept}' never fired in the proof, or changed nothing, so its removal was not shown; give prompts that show it (--proof-prompt)"
            )
    return silent
