"""`saeuron validate`: proves an artifact again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from ...editor.common.declared import Checked, like
from ...editor.common.errors import SaeuronError
from ...editor.denoisers.sampling_settings import Sampling
from ...validation.evidence.evaluation_settings import EvaluationSettings
from . import options as o
from .console import err, out, print_warning, report_failures, tell, write_json
from .declared import command


@dataclass(frozen=True)
class _Fresh(Checked):
    """A fresh run of the hook."""

    model: str | None = like(EvaluationSettings, "model")
    """Original model: run the hook on it afresh, instead of the artifact's golden vectors."""
    saes: tuple[str, ...] = like(EvaluationSettings, "saes")
    """With --model: SAE folder or Hub id, or HOOKPOINT=DIR|ID; repeatable. Default: as recorded."""
    seed: int | None = like(Sampling, "seed", None)
    """With --model: seed of the fresh latents. Default: 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for value, shown in ((self.seed is not None, "--seed"), (self.saes, "--sae")):
            if value and not self.model:
                raise SaeuronError(f"{shown} is for a fresh run of the hook; add --model")


@command
def validate(
    artifact: o.Artifact,
    fresh: _Fresh,
    backend: Annotated[list[str] | None, typer.Option(metavar="A,B", help="checkpoint, onnx, trt or trt-rtx; several by commas, or repeated. Default: all in the artifact that can be run here.", rich_help_panel=o.WHAT)] = None,
    device: o.Device = "cpu",
    provider: o.Provider = None,
    target: o.Target = None,
    as_json: o.Json = False,
) -> None:  # fmt: skip
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
    with err.status("checking files") as status:
        from ...validation.proof.validate import validate as prove

        golden = reference = None
        if fresh.model:
            from ...validation.proof.fresh import fresh_golden

            golden, reference = fresh_golden(artifact, fresh.model, fresh.saes, 1 if fresh.seed is None else fresh.seed, device)
        proof = prove(
            artifact, tuple(backend or ()), device, golden, progress=lambda text: status.update(f"proving {text}"), provider=provider, target=target,
            reference=reference,
        )  # fmt: skip
    left_out = proof.not_checked
    for entry in left_out:
        print_warning(f"not checked: {entry.check}{f' of {entry.backend}' if entry.backend else ''} ({entry.reason})")
    if as_json:
        write_json(proof)
    else:
        out.print(report.table(proof))
        if "onnx" in proof.backends:
            tell(f"ONNX Runtime ran on {proof.backends['onnx'].provider}")
        verdict = "NOT PROVEN" if not proof.passed else "proven, as far as it could be checked here" if left_out else "proven"
        if proof.passed and record.quantised is not None:
            verdict += f": {record.quantised.verdict}"
        tell(f"{artifact}: {verdict}")
    report_failures(proof)
    if not proof.passed:
        raise typer.Exit(1)
