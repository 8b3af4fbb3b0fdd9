"""Checks that an artifact holds the edit on record: all its parts are compared with one another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ...editor.common.files import read_json
from ...editor.denoisers.families import family_of
from ...editor.edit.edit import Edit
from ..artifact import graphs, weights
from ..artifact.golden import Golden
from ..artifact.manifest import Manifest
from . import shipped_class, tables
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
    found += check_said(root, record, golden)
    found += _check_concepts(edit, golden)
    family = family_of(read_json(root / "model_index.json"))
    found += compare_copies(root, family, "onnx" in record.formats)
    found += compare_configs(root, golden.notes.configs)
    needed = {*family.networks, "edit"}
    if set(golden.weights) != needed or not all(golden.weights.values()):
        found.append(f"the golden vectors hold no digests of the original's weights for {sorted(needed - set(golden.weights))}")
    if "checkpoint" in record.formats:
        found += tables.in_checkpoint(tables.edit_tensors(root / "unet"), held, record.gate)
        found += weights.in_checkpoint(root, golden.weights)
        found += shipped_class.check(root)
    if "onnx" in record.formats:
        found += tables.in_graph(root / "unet", held, record.gate)
        found += weights.in_graphs(root, golden.weights, family)
        found += graphs.check(root, family, record.precision)
    return found


def _check_concepts(edit: Edit, golden: Golden) -> list[str]:
    """Every concept must have fired somewhere in the golden forwards."""
    silent = []
    if any(set(case.fires) != set(edit.hookpoints) for case in golden.cases):
        return ["the golden vectors are of an edit at other hookpoints"]
    for concept in edit.concepts:
        fired = False
        for hookpoint, part in edit.hookpoints.items():
            rows = part.chosen.get(concept, [])
            for case in golden.cases:
                # Features that another concept alone has at this timestep are not this one's.
                own = np.isin(part.features.numpy(), rows[int(part.rows(torch.tensor([case.timestep])))] if rows else [])
                fired |= bool(case.fires[hookpoint][..., own].any())
        if not fired:
            silent.append(
                f"concept '{concept}' never fired in the proof, so its removal was not shown; give prompts that show it (--proof-prompt)"
            )
    return silent
