"""Compares an artifact's weights with digests of the original's: every tensor of the model and of the edit.

Forwards exercise only the weights that their inputs reach, and only as far as their bar: a proof by behaviour alone passes rounded
weights, or a decoder row of a feature that did not fire. So the reference records a digest of every tensor, made from the
*original* model, the SAE and the Edit, apart from the code that bakes and writes.

A checkpoint stores tensors by name and as they are. An ONNX exporter names them as it likes and transposes some, so there a digest
is used that does not depend on the order of the elements: the sum of a hash of each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ...editor.common.files import read_json, reading
from ...editor.denoisers.families import Family, family_in, family_of, network_of

if TYPE_CHECKING:
    from ...editor.edit.edit import Edit

_PART = 1 << 22
_SMALL = 64
"""elements; smaller tensors may be folded into others by an exporter, so in a graph they are judged by behaviour"""


class Digest(NamedTuple):
    """Of one tensor, its floats widened to float32."""

    exact: str
    """of shape and elements in order"""
    unordered: str
    """of the elements in any order, and their number"""


def digest(values: np.ndarray) -> Digest:
    """Digest of a tensor; float16 values that equal float32 ones give the same."""
    return Digest(exact(values), unordered(values))


def exact(values: np.ndarray) -> str:
    """SHA-256 (its first half) of the shape and of the elements in order."""
    found = hashlib.sha256(str(list(values.shape)).encode())
    for part in _parts(values):
        found.update(part.data)
    return found.hexdigest()[:32]


def unordered(values: np.ndarray) -> str:
    """Number of elements, and the sum of their hashes."""
    total = 0
    for part in _parts(values):
        bits = part.view(np.uint32 if part.dtype == np.float32 else np.uint64).astype(np.uint64)
        total = (total + int(_hashed(bits).sum(dtype=np.uint64))) % 2**64
    return f"{values.size}:{total:016x}"


def _parts(values: np.ndarray) -> Iterable[np.ndarray]:
    """Floats as float32, anything else as int64, a few million at a time."""
    flat = np.ascontiguousarray(values).reshape(-1)
    for start in range(0, flat.size, _PART):
        part = flat[start : start + _PART]
        yield part.astype(np.float32 if part.dtype.kind == "f" else np.int64)


def _hashed(bits: np.ndarray) -> np.ndarray:
    """A 64-bit hash of each element, in place: the finaliser of SplitMix64 (Steele et al., OOPSLA 2014)."""
    bits += np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits ^= bits >> np.uint64(shift)
        bits *= np.uint64(factor)
    bits ^= bits >> np.uint64(31)
    return bits


def _numpy(tensor: Any) -> np.ndarray:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def of_original(pipeline: Any, edit: Edit, saes: Mapping[str, Any], gate: str) -> dict[str, dict[str, Digest]]:
    """Digests of what an artifact must hold.

    Args:
        pipeline: the original one, at the artifact's precision.
        edit: what is suppressed.
        saes: hookpoint → SAE.
        gate: `exact` or `threshold`.

    Returns:
        component → tensor → digest, of weights that are edited those that they become; the edit's tensors are the component `edit`, named `HOOKPOINT/NAME`.
    """
    from ...editor.denoisers.streamed import weights_of

    networks = {name: getattr(pipeline, name) for name in family_of(pipeline).networks}
    found = {
        name: {plain(key): digest(_numpy(value)) for key, value in weights_of(network, network.named_parameters())}
        for name, network in networks.items()
    }
    for key, value in edit.weights.changed(network_of(pipeline)).items() if edit.weights else ():
        found[family_of(pipeline).denoiser.component][plain(key)] = digest(_numpy(value))
    for text in family_of(pipeline).text_encoders:
        places = [(k, v) for k, v in networks[text.name].named_parameters() if k.endswith("position_embedding.weight")]
        for key, value in weights_of(networks[text.name], places):  # a graph has rows for the tokens that prompts are padded to
            whole = found[text.name][plain(key)]
            found[text.name][plain(key)] = whole._replace(unordered=unordered(_numpy(value[: text.tokens(pipeline)])))
    dtype = next(network_of(pipeline).parameters()).dtype
    found["edit"] = {
        f"{hookpoint}/{key}": digest(_numpy(value.to(dtype)))
        for hookpoint, sae in edit.saes(saes).items()
        for key, value in _of_sae(sae, edit, hookpoint, gate).items()
    }
    return found


def _of_sae(sae: Any, edit: Edit, hookpoint: str, gate: str) -> dict[str, Any]:
    """What of the SAE the edit needs (METHOD: baking), as tensors."""
    chosen = edit.hookpoints[hookpoint].features
    everything = slice(None)
    # Membership in a top k needs every latent, and so does a whole decode; else the chosen rows are enough.
    encoded = chosen if edit.residual == "keep" and (gate == "threshold" or sae.config.activation == "jumprelu") else everything
    decoded = chosen if edit.residual == "keep" else everything
    found = {
        "encoder_weight": sae.W_enc[encoded], "encoder_bias": sae.b_enc[encoded], "decoder_weight": sae.W_dec[decoded], "pre_bias": sae.b_dec,
    }  # fmt: skip
    if edit.hookpoints[hookpoint].how.replace_by:
        del found["decoder_weight"]
    return found | ({"latent_thresholds": sae.threshold[encoded]} if sae.config.activation == "jumprelu" else {})


def plain(name: str) -> str:
    """A tensor's name without what savers put before or rename: `text_model.` of older transformers, `edited_` of an edited network."""
    return name.removeprefix("text_model.").removeprefix("edited_")


