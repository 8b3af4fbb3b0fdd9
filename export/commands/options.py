"""Options that several commands share, so that they are spelt and explained alike."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from ...editor.errors import SaeuronError
from ...editor.names import normalise
from ..folder import check_parent

LARGEST_SEED = 2**32 - 1
"""torch's CPU generator ignores what is beyond: two seeds would give the same noise"""
_STEPS = 1000  # every scheduler's training steps

WHAT, WHERE, HOW, OUTPUT = "What", "Where", "How", "Output"

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
Device = Annotated[str, typer.Option(metavar="NAME", help="torch device (cuda: not tested).", rich_help_panel=HOW)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is at --output.", rich_help_panel=OUTPUT)]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.", rich_help_panel=OUTPUT)]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable result on stdout.", rich_help_panel=OUTPUT)]


def check_seed(seed: int, option: str) -> None:
    """Raise unless torch's generator tells this seed from every other."""
    if not 0 <= seed <= LARGEST_SEED:
        raise SaeuronError(f"{option} {str(seed)[:20]}: a seed lies between 0 and {LARGEST_SEED}")


def check_steps(steps: int, option: str) -> None:
    """Raise unless a scheduler can take as many steps."""
    if not 1 <= steps <= _STEPS:
        raise SaeuronError(f"{option} {str(steps)[:20]}: a scheduler takes 1 to {_STEPS} steps")


def check_guidance(guidance: float) -> None:
    """Raise unless the guidance scale is a number."""
    if not math.isfinite(guidance):
        raise SaeuronError(f"--guidance {guidance:g} is no finite number")


def check_out_folder(output: Path) -> None:
    """Raise unless `output` is, or can become, a folder that may be written."""
    if output.exists() and not output.is_dir():
        raise SaeuronError(f"--output '{output}' is a file; give a folder")
    check_parent(output / "x")


def check_pixels(height: int | None, width: int | None) -> None:
    """Raise unless both can be the size of a picture."""
    for pixels, option in ((height, "--height"), (width, "--width")):
        if pixels is not None and (pixels < 8 or pixels % 8):
            raise SaeuronError(f"{option} is {pixels}; it must be a positive multiple of 8")


def hookpoints_of(text: str | None) -> list[str]:
    """`A,unet.B` → names of blocks; raises `SaeuronError` where one is given twice."""
    found = [normalise(h.strip()) for h in (text or "").split(",") if h.strip()]
    for name in found:
        if found.count(name) > 1:
            raise SaeuronError(f"hookpoint '{name}' is given twice")
    return found
