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
from ...editor.edit.edit_header import TENSORS, TEXT_MAP, EditHeader, edit_sha256, read_edit_header, rows_of
from ..artifact import weights
from ..artifact.manifest import Changed, SeamNames, seam_tensor
from .bypass import around

Tables = dict[str, np.ndarray]
_KEYS = ("features", "timesteps", "thresholds", "gains", "offsets")
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
        return edit_sha256(
            self.header.residual,
            self.header.latents,
            {name: value.tobytes() for name, value in self.tensors.items()},
            self.header.how,
        )

    def of(self, hookpoint: str, gate: str) -> Tables:
        """The tables that an artifact of this gate must hold at a hookpoint."""
        found = {
            key: self.tensors[f"{hookpoint}/{key}"] for key in _KEYS if key != "offsets" or not self.header.how_at(hookpoint).replace_by
        }
        return found | ({"thresholds": self.tensors[f"{hookpoint}/gate_thresholds"]} if gate == "threshold" else {})

    def directions(self, hookpoint: str, precision: str) -> Tables:
        """What stands in an SAE's place at a hookpoint of `project` or `probe`, in an artifact of this precision but as float32; elsewhere nothing."""
        if hookpoint not in self.header.directions:
            return {}
        chosen = self.tensors[f"{hookpoint}/features"]
        encoder, bias, decoder = (_rounded(self.tensors[key][chosen], precision) for key in rows_of(hookpoint))
        n, d = encoder.shape
        zeros = {"pre_bias": np.zeros(d, "<f4"), "latent_thresholds": np.zeros(n, "<f4")}
        return {"encoder_weight": encoder, "encoder_bias": bias, "decoder_weight": decoder, **zeros}


