"""What the user asks for (`Settings`), and the same resolved (`Plan`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Any

from ...editor.common.declared import ENGINES, EVIDENCE, HOW, OUTPUT, PROOF, WHAT, WHERE, Checked, like, option
from ...editor.common.names import GATES, PRECISIONS, RESIDUALS
from ...editor.denoisers.sampling_settings import Sampling
from ...editor.edit.edit_header import EditHeader
from ...editor.features.concepts import Concept
from ...editor.features.rule import Rule
from ...validation.artifact.engines import Target
from ...validation.tuning.settings import TuneSettings
from ..formats.tensorrt import EngineSettings, Shapes, check_precision


@dataclass(frozen=True)
class Settings(Checked):
    """The options of `saeuron-export`, under the same names, and their words; None means: take the preset's.

    Where several values can be given, a list or a tuple holds them, and a text is one. Of `concepts` and `format`, a text is what the
    command takes: names separated by commas. Paths are texts or `Path`s.
    """

    concepts: tuple[str, ...] = option((), "A,B", WHAT, joined=True)
    """Concepts; `saeuron concepts` lists those with presets."""
    output: Path = option(Path(), "DIR", OUTPUT, short="-o")
    """Folder of the artifact; must not exist."""
    formats: tuple[str, ...] = option(("checkpoint", "onnx"), "A,B", OUTPUT, name="format", joined=True)
    """checkpoint (diffusers, safetensors), onnx, trt (TensorRT engines, and onnx)."""
    model: str | None = option(None, "DIR|ID", WHERE)
    """Base model: diffusers folder, Hub id, or demo. Default: the preset's."""
    sae: tuple[str, ...] = option((), "DIR|ID", WHERE)
    """SAE folder or Hub id, or HOOKPOINT=DIR|ID; repeatable. Default: the preset's."""
    hookpoint: str | None = option(None, "NAME", WHERE)
    """UNet block, with or without the prefix `unet.`, e.g. up_blocks.1.attentions.1; several comma-separated. Default: the preset's."""
    activations: tuple[str, ...] = option((), "PATH", WHAT)
    """Concept activations: file (.safetensors, or a released pickle), folder of saeuron collect, or HOOKPOINT=FILE; repeatable. Default: the preset's, or
    collected."""
    select: str | None = option(None, "RULE", WHAT)
    """percentile:P or count:N. Default: the preset's, else percentile:99.999."""
    multiplier: float | None = option(None, "GAMMA", WHAT)
    """Negative suppresses. Default: the preset's, else -1.0."""
    residual: str | None = option(None, "MODE", HOW, known=RESIDUALS)
    """Reconstruction error: keep, upstream (as the released hook), drop. Default: the preset's, else keep."""
    gate: str = option("exact", "GATE", HOW, known=GATES)
    """exact (whole encoder) or threshold (no top-k membership test, cheaper, approximate)."""
    precision: str = option("", "TYPE", HOW, known=PRECISIONS)
    """fp32, fp16, or bf16 (checkpoint, or engines with --no-validate). Default: fp16 with trt, else fp32."""
    steps: int | None = like(Sampling, "steps", None)
    """Denoising steps. Default: the preset's, else 50."""
    guidance: float | None = like(Sampling, "guidance", None)
    """Guidance scale. Default: the preset's, else 7.5."""
    height: int | None = like(Sampling, "height")
    width: int | None = like(Sampling, "width")
    device: str = option("cpu", "NAME", HOW)
    """torch device: cpu or cuda."""
    settings: Path | None = option(None, "FILE", WHAT)
    """TOML with [export] and [[concepts]], e.g. of tuning; options given beside it win."""
    preset_files: tuple[str, ...] = option((), "FILE", WHAT, name="preset_file")
    """Presets of your own, as TOML; repeatable."""
    validate: bool = option(True, panel=PROOF)
    """Prove the artifact against the dynamic hook."""
    proof: str = option("full", "SCOPE", PROOF, known=("full", "short"))
    """full (whole trajectories, free runs) or short (a few forwards; for large models on a CPU)."""
    proof_prompts: tuple[str, ...] = option((), "TEXT", PROOF, name="proof_prompt")
    """Prompt that shows the concept; repeatable. Default: the preset's."""
    allow_amplify: bool = option(False, panel=WHAT)
    """Accept what strengthens: a positive multiplier, or a feature times more than 1 (steer, and its edit files)."""
    overwrite: bool = option(False, panel=OUTPUT)
    """Replace what is at --output."""
    target: tuple[str, ...] = option((), "T", ENGINES)
    """local (this GPU), rtx (built ahead, sm80 and later), or rtx:sm86,sm89; repeatable. Default: rtx."""
    shapes: str = option("", "SIZES", ENGINES)
    """Sizes in pictures and pixels, e.g. batch=1:1:4,height=512:512:768. Default: one picture of the artifact's size, which is quickest."""
    optimization_level: int | None = like(EngineSettings, "optimization_level")
    hardware_compatible: bool = like(EngineSettings, "hardware_compatible")
    version_compatible: bool = like(EngineSettings, "version_compatible")
    edit: Path | None = option(None, "FILE", WHAT)
    """Instead of concepts: an edit file, of `saeuron steer` or out of another artifact."""
    sign: Path | None = option(None, "PEM", OUTPUT)
    """ECDSA private key: sign what is proven (or --no-validate); password: SAEURON_KEY_PASSWORD."""
    variant: str | None = option(None, "NAME", WHERE)
    """Of the base model's weight files, e.g. fp16 for model.fp16.safetensors. Default: the plain ones."""
    kind: tuple[str, ...] = option((), "KIND", WHAT)
    """For concepts without a preset, which are then made from their words: object, style, person, nudity or text; or NAME=KIND, repeatable."""
    instead: tuple[str, ...] = option((), "TEXT", WHAT)
    """What pictures to compare with show in place of such a concept; or NAME=TEXT, repeatable. Default: something neutral."""
    tune: bool = option(False, panel=EVIDENCE)
    """First choose each concept's settings by the judges, as saeuron tune does with its defaults; results lie in OUTPUT-work."""
    evidence: str = option("", "AMOUNT", EVIDENCE, known=("", "quick", "full"))
    """Then evaluate by the judges, attack, and put a report into the artifact: quick (one backend, 2 seeds, 2 attacks) or full (every backend that runs
    here, 5 seeds, 4 attacks)."""
    judge: tuple[str, ...] = like(TuneSettings, "judge", panel=EVIDENCE)
    judge_anyway: bool = like(TuneSettings, "judge_anyway", panel=EVIDENCE)
    budget: int = like(TuneSettings, "budget", panel=EVIDENCE)
    # The command's names of options that are repeated, or that are lists.
    format: InitVar[str | Sequence[str] | None] = None
    proof_prompt: InitVar[str | Sequence[str] | None] = None
    preset_file: InitVar[str | Path | Sequence[str | Path] | None] = None

    def __post_init__(self, format: Any, proof_prompt: Any, preset_file: Any) -> None:
        for name, given in (("formats", format), ("proof_prompts", proof_prompt), ("preset_files", preset_file)):
            if given is not None:
                object.__setattr__(self, name, given)
        super().__post_init__()

    @property
    def staged(self) -> bool:
        """Whether there is more to do than to export."""
        return self.tune or bool(self.evidence)

    @property
    def engines(self) -> EngineSettings | None:
        """What engines are asked for; None where none are.

        Raises:
            SaeuronError: targets, shapes or options that can't be meant.
        """
        if "trt" not in self.formats:
            return None
        found = EngineSettings(
            tuple(Target.parse(t) for t in self.target or ("rtx",)), Shapes.parse(self.shapes), self.optimization_level, self.hardware_compatible,
            self.version_compatible,
        )  # fmt: skip
        if self.precision:
            check_precision(found.targets, self.precision)
        return found


