"""Sessions of ONNX Runtime: opened from a file, from a copy in memory that shows inner tensors, or from a part of a graph."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...editor.common.errors import SaeuronError, first_line
from ...editor.common.suggest import unknown
from ..artifact.installed import missing
from . import parts

_ORT_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64, "tensor(int32)": np.int32}


PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
"""how ONNX Runtime's providers are asked for → its own names; `tensorrt` is untested; `cuda` ran on an H200"""
_NEXT = {"TensorrtExecutionProvider": ("CUDAExecutionProvider",)}
"""what runs the nodes that a provider lacks, before the CPU does"""


def open_session(path: Path, provider: str = "CPUExecutionProvider", model: Any = None) -> Any:
    """An ONNX Runtime session that really uses `provider`.

    Args:
        path: the graph.
        provider: ONNX Runtime's name of it.
        model: run this ModelProto in its place; its weights beside the graph are found all the same, and nothing is written.

    Returns:
        on a CPU, and of a graph whose weights are too large for memory, one that runs it part by part (`PartedSession`).

    Raises:
        SaeuronError: the file can't be run, or the runtime fell back to another provider. Single nodes that a provider lacks are run by
            the next one all the same; only a profile of the session shows these.
    """
    try:
        import onnxruntime
    except ImportError:
        raise SaeuronError("ONNX Runtime is not installed; install saeuron-export[cpu] (or [gpu])") from None
    if provider not in onnxruntime.get_available_providers():
        raise SaeuronError(f"this ONNX Runtime has no {provider}; it has {', '.join(onnxruntime.get_available_providers())}")
    if provider != "CPUExecutionProvider":
        # CUDA's libraries lie in packages of their own, where no loader looks; torch would have loaded them, but here it may not be.
        with contextlib.redirect_stdout(sys.stderr):
            onnxruntime.preload_dlls()
    data = path.with_name(f"{path.name}_data")
    if provider == "CPUExecutionProvider" and data.is_file() and data.stat().st_size > parts.LARGE:
        whole = _graph(path) if model is None else model
        if parts.weights_size(whole) > parts.LARGE:
            return parts.PartedSession(whole, functools.partial(_opened, path, provider))
    return _opened(path, provider, model)


def _opened(path: Path, provider: str, model: Any) -> Any:
    """One session; arguments and errors as of `open_session`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Waiting threads that spin take the processor from torch, or from another session: a proof is 15 % quicker without.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        if model is not None:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent.absolute()))
        source = str(path) if model is None else model.SerializeToString()
        session = onnxruntime.InferenceSession(source, options, providers=[provider, *_NEXT.get(provider, ())])
    except Exception as error:  # onnxruntime raises many private types
        raise SaeuronError(f"{path} can't be run by ONNX Runtime: {first_line(error)}") from None
    if session.get_providers()[0] != provider:
        raise SaeuronError(f"ONNX Runtime runs {path} on {', '.join(session.get_providers())}, not on {provider} as asked")
    return session


def run_session(session: Any, inputs: Mapping[str, Any], outputs: list[str] | None = None) -> dict[str, np.ndarray]:
    """Run with inputs cast to the graph's own types; floats come back as float32."""
    if lacking := [i.name for i in session.get_inputs() if i.name not in inputs]:
        raise SaeuronError(f"the graph takes '{lacking[0]}', which it is not given")
    feed = {i.name: np.asarray(inputs[i.name]).astype(_ORT_TYPES[i.type]) for i in session.get_inputs()}
    names = outputs or [o.name for o in session.get_outputs()]
    values = session.run(names, feed)
    return {n: v.astype(np.float32) if v.dtype == np.float16 else v for n, v in zip(names, values, strict=True)}


def provider_of(device: str, wanted: str | None = None) -> str:
    """ONNX Runtime's name of the provider that is to run.

    Args:
        device: torch's name of a device, which decides where nothing is asked for.
        wanted: one of `PROVIDERS`.

    Raises:
        SaeuronError: another word.
    """
    if wanted is None:
        if device != "cpu" and not device.startswith("cuda"):
            raise SaeuronError(f"device '{device}' is not known to ONNX Runtime; it is cpu or cuda")
        wanted = "cuda" if device.startswith("cuda") else "cpu"
    if wanted not in PROVIDERS:
        raise SaeuronError(unknown("provider", wanted, PROVIDERS))
    return PROVIDERS[wanted]


def check_provider(wanted: str | None, backends: Sequence[str]) -> None:
    """Raise `SaeuronError` where a provider is asked for that isn't known, or that none of the backends has."""
    if wanted is not None:
        provider_of("cpu", wanted)
        if "onnx" not in backends:
            raise SaeuronError(f"--provider {wanted} is for backend onnx, not for {', '.join(backends)}")


def check_onnxruntime() -> None:
    """Raise `SaeuronError` unless ONNX Runtime is installed."""
    if missing(("onnxruntime",)):
        raise SaeuronError("ONNX Runtime is not installed; install saeuron-export[cpu] (or [gpu])")


