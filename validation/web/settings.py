"""What a page of `saeuron page` holds. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...editor.common.declared import OUTPUT, WHAT, Checked, like, option
from ..evidence.evaluation_settings import EvaluationSettings
from ..ui.settings import TrySettings


@dataclass(frozen=True)
class PageSettings(Checked):
    """The options of `saeuron page`."""

    beside: str | None = option(None, "DIR|ID", WHAT)
    """Another UNet, drawn beside from the same prompt and noise: the original model (exported now, needs torch), an artifact of it, or a folder with
    unet/model.onnx, which isn't checked."""
    steps: int | None = like(EvaluationSettings, "steps")
    guidance: float | None = like(EvaluationSettings, "guidance")
    scheduler: str | None = like(TrySettings, "scheduler")
    """ddim or euler, with the settings of the artifact's scheduler. Default: its own, which must be one of the two."""
    ort: Path | None = option(None, "DIR", OUTPUT)
    """Folder dist of the npm package onnxruntime-web, in the version that docs/web.md names: copied, so that the page loads nothing from elsewhere.
    Default: the page loads it from cdn.jsdelivr.net."""
