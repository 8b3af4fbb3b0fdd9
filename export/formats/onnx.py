"""Writes a pipeline's components as ONNX in optimum's layout: folder, file and tensor names as `optimum-cli` gives them."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes
from onnxscript.optimizer import fold_constants
from onnxscript.rewriter import rewrite
from onnxscript.rewriter.rules import common as rules
from torch import nn

from ...editor.common.errors import SaeuronError
from ...editor.denoisers.autoencoders import Autoencoder
from ...editor.denoisers.denoiser import Denoiser
from ...editor.denoisers.families import TextEncoder, denoiser_of, family_of, network_of
from ...editor.denoisers.sampling import vae_dtype
from ...validation.artifact.manifest import seam_tensor
from .stored import turn_weights, unread
from .tracing import traceable

OPSET = 20
# protobuf stops at 2 GiB; below this bound one plain file is the most portable form.
_INLINE_LIMIT = 1 << 30
_PARTS = {
    "seam_input": "input",
    "seam_before": "before",
    "seam_output": "output",
    "gate": "fires",
    "members": "members",
    "seam_places": "places",
}
"""module of an edit → which of its tensors that is"""
_LATENTS = {0: "batch_size", 2: "latent_height", 3: "latent_width"}


class Component(NamedTuple):
    """One graph to write."""

    folder: str
    module: nn.Module
    inputs: dict[str, torch.Tensor]
    dynamic: dict[str, dict[int, str]]
    """input → axis → name; every other axis is fixed"""
    outputs: dict[str, dict[int, str]]

    def arguments(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the module is called with, and its dynamic axes, both as torch's exporter takes them."""
        axes = {name: dict.fromkeys(names, torch.export.Dim.AUTO) for name, names in self.dynamic.items()}
        # Which inputs a denoiser has follows from its config, and the exporter takes no `**inputs`.
        return ({"inputs": self.inputs}, {"inputs": axes}) if isinstance(self.module, _Network) else (self.inputs, axes)


class _Network(nn.Module):
    def __init__(self, denoiser: Denoiser, network: nn.Module) -> None:
        super().__init__()
        self.denoiser, self.network = denoiser, network

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        # Many clients feed a timestep of shape [1]; ONNX Runtime takes it for the scalar that is declared.
        given = {name: value if value.ndim else value.reshape(1) for name, value in inputs.items()}
        return self.denoiser.call(self.network, given)


class _TextEncoder(nn.Module):
    def __init__(self, text: TextEncoder, network: nn.Module) -> None:
        super().__init__()
        self.text, self.network = text, network

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        return tuple(self.text.encode(self.network, input_ids, attention_mask).values())


class _VaeEncoder(nn.Module):
    def __init__(self, kind: Autoencoder, vae: Any) -> None:
        super().__init__()
        self.kind, self.vae = kind, vae

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        return self.kind.encode(self.vae, sample)


class _VaeDecoder(nn.Module):
    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latent_sample: torch.Tensor) -> torch.Tensor:
        return self.vae.decode(latent_sample, return_dict=False)[0]


def components(pipeline: Any) -> list[Component]:
    """The graphs of a pipeline; the denoiser last, since the exporter lets go of a model late.

    The timestep is a float32 scalar whatever the precision: an integer one is silently wrong with schedulers that step
    between integers (Euler). An autoencoder that the pipeline runs in float32 beside a float16 UNet gets float32 graphs.
    """
    family = family_of(pipeline)
    return [
        *(_text_component(text, getattr(pipeline, text.name), text.tokens(pipeline)) for text in family.text_encoders),
        *_vae_components(family.vae, nn.Module.to(pipeline.vae, vae_dtype(pipeline)), pipeline.vae_scale_factor),
        denoiser_component(network_of(pipeline), family.text_tokens(pipeline)),
    ]