def in_checkpoint(root: Path, wanted: Mapping[str, Mapping[str, Digest]]) -> list[str]:
    """Compare the checkpoint's files, name by name.

    Returns:
        one line a component that differs.
    """
    from ...editor.denoisers.streamed import places

    found, edited = [], family_in(root).denoiser.component
    for component, tensors in wanted.items():
        folder = edited if component == "edit" else component
        held: dict[str, str] = {}
        for file in sorted((root / folder).glob("*.safetensors")):
            with reading(file, "safetensors"):
                there = places([file])
                for name in set(there) - {n.removeprefix("edited_") for n in there if n.startswith("edited_")}:
                    key = _of_edit(name) if component == "edit" else plain(name)
                    if key in tensors:
                        held[key] = exact(_numpy(there[name].read()))
        found += _differences("checkpoint", folder, [n for n, d in tensors.items() if held.get(n) != d.exact], len(tensors))
    return found


def of_edit(held: Mapping[str, np.ndarray], wanted: Mapping[str, Digest], tables: Iterable[str]) -> list[str]:
    """Compare a checkpoint's edit tensors with the SAE's, which were digested before anything was baked. Needs no torch.

    Args:
        held: name without `ablations.` → values, as `tables.edit_tensors` gives them.
        wanted: the component `edit` of `of_original`.
        tables: names of the tensors that come from the edit and not from the SAE, as in `held`.

    Returns:
        at most a line of differences, and a line of tensors that are nobody's.
    """
    names = {f"{hookpoint.replace('.', '-')}.{key}": d for name, d in wanted.items() for hookpoint, _, key in [name.rpartition("/")]}
    wrong = [name for name, d in names.items() if name not in held or exact(held[name]) != d.exact]
    surplus = sorted(set(held) - set(names) - set(tables))
    found = _differences("checkpoint", "the edit", wrong, len(names))
    return [*found, f"checkpoint: the edit holds tensors that no SAE gave: {', '.join(surplus[:3])}"] if surplus else found


def _of_edit(name: str) -> str:
    """`ablations.up_blocks-1-attentions-0.encoder_weight` → `up_blocks.1.attentions.0/encoder_weight`."""
    head, _, key = name.rpartition(".")
    return f"{head.removeprefix('ablations.').replace('-', '.')}/{key}" if head.startswith("ablations.") else ""


def in_graphs(
    root: Path, wanted: Mapping[str, Mapping[str, Digest]], family: Family, quantised: Collection[str] = ()
) -> list[str]:  # fmt: skip
    """Compare the ONNX graphs' initializers that are used, in any layout.

    Args:
        root: artifact folder.
        wanted: from `of_original`.
        family: of the pipeline.
        quantised: `unordered` digests of weights that the denoiser's graph has in 8 bits instead, as is on record.

    Returns:
        one line a component that differs.
    """
    edited = family.denoiser.component
    graphs = {**{t.name: [t.name] for t in family.text_encoders}, "vae": ["vae_encoder", "vae_decoder"], edited: [edited], "edit": [edited]}
    unread = _unread(root / edited)
    held = {name: set(_used(root / name / "model.onnx")) for name in dict.fromkeys(g for names in graphs.values() for g in names)}
    found = []
    for component, tensors in wanted.items():
        there = set().union(*(held[g] for g in graphs[component])) | (set(quantised) if component == edited else set())
        large = {
            n: d for n, d in tensors.items() if int(d.unordered.partition(":")[0]) >= _SMALL and not (component == "edit" and n in unread)
        }
        found += _differences("onnx", "/".join(graphs[component]), [n for n, d in large.items() if d.unordered not in there], len(large))
    return found


def _unread(folder: Path) -> set[str]:
    """Tensors of the edit that nothing computes with: `b_dec`, where it is neither subtracted before encoding nor decoded."""
    said = read_json(folder / "config.json").get("ablation") or {}
    return {
        f"{hookpoint}/pre_bias"
        for hookpoint, entry in said.get("hookpoints", {}).items()
        if said.get("residual") == "keep" and not entry.get("subtract_bias", True)
    }


def _used(path: Path) -> Iterable[str]:
    import onnx_ir as ir

    with reading(path, "an ONNX graph"):
        for value in ir.load(path).graph.initializers.values():
            narrow = value.const_value is not None and value.const_value.dtype.itemsize <= 1
            if value.const_value is not None and not narrow and (value.uses() or value.is_graph_output()):
                yield unordered(value.const_value.numpy())
                if isinstance(value.const_value, ir.ExternalTensor):
                    value.const_value.release()  # else the pages of the whole file come to lie in memory


def _differences(where: str, component: str, names: list[str], total: int) -> list[str]:
    if not names:
        return []
    shown = ", ".join(sorted(names)[:3]) + (" …" if len(names) > 3 else "")
    return [f"{where}: {len(names)} of {total} weights of {component} are not the original's: {shown}"]
