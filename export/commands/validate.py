"""`saeuron validate`: proves an artifact again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...editor.common.errors import SaeuronError
from . import options as o
from .console import clean, err, out, print_warning, report_failures, write_json


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
    from ...validation.artifact import manifest
    from ...validation.backends.sessions import check_provider
    from ...validation.proof import report

    # What is no artifact, or not in it, is refused before torch is imported, which takes seconds.
    record = manifest.read(artifact)
    backend = [name.strip() for given in backend or () for name in given.split(",")]
    manifest.check_backends(artifact, record, tuple(backend or ()))
    check_provider(provider, backend or record.formats)
    for value, option in ((seed, "--seed"), (sae, "--sae")):
        if value is not None and not model:
            raise SaeuronError(f"{option} is for a fresh run of the hook; add --model")
    with err.status("checking files") as status:
        from ...validation.proof.validate import validate as prove

        golden = reference = None
        if model:
            from ...validation.proof.fresh import fresh_golden

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
    left_out = proof.not_checked
    for entry in left_out:
        print_warning(f"not checked: {entry.check}{f' of {entry.backend}' if entry.backend else ''} ({entry.reason})")
    if as_json:
        write_json(proof)
    else:
        out.print(report.table(proof))
        if "onnx" in proof.backends:
            out.print(f"ONNX Runtime ran on {proof.backends['onnx'].provider}", highlight=False, soft_wrap=True)
        verdict = "NOT PROVEN" if not proof.passed else "proven, as far as it could be checked here" if left_out else "proven"
        out.print(f"{artifact}: {verdict}", highlight=False, soft_wrap=True)
    report_failures(proof)
    if not proof.passed:
        raise typer.Exit(1)