def _text_component(text: TextEncoder, network: Any, tokens: int) -> Component:
    axes = {0: "batch_size"} | ({1: "sequence_length"} if text.masked else {})
    inputs = {
        "input_ids": torch.randint(0, 100, (2, tokens), dtype=torch.int64),
        "attention_mask": torch.ones(2, tokens, dtype=torch.int64),
    }
    inputs = {name: inputs[name] for name in text.inputs}
    outputs = dict.fromkeys(text.names(network.config.num_hidden_layers), axes)
    return Component(text.name, _TextEncoder(text, _shortened(network, tokens)), inputs, dict.fromkeys(inputs, axes), outputs)


def _shortened(network: Any, tokens: int) -> Any:
    """The network with positions for that many tokens, its other weights shared; a trace would drop the rest at times."""
    for name, module in network.named_modules():
        if name.endswith("position_embedding") and module.num_embeddings > tokens:
            network = parent = copy.copy(network)
            *path, last = name.split(".")
            for step in path:
                parent._modules = {**parent._modules, step: copy.copy(getattr(parent, step))}
                parent = getattr(parent, step)
            parent._modules = {**parent._modules, last: nn.Embedding.from_pretrained(module.weight[:tokens])}
    return network


def _vae_components(kind: Autoencoder, vae: Any, factor: int) -> list[Component]:
    size = 8  # latent pixels: the axes are dynamic, a small example keeps tracing quick
    picture = {0: "batch_size", 2: "height", 3: "width"}
    latent = torch.randn(2, vae.config.latent_channels, size, size, dtype=vae.dtype)
    sample = torch.randn(2, vae.config.in_channels, size * factor, size * factor, dtype=vae.dtype)
    return [
        Component("vae_decoder", _VaeDecoder(vae), {"latent_sample": latent}, {"latent_sample": _LATENTS}, {"sample": picture}),
        Component("vae_encoder", _VaeEncoder(kind, vae), {"sample": sample}, {"sample": picture}, {kind.encoded: _LATENTS}),
    ]


