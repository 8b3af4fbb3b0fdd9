"""The door: `saeuron-export` and `saeuron`. torch and diffusers are imported only once a command needs them."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ..editor.errors import SaeuronError

if TYPE_CHECKING:
    from .settings import Settings

out = Console()
err = Console(stderr=True)

app = typer.Typer(
    name="saeuron", no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="markdown",
    help="Remove concepts from diffusion models with features of a sparse autoencoder, and ship the result as one proven artifact.",
)  # fmt: skip


def _clean(function: Callable[..., Any]) -> Callable[..., Any]:
    """One line and exit code 2 for what the user can mend."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except SaeuronError as error:
            err.print(f"[red]error:[/] {_escape(str(error))}", highlight=False, soft_wrap=True)
        except ModuleNotFoundError as error:
            extra = "cpu" if error.name == "onnxruntime" else "export"
            err.print(
                f"[red]error:[/] '{error.name}' is not installed; pip install 'saeuron-export\\[{extra}]'", highlight=False, soft_wrap=True
            )
        except RuntimeError as error:
            if type(error).__name__ != "AblationIntegrityError":
                raise
            err.print(f"[red]error:[/] {_escape(str(error))}", highlight=False, soft_wrap=True)
        except KeyboardInterrupt:
            err.print("interrupted; nothing was left behind")
            raise typer.Exit(130) from None
        raise typer.Exit(2)

    return run


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text.replace("\n", " "))


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


@_clean
def export(
    concepts: Annotated[str, typer.Option(help="Concepts to remove, comma-separated; `saeuron concepts` lists presets.")] = "",
    format: Annotated[
        str, typer.Option(help="Comma-separated: checkpoint (diffusers, safetensors), onnx. trt is planned.")
    ] = "checkpoint,onnx",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder of the artifact; must not exist.")] = None,
    model: Annotated[str | None, typer.Option(help="Base model: diffusers folder, Hub id, or demo. Default: the preset's.")] = None,
    sae: Annotated[list[str] | None, typer.Option(help="SAE folder or Hub id, or HOOKPOINT=PATH; repeat for several hookpoints.")] = None,
    hookpoint: Annotated[str | None, typer.Option(help="UNet block, e.g. up_blocks.1.attentions.1. Default: the preset's.")] = None,
    activations: Annotated[
        list[str] | None, typer.Option(help="Concept activations (.safetensors, or a released pickle), or HOOKPOINT=FILE; repeatable.")
    ] = None,
    select: Annotated[str | None, typer.Option(help="percentile:P or count:N. Default: the preset's, else percentile:99.999.")] = None,
    multiplier: Annotated[float | None, typer.Option(help="Gamma; negative suppresses. Default: the preset's, else -1.0.")] = None,
    residual: Annotated[
        str | None, typer.Option(help="Reconstruction error: keep (default), upstream (as the released hook), drop.")
    ] = None,
    gate: Annotated[
        str, typer.Option(help="exact (whole encoder) or threshold (no top-k membership test, cheaper, approximate).")
    ] = "exact",
    precision: Annotated[str, typer.Option(help="fp32, fp16, or bf16 (checkpoint only).")] = "fp32",
    steps: Annotated[int | None, typer.Option(help="Denoising steps of the proof. Default: the preset's, else 50.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale of the proof. Default: the preset's, else 7.5.")] = None,
    height: Annotated[int | None, typer.Option(help="Picture height of the proof. Default: the model's.")] = None,
    width: Annotated[int | None, typer.Option(help="Picture width of the proof. Default: the model's.")] = None,
    device: Annotated[str, typer.Option(help="torch device of the reference and the proof (cuda: not tested).")] = "cpu",
    settings: Annotated[Path | None, typer.Option(help="TOML with [export] and [[concepts]]; options given here win.")] = None,
    validate: Annotated[bool, typer.Option("--validate/--no-validate", help="Prove the artifact against the dynamic hook.")] = True,
    proof: Annotated[
        str, typer.Option(help="full (whole trajectories, free runs) or short (a few forwards; for large models on a CPU).")
    ] = "full",
    proof_prompt: Annotated[list[str] | None, typer.Option(help="Prompt that shows the concept, for the proof; repeatable.")] = None,
    allow_amplify: Annotated[bool, typer.Option(help="Accept a positive multiplier, which strengthens the concept.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace an artifact at --output.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Print the plan; write nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable result on stdout.")] = False,
) -> None:
    """Remove concepts from a Stable Diffusion pipeline and write one proven artifact.

    Example: `saeuron-export --concepts Neon --format checkpoint,onnx --output without-neon` (embedded demo).

    Exit code 0: done and proven (with --no-validate: done); 1: done but not proven; 2: can't be done, nothing written.
    """
    from .settings import Settings

    if output is None:
        raise SaeuronError("no output folder: give --output DIR")
    wanted = Settings(
        _names(concepts), output, _names(format), model, tuple(sae or ()), hookpoint, tuple(activations or ()), select, multiplier,
        residual, gate, precision, steps, guidance, height, width, device, settings, validate, proof, tuple(proof_prompt or ()), allow_amplify, overwrite,
    )  # fmt: skip
    if dry_run:
        _dry_run(wanted, as_json)
        return
    from ..validation import report
    from ..validation.manifest import strict_json
    from .artifact import export_artifact

    with err.status("starting") as status:

        def progress(text: str) -> None:
            status.update(text)
            if not err.is_terminal:
                err.print(text, highlight=False, soft_wrap=True)

        result = export_artifact(wanted, progress)
    for warning in result.manifest["warnings"]:
        err.print(f"[yellow]warning:[/] {_escape(warning)}", highlight=False, soft_wrap=True)
    if as_json:
        sys.stdout.write(
            strict_json({"output": str(result.path), "proven": result.proven, "manifest": result.manifest, "report": result.report}) + "\n"
        )
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
    _report_failures(result.report)
    if result.report is not None and not result.proven:
        raise typer.Exit(1)


