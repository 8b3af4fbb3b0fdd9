"""`saeuron bench`: what the hook and each gate cost beside the UNet, in one run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any

from ...editor.common.declared import HOW, Checked, like, option
from ...editor.common.errors import SaeuronError
from ...validation.artifact import engines
from ...validation.backends.sessions import check_provider, provider_of
from ...validation.evidence.evaluation_settings import EvaluationSettings
from ..plan.settings import Settings
from . import options as o
from .console import out, progress_line, table_of, tell, write_json
from .declared import command, only

_BACKENDS = ("torch", "onnx", *engines.BACKENDS)


@dataclass(frozen=True)
class _Timing(Checked):
    """What is timed, on what."""

    backend: tuple[str, ...] = option(("torch", "onnx"), "A,B", HOW, joined=True, known=_BACKENDS)
    """torch, onnx (ONNX Runtime), trt, trt-rtx (engines for this GPU, not tested)."""
    provider: str | None = like(EvaluationSettings, "provider")
    precision: str = like(o.Precision, "precision")
    """Of the pipeline: fp32, fp16 or bf16 (torch only)."""
    rounds: int = option(7, "N", HOW, least=1, most=10_000)
    """Runs of each variant, in turn."""


@command
def bench(
    wanted: Annotated[
        Settings,
        only(
            "kind",
            "instead",
            "preset_files",
            "activations",
            "model",
            "variant",
            "hookpoint",
            "sae",
            "device",
            "height",
            "width",
            concepts=("Neon",),
        ),
    ],
    timing: _Timing,
    as_json: o.Json = False,
) -> None:
    """Time the edit beside the UNet that carries it: the dynamic hook and every gate, as a share of the unedited UNet's forward.

    The edit is timed alone, in turns with whole forwards; medians of the same run make the ratio.

    Example: `saeuron bench --concepts Neon`
    """
    for name in timing.backend:
        if name in engines.BACKENDS:
            engines.tensorrt_module(name)
            engines.gpu()
    if timing.precision == "bf16" and set(timing.backend) - {"torch"}:
        raise SaeuronError("--precision bf16: ONNX Runtime's CPU has no bf16 MatMul, and numpy no bf16; add --backend torch")
    check_provider(timing.provider, timing.backend)
    executor = provider_of(wanted.device, timing.provider)

    from ..plan.resolve import resolve, to_fetch

    plan = resolve(replace(wanted, formats=("checkpoint",), precision=timing.precision))
    to_fetch(plan)
    with progress_line("starting") as say:
        from ...editor.common.names import dtype_of
        from ...editor.denoisers.families import network_of, sizes_of
        from ...editor.denoisers.pipelines import check_device, load_pipeline
        from ..bench.bench import bench as measure
        from ..plan.prepare import prepare

        check_device(wanted.device)
        ready = prepare(plan, say)
        say(f"loading {plan.model}")
        pipeline = load_pipeline(plan.model, dtype_of(timing.precision), variant=wanted.variant)
        network, sides = network_of(pipeline), sizes_of(pipeline).latents(wanted.height, wanted.width)
        tokens = ready.family.text_tokens(pipeline)
        found = measure(network, ready.edit, ready.saes, timing.backend, sides, tokens, timing.rounds, wanted.device, executor, say)
        found["model"] = plan.model
    if as_json:
        write_json(found)
    else:
        _print(found)


def _print(found: dict[str, Any]) -> None:
    tokens = ", ".join(f"{h} {'x'.join(map(str, shape))}" for h, shape in found["tokens"].items())
    hardware = ", ".join(f"{backend}: {device}" for backend, device in found["hardware"].items())
    text = f"{found['model']}, {found['dtype']}; {hardware}; tokens {tokens}; {found['fired']:.2%} of decisions fire"
    tell(text)
    table = table_of("backend", "variant", "time", "of the UNet", "weights", left=("backend", "variant"))
    for r in found["rows"]:
        weights = f"{r['added_bytes'] / 2**20:,.1f} MiB" if r["added_bytes"] else "–"
        table.add_row(r["backend"], r["variant"], f"{r['seconds'] * 1e3:,.4g} ms", f"{r['ratio']:.3%}", weights)
    out.print(table)
