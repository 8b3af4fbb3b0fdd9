"""What the user asks for (`Settings`), and the same resolved (`Plan`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Any

from ...editor.common.declared import ENGINES, EVIDENCE, HOW, OUTPUT, PROOF, WHAT, WHERE, Checked, like, option
from ...editor.common.errors import SaeuronError
from ...editor.common.names import BY_SAE, GAINS, GATES, NOISIEST, NORMS, PRECISIONS, REPLACE_BY, RESIDUALS, SCALED, WIDEST
from ...editor.denoisers.sampling_settings import Sampling
from ...editor.edit.edit_header import EditHeader
from ...editor.edit.how import How
from ...editor.edit.provenance import Setting
from ...editor.features.concepts import Concept
from ...editor.features.named import ConceptWords
from ...editor.features.rule import Rule
from ...validation.artifact.engines import Target
from ...validation.artifact.quantised import SCHEMES
from ...validation.tuning.settings import TuneSettings
from ..formats.tensorrt import EngineSettings, Shapes, check_precision, check_scheme


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
    """Base model: diffusers folder, Hub id, demo, or demo:dit. Default: the preset's."""
    sae: tuple[str, ...] = option((), "DIR|ID", WHERE)
    """SAE folder or Hub id, or HOOKPOINT=DIR|ID; repeatable. Default: the preset's."""
    hookpoint: str | None = option(None, "NAME", WHERE)
    """Block, with or without the network's name before it, e.g. up_blocks.1.attentions.1 or transformer_blocks.12; several comma-separated. Default: the preset's."""
    activations: tuple[str, ...] = option((), "PATH", WHAT)
    """Concept activations: file (.safetensors, or a released pickle), folder of saeuron collect, or HOOKPOINT=FILE; repeatable. Default: the preset's, or
    collected."""
    select: str | None = option(None, "RULE", WHAT)
    """percentile:P or count:N. Default: the preset's, else percentile:99.999."""
    multiplier: float | None = option(None, "GAMMA", WHAT)
    """Of multiply, project and probe; negative suppresses. Default: the preset's, else -1.0; where the preset is made for something else, -4.0 for project, -20.0 for probe and -1.0
    with --gain token."""
    intervention: str | None = option(None, "KIND", HOW)
    """What is done: multiply, zero, clamp or replace (features of an SAE), project or probe (directions, without an SAE), weights (cross-attention, in closed form), or two,
    as weights+multiply. Default: the preset's, else multiply."""
    replace_by: str | None = option(None, "RULE", HOW, known=REPLACE_BY)
    """With replace: what a token becomes: nearest (the nearest of the map at which nothing fires) or mean (of all of these). Default: the preset's, else
    nearest."""
    spread: int | None = option(None, "N", HOW, least=0, most=WIDEST)
    """With replace: places around one that fires, up to N away, which are replaced too. Default: the preset's, else 0."""
    gain: str | None = option(None, "BY", HOW, known=GAINS)
    """With multiply: what the multiplier is multiplied by: mean (the feature's mean activation) or token (the norm of the token's own latents over that of the
    feature's decoder row). Default: the preset's, else mean."""
    norm: str | None = option(None, "NORM", HOW, known=NORMS)
    """With project and probe: kept brings each changed token back to its norm; free doesn't. Default: the preset's, else free."""
    start: int | None = option(None, "T", HOW, least=0, most=NOISIEST)
    """Timestep from which on blocks are edited, 1000 (noise) to 0; above it pictures take shape as ever. Default: the preset's, else from the first on."""
    becomes: tuple[str, ...] = option((), "TEXT", HOW)
    """With weights or project: what the concept's words become: neighbour, plain (a style's prompts without it), empty, a concept of its domain, or words in place of
    its name; or NAME=TEXT, repeatable. Default: the preset's, else its prompts without it where they are known, else neighbour."""
    residual: str | None = option(None, "MODE", HOW, known=RESIDUALS)
    """Reconstruction error: keep, upstream (as the released hook), drop. Default: the preset's, else keep."""
    gate: str = option("exact", "GATE", HOW, known=GATES)
    """exact (whole encoder) or threshold (no top-k membership test, cheaper, approximate)."""
    precision: str = option("", "TYPE", HOW, known=PRECISIONS)
    """fp32, fp16, or bf16 (checkpoint, or engines with --no-validate). Default: fp16 with trt, else fp32."""
    quantize: str = option("", "SCHEME", HOW, known=("", *SCHEMES))
    """w8 (int8 weights), fp8 (weights and inputs; engines from sm89 on) or int8 (both; no document says that it is faster on RTX), of the denoiser's graph and
    engines; the edit and everything else stay in --precision."""
    calibration_prompts: Path | None = option(None, "FILE", HOW)
    """With fp8 and int8: prompts that the ranges of inputs are found by, as .txt or .csv. Default: the concepts' and those of what they are compared with."""
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
    proof: str = option("full", "SCOPE", PROOF, known=("full", "short", "seam"))
    """full (whole trajectories, free runs), short (a few forwards; for large models on a CPU) or seam (three forwards, up to the last edited block; for models that don't fit into memory)."""
    proof_prompts: tuple[str, ...] = option((), "TEXT", PROOF, name="proof_prompt")
    """Prompt that shows the concept; repeatable. Default: the preset's."""
    evaluate: bool = option(True, panel=PROOF)
    """With --quantize: judge by --judge, before and after, whether the concepts stay away."""
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
    kind: tuple[str, ...] = like(ConceptWords, "kind")
    instead: tuple[str, ...] = like(ConceptWords, "instead")
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
        check_scheme(found.targets, self.quantize)
        return found


