"""Does the artifact hold the edit that it says it holds? Tables are compared bit by bit, whatever fired in the proof.

A forward exercises only the features and timesteps that its inputs reach. The tables are small, so they are compared whole.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..editor.edit import Edit, HookpointEdit
from ..editor.families import family_of
from ..editor.files import read_header, read_json, reading
from . import graphs, weights
from .configs import compare_configs, compare_copies
from .golden import Golden
from .said import check_said


def check_record(root: Path, record: dict[str, Any], golden: Golden) -> list[str]:
    """Compare manifest, edit file, checkpoint tensors, ONNX initializers and golden vectors with one another.

    Args:
        root: artifact folder.
        record: its manifest.
        golden: the reference of the proof.

    Returns:
        one line a disagreement; empty if all agree.
    """
    edit = Edit.load(root / "edit" / "edit.safetensors")
    found = []
    if edit.sha256() != record["edit"]["sha256"]:
        found.append("edit/edit.safetensors is not the edit on record (hashes differ)")
    found += check_said(root, record, golden)
    found += _check_concepts(edit, golden)
    family = family_of(read_json(root / "model_index.json"))
    found += compare_copies(root, family, "onnx" in record["formats"])
    found += compare_configs(root, golden.notes.get("configs", {}))
    needed = {*family.networks, "edit"}
    if set(golden.weights) != needed or not all(golden.weights.values()):
        found.append(f"the golden vectors hold no digests of the original's weights for {sorted(needed - set(golden.weights))}")
    if "checkpoint" in record["formats"]:
        found += _check_tables("checkpoint", _checkpoint_tables(root / "unet", edit), edit, record["gate"])
        found += weights.in_checkpoint(root, golden.weights)
        found += _check_class(root)
    if "onnx" in record["formats"]:
        found += _check_onnx(root / "unet" / "model.onnx", edit, record["gate"])
        found += weights.in_graphs(root, golden.weights, family)
        found += graphs.check(root, family, record["precision"])
    return found


def _check_class(root: Path) -> list[str]:
    """The code file that plain diffusers will run must be the class that the proof ran, and the one that the index names."""
    from ..editor import ablated_unet

    own = Path(ablated_unet.__file__)
    name = ablated_unet.AblatedUNet2DConditionModel.__module__
    there = sorted(p.name for p in (root / "unet").glob("*.py"))
    if there != [f"{name}.py"]:
        return [
            f"unet/ holds {', '.join(there) or 'no .py file'}; this version of saeuron proves {name}.py (validate with the version that made the artifact)"
        ]
    found = []
    if (root / "unet" / there[0]).read_bytes() != own.read_bytes():
        found.append(f"unet/{there[0]} is not the class that was proven: its text differs from this version's")
    index = read_json(root / "model_index.json")
    if index.get("unet") != [name, "AblatedUNet2DConditionModel"]:
        found.append(f"model_index.json opens the UNet as {index.get('unet')}, not as {[name, 'AblatedUNet2DConditionModel']}")
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


def tables(part: HookpointEdit, gate: str) -> dict[str, np.ndarray]:
    """The tables that an artifact of this gate must hold."""
    thresholds = part.gate_thresholds if gate == "threshold" else part.thresholds
    return {
        "features": part.features.numpy(),
        "timesteps": part.timesteps.numpy(),
        "thresholds": thresholds.numpy(),
        "gains": part.gains.numpy(),
    }


def _checkpoint_tables(folder: Path, edit: Edit) -> dict[str, dict[str, np.ndarray]]:
    from safetensors import safe_open

    found: dict[str, dict[str, np.ndarray]] = {name: {} for name in edit.hookpoints}
    for file in sorted(folder.glob("diffusion_pytorch_model*.safetensors")):
        names = set(read_header(file)[1])
        with reading(file, "safetensors"), safe_open(file, "np") as handle:
            for hookpoint, values in found.items():
                for key in ("features", "timesteps", "thresholds", "gains"):
                    name = f"ablations.{hookpoint.replace('.', '-')}.{key}"
                    if name in names:
                        values[key] = handle.get_tensor(name)
    return found


def _check_tables(where: str, held: dict[str, dict[str, np.ndarray]], edit: Edit, gate: str) -> list[str]:
    return [
        f"{where}: the table '{key}' of '{hookpoint}' is not the edit's"
        for hookpoint, part in edit.hookpoints.items()
        for key, expected in tables(part, gate).items()
        if not _same(held[hookpoint].get(key), expected)
    ]


def _same(value: np.ndarray | None, expected: np.ndarray) -> bool:
    return value is not None and value.dtype == expected.dtype and value.shape == expected.shape and value.tobytes() == expected.tobytes()


def _graph_tables(part: HookpointEdit, gate: str) -> dict[str, np.ndarray]:
    """In a graph the timesteps are folded into the bars between neighbours, by which a row is found."""
    found = tables(part, gate)
    steps = found.pop("timesteps").astype(np.float32)
    return found | ({"bars between timesteps": (steps[:-1] + steps[1:]) / 2} if len(steps) > 1 else {})


def _check_onnx(path: Path, edit: Edit, gate: str) -> list[str]:
    """The exporter names initializers as it likes, so the tables are looked for by content."""
    import onnx_ir as ir

    wanted = {(h, k): v for h, p in edit.hookpoints.items() for k, v in _graph_tables(p, gate).items()}
    sizes = {v.size for v in wanted.values()}
    held = []
    with reading(path, "an ONNX graph"):
        for value in ir.load(path).graph.initializers.values():
            tensor = value.const_value
            # An initializer that nothing reads proves nothing.
            if tensor is not None and value.uses() and tensor.size in sizes:
                held.append(tensor.numpy())
    return [
        f"onnx: the table '{key}' of '{h}' is not in the graph"
        for (h, key), expected in wanted.items()
        if not any(v.dtype == expected.dtype and v.tobytes() == expected.tobytes() for v in held)
    ]
