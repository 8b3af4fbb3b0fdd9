"""Checks at the start: options that go together, packages that a job needs at its end. Needs no torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from ...editor.common.errors import SaeuronError
from ...editor.common.names import READ_BY
from ...validation.artifact.installed import missing
from ...validation.artifact.quantised import INPUTS
from ...validation.evidence.prompt_file import read_prompts
from .settings import Settings


def check_packages(formats: Sequence[str], validate: bool) -> None:
    """Raise unless the packages are there that graphs are written by, and proven by; they are needed only at the very end."""
    if "onnx" in formats:
        needed = ("onnx", "onnxscript", *(("onnxruntime",) if validate else ()))
        for name in missing(needed):
            extra = "cpu" if name == "onnxruntime" else "export"
            raise SaeuronError(
                f"'{name}' is not installed, which ONNX graphs {'are proven by' if extra == 'cpu' else 'need'}; pip install 'saeuron-export[{extra}]', or leave onnx out of --format"
            )


def check_choices(s: Settings) -> None:
    """Raise `SaeuronError` for options that contradict each other, or are for something that isn't asked for."""
    if s.edit is not None:
        # The file holds them; a second answer could only contradict it.
        said = {
            "--concepts": s.concepts, "--activations": s.activations, "--select": s.select, "--multiplier": s.multiplier, "--hookpoint": s.hookpoint,
            "--residual": s.residual, "--settings": s.settings, "--kind": s.kind, "--instead": s.instead, "--intervention": s.intervention,
            "--becomes": s.becomes, "--replace-by": s.replace_by, "--spread": s.spread, "--gain": s.gain, "--norm": s.norm, "--start": s.start,
        }  # fmt: skip
        for option, value in said.items():
            if value is not None and value != ():
                raise SaeuronError(f"--edit and {option} both say what is to be done; give one of them")
    elif not s.concepts:
        raise SaeuronError("no concept named: give --concepts A,B (saeuron concepts lists the presets), or --edit FILE")
    _check_stages(s)
    _check_quantising(s)
    if s.precision == "bf16" and "onnx" in s.formats and not ("trt" in s.formats and not s.validate):
        engines = ", or --no-validate, and prove the engines on their GPU" if "trt" in s.formats else ""
        raise SaeuronError(
            f"--precision bf16 can't be proven in ONNX Runtime (its CPU has no bf16 MatMul); use --format checkpoint, or fp16 or fp32{engines}"
        )
    if s.engines is None:
        for value, option in (
            (s.target, "--target"), (s.shapes, "--shapes"), (s.optimization_level is not None, "--optimization-level"),
            (s.hardware_compatible, "--hardware-compatible"), (s.version_compatible, "--version-compatible"),
        ):  # fmt: skip
            if value:
                raise SaeuronError(f"{option} is for engines; add --format trt")


def check_used(said: Mapping[str, bool], used: Collection[str]) -> None:
    """Raise `SaeuronError` for an option that is given, and that none of the interventions reads.

    Args:
        said: option → whether it is given.
        used: parts of the concepts' interventions.
    """
    for option, given in said.items():
        needed = READ_BY[option.removeprefix("--").replace("-", "_")]
        if given and not set(needed) & set(used):
            raise SaeuronError(
                f"{option} is for {', '.join(needed)}, and nothing is removed by these (but by {', '.join(used)}); leave it out"
            )


def said_in(s: Settings) -> dict[str, bool]:
    """Of each option that some interventions don't read whether it is given, before a settings file or preset completed them."""
    said = {f"--{key.replace('_', '-')}": getattr(s, key, None) not in (None, ()) for key in READ_BY}
    return said | {"--residual": s.residual not in (None, "keep"), "--gate": s.gate != Settings.gate}


def prompts_in(path: Path) -> list[str]:
    """Prompts to calibrate by; raises `SaeuronError` for a file that can't be read, or has none."""
    try:
        return [wanted.prompt for wanted in read_prompts(path, 0, 1.0)]
    except SaeuronError as error:
        raise SaeuronError(str(error).replace("--prompts", "--calibration-prompts", 1)) from None


def _check_quantising(s: Settings) -> None:
    if s.calibration_prompts is not None and s.quantize not in INPUTS:
        raise SaeuronError(f"--calibration-prompts is for --quantize {' and '.join(INPUTS)}, which have ranges to find; leave it out")
    if not s.quantize:
        if not s.evaluate:
            raise SaeuronError("--no-evaluate is for --quantize, whose proof judges removal again; leave it out")
        return
    if "checkpoint" in s.formats:
        raise SaeuronError(
            "--quantize is of the ONNX graph and of engines, and an artifact is of one kind; leave checkpoint out (--format onnx or --format trt), and export it apart"
        )
    if s.precision == "bf16":
        raise SaeuronError(
            "--quantize needs graphs that ONNX Runtime can run, and its CPU has no bf16 MatMul; use --precision fp16 or fp32"
        )
    if s.proof == "seam":
        raise SaeuronError(
            "--quantize holds whole forwards to what quantising alone does, and --proof seam makes none; use --proof short or full"
        )
    if s.calibration_prompts is not None:
        prompts_in(s.calibration_prompts)


def _check_stages(s: Settings) -> None:
    if s.tune:
        said = {"--edit": s.edit, "--select": s.select, "--multiplier": s.multiplier}
        for option, value in said.items():
            if value is not None:
                raise SaeuronError(
                    f"--tune chooses what {option} says; give one of them (saeuron tune --select … --multiplier … tries what you name)"
                )
    if s.evidence and s.edit is not None:
        raise SaeuronError(
            "--evidence is by the concepts' prompts, and --edit has none; export first, then saeuron evaluate, attack and report"
        )
    for option, given in (
        ("--judge", s.judge != Settings.judge and not s.staged and not (s.quantize and s.validate and s.evaluate)),
        ("--judge-anyway", s.judge_anyway and not s.tune),
        ("--budget", s.budget != Settings.budget and not s.tune),
    ):
        if given:
            raise SaeuronError(
                f"{option} is for --tune{', --evidence and --quantize' if option == '--judge' else ''}; add it, or leave {option} out"
            )
