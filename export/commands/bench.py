"""`saeuron bench`: what each gate costs beside the UNet, in one run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from ...editor.common.errors import SaeuronError
from ...editor.common.names import GATES, PRECISIONS
from ...editor.common.suggest import unknown
from ...validation.artifact.engines import BACKENDS as ENGINES
from ...validation.artifact.engines import gpu, tensorrt_module
from ...validation.backends.sessions import check_provider, provider_of
from ..plan.checks import check_pixels
from ..plan.folder import check_files
from . import options as o
from .console import clean, names, out, print_warning, progress_line, write_json

RANDOM = {"sd14": "SD 1.4's UNet with random weights, an SAE of 20480 latents"}
_BACKENDS = ("torch", "onnx", *ENGINES)
_DEFAULT = "torch,onnx"


@clean
def bench(
    concepts: Annotated[
        str, typer.Option(metavar="A,B", help="Concepts with presets; default: Neon of the demo.", rich_help_panel=o.WHAT)
    ] = "",
    random: Annotated[str | None, typer.Option(metavar="SIZE", help=f"Instead: sd14 ({RANDOM['sd14']}).", rich_help_panel=o.WHAT)] = None,
    gate: Annotated[str, typer.Option(metavar="A,B", help="Gates to time.", rich_help_panel=o.WHAT)] = ",".join(GATES),
    present: Annotated[
        bool, typer.Option("--present", help="With --random: features that fire on the input; default: none does.", rich_help_panel=o.WHAT)
    ] = False,
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
    ] = _DEFAULT,
    device: o.Device = "cpu",
    provider: o.Provider = None,
    precision: Annotated[str, typer.Option(metavar="TYPE", help="fp32, fp16 or bf16 (torch only).", rich_help_panel=o.HOW)] = "fp32",
    batch: Annotated[
        int, typer.Option(metavar="N", help="Rows of the UNet's input; guidance makes two of a picture.", rich_help_panel=o.HOW)
    ] = 2,
    height: Annotated[int | None, typer.Option(metavar="PIXELS", help="Default: the model's.", rich_help_panel=o.HOW)] = None,
    width: Annotated[int | None, typer.Option(metavar="PIXELS", help="Default: the model's.", rich_help_panel=o.HOW)] = None,
    runs: Annotated[int, typer.Option(metavar="N", help="Runs of the edit alone.", rich_help_panel=o.HOW)] = 21,
    forwards: Annotated[int, typer.Option(metavar="N", help="Whole forwards of each variant.", rich_help_panel=o.HOW)] = 3,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="JSON; a plot lies beside it as .svg.", rich_help_panel=o.OUTPUT)
    ] = None,
    overwrite: o.Overwrite = False,
    as_json: o.Json = False,
) -> None:
    """Time the edit beside the UNet that carries it: the dynamic hook and every gate, as a share of the unedited UNet's forward.

    The edit is timed alone, in turns with whole forwards; medians of the same run make the ratio.

    Example: `saeuron bench --concepts Neon`, or at the size of Stable Diffusion 1.4: `saeuron bench --random sd14 -o bench.json`
    """
    gates, backends = names(gate), names(backend)
    for given, known, kind in ((gates, GATES, "gate"), (backends, _BACKENDS, "backend")):
        if not given:
            raise SaeuronError(f"--{kind} is empty")
        for name in given:
            if name not in known:
                raise SaeuronError(unknown(kind, name, known))
    if precision not in PRECISIONS:
        raise SaeuronError(unknown("precision", precision, PRECISIONS))
    if precision == "bf16" and set(backends) - {"torch"}:
        raise SaeuronError("--precision bf16: ONNX Runtime's CPU has no bf16 MatMul, and numpy no bf16; add --backend torch")
    check_provider(provider, backends)
    executor = provider_of(device, provider)
    if set(backends) & set(ENGINES):
        for name in set(backends) & set(ENGINES):
            tensorrt_module(name)
        gpu()
    if random is not None and random not in RANDOM:
        raise SaeuronError(unknown("size", random, RANDOM))
    if random and (concepts or model or variant or sae or activations or hookpoint or preset_file):
        raise SaeuronError(
            "--random brings its own model, SAE and features; leave --concepts, --model, --sae, --hookpoint and --activations out"
        )
    if present and not random:
        raise SaeuronError("--present goes with --random; a model's own features fire as they do")
    for value, option in ((batch, "--batch"), (runs, "--runs"), (forwards, "--forwards")):
        if not 1 <= value <= 10_000:
            raise SaeuronError(f"{option} is {value}; it lies between 1 and 10000")
    check_pixels(height, width)
    files = _files(output, overwrite)
    wanted: dict[str, Any] = {
        "concepts": names(concepts) or ("Neon",), "model": model, "variant": variant, "sae": tuple(sae or ()), "hookpoint": hookpoint, "activations": tuple(activations or ()),
        "preset_files": tuple(preset_file or ()), "output": Path("unused"), "height": height, "width": width,
    }  # fmt: skip
    shown = RANDOM.get(random or "")
    if not shown:
        from ..plan.resolve import resolve, to_fetch
        from ..plan.settings import Settings

        plan = resolve(Settings(**wanted))
        to_fetch(plan)
        shown = plan.model
    with progress_line("starting") as say:
        from ...editor.denoisers.pipelines import check_device
        from ..bench.bench import BenchSettings
        from ..bench.bench import bench as measure
        from ..bench.models import of_plan, random_sd14

        check_device(device)
        unet, edit, saes, tokens, factor = random_sd14(precision, present, say) if random else of_plan(wanted, precision, say)
        settings = BenchSettings(
            gates, backends, batch, height and height // factor, width and width // factor, tokens, runs, forwards, device=device, provider=executor,
        )  # fmt: skip
        found = measure(unet, edit, saes, settings, say)
    found["model"] = shown
    if files:
        from ...validation.artifact.manifest import strict_json

        files[0].parent.mkdir(parents=True, exist_ok=True)
        files[0].write_text(strict_json(found) + "\n", encoding="utf-8")
        files[1].write_text(plot(found), encoding="utf-8")
    if as_json:
        write_json(found)
    else:
        _print(found)
        if files:
            out.print(f"{files[0]}, {files[1]}", highlight=False, soft_wrap=True)
    if found["fired"] and random and not present:
        print_warning("features fired although none was meant to")


def _files(output: Path | None, overwrite: bool) -> list[Path]:
    if output is None:
        return []
    files = [output.with_suffix(".json"), output.with_suffix(".svg")]
    check_files(files, overwrite)
    return files


def _seconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def _bytes(value: int | None) -> str:
    return "–" if value is None else f"{value / 2**20:,.1f} MiB"


def _print(found: dict[str, Any]) -> None:
    maps = ", ".join(f"{h} {'x'.join(map(str, shape))}" for h, shape in found["maps"].items())
    hardware = ", ".join(f"{backend}: {device}" for backend, device in found["hardware"].items())
    out.print(
        f"{found['model']}, {found['dtype']}; {hardware}; maps {maps}; {found['fired']:.2%} of decisions fire",
        highlight=False,
        soft_wrap=True,
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("backend", "variant", "edit alone", "of the UNet", "whole forward", "working", "weights"):
        table.add_column(name, justify="left" if name in ("backend", "variant") else "right", overflow="fold")
    for r in found["rows"]:
        ratio = "–" if r["ratio"] is None else f"{r['ratio']:.3%}"
        table.add_row(
            r["backend"], r["variant"], _seconds(r["edit_seconds"]), ratio, _seconds(r["forward_seconds"]), _bytes(r["working_bytes"]), _bytes(r["added_bytes"])
        )  # fmt: skip
    out.print(table)


def plot(found: dict[str, Any]) -> str:
    """A bar a variant, as SVG: the edit alone as a share of the unedited UNet's forward."""
    rows = [r for r in found["rows"] if r["ratio"] is not None]
    largest = max(r["ratio"] for r in rows) or 1.0
    high, left, wide = 26, 170, 420
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + wide + 110}" height="{high * (len(rows) + 2)}" font-family="sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="8" y="20">Edit alone, share of the unedited UNet: {_escaped(found["model"])}, {found["dtype"]}</text>',
    ]
    for number, r in enumerate(rows):
        y = high * (number + 1) + 10
        length = max(1.0, wide * r["ratio"] / largest)
        parts += [
            f'<text x="8" y="{y + 14}">{_escaped(r["backend"])} {_escaped(r["variant"])}</text>',
            f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{high - 8}" fill="#3b6ea5"/>',
            f'<text x="{left + length + 6:.1f}" y="{y + 14}">{r["ratio"]:.3%}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])


def _escaped(text: str) -> str:
    from xml.sax.saxutils import escape

    return escape(text)
