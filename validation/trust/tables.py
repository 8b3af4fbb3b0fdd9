"""The edit's tables in every file that holds them, compared bit by bit. Needs numpy alone; for graphs, onnx.

A forward exercises only the features and timesteps that its inputs reach. The tables are small, so they are compared whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...editor.common.errors import SaeuronError
from ...editor.common.files import read_header, read_json
from ...editor.edit.edit_header import TENSORS, EditHeader, edit_sha256, read_edit_header
from ..artifact.manifest import seam_tensor

Tables = dict[str, np.ndarray]
_KEYS = ("features", "timesteps", "thresholds", "gains")
_TYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?",
}  # fmt: skip
_TORCH_NAMES = {
    "<i8": "torch.int64",
    "<i4": "torch.int32",
    "<i2": "torch.int16",
    "i1": "torch.int8",
    "u1": "torch.uint8",
    "?": "torch.bool",
}


@dataclass(frozen=True)
class EditFile:
    """`edit/edit.safetensors` without torch."""

    header: EditHeader
    tensors: Tables
    """`HOOKPOINT/NAME` → values"""

    def sha256(self) -> str:
        """As `Edit.sha256`."""
        return edit_sha256(self.header.residual, self.header.latents, {name: value.tobytes() for name, value in self.tensors.items()})

    def of(self, hookpoint: str, gate: str) -> Tables:
        """The tables that an artifact of this gate must hold at a hookpoint."""
        found = {key: self.tensors[f"{hookpoint}/{key}"] for key in _KEYS}
        return found | ({"thresholds": self.tensors[f"{hookpoint}/gate_thresholds"]} if gate == "threshold" else {})


def read_edit(path: Path) -> EditFile:
    """Read an edit file.

    Raises:
        SaeuronError: missing, damaged, or no edit.
    """
    header = read_edit_header(path)
    wanted = [f"{hookpoint}/{key}" for hookpoint in header.latents for key in TENSORS]
    tensors = read_tensors(path, lambda name: name in wanted)
    for hookpoint in header.latents:
        _check_shapes(path, hookpoint, {key: tensors.get(f"{hookpoint}/{key}") for key in TENSORS})
    return EditFile(header, tensors)


def _check_shapes(path: Path, hookpoint: str, held: Mapping[str, np.ndarray | None]) -> None:
    """Raise `SaeuronError` unless the tables are `[T, U]` float32 for `[T]` timesteps and `[U]` features."""
    lengths = {}
    for key, value in held.items():
        indices = key in ("features", "timesteps")
        if value is None or value.dtype.str != ("<i8" if indices else "<f4") or value.ndim != (1 if indices else 2):
            raise SaeuronError(f"{path}: damaged edit (no table '{hookpoint}/{key}', or one of another form)")
        if indices:
            lengths[key] = len(value)
        elif value.shape != (lengths["timesteps"], lengths["features"]):
            raise SaeuronError(f"{path}: damaged edit ('{hookpoint}/{key}' has shape {list(value.shape)})")


def read_tensors(path: Path, wanted: Callable[[str], bool]) -> Tables:
    """Tensors of a safetensors file as numpy has them, bfloat16 (which it lacks) widened to float32.

    Args:
        path: of the file.
        wanted: name → whether to read it; the rest stays on disk.

    Raises:
        SaeuronError: damaged, or a type that isn't known.
    """
    read_header(path)  # the library's own checks: sizes, overlaps, bounds
    found = {}
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        for name, entry in json.loads(file.read(length)).items():
            if name == "__metadata__" or not wanted(name):
                continue
            if entry["dtype"] not in _TYPES:
                raise SaeuronError(f"{path}: '{name}' is of type {entry['dtype']}, which is not known")
            start, end = entry["data_offsets"]
            file.seek(8 + length + start)
            values = np.frombuffer(file.read(end - start), _TYPES[entry["dtype"]]).reshape(entry["shape"])
            found[name] = (values.astype("<u4") << 16).view("<f4") if entry["dtype"] == "BF16" else values
    return found


def ablation_sha256(settings: Mapping[str, Any], tensors: Tables) -> str:
    """Hash of the edit inside a UNet, as its class takes it: settings, then every edit tensor, floats widened to float32.

    Args:
        settings: `ablation` of the UNet's config.
        tensors: name without `ablations.` → values.
    """
    plain = {key: value for key, value in settings.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        wide = value.astype("<f4") if value.dtype.kind == "f" else value
        kind = "torch.float32" if value.dtype.kind == "f" else _TORCH_NAMES[value.dtype.str.replace("|", "").replace("b1", "?")]
        digest.update(f"{name}:{list(wide.shape)}:{kind}".encode())
        digest.update(np.ascontiguousarray(wide).tobytes())
    return digest.hexdigest()


def edit_tensors(folder: Path) -> Tables:
    """Edit tensors of a checkpoint's UNet, without `ablations.` before their names.

    Args:
        folder: `unet/`.
    """
    found: Tables = {}
    for file in sorted(folder.glob("diffusion_pytorch_model*.safetensors")):
        found |= read_tensors(file, lambda name: name.startswith("ablations."))
    return {name.removeprefix("ablations."): value for name, value in found.items()}


def in_checkpoint(held: Tables, edit: EditFile, gate: str) -> list[str]:
    """Compare the tables of `edit_tensors` with the edit's; one line a difference."""
    found = []
    for hookpoint in edit.header.latents:
        for key, expected in edit.of(hookpoint, gate).items():
            value = held.get(f"{hookpoint.replace('.', '-')}.{key}")
            if value is None or value.shape != expected.shape or not _same(value, expected):
                found.append(f"checkpoint: the table '{key}' of '{hookpoint}' is not the edit's")
    return found


