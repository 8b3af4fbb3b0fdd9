"""Options that several commands share, so that they are spelt and explained alike."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...editor.common.errors import SaeuronError
from ...editor.common.names import normalise
from ..plan.folder import check_parent

WHAT, WHERE, HOW, OUTPUT, ENGINES = "What", "Where", "How", "Output", "Engines"

Concepts = Annotated[str, typer.Option(metavar="A,B", help="Concepts; `saeuron concepts` lists those with presets.", rich_help_panel=WHAT)]
PresetFiles = Annotated[
    list[str] | None, typer.Option("--preset-file", metavar="FILE", help="Presets of your own, as TOML; repeatable.", rich_help_panel=WHAT)
]
Activations = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATH",
        help="Concept activations: file, folder of saeuron collect, or HOOKPOINT=FILE; repeatable. Default: the preset's, or collected.",
        rich_help_panel=WHAT,
    ),
]
Model = Annotated[
    str | None,
    typer.Option(metavar="DIR|ID", help="Base model: diffusers folder, Hub id, or demo. Default: the preset's.", rich_help_panel=WHERE),
]
Variant = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Of the base model's weight files, e.g. fp16 for model.fp16.safetensors. Default: the plain ones.",
        rich_help_panel=WHERE,
    ),
]
Sae = Annotated[
    list[str] | None,
    typer.Option(
        metavar="DIR|ID", help="SAE folder or Hub id, or HOOKPOINT=DIR|ID; repeatable. Default: the preset's.", rich_help_panel=WHERE
    ),
]
Hookpoint = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="UNet block, with or without the prefix `unet.`; several comma-separated. Default: the preset's.",
        rich_help_panel=WHERE,
    ),
]
Device = Annotated[str, typer.Option(metavar="NAME", help="torch device: cpu or cuda.", rich_help_panel=HOW)]
Provider = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="What runs the ONNX graphs: cpu, cuda or tensorrt (not tested). One that falls back to another is refused. Default: as --device.",
        rich_help_panel=HOW,
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is at --output.", rich_help_panel=OUTPUT)]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.", rich_help_panel=OUTPUT)]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable result on stdout.", rich_help_panel=OUTPUT)]


Targets = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        metavar="T",
        help="local (this GPU), rtx (built ahead, sm80 and later), or rtx:sm86,sm89; repeatable. Default: rtx.",
        rich_help_panel=ENGINES,
    ),
]
Shapes = Annotated[
    str,
    typer.Option(
        metavar="SIZES",
        help="Sizes in pictures and pixels, e.g. batch=1:1:4,height=512:512:768. Default: one picture of the artifact's size, which is quickest.",
        rich_help_panel=ENGINES,
    ),
]
OptimizationLevel = Annotated[
    int | None,
    typer.Option(metavar="0-5", help="0 builds quickly, 5 searches longest. Default: the library's.", rich_help_panel=ENGINES),
]
HardwareCompatible = Annotated[
    bool,
    typer.Option(
        "--hardware-compatible",
        help="local: also for other GPUs from Ampere on; slower than an engine of their own.",
        rich_help_panel=ENGINES,
    ),
]
VersionCompatible = Annotated[
    bool,
    typer.Option(
        "--version-compatible",
        help="local: also for later minor versions of the library; larger and a little slower.",
        rich_help_panel=ENGINES,
    ),
]


def check_out_folder(output: Path) -> None:
    """Raise unless `output` is, or can become, a folder that may be written."""
    if output.exists() and not output.is_dir():
        raise SaeuronError(f"--output '{output}' is a file; give a folder")
    check_parent(output / "x")


def hookpoints_of(text: str | None) -> list[str]:
    """`A,unet.B` → names of blocks; raises `SaeuronError` where one is given twice."""
    found = [normalise(h.strip()) for h in (text or "").split(",") if h.strip()]
    for name in found:
        if found.count(name) > 1:
            raise SaeuronError(f"hookpoint '{name}' is given twice")
    return found
