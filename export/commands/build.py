"""`saeuron build`: TensorRT engines from an artifact's ONNX graphs, without torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ...editor.common.errors import SaeuronError
from ...validation.artifact import engines, manifest
from ...validation.artifact.manifest import Manifest
from ..plan.settings import Settings
from . import options as o
from .console import progress_line, tell, write_json
from .declared import command, only


@command
def build(
    artifact: o.Artifact,
    asked: Annotated[Settings, only("target", "shapes", "optimization_level", "hardware_compatible", "version_compatible")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace engines of the same target.", rich_help_panel=o.OUTPUT)] = False,
    dry_run: o.DryRun = False,
    as_json: o.Json = False,
) -> None:
    """Build TensorRT engines into an artifact, from its ONNX graphs alone: on the device, or ahead of time for RTX GPUs.

    Needs neither torch nor diffusers: `pip install 'saeuron-export[rtx]'` (or [gpu] for --target local).

    Example: `saeuron build without-neon --target rtx:sm86,sm89`, then on the GPU `saeuron validate without-neon --backend trt-rtx`
    """
    from ..formats.tensorrt import axes_of, check_precision, check_scheme, ready
    from ..plan.folder import check_space
    from ..ship.add_engines import add_engines, check_free

    wanted = replace(asked, formats=("trt",)).engines
    assert wanted is not None
    # Nothing that is said of engines matters until it is known which of them are replaced.
    record = manifest.read(artifact, replacing=("*",))
    if "onnx" not in record.formats:
        raise SaeuronError(
            f"'{artifact}' has no ONNX graphs to build from (formats: {', '.join(record.formats)}); export it with --format trt"
        )
    scheme = record.quantised.scheme if record.quantised else ""
    check_precision(wanted.targets, record.precision)
    check_scheme(wanted.targets, scheme)
    found = ready(wanted, scheme)
    check_free(artifact, [one.folder for one in found], overwrite)
    sizes = axes_of(artifact, record, wanted.shapes)
    weights = sum(entry.bytes for name, entry in record.files.items() if name.split("/")[0] in sizes and "/model.onnx" in name)
    check_space(artifact / engines.FOLDER, weights * len(found))
    if dry_run:
        _print_plan(artifact, [str(t) for t in found], sizes, weights, as_json)
        return
    with progress_line("starting") as say:
        record, names = add_engines(artifact, wanted, found, overwrite, say)
    if as_json:
        write_json({"output": str(artifact), "engines": {name: record.engines[name] for name in names}})
    else:
        print_engines(artifact, record, names)


def _print_plan(artifact: Path, targets: list[str], sizes: dict[str, Any], weights: int, as_json: bool) -> None:
    if as_json:
        write_json({"output": str(artifact), "targets": targets, "axes": sizes, "least_bytes": weights * len(targets)})
        return
    for name in targets:
        tell(f"target     {name}: at least {weights / 2**20:,.0f} MiB")
    for name, found in sizes.items():
        shown = ", ".join(f"{axis} {low if low == high else f'{low}:{usual}:{high}'}" for axis, (low, usual, high) in found.items())
        tell(f"engine     {name}: {shown}")


def print_engines(artifact: Path, record: Manifest, only: list[str] | None = None) -> None:
    """Each target's figures, and how to prove it."""
    for name, entry in record.engines.items():
        if only is not None and name not in only:
            continue
        parts = entry.components
        for part, made in parts.items():
            peak = "" if made.peak_bytes is None else f", peak {made.peak_bytes / 1e9:.2f} GB"
            weights = made.types.get("weight in 8 bits", {})
            narrow = "".join(f", {count} weights in {kind}" for kind, count in weights.items())
            tell(f"engine     {name}/{part}: {made.bytes / 2**20:,.1f} MiB, {made.seconds:.0f} s{peak}, {made.precision}{narrow}")
        tell(f"{artifact / engines.FOLDER / name}: {entry.status}; prove it there: saeuron validate {artifact} --backend {entry.backend}")