def denoiser_component(network: Any, tokens: int, sides: tuple[int, int] | None = None) -> Component:
    """The graph of a denoiser alone, for a text encoder of `tokens` tokens; its inputs are latents of any size, or of these `sides`."""
    denoiser, dtype = denoiser_of(network), next(network.parameters()).dtype
    # At least 2 × 2 at the deepest level: an axis of length 1 would be traced as fixed.
    sides = sides or (max(8, 2 * denoiser.unit(network.config)),) * 2
    level = {name: torch.from_numpy(value) for name, value in denoiser.at_level(500.5, 2).items()}
    inputs = {
        name: level[name] if name in level
        else torch.ones(shape, dtype=torch.int64) if name in denoiser.whole
        else torch.randn(shape, dtype=torch.float32 if name in denoiser.float32 else dtype)
        for name, shape in denoiser.shapes(network.config, 2, sides, tokens).items()
    }  # fmt: skip
    dynamic, outputs = (
        {name: {i: a for i, a in enumerate(axes) if isinstance(a, str)} for name, axes in tensors.items()}
        for tensors in denoiser.axes(network.config)
    )
    return Component(denoiser.component, _Network(denoiser, network), inputs, dynamic, outputs)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter logs and prints per-operator notes that help nobody here; its exceptions still pass."""
    names = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "torch.fx", "torch._guards")
    before = {n: logging.getLogger(n).level for n in names}
    for n in names:
        logging.getLogger(n).setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for n, level in before.items():
            logging.getLogger(n).setLevel(level)


@torch.no_grad()
def write(component: Component, root: Path) -> dict[str, dict[str, str]]:
    """Export one component to `root/<folder>/model.onnx` (and `model.onnx_data` beside it when large).

    Returns:
        for an edited UNet: hookpoint → part of the edit (see `seam_tensor`) → name of its tensor in the graph.

    Raises:
        SaeuronError: the exporter failed, or fixed an axis that has to stay dynamic.
    """
    module, (given, shapes) = component.module.eval(), component.arguments()
    try:
        with _quiet(), traceable(module), unread(module) as stored:
            program = torch.onnx.export(
                module, kwargs=given, dynamo=True, opset_version=OPSET, dynamic_shapes=shapes,
                input_names=list(component.inputs), output_names=list(component.outputs), optimize=False, verbose=False,
            )  # fmt: skip
    except torch.onnx.errors.OnnxExporterError as error:
        lines = [line for line in str(error.__cause__ or error).splitlines() if line.strip()]
        raise SaeuronError(f"ONNX export of {component.folder} failed: {lines[0] if lines else type(error).__name__}") from error
    assert program is not None
    model = program.model
    weights = list(model.graph.initializers.values())
    for value in weights:
        if value.name in stored:
            value.const_value = stored[value.name]
    seams = _name_seams(model.graph, component.module)
    _optimise(model)
    names = _close_seams(model.graph, seams)
    if isinstance(component.module, _Network):
        # A noise level may be one for all rows.
        level = component.module.denoiser.at_level(0.0, 1)
        _one_batch(model.graph, [name for name, axes in component.dynamic.items() if axes.get(0) == "batch_size" and name not in level])
    _name_axes(model.graph, component)
    _strip_metadata(model)

    folder = root / component.folder
    folder.mkdir(parents=True, exist_ok=True)
    save_graph(model, folder)
    # onnxscript's rules hold the last graph they looked at; without this, its weights would stay in memory.
    for value in (*weights, *model.graph.initializers.values()):
        value.const_value = None
    if isinstance(component.module, _VaeEncoder | _VaeDecoder):
        # optimum wants a config beside every graph; the other networks' comes with the checkpoint.
        component.module.vae.save_config(folder)
    return names


def save_graph(model: ir.Model, folder: Path) -> None:
    """Write `model.onnx`, and its weights beside it as `model.onnx_data` where they are large."""
    held = [value for value in model.graph.initializers.values() if value.const_value is not None]
    large = sum(value.const_value.nbytes for value in held if value.const_value is not None) > _INLINE_LIMIT
    for value in () if large else held:
        # What lies in another graph's file would stay there, and be referred to.
        if isinstance(tensor := value.const_value, ir.ExternalTensor):
            value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)
    ir.save(model, folder / "model.onnx", external_data="model.onnx_data" if large else None)


@torch.no_grad()
def write_plain(module: nn.Module, arguments: tuple[torch.Tensor, ...], path: Path) -> None:
    """Export any module with these very shapes, for measuring it alone."""
    with _quiet():
        program = torch.onnx.export(module.eval(), arguments, dynamo=True, opset_version=OPSET, optimize=True, verbose=False)
    assert program is not None
    program.save(str(path))


def _optimise(model: ir.Model) -> None:
    """What the exporter's own `optimize` does, with those of its pattern rules that these graphs have a use for.

    One of the rules it would also try, `slice_split_rule`, never applies to a UNet and takes a quarter of the whole export. Another, `add_0_rule`,
    takes anything up to 1e-8 for nothing: of a linear attention's divisor it would drop the 1e-15 that keeps it from 0 / 0.
    """
    used = (
        rules.div_by_1_rule, rules.mul_by_1_rule, rules.collapse_slice_rule, rules.collapse_slice2_rule,
        rules.no_op_cast_rule, rules.no_op_expand_rule, rules.no_op_transpose_rule, rules.transpose_transpose_rule, rules.reshape_reshape_rule,
        rules.unsqueeze_unsqueeze_rule, rules.squeeze_reshape_1d_rule, rules.fuse_pad_into_conv_rule,
    )  # fmt: skip
    passes.InlinePass()(model)
    turn_weights(model.graph)
    for _ in range(2):
        fold_constants(model, onnx_shape_inference=True, should_fold=_foldable)
        rewrite(model, used)
    for step in (
        passes.IdentityEliminationPass(), passes.RemoveUnusedNodesPass(), passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.DeduplicateInitializersPass(), passes.CommonSubexpressionEliminationPass(), passes.OutputFixPass(), passes.NameFixPass(),
    ):  # fmt: skip
        step(model)


def _foldable(node: ir.Node) -> bool | None:
    """No for T5's table of relative positions, None else: of few tokens it would be folded, and nothing could show that it is the original's."""
    table = "relative_attention_bias.weight"
    return False if any(value is not None and (value.name or "").endswith(table) for value in node.inputs) else None


def _one_batch(graph: ir.Graph, names: Sequence[str]) -> None:
    """Make the graph stop where its inputs differ in batch: ONNX broadcasts a batch of 1, which gives another picture in silence.

    Each input is reshaped to the batch of the first, all other axes kept (0). After `_optimise`, which takes the batches for equal.
    """
    sample, *others = (v for v in graph.inputs if v.name in names)
    batch = ir.node("Shape", [sample], attributes={"start": 0, "end": 1})
    batch.outputs[0].name = "batch"
    added = [batch]
    for value in others:
        assert value.name is not None and value.shape is not None
        # A product and not a Concat, which ONNX Runtime would fuse into "whatever the batch is" (-1).
        axes = ir.Value(name=f"{value.name}.axes", const_value=ir.tensor([1] + [0] * (len(value.shape) - 1), dtype=ir.DataType.INT64))
        graph.register_initializer(axes)
        shape = ir.node("Mul", [batch.outputs[0], axes])
        same = ir.node("Reshape", [value, shape.outputs[0]])
        same.outputs[0].shape, same.outputs[0].type = value.shape, value.type
        value.replace_all_uses_with(same.outputs[0])
        same.replace_input_with(0, value)
        shape.outputs[0].name, same.outputs[0].name = f"{value.name}.shape", f"{value.name}.of_one_batch"
        added += [shape, same]
    graph.insert_before(graph[0], added)


def _name_axes(graph: ir.Graph, component: Component) -> None:
    for values, names in ((graph.inputs, component.dynamic), (graph.outputs, component.outputs)):
        for value in values:
            assert value.name is not None and value.shape is not None
            for axis, name in names[value.name].items():
                if isinstance(value.shape[axis], int):
                    raise SaeuronError(
                        f"ONNX export of {component.folder} fixed axis {axis} ({name}) of '{value.name}' to {value.shape[axis]}"
                    )
                value.shape[axis] = name


def _name_seams(graph: ir.Graph, module: nn.Module) -> dict[str, dict[str, ir.Value]]:
    """Hookpoint → part → the tensor at that edge of the edit, under a name by which validation can ask any graph for it.

    They are outputs until `_optimise` is done, so that no rewriting goes across them or renames them.
    """
    found: dict[str, dict[str, ir.Value]] = {}
    for key, ablation in getattr(getattr(module, "network", None), "ablations", {}).items():
        hookpoint = key.replace("-", ".")
        found[hookpoint] = {}
        for marker, part in _PARTS.items():
            if not hasattr(ablation, marker):
                continue
            inside = [n for n in graph if f"ablations.{key}.{marker}'" in n.metadata_props.get("pkg.torch.onnx.name_scopes", "")]
            if not inside:
                raise SaeuronError(f"ONNX export lost {part} of the edit at '{hookpoint}'")
            value = found[hookpoint][part] = inside[-1].outputs[0]
            value.name = seam_tensor(hookpoint, part)
            graph.outputs.append(value)
    return found


def _close_seams(graph: ir.Graph, seams: dict[str, dict[str, ir.Value]]) -> dict[str, dict[str, str]]:
    """Make inner tensors of them again; returns their names."""
    names = {hookpoint: {part: seam_tensor(hookpoint, part) for part in parts} for hookpoint, parts in seams.items()}
    wanted = {name for parts in names.values() for name in parts.values()}
    graph.outputs[:] = [v for v in graph.outputs if v.name not in wanted]
    made = {value.name for node in graph for value in node.outputs}
    if lost := sorted(wanted - made):
        raise SaeuronError(f"ONNX export lost {', '.join(lost)}")
    return names


def _strip_metadata(model: ir.Model) -> None:
    """Drop the exporter's notes: they hold source paths of the exporting machine."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    for function in model.functions.values():
        function.metadata_props.clear()
        for node in function:
            node.metadata_props.clear()