@dataclass(frozen=True)
class Collecting:
    """How the activations of a domain come about, where no file is named."""

    domain: str
    prompts: Mapping[str, tuple[str, ...]] = field(repr=False)
    """concept or contrast set → prompts"""
    steps: int
    guidance: float
    within: bool = False
    """whether `probe` needs to know how tokens vary within a concept"""


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
    intervention: str = "multiply"
    pairs: WeightWish | None = None
    """of `project`: what its mean tokens may be compared with, until that is chosen"""
    beside: str = ""
    """what they are compared with"""
    how: How = How()
    start: int = NOISIEST
    """timestep from which on it acts"""
    rows: str = ""
    """of `probe`: a file with its rows, so that nothing is collected"""

    @property
    def setting(self) -> Setting:
        """As it is put on record; what is compared with may be open yet."""
        beside = self.beside or (" or ".join(self.pairs.choices) if self.pairs else "")
        rule, multiplier = str(self.rule) if self.intervention in BY_SAE else "", self.multiplier if self.intervention in SCALED else None
        return Setting(self.concept, self.hookpoint, rule, multiplier, self.status, self.intervention, beside, self.how, self.start)


@dataclass(frozen=True)
class WeightWish:
    """A concept whose words shall have other keys and values."""

    concept: str
    choices: Mapping[str, tuple[tuple[str, str], ...]] = field(repr=False)
    """what it may become → its prompts, each with the one about that; of several, the nearest is taken"""
    kept: Mapping[str, tuple[str, ...]] = field(repr=False)
    """set → prompts that stay as they are"""
    status: str

    def setting(self, becomes: str = "") -> Setting:
        """As it is put on record, once it is known what it becomes."""
        return Setting(self.concept, "", "", None, self.status, "weights", becomes or " or ".join(self.choices))


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
    weights: tuple[WeightWish, ...] = ()
    """concepts whose weights are edited"""
    apart: bool = False
    """whether each concept gets an edit of its own, as in tuning"""

    def __post_init__(self) -> None:
        Sampling(self.steps, self.guidance)  # raises: a preset or an edit file may hold anything
        if self.settings.quantize and not (self.wishes or (self.edit and self.edit.latents)):
            raise SaeuronError(
                f"--quantize {self.settings.quantize} needs an edit at blocks, which can be compared with the hook in a quantised graph; this one is in the weights alone: take --intervention weights+probe, or leave --quantize out"
            )
