"""The commands `saeuron-export` and `saeuron`. torch and diffusers are imported only once a command needs them."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table

from ..editor.common.errors import SaeuronError
from .commands import options as o
from .commands.attack import attack
from .commands.bench import bench
from .commands.build import build, print_engines
from .commands.collect import collect
from .commands.console import (
    INTERRUPTED,
    clean,
    err,
    escaped,
    interrupted,
    names,
    out,
    print_error,
    print_warning,
    progress_line,
    write_json,
)
from .commands.evaluate import evaluate
from .commands.features import features
from .commands.generate import generate
from .commands.harden import harden
from .commands.once import OnceCommand
from .commands.publish import publish
from .commands.report import report as report_command
from .commands.select import select
from .commands.sign import sign as sign_command
from .commands.steer import steer
from .commands.streams import prepare
from .commands.sweep import sweep
from .commands.train import train
from .commands.verify import verify

if TYPE_CHECKING:
    from .plan.settings import Settings

# Newer typer carries its own copy of click, so click's base class is reached by way of a public name.
_UsageError: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
# Headings of `export --help`.
_WHAT, _WHERE, _HOW, _PROOF, _OUTPUT = "What to remove", "Where", "How", "Proof", "Output"

app = typer.Typer(name="saeuron", pretty_exceptions_enable=False, rich_markup_mode="markdown")


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"saeuron-export {importlib.metadata.version('saeuron-export')}\n")
        raise typer.Exit


_Version = Annotated[bool, typer.Option("--version", callback=clean(_print_version), is_eager=True, help="Print the version and exit.")]


@app.callback(invoke_without_command=True)
def root(context: typer.Context, version: _Version = False) -> None:
    """Remove concepts from diffusion models with features of a sparse autoencoder, and ship the result as one proven artifact."""
    if context.invoked_subcommand is None:
        sys.stdout.write(context.get_help() + "\n")
        raise typer.Exit(2)


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
    version: _Version = False,
) -> None:
    """Remove concepts from a Stable Diffusion pipeline and write one proven artifact.

    Example: `saeuron-export --concepts Neon --format checkpoint,onnx --output without-neon` (embedded demo).

    Exit code 0: done and proven (with --no-validate: done); 1: done but not proven; 2: can't be done, nothing written.
    """
    from ..validation.trust import signature
    from .formats.tensorrt import ready
    from .plan.checks import check_packages
    from .plan.folder import check_output
    from .plan.settings import Settings, resolve, to_fetch

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
    from ..validation.proof import report

    with progress_line("starting") as progress:
        from .ship.artifact import export_artifact

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
    _report_failures(result.report)
    if result.report is not None and not result.proven:
        raise typer.Exit(1)


def _report_failures(proof: dict[str, Any] | None) -> None:
    for line in (proof or {}).get("failures", [])[:8]:
        err.print(f"[red]not proven:[/] {escaped(line)}", highlight=False, soft_wrap=True)


def _dry_run(wanted: Settings, as_json: bool) -> None:
    from .plan.dry_run import describe

    plan = describe(wanted)
    if as_json:
        sys.stdout.write(json.dumps(plan, indent=1) + "\n")
        return
    for line in plan["lines"]:
        out.print(line, highlight=False, soft_wrap=True, markup=False)


@clean
def concepts(
    model: Annotated[str | None, typer.Option(metavar="DIR|ID", help="Only those of this base model.")] = None,
    domain: Annotated[str | None, typer.Option(metavar="NAME", help="Only those of this domain, e.g. style.")] = None,
    preset_file: Annotated[list[str] | None, typer.Option(metavar="FILE", help="Presets of your own, as TOML; repeatable.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """List the concepts that have presets.

    Example: `saeuron concepts --domain style`
    """
    from dataclasses import asdict

    from ..editor.common.suggest import unknown
    from ..editor.features.concepts import presets

    keys = ("name", "model", "domain", "sae", "hookpoint", "select", "multiplier", "residual", "status")
    rows = [{k: v for k, v in asdict(c).items() if k in keys} for c in presets(preset_file or ()).values()]
    for key, wanted in (("model", model), ("domain", domain)):
        if wanted is not None:
            known = dict.fromkeys(row[key] for row in rows if row[key])
            if wanted not in known:
                raise SaeuronError(unknown(key, wanted, known, "among the presets"))
            rows = [row for row in rows if row[key] == wanted]
    if as_json:
        sys.stdout.write(json.dumps(rows, indent=1) + "\n")
        return
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["sae"], row["hookpoint"], row["residual"]), []).append(row)
    for group, members in groups.items():
        _print_presets(group, members)


def _print_presets(group: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    """One model's presets; what they share stands above, so that the table fits 80 columns."""
    model, sae, hookpoint, residual = map(escaped, group)
    out.print(
        f"[bold]{model or 'any model: give --model'}[/] at {hookpoint.replace(',', ', ')}\nSAE {sae}, residual {residual}",
        highlight=False,
        soft_wrap=True,
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("name", "domain", "select", "multiplier", "status"):
        table.add_column(name, justify="right" if name == "multiplier" else "left", overflow="fold")
    for row in rows:
        table.add_row(row["name"], row["domain"], row["select"], f"{row['multiplier']:g}", row["status"])
    out.print(table)


@clean
def validate(
    artifact: Annotated[Path, typer.Argument(help="Folder of the artifact.")],
    backend: Annotated[
        list[str] | None,
        typer.Option(
            help="checkpoint, onnx, trt or trt-rtx; several by commas, or repeated. Default: all in the artifact that can be run here."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Original model: run the hook on it afresh, instead of the artifact's golden vectors.")
    ] = None,
    sae: Annotated[
        list[str] | None, typer.Option(help="With --model: SAE folder or Hub id, or HOOKPOINT=PATH. Default: as recorded.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="With --model: seed of the fresh latents. Default: 1.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    provider: o.Provider = None,
    target: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of engines, a folder below tensorrt/. Default: all that fit this GPU.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable report on stdout.")] = False,
) -> None:
    """Prove an artifact again: file hashes, then every check of the export.

    Example: `saeuron validate without-neon`, or afresh: `saeuron validate without-neon --model demo --seed 7`

    Without torch, diffusers and transformers it checks the ONNX graphs and says what it could not check.

    Exit code 0: proven; 1: not proven; 2: can't be done.
    """
    from ..validation.artifact import manifest
    from ..validation.backends.sessions import check_provider
    from ..validation.proof import report

    # What is no artifact, or not in it, is refused before torch is imported, which takes seconds.
    record = manifest.read(artifact)
    backend = [name.strip() for given in backend or () for name in given.split(",")]
    manifest.check_backends(artifact, record, tuple(backend or ()))
    check_provider(provider, backend or record["formats"])
    for value, option in ((seed, "--seed"), (sae, "--sae")):
        if value is not None and not model:
            raise SaeuronError(f"{option} is for a fresh run of the hook; add --model")
    with err.status("checking files") as status:
        from ..validation.proof.validate import validate as prove

        golden = reference = None
        if model:
            from ..validation.proof.fresh import fresh_golden

            golden, reference = fresh_golden(artifact, model, tuple(sae or ()), 1 if seed is None else seed, device)
        proof = prove(
            artifact,
            tuple(backend or ()),
            device,
            golden,
            progress=lambda text: status.update(f"proving {text}"),
            provider=provider,
            target=target,
            reference=reference,
        )
    left_out = proof["not_checked"]
    for entry in left_out:
        print_warning(f"not checked: {entry['check']}{' of ' + entry['backend'] if 'backend' in entry else ''} ({entry['reason']})")
    if as_json:
        write_json(proof)
    else:
        out.print(report.table(proof))
        if "onnx" in proof["backends"]:
            out.print(f"ONNX Runtime ran on {proof['backends']['onnx']['provider']}", highlight=False, soft_wrap=True)
        verdict = "NOT PROVEN" if not proof["passed"] else "proven, as far as it could be checked here" if left_out else "proven"
        out.print(f"{artifact}: {verdict}", highlight=False, soft_wrap=True)
    _report_failures(proof)
    if not proof["passed"]:
        raise typer.Exit(1)


for _name, _command in {
    "concepts": concepts, "collect": collect, "train": train, "select": select, "sweep": sweep, "harden": harden, "steer": steer, "features": features,
    "export": export, "build": build, "validate": validate, "evaluate": evaluate, "attack": attack, "report": report_command, "generate": generate, "bench": bench,
    "verify": verify, "sign": sign_command, "publish": publish,
}.items():  # fmt: skip
    app.command(_name, cls=OnceCommand)(_command)

_single = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")
_single.command("saeuron-export", cls=OnceCommand)(export)


def main() -> None:
    """`saeuron …`."""
    _run(app)


def main_export() -> None:
    """`saeuron-export …`."""
    _run(_single)


def _run(command: typer.Typer) -> None:
    """Run a command line; what typer would draw a box for is one line too."""
    _silence()
    prepare()
    try:
        code = command(standalone_mode=False)
        sys.stdout.flush()
    except _UsageError as error:
        print_error(_usage_line(error))
        code = 2
    except SaeuronError as error:  # of stdout, at the very end or under `--help`
        print_error(str(error))
        code = 2
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    if code == INTERRUPTED:  # typer makes it of an interruption between the commands' own handlers, too
        interrupted("nothing was left behind")
    sys.exit(code or 0)


# What newer typer quotes from its validator.
_PLAINER = {
    "Input should be a valid integer, unable to parse string as an integer": "it must be a whole number",
    "Input should be a valid number, unable to parse string as a number": "it must be a number",
}


def _usage_line(error: Any) -> str:
    """typer's message as one sentence that says what to do."""
    if hasattr(error, "possibilities"):
        near = " or ".join(repr(name) for name in error.possibilities or ())
        text = f"no such option '{error.option_name}'" + (f"; did you mean {near}?" if near else "")
    else:
        text = " ".join(error.format_message().split()).rstrip(".").replace(". Did you", "; did you")
        text = text[:1].lower() + text[1:]
        for long, short in _PLAINER.items():
            text = text.replace(long, short)
    context = getattr(error, "ctx", None)
    return text if text.endswith("?") or context is None else f"{text}; see '{context.command_path} --help'"


def _silence() -> None:
    """Bars and notes of libraries would drown ours; their errors reach the user through our own lines."""
    import logging
    import os

    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    logging.captureWarnings(True)
    # Without any handler Python would print warnings of every logger.
    logging.getLogger().addHandler(logging.NullHandler())


if __name__ == "__main__":
    main()
