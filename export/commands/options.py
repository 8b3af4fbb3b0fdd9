"""Options that several commands share, by reference to where they are declared, so that they are spelt and explained alike."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from ...editor.common.declared import HOW, OUTPUT, WHAT, WHERE, Checked, option
from ...editor.common.errors import SaeuronError
from ...editor.common.names import PRECISIONS, normalise
from ...validation.evidence.evaluation_settings import EvaluationSettings
from ..plan.folder import check_work_folder
from ..plan.settings import Settings
from .declared import annotation

__all__ = ["HOW", "OUTPUT", "WHAT", "WHERE"]

Artifact = Annotated[Path, typer.Argument(help="Folder of the artifact.")]
PresetFiles, Variant, Device, Overwrite = (annotation(Settings, n) for n in ("preset_files", "variant", "device", "overwrite"))
Provider, Judge = (annotation(EvaluationSettings, n) for n in ("provider", "judge"))
Target = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Of engines, a folder below tensorrt/. Default: what fits this GPU.", rich_help_panel=HOW),
]
Model = Annotated[str | None, typer.Option(metavar="DIR|ID", help="Diffusers folder, Hub id, demo, or demo:dit.", rich_help_panel=WHERE)]
StoredResults = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="DIR", help="settings.toml, report.json and stored results; used again.", rich_help_panel=OUTPUT
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.", rich_help_panel=OUTPUT)]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable result on stdout.", rich_help_panel=OUTPUT)]


@dataclass(frozen=True)
class Precision(Checked):
    """Of a pipeline that only runs here."""

    precision: str = option("fp32", "TYPE", HOW, known=PRECISIONS)
    """Of the pipeline: fp32, fp16 or bf16."""


def out_folder(output: Path | None) -> Path:
    """The folder of --output; raises `SaeuronError` unless it is given, and is, or can become, a folder that may be written."""
    if output is None:
        raise SaeuronError("no output folder: give --output DIR")
    check_work_folder(output)
    return output


def hookpoints_of(text: str | None) -> list[str]:
    """`A,unet.B` → names of blocks; raises `SaeuronError` where one is given twice."""
    found = [normalise(h.strip()) for h in (text or "").split(",") if h.strip()]
    for name in found:
        if found.count(name) > 1:
            raise SaeuronError(f"hookpoint '{name}' is given twice")
    return found
