"""What the user asks for (`Settings`), and the same resolved (`Plan`)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Any

from ...editor.common.errors import SaeuronError
from ...editor.edit.edit_header import EditHeader
from ...editor.features.rule import Rule
from ...validation.artifact.engines import Target
from ..formats.tensorrt import EngineSettings, Shapes, check_precision


@dataclass(frozen=True)
class Settings:
    """The options of `saeuron-export`, under the same names; None means: take the preset's.

    Where several values can be given, a list or a tuple holds them, and a text is one. Of `concepts` and `format`, a text is what the
    command takes: names separated by commas. Paths are texts or `Path`s.
    """

    concepts: tuple[str, ...] = ()
    output: Path = Path()
    formats: tuple[str, ...] = ("checkpoint", "onnx")
    model: str | None = None
    sae: tuple[str, ...] = ()
    hookpoint: str | None = None
    activations: tuple[str, ...] = ()
    select: str | None = None
    multiplier: float | None = None
    residual: str | None = None
    gate: str = "exact"
    precision: str = ""
    """empty: fp16 where engines are built, else fp32"""
    steps: int | None = None
    guidance: float | None = None
    height: int | None = None
    width: int | None = None
    device: str = "cpu"
    settings: Path | None = None
    preset_files: tuple[str, ...] = ()
    validate: bool = True
    proof: str = "full"
    proof_prompts: tuple[str, ...] = ()
    allow_amplify: bool = False
    overwrite: bool = False
    target: tuple[str, ...] = ()
    """what engines are built for: `local`, `rtx`, `rtx:sm86,sm89`; default `rtx`"""
    shapes: str = ""
    """sizes that engines take, e.g. `batch=1:1:4,height=512:512:768`; default: one picture of the artifact's size"""
    optimization_level: int | None = None
    hardware_compatible: bool = False
    version_compatible: bool = False
    edit: Path | None = None
    """an edit file (of `saeuron steer`, or out of another artifact) instead of concepts"""
    sign: Path | None = None
    """ECDSA private key, in PEM"""
    variant: str | None = None
    """of the model's weight files, e.g. `fp16`; None: the plain ones"""
    # The command's names of options that are repeated, or that are lists.
    format: InitVar[str | Sequence[str] | None] = None
    proof_prompt: InitVar[str | Sequence[str] | None] = None
    preset_file: InitVar[str | Path | Sequence[str | Path] | None] = None

    def __post_init__(self, format: Any, proof_prompt: Any, preset_file: Any) -> None:
        given = {"formats": format, "proof_prompts": proof_prompt, "preset_files": preset_file}
        for name in ("concepts", "formats", "sae", "activations", "proof_prompts", "preset_files", "target"):
            value = getattr(self, name) if given.get(name) is None else given[name]
            if isinstance(value, str | os.PathLike):
                value = [value] if value else []
                if name in ("concepts", "formats"):
                    value = [part.strip() for text in value for part in str(text).split(",") if part.strip()]
            self._set(name, tuple(os.fspath(v) for v in value))
        for name in ("output", "settings", "edit", "sign"):
            if getattr(self, name) is not None:
                self._set(name, Path(getattr(self, name)))
        if self.output == Path():
            raise SaeuronError("no output folder: give output=DIR")
        if self.model is not None:
            self._set("model", os.fspath(self.model))

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

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
        found.check()
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
