"""`saeuron bench`: what the hook and each gate cost beside the UNet, in one run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from ...editor.common.errors import SaeuronError
from ...editor.common.suggest import unknown
from ...validation.artifact import engines
from ...validation.backends.sessions import check_provider, provider_of
from . import options as o
from .console import clean, names, out, progress_line, write_json

_BACKENDS = ("torch", "onnx", *engines.BACKENDS)


@clean
def bench(
    concepts: Annotated[str, typer.Option(metavar="A,B", help="Concepts with presets.", rich_help_panel=o.WHAT)] = "Neon",
    preset_file: o.PresetFiles = None,
    activations: o.Activations = None,
    model: o.Model = None,
    variant: o.Variant = None,
    hookpoint: o.Hookpoint = None,
    sae: o.Sae = None,
    backend: Annotated[
        str,
        typer.Option(
            metavar="A,B", help="torch, onnx (ONNX Runtime), trt, trt-rtx (engines for this GPU, not tested).", rich_help_panel=o.HOW
        ),
    ] = "torch,onnx",
    device: o.Device = "cpu",
    provider: o.Provider = None,
    precision: Annotated[str, typer.Option(metavar="TYPE", help="fp32, fp16 or bf16 (torch only).", rich_help_panel=o.HOW)] = "fp32",
    height: Annotated[int | None, typer.Option(metavar="PIXELS", help="Default: the model's.", rich_help_panel=o.HOW)] = None,
    width: Annotated[int | None, typer.Option(metavar="PIXELS", help="Default: the model's.", rich_help_panel=o.HOW)] = None,
    rounds: Annotated[int, typer.Option(metavar="N", help="Runs of each variant, in turn.", rich_help_panel=o.HOW)] = 7,
    as_json: o.Json = False,
) -> None:
    """Time the edit beside the UNet that carries it: the dynamic hook and every gate, as a share of the unedited UNet's forward.

    The edit is timed alone, in turns with whole forwards; medians of the same run make the ratio.

    Example: `saeuron bench --concepts Neon`
    """
    backends = names(backend) or ("",)
    for name in backends:
        if name not in _BACKENDS:
            raise SaeuronError(unknown("backend", name, _BACKENDS))
        if name in engines.BACKENDS:
            engines.tensorrt_module(name)
            engines.gpu()
    if precision == "bf16" and set(backends) - {"torch"}:
        raise SaeuronError("--precision bf16: ONNX Runtime's CPU has no bf16 MatMul, and numpy no bf16; add --backend torch")
    check_provider(provider, backends)
    executor = provider_of(device, provider)
    if not 1 <= rounds <= 10_000:
        raise SaeuronError(f"--rounds is {rounds}; it lies between 1 and 10000")

    from ..plan.resolve import resolve, to_fetch
    from ..plan.settings import Settings

    plan = resolve(
        Settings(
            names(concepts), Path("unused"), ("checkpoint",), model=model, variant=variant, sae=tuple(sae or ()), hookpoint=hookpoint,
            activations=tuple(activations or ()), preset_files=tuple(preset_file or ()), precision=precision, height=height, width=width,
            device=device,
        )
    )  # fmt: skip
    to_fetch(plan)
    with progress_line("starting") as say:
        from ...editor.common.names import dtype_of
        from ...editor.denoisers.families import network_of, sizes_of
        from ...editor.denoisers.pipelines import check_device, load_pipeline
        from ..bench.bench import bench as measure
        from ..plan.prepare import prepare

        check_device(device)
        ready = prepare(plan, say)
        say(f"loading {plan.model}")
        pipeline = load_pipeline(plan.model, dtype_of(precision), variant=variant)
        network, sides = network_of(pipeline), sizes_of(pipeline).latents(height, width)
        tokens = ready.family.text_encoders[0].tokens(pipeline)
        found = measure(network, ready.edit, ready.saes, backends, sides, tokens, rounds, device, executor, say)
        found["model"] = plan.model
    if as_json:
        write_json(found)
    else:
        _print(found)


def _print(found: dict[str, Any]) -> None:
    tokens = ", ".join(f"{h} {'x'.join(map(str, shape))}" for h, shape in found["tokens"].items())
    hardware = ", ".join(f"{backend}: {device}" for backend, device in found["hardware"].items())
    text = f"{found['model']}, {found['dtype']}; {hardware}; tokens {tokens}; {found['fired']:.2%} of decisions fire"
    out.print(text, highlight=False, soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("backend", "variant", "time", "of the UNet", "weights"):
        table.add_column(name, justify="left" if name in ("backend", "variant") else "right", overflow="fold")
    for r in found["rows"]:
        weights = f"{r['added_bytes'] / 2**20:,.1f} MiB" if r["added_bytes"] else "–"
        table.add_row(r["backend"], r["variant"], f"{r['seconds'] * 1e3:,.4g} ms", f"{r['ratio']:.3%}", weights)
    out.print(table)