@dataclass(frozen=True)
class Collecting:
    """How the activations of a domain come about, where no file is named."""

    domain: str
    prompts: Mapping[str, tuple[str, ...]] = field(repr=False)
    """concept or contrast set → prompts"""
    steps: int
    guidance: float


@dataclass(frozen=True)
class Wish:
    """One concept at one hookpoint, before its activations are opened."""

    concept: str
    hookpoint: str
    activations: str
    """a file, or empty where they are to be collected"""
    rule: Rule
    multiplier: float
    status: str
    domain: str
    collecting: Collecting | None = None


@dataclass(frozen=True)
class Plan:
    """Everything that the export needs to know, resolved."""

    settings: Settings
    model: str
    wishes: tuple[Wish, ...]
    saes: dict[str, str]
    """hookpoint → folder or Hub id"""
    residual: str
    steps: int
    guidance: float
    prompts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """concept → prompts of its preset; with an edit file, those that are on record"""
    edit: EditHeader | None = None
    """what the edit file says, where one is given; then there are no wishes"""
    concepts: dict[str, Concept] = field(default_factory=dict)
    """name → its preset, as the settings file changed it; without those that have none, and empty with an edit file"""

    def __post_init__(self) -> None:
        Sampling(self.steps, self.guidance)  # raises: a preset or an edit file may hold anything
