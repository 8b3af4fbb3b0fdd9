"""Options that several commands share, so that they are spelt and explained alike."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from ...editor.common.errors import SaeuronError
from ...editor.common.names import normalise
from ..plan import settings
from ..plan.checks import check_seed
from ..plan.folder import check_parent
from ..plan.settings import Settings
from .console import names
from .declared import annotation

WHAT, WHERE, HOW, OUTPUT, ENGINES = settings.WHAT, settings.WHERE, settings.HOW, settings.OUTPUT, settings.ENGINES


def _of(name: str) -> Any:
    return annotation(Settings, name)


# Those of `saeuron-export`, declared there.
Concepts, PresetFiles, Activations, Model, Variant = (_of(n) for n in ("concepts", "preset_files", "activations", "model", "variant"))
Sae, Hookpoint, Device, Overwrite = (_of(n) for n in ("sae", "hookpoint", "device", "overwrite"))
Targets, Shapes, OptimizationLevel = (_of(n) for n in ("target", "shapes", "optimization_level"))
HardwareCompatible, VersionCompatible = _of("hardware_compatible"), _of("version_compatible")

Provider = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="What runs the ONNX graphs: cpu, cuda or tensorrt (not tested). One that falls back to another is refused. Default: as --device.",
        rich_help_panel=HOW,
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.", rich_help_panel=OUTPUT)]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable result on stdout.", rich_help_panel=OUTPUT)]


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


def seeds_of(text: str, option: str) -> tuple[int, ...]:
    """`A,B` → seeds; raises `SaeuronError`, with the option's name, where one is none or is given twice."""
    found = names(text)
    for part in found:
        if not re.fullmatch(r"[0-9]{1,19}", part):
            raise SaeuronError(f"{option} '{text[:40]}': '{part[:20]}' is no seed; write whole numbers, e.g. 188,288")
        check_seed(int(part), option)
        if found.count(part) > 1:
            raise SaeuronError(f"{option} '{text[:40]}': seed {part} is given twice")
    if not found:
        raise SaeuronError(f"{option} is empty")
    return tuple(int(part) for part in found)


def numbers_of(text: str, option: str) -> list[float]:
    """`A,B` → numbers; `option` is named where one is none."""
    found = []
    for part in names(text):
        if not re.fullmatch(r"-?\d*\.?\d+(e-?\d+)?", part):
            raise SaeuronError(f"{option} '{text}': '{part}' is no number")
        found.append(float(part))
    if not found:
        raise SaeuronError(f"{option} is empty")
    return found