def _rounded(values: np.ndarray, precision: str) -> np.ndarray:
    """Float32 values as a precision has them."""
    if precision == "fp16":
        return values.astype("<f2").astype("<f4")
    if precision == "bf16":  # to the nearest, ties to even
        bits = values.view("<u4").astype("<u8")
        return (((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u4") << 16).view("<f4")
    return values


def read_edit(path: Path) -> EditFile:
    """Read an edit file.

    Raises:
        SaeuronError: missing, damaged, or no edit.
    """
    header = read_edit_header(path)
    wanted = [f"{hookpoint}/{key}" for hookpoint in header.latents for key in TENSORS] + ([TEXT_MAP] if header.weights else [])
    wanted += [key for hookpoint in header.directions for key in rows_of(hookpoint)]
    tensors = read_tensors(path, lambda name: name in wanted)
    text_map = tensors.get(TEXT_MAP)
    if header.weights and not (text_map is not None and _is_matrix(text_map) and text_map.shape[0] == text_map.shape[1]):
        raise SaeuronError(f"{path}: damaged edit (no matrix '{TEXT_MAP}', or one of another form)")
    for hookpoint in header.latents:
        _check_shapes(path, hookpoint, {key: tensors.get(f"{hookpoint}/{key}") for key in TENSORS})
    for hookpoint in header.directions:
        features, n = tensors[f"{hookpoint}/features"], header.latents[hookpoint]
        encoder, bias, decoder = (tensors.get(key, np.zeros(0)) for key in rows_of(hookpoint))
        whole = _is_matrix(encoder) and _is_matrix(decoder) and encoder.shape == decoder.shape and bias.shape == encoder.shape[:1] == (n,)
        if not whole or bias.dtype.str != "<f4" or not np.isfinite(bias).all() or not (features >= 0).all() or not (features < n).all():
            raise SaeuronError(f"{path}: damaged edit (directions of '{hookpoint}' of another form)")
    return EditFile(header, tensors)


def _is_matrix(value: np.ndarray) -> bool:
    return value.dtype.str == "<f4" and value.ndim == 2 and bool(value.size) and bool(np.isfinite(value).all())


def _check_shapes(path: Path, hookpoint: str, held: Mapping[str, np.ndarray | None]) -> None:
    """Raise `SaeuronError` unless the tables are `[T, U]` float32 for float32 `[T]` timesteps and int64 `[U]` features."""
    lengths = {}
    for key, value in held.items():
        indices = key in ("features", "timesteps")
        if value is None or value.dtype.str != ("<i8" if key == "features" else "<f4") or value.ndim != (1 if indices else 2):
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
    """Hash of the edit inside a network, as its class takes it: settings, then every edit tensor, floats widened to float32.

    Args:
        settings: `ablation` of the network's config.
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


def changed_weights(folder: Path, record: Mapping[str, Changed]) -> list[str]:
    """Compare the weights that an edit changes with their digests on record.

    Args:
        folder: of the edited network, with a checkpoint.
        record: of the manifest.

    Returns:
        at most one line.
    """
    held: Tables = {}
    for file in sorted(folder.glob("diffusion_pytorch_model*.safetensors")) if record else ():
        held |= read_tensors(file, lambda name: name in record)
    wrong = [name for name, change in record.items() if name not in held or weights.exact(held[name]) != change.after]
    return [f"checkpoint: {len(wrong)} of {len(record)} edited weights are not those on record: {', '.join(wrong[:3])}"] if wrong else []


def edit_tensors(folder: Path) -> Tables:
    """Edit tensors of a checkpoint's edited network, without `ablations.` before their names.

    Args:
        folder: of the edited network.
    """
    found: Tables = {}
    for file in sorted(folder.glob("diffusion_pytorch_model*.safetensors")):
        found |= read_tensors(file, lambda name: name.startswith("ablations."))
    return {name.removeprefix("ablations."): value for name, value in found.items()}


def in_checkpoint(held: Tables, edit: EditFile, gate: str, precision: str) -> list[str]:
    """Compare the tables of `edit_tensors`, and the directions that stand in an SAE's place, with the edit's; one line a difference."""
    found = []
    for hookpoint in edit.header.latents:
        prefix, directions = hookpoint.replace(".", "-"), edit.directions(hookpoint, precision)
        for key, expected in (edit.of(hookpoint, gate) | directions).items():
            value = held.get(f"{prefix}.{key}")
            if key in directions and value is not None and value.dtype.kind == "f":
                value = value.astype("<f4")
            if value is None or value.shape != expected.shape or not _same(value, expected):
                found.append(f"checkpoint: the table '{key}' of '{hookpoint}' is not the edit's")
    return found


def _same(value: np.ndarray, expected: np.ndarray) -> bool:
    return value.dtype == expected.dtype and value.tobytes() == expected.tobytes()


def _of_graph(tables: Tables) -> Tables:
    """In a graph the timesteps are folded into the bars between neighbours, by which a row is found."""
    found = dict(tables)
    steps = found.pop("timesteps")
    return found | ({"bars between timesteps": (steps[:-1] + steps[1:]) / 2} if len(steps) > 1 else {})


def _needs_features(hookpoint: str, edit: EditFile, gate: str, settings: Mapping[str, Any]) -> bool:
    """Whether a graph looks features up by number. Where the encoder was baked with the chosen rows alone, it has nothing to look up."""
    return not (edit.header.residual == "keep" and (gate == "threshold" or settings[hookpoint].get("activation") == "jumprelu"))


def in_graph(folder: Path, edit: EditFile, gate: str, precision: str, seams: Mapping[str, SeamNames]) -> list[str]:
    """Compare the network's graph with the edit. The exporter names initializers as it likes, so the tables are looked for by content.

    What the graph's output doesn't depend on doesn't count. That it depends on the tables as the method says is for a run to show;
    that it depends on unedited tokens only through the edited ones is shown here.

    Args:
        folder: of the edited network, with the graph and its config.
        edit: that it should hold.
        gate: of the artifact.
        precision: of the artifact.
        seams: hookpoint → tensors at the edge of its edit, of the manifest.

    Returns:
        one line a table, or a gate, that isn't there, and a hookpoint whose edit is passed by.
    """
    settings = read_json(folder / "config.json")["ablation"]["hookpoints"] if edit.header.latents else {}
    wanted = {
        (h, k): v
        for h in edit.header.latents
        for k, v in _of_graph(edit.of(h, gate)).items()
        if k != "features" or _needs_features(h, edit, gate, settings)
    }
    directions = {h: edit.directions(h, precision) for h in edit.header.directions}
    # An exporter leaves out a bias that adds nothing.
    rows = [
        (h, held[key]) for h, held in directions.items() for key in ("encoder_weight", "encoder_bias", "decoder_weight") if held[key].any()
    ]
    graph, names, held = _live(folder / "model.onnx", {v.size for v in (*wanted.values(), *(held for _, held in rows))})
    sums = {weights.unordered(v) for v in held if v.dtype.kind == "f"}
    found = [
        f"onnx: no output of the graph depends on the gate of '{h}'" for h in edit.header.latents if seam_tensor(h, "fires") not in names
    ]
    return (
        found
        + around(graph, edit.header.latents, seams)
        + [
            f"onnx: the table '{key}' of '{h}' is not in the graph, or no output depends on it"
            for (h, key), expected in wanted.items()
            if not any(_same(v, expected) for v in held)
        ]
        + [
            f"onnx: the directions of '{h}' are not in the graph, or no output depends on them"
            for h in dict.fromkeys(h for h, own in rows if weights.unordered(own) not in sums)
        ]
    )


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


def _live(path: Path, sizes: set[int]) -> tuple[Any, set[str], list[np.ndarray]]:
    """The graph, tensors that an output depends on, and of these the initializers of such numbers of elements."""
    import onnx
    from onnx import numpy_helper

    try:
        graph = onnx.load(path, load_external_data=False).graph
        names = _reaching(graph)
        return (
            graph,
            names,
            [
                numpy_helper.to_array(tensor, str(path.parent))
                for tensor in graph.initializer
                if tensor.name in names and int(np.prod(tensor.dims)) in sizes
            ],
        )
    except Exception as error:  # onnx and protobuf raise many types
        raise SaeuronError(f"{path} can't be read as an ONNX graph: {(str(error).splitlines() or [''])[0][:200]}") from None
