"""Sizes of an artifact's parts, from file headers alone."""

from __future__ import annotations

from pathlib import Path

import torch

from ...editor.common.files import read_header, read_json
from ...editor.denoisers.components import weight_files
from ...editor.denoisers.streamed import LARGE
from .open import Prepared

_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
_WIDTHS = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8}


def estimate(prepared: Prepared) -> dict[str, int]:
    """Bytes on disk by part of the artifact, from file headers alone."""
    s = prepared.plan.settings
    numbers = sum(_numbers(prepared.model_folder / name, s.variant) for name in prepared.family.networks)
    network = (numbers + _edit_numbers(prepared)) * _BYTES[s.precision]
    found = dict.fromkeys(s.formats, network)
    if s.quantize:  # which lies beside the graph in floats for a while
        found["quantised"] = graph_bytes(prepared)[prepared.family.denoiser.component]
    if s.engines:
        found["trt"] = network * len(s.engines.targets)
    if prepared.has_checker and "checkpoint" in s.formats:
        found["safety_checker"] = sum(p.stat().st_size for p in weight_files(prepared.model_folder / "safety_checker", s.variant)[1])
    return found


def memory(prepared: Prepared) -> int:
    """Bytes of memory that an export takes, about."""
    graphs = graph_bytes(prepared)
    if prepared.family.denoiser.flows and prepared.plan.settings.device == "cpu" and max(graphs.values()) > LARGE:
        # Networks that are too large stay in their files, and what is left was measured (docs/transformers.md).
        return int(2.2 * sum(size for size in graphs.values() if size <= LARGE)) + (6 << 30)
    # Pipeline, its edited twin's SAE and the graph being written lie in memory together.
    return int(2.2 * max(estimate(prepared).values())) + 2**30


def graph_bytes(prepared: Prepared) -> dict[str, int]:
    """Bytes of weights in each ONNX graph."""
    folder, variant = prepared.model_folder, prepared.plan.settings.variant
    denoiser = prepared.family.denoiser.component
    numbers = {
        **{t.name: _numbers(folder / t.name, variant) for t in prepared.family.text_encoders},
        "vae_decoder": _numbers(folder / "vae", variant, ("decoder.", "post_quant_conv.")),
        "vae_encoder": _numbers(folder / "vae", variant, ("encoder.", "quant_conv.")),
        denoiser: _numbers(folder / denoiser, variant) + _edit_numbers(prepared),
    }
    width = _BYTES[prepared.plan.settings.precision]
    found = {name: number * width for name, number in numbers.items()}
    if prepared.plan.settings.quantize:  # a byte a weight; few of them and the edit stay in floats
        found[denoiser] = _numbers(folder / denoiser, variant) + _edit_numbers(prepared) * width
    if (
        prepared.family.upcasts_vae
        and prepared.plan.settings.precision == "fp16"
        and read_json(folder / "vae" / "config.json").get("force_upcast", True)
    ):
        found |= {name: numbers[name] * _BYTES["fp32"] for name in ("vae_decoder", "vae_encoder")}
    return found


def _edit_numbers(prepared: Prepared) -> int:
    """Number of weights that the edit adds to the UNet, its small tables apart."""
    found = 0
    for hookpoint, sae in prepared.saes.items():
        part, gate = prepared.edit.hookpoints[hookpoint], prepared.plan.settings.gate
        n, chosen = sae.config.num_latents, len(part.features)
        rows = chosen if gate == "threshold" else n
        found += sae.config.d_in * (rows + (chosen if prepared.edit.residual == "keep" else n))
    return found


def _numbers(folder: Path, variant: str | None, prefixes: tuple[str, ...] = ("",)) -> int:
    """Number of weights in a component's files whose names start so; of pickled ones, a guess from their size."""
    total = 0
    for file in weight_files(folder, variant)[1]:
        if file.suffix == ".bin":
            total += file.stat().st_size // 4
            continue
        for name, (dtype, shape) in read_header(file)[1].items():
            if dtype in _WIDTHS and name.startswith(prefixes):
                total += int(torch.Size(shape).numel())
    return total