def _report_failures(proof: dict[str, Any] | None) -> None:
    for line in (proof or {}).get("failures", [])[:8]:
        err.print(f"[red]not proven:[/] {_escape(line)}", highlight=False, soft_wrap=True)


def _dry_run(wanted: Settings, as_json: bool) -> None:
    from .plan import describe

    plan = describe(wanted)
    if as_json:
        sys.stdout.write(json.dumps(plan, indent=1) + "\n")
        return
    for line in plan["lines"]:
        out.print(line, highlight=False, soft_wrap=True, markup=False)


@_clean
def concepts(as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False) -> None:
    """List the concepts that have presets.

    Example: `saeuron concepts --json`
    """
    from dataclasses import asdict

    from ..editor.concepts import presets

    columns = ("name", "model", "domain", "sae", "hookpoint", "select", "multiplier", "residual", "status")
    rows = [{k: v for k, v in asdict(c).items() if k in columns} for c in presets().values()]
    if as_json:
        sys.stdout.write(json.dumps(rows, indent=1) + "\n")
        return
    table = Table()
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(str(row[c]) for c in columns))
    out.print(table)


@_clean
def validate(
    artifact: Annotated[Path, typer.Argument(help="Folder of the artifact.")],
    backend: Annotated[list[str] | None, typer.Option(help="checkpoint or onnx; repeatable. Default: all in the artifact.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Original model: run the hook on it afresh, instead of the artifact's golden vectors.")
    ] = None,
    sae: Annotated[
        list[str] | None, typer.Option(help="With --model: SAE folder or Hub id, or HOOKPOINT=PATH. Default: as recorded.")
    ] = None,
    seed: Annotated[int, typer.Option(help="With --model: seed of the fresh latents.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda (not tested).")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable report on stdout.")] = False,
) -> None:
    """Prove an artifact again: file hashes, then every check of the export.

    Example: `saeuron validate without-neon`, or afresh: `saeuron validate without-neon --model demo --seed 7`

    Exit code 0: proven; 1: not proven; 2: can't be done.
    """
    from ..validation import report
    from ..validation.fresh import fresh_golden
    from ..validation.manifest import strict_json
    from ..validation.validate import validate as prove

    with err.status("checking files") as status:
        golden = fresh_golden(artifact, model, tuple(sae or ()), seed, device) if model else None
        proof = prove(artifact, tuple(backend or ()), device, golden, progress=lambda text: status.update(f"proving {text}"))
    if as_json:
        sys.stdout.write(strict_json(proof) + "\n")
    else:
        out.print(report.table(proof))
        out.print(f"{artifact}: {'proven' if proof['passed'] else 'NOT PROVEN'}", highlight=False, soft_wrap=True)
    _report_failures(proof)
    if not proof["passed"]:
        raise typer.Exit(1)


app.command("export")(export)
app.command("concepts")(concepts)
app.command("validate")(validate)

_single = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")
_single.command("saeuron-export")(export)


def main() -> None:
    """`saeuron …`."""
    _silence()
    app()


def main_export() -> None:
    """`saeuron-export …`."""
    _silence()
    _single()


def _silence() -> None:
    """Bars and notes of libraries would drown ours; their errors reach the user through our own lines."""
    import logging
    import os

    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    logging.captureWarnings(True)


if __name__ == "__main__":
    main()
