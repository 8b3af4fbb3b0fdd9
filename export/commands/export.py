"""`saeuron-export`: the main job."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...editor.common.errors import SaeuronError
from . import options as o
from .build import print_engines
from .console import Version, clean, names, out, print_warning, progress_line, report_failures, write_json

if TYPE_CHECKING:
    from ..plan.settings import Settings

# Headings of `export --help`.
_WHAT, _WHERE, _HOW, _PROOF, _OUTPUT = "What to remove", "Where", "How", "Proof", "Output"


@clean
def export(
    concepts: Annotated[
        str, typer.Option(metavar="A,B", help="Concepts; `saeuron concepts` lists those with presets.", rich_help_panel=_WHAT)
    ] = "",
    edit: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Instead of --concepts: an edit file, of `saeuron steer` or out of another artifact.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    activations: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="Concept activations (.safetensors, or a released pickle), a folder of saeuron collect, or HOOKPOINT=FILE; repeatable. Default: the preset's.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    select: Annotated[
        str | None,
        typer.Option(metavar="RULE", help="percentile:P or count:N. Default: the preset's, else percentile:99.999.", rich_help_panel=_WHAT),
    ] = None,
    multiplier: Annotated[
        float | None,
        typer.Option(metavar="GAMMA", help="Negative suppresses. Default: the preset's, else -1.0.", rich_help_panel=_WHAT),
    ] = None,
    allow_amplify: Annotated[
        bool,
        typer.Option(
            "--allow-amplify", help="Accept a positive multiplier, or an edit file that strengthens features.", rich_help_panel=_WHAT
        ),
    ] = False,
    settings: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="TOML with [export] and [[concepts]]; options given here win.", rich_help_panel=_WHAT),
    ] = None,
    preset_file: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="Presets of your own, as TOML; repeatable.", rich_help_panel=_WHAT)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|ID", help="Base model: diffusers folder, Hub id, or demo. Default: the preset's.", rich_help_panel=_WHERE
        ),
    ] = None,
    variant: o.Variant = None,
    hookpoint: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="UNet block, with or without the prefix `unet.`, e.g. up_blocks.1.attentions.1. Default: the preset's.",
            rich_help_panel=_WHERE,
        ),
    ] = None,
    sae: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR|ID",
            help="SAE folder or Hub id, or HOOKPOINT=DIR|ID; repeat for several hookpoints. Default: the preset's.",
            rich_help_panel=_WHERE,
        ),
    ] = None,
    residual: Annotated[
        str | None,
        typer.Option(
            metavar="MODE",
            help="Reconstruction error: keep, upstream (as the released hook), drop. Default: the preset's, else keep.",
            rich_help_panel=_HOW,
        ),
    ] = None,
    gate: Annotated[
        str,
        typer.Option(
            metavar="GATE",
            help="exact (whole encoder) or threshold (no top-k membership test, cheaper, approximate).",
            rich_help_panel=_HOW,
        ),
    ] = "exact",
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE",
            help="fp32, fp16, or bf16 (checkpoint, or engines with --no-validate). Default: fp16 with trt, else fp32.",
            rich_help_panel=_HOW,
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option(metavar="NAME", help="torch device of the reference and the proof (cpu, cuda).", rich_help_panel=_HOW),
    ] = "cpu",
    validate: Annotated[
        bool, typer.Option("--validate/--no-validate", help="Prove the artifact against the dynamic hook.", rich_help_panel=_PROOF)
    ] = True,
    proof: Annotated[
        str,
        typer.Option(
            metavar="SCOPE",
            help="full (whole trajectories, free runs) or short (a few forwards; for large models on a CPU).",
            rich_help_panel=_PROOF,
        ),
    ] = "full",
    proof_prompt: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Prompt that shows the concept; repeatable. Default: the preset's.", rich_help_panel=_PROOF),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(metavar="N", help="Denoising steps. Default: the preset's, else 50.", rich_help_panel=_PROOF)
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(metavar="SCALE", help="Guidance scale. Default: the preset's, else 7.5.", rich_help_panel=_PROOF)
    ] = None,
    height: Annotated[
        int | None, typer.Option(metavar="PIXELS", help="Picture height. Default: the model's.", rich_help_panel=_PROOF)
    ] = None,
    width: Annotated[
        int | None, typer.Option(metavar="PIXELS", help="Picture width. Default: the model's.", rich_help_panel=_PROOF)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Folder of the artifact; must not exist.", rich_help_panel=_OUTPUT),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an artifact at --output.", rich_help_panel=_OUTPUT)] = False,
    format: Annotated[
        str,
        typer.Option(
            metavar="A,B", help="checkpoint (diffusers, safetensors), onnx, trt (TensorRT engines, and onnx).", rich_help_panel=_OUTPUT
        ),
    ] = "checkpoint,onnx",
    target: o.Targets = None,
    shapes: o.Shapes = "",
    optimization_level: o.OptimizationLevel = None,
    hardware_compatible: o.HardwareCompatible = False,
    version_compatible: o.VersionCompatible = False,
    sign: Annotated[
        Path | None,
        typer.Option(
            metavar="PEM",
            help="ECDSA private key: sign what is proven (or --no-validate); password: SAEURON_KEY_PASSWORD.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan; write nothing.", rich_help_panel=_OUTPUT)] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable result on stdout.", rich_help_panel=_OUTPUT)] = False,
    version: Version = False,
) -> None:
    """Remove concepts from a Stable Diffusion pipeline and write one proven artifact.

    Example: `saeuron-export --concepts Neon --format checkpoint,onnx --output without-neon` (embedded demo).

    Exit code 0: done and proven (with --no-validate: done); 1: done but not proven; 2: can't be done, nothing written.
    """
    from ...validation.trust import signature
    from ..formats.tensorrt import ready
    from ..plan.checks import check_packages
    from ..plan.folder import check_output
    from ..plan.resolve import resolve, to_fetch
    from ..plan.settings import Settings

    if output is None:
        raise SaeuronError("no output folder: give --output DIR")
    wanted = Settings(
        concepts=names(concepts), output=output, formats=names(format), model=model, variant=variant, sae=tuple(sae or ()), hookpoint=hookpoint,
        activations=tuple(activations or ()), select=select, multiplier=multiplier, residual=residual, gate=gate, precision=precision or "",
        steps=steps, guidance=guidance, height=height, width=width, device=device, settings=settings, preset_files=tuple(preset_file or ()), validate=validate, proof=proof,
        proof_prompts=tuple(proof_prompt or ()), allow_amplify=allow_amplify, overwrite=overwrite, edit=edit,
        target=tuple(target or ()), shapes=shapes, optimization_level=optimization_level, hardware_compatible=hardware_compatible,
        version_compatible=version_compatible, sign=sign,
    )  # fmt: skip
    # The job checks these again; here they come before torch is imported, which takes seconds.
    plan = resolve(wanted)
    check_output(wanted.output, wanted.overwrite)
    if not dry_run:
        check_packages(plan.settings.formats, validate)
    if sign is not None:
        signature.check_private_key(sign)
    to_fetch(plan)
    if plan.settings.engines:
        ready(plan.settings.engines)
    if dry_run:
        _dry_run(wanted, as_json)
        return
    from ...validation.proof import report

    with progress_line("starting") as progress:
        from ..ship.artifact import export_artifact

        result = export_artifact(wanted, progress)
    for warning in result.manifest["warnings"]:
        print_warning(warning)
    if as_json:
        write_json({"output": str(result.path), "proven": result.proven, "manifest": result.manifest, "report": result.report})
    else:
        if result.report:
            out.print(report.table(result.report))
        verdict = (
            "proven equal to the dynamic hook"
            if result.proven
            else "NOT VALIDATED (--no-validate)"
            if result.report is None
            else "NOT PROVEN"
        )
        out.print(f"{result.path}: {verdict}", highlight=False, soft_wrap=True)
        print_engines(result.path, result.manifest)
    report_failures(result.report)
    if result.report is not None and not result.proven:
        raise typer.Exit(1)


def _dry_run(wanted: Settings, as_json: bool) -> None:
    from ..plan.dry_run import describe

    plan = describe(wanted)
    if as_json:
        sys.stdout.write(json.dumps(plan, indent=1) + "\n")
        return
    for line in plan["lines"]:
        out.print(line, highlight=False, soft_wrap=True, markup=False)
