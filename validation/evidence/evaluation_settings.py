"""What to evaluate, and how. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...editor.common.declared import HOW, WHAT, WHERE, Checked, like, option
from ...editor.common.seeds import LARGEST_SEED
from ...editor.denoisers.sampling_settings import Sampling

_STAGES, _PROMPTS, _DISTANCE = "Stages", "On prompts of your own, instead of a judge", "Fréchet distance"


@dataclass(frozen=True)
class EvaluationSettings(Checked):
    """The options of `saeuron evaluate`.

    Raises:
        SaeuronError: a value that can't be meant.
    """

    backends: tuple[str, ...] = option((), "A,B", WHAT, name="backend", joined=True)
    """Whose pictures: checkpoint, onnx, trt, trt-rtx, hook, unedited; several are compared with the first. Default: checkpoint, else what can be run
    here."""
    before: bool = option(True, panel=WHAT)
    """The unedited model's pictures too; needs torch and the original model."""
    block: tuple[str, ...] = option((), "A,B", WHAT, joined=True)
    """Blocks whose tokens are compared with the unedited model's. Default: the edit's; of weights alone, those of the concepts' presets."""
    judge: tuple[str, ...] = option(("demo",), "NAME", HOW)
    """demo, unlearncanvas=DIR or onnx=DIR, which name objects and styles; clip=DIR|ID, classifier=DIR|ID[:A,B] or nudenet[=SCORE], which look for
    the concept's words. Repeatable (not in attack); tuning goes by the worst of several. Default: demo."""
    objects: tuple[str, ...] = option((), "A,B", WHAT, joined=True)
    """Only these of the judge's objects."""
    styles: tuple[str, ...] = option((), "A,B", WHAT, joined=True)
    """Only these of the judge's styles; plain is the pictures without one."""
    seeds: tuple[int, ...] = option((188, 288, 588, 688, 888), "A,B", WHAT, joined=True, least=0, most=LARGEST_SEED)
    """UnlearnCanvas's. With --prompts: the first one is that of the first prompt, where the file names none."""
    steps: int | None = like(Sampling, "steps", None)
    """Denoising steps. Default: those on record, or of the concepts' presets."""
    guidance: float | None = like(Sampling, "guidance", None)
    """Guidance scale; 1 or less switches it off. Default: that on record, or of the concepts' presets."""
    model: str | None = option(None, "DIR|ID", WHERE)
    """Original model, for hook and unedited; with --unet the base. Default: the one on record, or that of the concepts' presets."""
    saes: tuple[str, ...] = option((), "DIR|ID", WHERE, name="sae")
    """For the hook: SAE folder or Hub id, or HOOKPOINT=DIR|ID; repeatable. Default: as recorded."""
    device: str = option("cpu", "NAME", HOW)
    """torch device: cpu or cuda."""
    provider: str | None = option(None, "NAME", HOW)
    """What runs the ONNX graphs: cpu, cuda or tensorrt (not tested). One that falls back to another is refused. Default: as --device."""
    batch_size: int = like(Sampling, "batch_size", 16)
    fid: Path | None = option(None, "FILE", _DISTANCE)
    """FID by torch-fidelity's Inception weights: after from before, and from --reference."""
    reference: Path | None = option(None, "DIR", _DISTANCE)
    """Pictures to take distances from: the data set's, say."""
    sequential: bool = option(False, panel=_STAGES)
    """Through the hook: the first concept removed, the first two, …, all."""
    all_but_one: bool = option(False, panel=_STAGES)
    """Through the hook: all concepts removed but each one in turn."""
    nudenet: bool = option(False, panel=_PROMPTS)
    """NudeNet's detections."""
    clip: str | None = option(None, "DIR|ID", _PROMPTS)
    """Utility: CLIP score by this CLIP model, before, after, and the change."""
    prompts: Path | None = option(None, "FILE", _PROMPTS)
    """CSV with a column prompt (and seed, guidance; I2P's names too), or one prompt a line."""
    threshold: float | None = option(None, "SCORE", _PROMPTS, least=0, most=1)
    """With --nudenet: least score of a detection. Default: 0.6."""
