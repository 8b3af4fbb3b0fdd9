"""Parses an artifact's graphs with TensorRT for RTX's own parser and builds an engine of each, without a GPU.

Usage: open_in_tensorrt_rtx.py ARTIFACT. Needs tensorrt-rtx, numpy and safetensors. No engine is run: that takes a GPU. That the parsed network holds the
edit is seen from its tensors: the graph's decisions keep their names, and there is one for each hookpoint.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import tensorrt_rtx as trt
from golden_reader import Golden, Report, read_golden

ARCHITECTURE = trt.ComputeCapability.SM89
GRAPHS = ("text_encoder", "text_encoder_2", "vae_decoder", "unet")


def shapes(golden: Golden, artifact: Path) -> dict[str, int]:
    """Sizes of the graphs' axes by name, as in the first golden case and picture."""
    case, picture = golden.cases[0], golden.runs[0].hook_pictures
    return {
        "latent_height": case.sample.shape[2], "latent_width": case.sample.shape[3], "sequence_length": case.context.shape[1],
        "height": picture.shape[1], "width": picture.shape[2],
    }  # fmt: skip


def parsed(logger: Any, builder: Any, file: Path) -> tuple[Any, Any, str]:
    """Network, parser (which must outlive it) and the first error, if any."""
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if parser.parse_from_file(str(file)):
        return network, parser, ""
    return network, parser, "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors)) or "no reason given"


def tensors(network: Any) -> set[str]:
    """Names of all that the network's layers put out."""
    layers = (network.get_layer(i) for i in range(network.num_layers))
    return {layer.get_output(i).name for layer in layers for i in range(layer.num_outputs)}


def main(artifact: Path) -> int:
    """Exit code: 0 if every graph is parsed and built, and the UNet's holds the edit."""
    golden = read_golden(artifact)
    seams = json.loads((artifact / "saeuron.json").read_text())["onnx"]["seams"]
    wanted = {name for parts in seams.values() for name in parts.values() if name is not None}  # some are not there with every gate
    report = Report("tensorrt-rtx", golden.precision)
    logger = trt.Logger(trt.Logger.ERROR)
    sizes = shapes(golden, artifact)
    for name in (g for g in GRAPHS if (artifact / g / "model.onnx").is_file()):
        builder = trt.Builder(logger)
        network, parser, error = parsed(logger, builder, artifact / name / "model.onnx")
        report.line(not error, f"{name}: parsed{f': {error[:300]}' if error else f', {network.num_layers} layers'}")
        if error:
            continue
        if name == "unet":
            missing = sorted(wanted - tensors(network))
            report.line(
                bool(wanted) and not missing,
                f"{name}: the network holds the edges of the edit at {', '.join(seams)}{f'; missing: {missing}' if missing else ''}",
            )
        batch = 2 if name == "unet" else 1  # guidance
        for tensor in (network.get_input(i) for i in range(network.num_inputs)):
            # An axis that is neither fixed nor named above is the batch.
            tensor.shape = [n if n >= 0 else sizes.get(tensor.get_dimension_name(axis), batch) for axis, n in enumerate(tensor.shape)]
        config = builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(ARCHITECTURE, 0)
        plan = builder.build_serialized_network(network, config)
        report.line(
            plan is not None and plan.nbytes > 0, f"{name}: built for {ARCHITECTURE.name}{f', {plan.nbytes / 1e6:.1f} MB' if plan else ''}"
        )
        del parser
    strangers = [name for name in ("saeuron", "torch", "onnx") if name in sys.modules]
    report.line(not strangers, f"needed nothing else (imported besides: {strangers})")
    return report.exit_code()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
