"""What the page opens, and what is drawn on it. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...editor.common.declared import HOW, WHAT, WHERE, Checked, like, option
from ...editor.common.errors import SaeuronError
from ...editor.denoisers.sampling_settings import Sampling
from ..evidence.evaluation_settings import EvaluationSettings

_PAGE = "Page"


@dataclass(frozen=True)
class TrySettings(Checked):
    """The options of `saeuron try`."""

    attack: Path | None = option(None, "FILE|DIR", WHAT)
    """What `saeuron attack` wrote for it, to click what was found. Default: what lies in the artifact's validation/."""
    backend: str | None = option(None, "NAME", HOW)
    """What draws: checkpoint, onnx, trt or trt-rtx. Default: checkpoint where torch is installed, else engines that fit this GPU, else onnx."""
    scheduler: str | None = option(None, "KIND", HOW)
    """ddim or euler, with the settings of the artifact's scheduler; for both models. Default: its own, which must be one of the two or
    DPM-Solver++ unless the checkpoint draws."""
    device: str | None = option(None, "NAME", HOW)
    """Of the checkpoint, the ONNX graphs and the original model: cpu or cuda. Default: cpu."""
    provider: str | None = like(EvaluationSettings, "provider")
    model: str | None = option(None, "DIR|ID", WHERE)
    """Original model, for the unedited pictures. Default: the one on record, where it is on this machine; without it, only the edited ones are drawn."""
    port: int = option(7860, "N", _PAGE, least=0, most=65535)
    """Port on 127.0.0.1; 0: any that is free."""
    open: bool = option(False, panel=_PAGE)
    """Open the page in the browser."""


@dataclass(frozen=True)
class Wish(Checked):
    """One picture that is asked for.

    Raises:
        SaeuronError: a value that can't be meant.
    """

    prompt: str
    negative: str = ""
    seed: int = like(Sampling, "seed")
    steps: int = like(Sampling, "steps")
    guidance: float = like(Sampling, "guidance")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.prompt.strip():
            raise SaeuronError("the prompt is empty; write what to draw")

    @property
    def guided(self) -> bool:
        """Whether classifier-free guidance is used."""
        return self.guidance > 1