def showing(path: Path, names: Sequence[str], provider: str, read: Sequence[str] = ()) -> Any:
    """A session of the graph in which inner tensors are outputs too; the file stays untouched.

    Args:
        path: the graph.
        names: of the tensors.
        provider: ONNX Runtime's name of it.
        read: those of them that what follows has to read as they are shown.
    """
    model = _graph(path)
    for name in read:
        _read_as_shown(model.graph, name)
    model.graph.output.extend(_named(name) for name in names if name not in {o.name for o in model.graph.output})
    return open_session(path, provider, model)


def silenced(path: Path, fires: Sequence[str], provider: str) -> Any:
    """A session of the graph in which no decision of the edit comes true; the file stays untouched.

    Args:
        path: the graph.
        fires: its tensors that hold the decisions, bool.
        provider: ONNX Runtime's name of it.
    """
    import onnx

    model = _graph(path)
    graph = model.graph
    never = onnx.helper.make_tensor("saeuron/never", onnx.TensorProto.BOOL, [], [False])
    graph.initializer.append(never)
    for name in fires:
        for node in graph.node:
            for place, given in enumerate(node.input):
                if given == name:
                    node.input[place] = f"{name}.never"
        place = next(i for i, node in enumerate(graph.node) if name in node.output) + 1
        graph.node.insert(place, onnx.helper.make_node("And", [name, never.name], [f"{name}.never"]))
    return open_session(path, provider, model)


def ranged(path: Path, names: Sequence[str], provider: str) -> Any:
    """A session of the graph that gives the largest magnitude of inner tensors too, each as `NAME.most`; the file stays untouched."""
    import onnx

    model = _graph(path)
    for name in names:
        wide, size, most = f"{name}.wide", f"{name}.size", f"{name}.most"
        model.graph.node.extend(
            [
                onnx.helper.make_node("Cast", [name], [wide], to=onnx.TensorProto.FLOAT),
                onnx.helper.make_node("Abs", [wide], [size]),
                onnx.helper.make_node("ReduceMax", [size], [most], keepdims=0),
            ]
        )
        model.graph.output.append(_named(most))
    return open_session(path, provider, model)


def _read_as_shown(graph: Any, name: str) -> None:
    """Set a reshape to the shape that it has behind a tensor.

    On a CPU, which computes float16 in float32, the runtime passes a sum on to what reads it without rounding it, and shows it rounded.
    It keeps a reshape in float16.
    """
    import onnx

    for node in graph.node:
        for place, given in enumerate(node.input):
            if given == name:
                node.input[place] = f"{name}.read"
    place = next(i for i, node in enumerate(graph.node) if name in node.output) + 1
    graph.node.insert(place, onnx.helper.make_node("Shape", [name], [f"{name}.shape"]))
    graph.node.insert(place + 1, onnx.helper.make_node("Reshape", [name, f"{name}.shape"], [f"{name}.read"]))


def cut(path: Path, tokens: Sequence[str], inputs: Sequence[str], outputs: Sequence[str], provider: str) -> Any:
    """A session of the part of a graph between inner tensors.

    Args:
        path: the graph.
        tokens: inner tensors `[B, tokens, d]` that become inputs, in the type of the graph's first input, or places, float32.
        inputs: the graph's own that stay, where used.
        outputs: inner tensors that become the outputs.
        provider: ONNX Runtime's name of it.

    Raises:
        SaeuronError: the outputs depend on more than these.
    """
    import onnx

    model = _graph(path)
    graph = model.graph
    made_by = {name: node for node in graph.node for name in node.output if name}
    own = {i.name: i for i in graph.input}
    needed, wanted, seen = [], list(outputs), set(tokens)
    while wanted:
        name = wanted.pop()
        if name in seen:
            continue
        seen.add(name)
        if node := made_by.get(name):
            needed.append(node)
            wanted += [i for i in node.input if i] + [i for a in node.attribute if a.HasField("g") for n in a.g.node for i in n.input if i]
    kept = {id(node) for node in needed}
    nodes = [node for node in graph.node if id(node) in kept]
    weights = [w for w in graph.initializer if w.name in seen]
    given = [own[name] for name in own if name in seen]
    if odd := sorted(i.name for i in given if i.name not in inputs):
        raise SaeuronError(
            f"{path}: the edit between {tokens[0]} and {outputs[0]} depends on {', '.join(odd)} too, so it can't be taken out of the graph"
        )
    kind = graph.input[0].type.tensor_type.elem_type
    kinds = {name: onnx.TensorProto.FLOAT if name.endswith("/places") else kind for name in tokens}
    given = [onnx.helper.make_tensor_value_info(n, k, [f"{n}.{axis}" for axis in "BLd"]) for n, k in kinds.items()] + given
    part = onnx.helper.make_graph(nodes, "edit", given, [_named(name) for name in outputs], weights)
    return open_session(path, provider, onnx.helper.make_model(part, opset_imports=model.opset_import, ir_version=model.ir_version))


def _graph(path: Path) -> Any:
    try:
        import onnx
    except ImportError:
        raise SaeuronError(
            "onnx is not installed, so the graph's inner tensors can't be read; install saeuron-export[cpu] (or [gpu])"
        ) from None
    return onnx.load(str(path), load_external_data=False)


def _named(name: str) -> Any:
    """An output whose type the runtime infers."""
    import onnx

    return onnx.ValueInfoProto(name=name)