def _same(value: np.ndarray, expected: np.ndarray) -> bool:
    return value.dtype == expected.dtype and value.tobytes() == expected.tobytes()


def _of_graph(tables: Tables) -> Tables:
    """In a graph the timesteps are folded into the bars between neighbours, by which a row is found."""
    found = dict(tables)
    steps = found.pop("timesteps").astype(np.float32)
    return found | ({"bars between timesteps": (steps[:-1] + steps[1:]) / 2} if len(steps) > 1 else {})


def _needs_features(hookpoint: str, edit: EditFile, gate: str, settings: Mapping[str, Any]) -> bool:
    """Whether a graph looks features up by number. Where the encoder was baked with the chosen rows alone, it has nothing to look up."""
    return not (edit.header.residual == "keep" and (gate == "threshold" or settings[hookpoint].get("activation") == "jumprelu"))


def in_graph(folder: Path, edit: EditFile, gate: str) -> list[str]:
    """Compare the UNet's graph with the edit. The exporter names initializers as it likes, so the tables are looked for by content.

    What the graph's output doesn't depend on doesn't count. That it depends on the tables as the method says is for a run to show.

    Args:
        folder: `unet/`, with the graph and its config.
        edit: that it should hold.
        gate: of the artifact.

    Returns:
        one line a table, or a gate, that isn't there.
    """
    settings = read_json(folder / "config.json")["ablation"]["hookpoints"]
    wanted = {
        (h, k): v
        for h in edit.header.latents
        for k, v in _of_graph(edit.of(h, gate)).items()
        if k != "features" or _needs_features(h, edit, gate, settings)
    }
    names, held = _live(folder / "model.onnx", {v.size for v in wanted.values()})
    found = [
        f"onnx: no output of the graph depends on the gate of '{h}'" for h in edit.header.latents if seam_tensor(h, "fires") not in names
    ]
    return found + [
        f"onnx: the table '{key}' of '{h}' is not in the graph, or no output depends on it"
        for (h, key), expected in wanted.items()
        if not any(_same(v, expected) for v in held)
    ]


def _reaching(graph: Any) -> set[str]:
    """Names of tensors that an output of a graph depends on, the outputs included."""
    found, open_ = set(), [value.name for value in graph.output]
    maker = {name: node for node in graph.node for name in node.output if name}
    while open_:
        name = open_.pop()
        if name and name not in found:
            found.add(name)
            if name in maker:
                open_ += maker[name].input
    return found


def _live(path: Path, sizes: set[int]) -> tuple[set[str], list[np.ndarray]]:
    """Tensors that an output depends on, and of these the initializers of such numbers of elements."""
    import onnx
    from onnx import numpy_helper

    try:
        graph = onnx.load(path, load_external_data=False).graph
        names = _reaching(graph)
        return names, [
            numpy_helper.to_array(tensor, str(path.parent))
            for tensor in graph.initializer
            if tensor.name in names and int(np.prod(tensor.dims)) in sizes
        ]
    except Exception as error:  # onnx and protobuf raise many types
        raise SaeuronError(f"{path} can't be read as an ONNX graph: {(str(error).splitlines() or [''])[0][:200]}") from None
