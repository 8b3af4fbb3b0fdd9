"""Checks inputs and outputs of the ONNX graphs: names, order, element types and dynamic axes.

The runners feed a graph by name and in the type that it asks for, so they would not notice. optimum takes outputs by place, hands
over float32 timesteps, and calls with any batch and size.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...editor.common.errors import SaeuronError
from ...editor.common.files import read_json, reading
from ...editor.denoisers.denoiser import Axes
from ...editor.denoisers.families import Family

_MOST_LAYERS = 1000
_LATENTS: tuple[str | None, ...] = ("batch_size", None, "latent_height", "latent_width")
_PICTURE: tuple[str | None, ...] = ("batch_size", None, "height", "width")
Tensors = dict[str, tuple[str, tuple[str | None, ...]]]
"""tensor → element type, axes: a name where it must be dynamic, None where it is fixed"""


def layers_of(path: Path) -> int:
    """Layers of a text encoder, from its config.

    Raises:
        SaeuronError: it holds no number of layers.
    """
    layers = read_json(path).get("num_hidden_layers", 12)  # the class's own default
    if not isinstance(layers, int) or isinstance(layers, bool) or not 1 <= layers <= _MOST_LAYERS:
        raise SaeuronError(f"{path}: 'num_hidden_layers' is {str(layers)[:60]}; it must be a whole number from 1 to {_MOST_LAYERS}")
    return layers


def contract(root: Path, family: Family, precision: str) -> dict[str, tuple[Tensors, Tensors]]:
    """Graph → inputs and outputs, in order.

    Raises:
        SaeuronError: a config lacks what they follow from.
    """
    kind = {"fp32": "FLOAT", "fp16": "FLOAT16", "bf16": "BFLOAT16"}[precision]
    # As `editor.sampling.vae_dtype`: float32 beside a float16 UNet, where the pipeline runs it so.
    upcast = family.upcasts_vae and read_json(root / "vae" / "config.json").get("force_upcast", True)
    vae = "FLOAT" if upcast else kind
    found: dict[str, tuple[Tensors, Tensors]] = {}
    for text in family.text_encoders:
        layers = layers_of(root / text.name / "config.json")
        # Pooled outputs have no axis of tokens.
        outputs: Tensors = {n: (kind, ("batch_size", None) if n in ("pooler_output", "text_embeds") else ("batch_size", "sequence_length" if text.masked else None, None)) for n in text.names(layers)}  # fmt: skip
        found[text.name] = dict.fromkeys(text.inputs, ("INT64", ("batch_size", "sequence_length" if text.masked else None))), outputs
    found["vae_decoder"] = {"latent_sample": (vae, _LATENTS)}, {"sample": (vae, _PICTURE)}
    found["vae_encoder"] = {"sample": (vae, _PICTURE)}, {family.vae.encoded: (vae, _LATENTS)}
    denoiser = family.denoiser
    types = dict.fromkeys(denoiser.float32, "FLOAT") | dict.fromkeys(denoiser.whole, "INT64")

    def tensors(axes: Axes) -> Tensors:
        return {name: (types.get(name, kind), tuple(a if isinstance(a, str) else None for a in each)) for name, each in axes.items()}

    inputs, given = denoiser.axes(read_json(root / denoiser.component / "config.json"))
    found[denoiser.component] = tensors(inputs), tensors(given)
    return found


def reads(node: Any) -> dict[str, None]:
    """Names of the tensors that a node of ONNX's own Python reads, in order: also inside its branches, but for what is made there."""
    found = dict.fromkeys(node.input)
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            wanted = dict.fromkeys(name for inner in graph.node for name in reads(inner)) | dict.fromkeys(o.name for o in graph.output)
            own = {name for inner in graph.node for name in inner.output} | {v.name for v in (*graph.input, *graph.initializer)}
            found |= {name: None for name in wanted if name not in own}
    return {name: None for name in found if name}


def check(root: Path, family: Family, precision: str) -> list[str]:
    """Compare every graph's own inputs and outputs with the contract.

    Returns:
        one line a difference.
    """
    import onnx_ir as ir

    found = []
    for name, (inputs, outputs) in contract(root, family, precision).items():
        path = root / name / "model.onnx"
        with reading(path, "an ONNX graph"):
            graph = ir.load(path).graph
        for what, values, wanted in (("inputs", graph.inputs, inputs), ("outputs", graph.outputs, outputs)):
            names = [str(v.name) for v in values]
            if names != list(wanted):
                found.append(f"onnx: the {what} of {name} are {', '.join(names)}; clients expect {', '.join(wanted)}, in this order")
                continue
            for value in values:
                found += _tensor(f"onnx: '{value.name}' of {name}", value, wanted)
    return found


def _tensor(where: str, value: Any, wanted: Mapping[str, tuple[str, tuple[str | None, ...]]]) -> list[str]:
    kind, axes = wanted[value.name]
    if value.dtype is None or value.dtype.name != kind:
        return [f"{where} is {value.dtype.name if value.dtype else 'of no type'}, not {kind}"]
    shape = list(value.shape) if value.shape is not None else None
    if shape is None or len(shape) != len(axes):
        return [f"{where} has shape {shape}, not {len(axes)} axes"]
    fixed = [f"axis {i} ({axis}) is fixed to {shape[i]}" for i, axis in enumerate(axes) if axis is not None and isinstance(shape[i], int)]
    return [f"{where}: {', '.join(fixed)}"] if fixed else []
