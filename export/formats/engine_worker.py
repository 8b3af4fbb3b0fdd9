"""Builds one engine in a process of its own: `python -m saeuron.export.formats.engine_worker`, a job as JSON on stdin.

Apart, since the builder takes gigabytes beside whatever the caller holds, its peak memory is then its own, and a crash of the
library is a line instead of the end of everything. Answers are JSON lines on stdout: `{"progress": …}`, at last `{"done": …}`
or `{"error": …}`. Works without torch and without a GPU.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...editor.common.errors import SaeuronError
from ...validation.artifact.engines import tensorrt_module

_LARGEST_VOLUME = 2**31 - 1
_TYPES = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16"}


def main() -> None:
    """Read a job, build, answer."""
    # The library prints to stdout too; answers go to a copy of it, the rest to stderr.
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    job = json.load(sys.stdin)
    answer: dict[str, Any]
    try:
        answer = {"done": build(job, lambda text: print(json.dumps({"progress": text}), file=answers))}
    except SaeuronError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), file=answers)


def build(job: dict[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    """Build one engine.

    Args:
        job: `backend`, `sms`, `graph` (path of the ONNX), `engine` (path to write), `axes` (name of an axis → [min, opt, max]),
            `precision` (of the graph; None: not checked), `weights` (how many it has in 8 bits at least; 0: none), `options` (`optimization_level`, `hardware_compatible`, `version_compatible`),
            `timing_cache` (path or None).
        say: told phases.

    Returns:
        `shapes` (input → [min, opt, max] shapes), `types` (element types of convolutions, matrix products and weights in 8 bits, counted), `bytes`,
        `seconds`, `peak_bytes` (None where the system doesn't tell).

    Raises:
        SaeuronError: the graph can't be parsed, a tensor too large, types other than asked for, or the build failed.
    """
    start = time.monotonic()
    trt = tensorrt_module(job["backend"])
    logger = _logger(trt)
    builder = trt.Builder(logger)
    network, parser = _parse(trt, builder, logger, Path(job["graph"]))
    shapes = _shapes(network, job["axes"])
    _check_volumes(network, shapes)
    types = _check_types(trt, network, job["precision"]) | _check_weights(trt, network, job.get("weights", 0))
    config = builder.create_builder_config()
    _set_shapes(builder, network, config, shapes)
    _configure(trt, config, job, say)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise SaeuronError(f"{tensorrt_module(job['backend']).__name__} could not build it: {logger.last or 'no reason given'}")
    Path(job["engine"]).write_bytes(plan)
    _keep_timings(config, job)
    del parser
    return {
        "shapes": shapes, "types": types, "bytes": Path(job["engine"]).stat().st_size, "seconds": time.monotonic() - start, "peak_bytes": peak_bytes(),
    }  # fmt: skip


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):
        """Keeps the last error, which the builder tells its logger alone."""

        def __init__(self) -> None:
            super().__init__()
            self.last = ""

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                self.last = message.strip().splitlines()[0][:300]
                print(message, file=sys.stderr)

    return Logger()


def _parse(trt: Any, builder: Any, logger: Any, graph: Path) -> tuple[Any, Any]:
    # TensorRT 11 knows nothing but strongly typed networks, and may drop the flag.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        reasons = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        raise SaeuronError(f"'{graph}' can't be parsed: {(reasons[0] if reasons else logger.last).strip().splitlines()[0][:300]}")
    return network, parser


def _shapes(network: Any, axes: dict[str, list[int]]) -> dict[str, list[list[int]]]:
    """Input → its smallest, usual and largest shape, from the names of its axes."""
    found = {}
    for tensor in (network.get_input(i) for i in range(network.num_inputs)):
        sizes = []
        for axis, size in enumerate(tensor.shape):
            name = tensor.get_dimension_name(axis)
            if size < 0 and name not in axes:
                raise SaeuronError(f"input '{tensor.name}' has an axis '{name}' that no shape is known for")
            sizes.append(axes[name] if size < 0 else [size] * 3)
        found[tensor.name] = [[size[i] for size in sizes] for i in range(3)]
    return found


def _check_volumes(network: Any, shapes: dict[str, list[list[int]]]) -> None:
    """Refuse what would overflow deep in the build: with its largest inputs, the network knows the shape of every tensor."""
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    before = [tuple(t.shape) for t in inputs]
    for tensor in inputs:
        tensor.shape = shapes[tensor.name][2]
    for number in range(network.num_layers):
        layer = network.get_layer(number)
        for place in range(layer.num_outputs):
            shape = layer.get_output(place).shape
            # Some shapes stay unknown, or can't be told (negative rank): those of loops and of data-dependent ops.
            if len(shape) < 9 and min(shape, default=0) > 0 and math.prod(shape) > _LARGEST_VOLUME:
                raise SaeuronError(
                    f"too large for TensorRT: '{layer.name}' would hold {math.prod(shape):,} values ({'x'.join(map(str, shape))}), 2^31 - 1 are possible; ask for smaller --shapes"
                )
    for tensor, shape in zip(inputs, before, strict=True):
        tensor.shape = shape


def _check_types(trt: Any, network: Any, precision: str | None) -> dict[str, dict[str, int]]:
    """All convolutions, and most matrix products, must have the type that was asked for.

    Types stand in the graph, the builder can't change them. An edit decodes in float32 at any precision, and a T5 in float16 keeps one product of nine in it.
    """
    kinds = {trt.LayerType.CONVOLUTION: "convolution", trt.LayerType.MATRIX_MULTIPLY: "matrix product"}
    found: dict[str, dict[str, int]] = {}
    for number in range(network.num_layers):
        layer = network.get_layer(number)
        if layer.type not in kinds:
            continue
        kind, dtype = kinds[layer.type], layer.get_output(0).dtype.name
        counts = found.setdefault(kind, {})
        counts[dtype] = counts.get(dtype, 0) + 1
    for kind, counts in found.items():
        for dtype, count in counts.items():
            others = dtype != "FLOAT" or kind == "convolution" or 2 * count >= sum(counts.values())
            if precision is not None and dtype != _TYPES[precision] and others:
                raise SaeuronError(f"it computes in {dtype}, not in {precision} as asked")
    return found


def _check_weights(trt: Any, network: Any, least: int) -> dict[str, dict[str, int]]:
    """Count the weights in 8 bits: as many as the graph's record says, or none. Whether an engine keeps them so only a GPU can tell."""
    layers = [network.get_layer(number) for number in range(network.num_layers)]
    constants = {layer.get_output(0).name for layer in layers if layer.type == trt.LayerType.CONSTANT}
    counts: dict[str, int] = {}
    for layer in layers:
        if layer.type == trt.LayerType.DEQUANTIZE and layer.get_input(0).name in constants:
            dtype = layer.get_input(0).dtype.name
            counts[dtype] = counts.get(dtype, 0) + 1
    found = sum(counts.values())
    if found < least or (found and not least):
        raise SaeuronError(f"the parsed graph has {found} weights in 8 bits, on record are {least or 'none'}")
    return {"weight in 8 bits": counts} if counts else {}


def _set_shapes(builder: Any, network: Any, config: Any, shapes: dict[str, list[list[int]]]) -> None:
    static = all(low == high for low, _, high in shapes.values())
    if static:
        # Fixed in the network itself: quicker to build and to run than a profile of one point.
        for tensor in (network.get_input(i) for i in range(network.num_inputs)):
            tensor.shape = shapes[tensor.name][1]
        return
    profile = builder.create_optimization_profile()
    for name, (low, usual, high) in shapes.items():
        if low:  # a scalar has no shape to choose
            profile.set_shape(name, low, usual, high)
    if config.add_optimization_profile(profile) < 0:
        raise SaeuronError(f"TensorRT refuses these shapes: {shapes}")


def _configure(trt: Any, config: Any, job: dict[str, Any], say: Callable[[str], None]) -> None:
    options = job["options"]
    if options.get("optimization_level") is not None:
        config.builder_optimization_level = options["optimization_level"]
    if options.get("hardware_compatible"):
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.get("version_compatible"):
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if job["backend"] == "trt-rtx" and job["sms"]:
        config.num_compute_capabilities = len(job["sms"])
        for place, sm in enumerate(job["sms"]):
            config.set_compute_capability(getattr(trt.ComputeCapability, sm.upper()), place)
    cache = job.get("timing_cache")
    if cache is not None:
        held = Path(cache).read_bytes() if Path(cache).is_file() else b""
        config.set_timing_cache(config.create_timing_cache(held), ignore_mismatch=False)
    config.progress_monitor = _monitor(trt, say)


def _keep_timings(config: Any, job: dict[str, Any]) -> None:
    cache = job.get("timing_cache")
    if cache is not None:
        Path(cache).write_bytes(config.get_timing_cache().serialize())


def _monitor(trt: Any, say: Callable[[str], None]) -> Any:
    class Monitor(trt.IProgressMonitor):
        """Tells the outermost phase and its steps."""

        def __init__(self) -> None:
            super().__init__()
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self._steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self._steps:
                say(f"{phase_name}, {step + 1} of {self._steps[phase_name]}")
            return True

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

    return Monitor()


def peak_bytes() -> int | None:
    """The largest resident set of this process alone, not that of whoever started it; None where the system doesn't tell."""
    try:
        return resident_bytes()[1]
    except OSError:
        return None


def resident_bytes() -> tuple[int, int]:
    """This process's resident set, now and at its largest; `OSError` where there is no /proc (all but Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    now, most = (next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name)) for name in ("VmRSS", "VmHWM"))
    return now, most


if __name__ == "__main__":
    main()
