"""The artifact as a whole: built beside its final name, proven, renamed at the end."""

from __future__ import annotations

import gc
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...editor.common.files import read_json
from ...editor.common.names import dtype_of
from ...editor.common.typed import written
from ...editor.denoisers.families import family_of, network_of
from ...editor.denoisers.pipelines import load_pipeline, network_sha256
from ...editor.denoisers.sampling import to_numpy
from ...editor.denoisers.streamed import streamed
from ...editor.edit.bake import bake, refuse_edited
from ...editor.edit.edit import Edit
from ...editor.edit.hook import TokenEdit
from ...validation.artifact import contents, manifest
from ...validation.artifact.concepts import write_concepts
from ...validation.artifact.engines import Target
from ...validation.artifact.manifest import Changed, EditHashes, Graphs, Manifest, Model, ProofSummary, SamplingRecord, SeamNames, Tables
from ...validation.artifact.weights import exact
from ...validation.proof import report
from ...validation.proof.reference import make_golden
from ...validation.proof.results import Proof
from ...validation.proof.seam_reference import on_tokens
from ...validation.proof.validate import GOLDEN, validate
from ...validation.trust import signature
from ..formats import checkpoint, onnx, tensorrt
from ..plan.checks import check_packages
from ..plan.concepts import prompts_on_record
from ..plan.estimate import estimate
from ..plan.folder import building, check_output, check_space
from ..plan.open import Prepared
from ..plan.prepare import check_engine_shapes, prepare
from ..plan.removal import check_removal
from ..plan.resolve import public_name
from ..plan.settings import Plan
from . import licence
from .card import model_card
from .quantised import quantised, unquantised

_PACKAGES = ("saeuron-export", "torch", "diffusers", "transformers", "safetensors", "onnx", "onnxscript", "onnxruntime", "numpy")
Progress = Callable[[str], None]


@dataclass
class Result:
    """What an export left behind."""

    path: Path
    manifest: Manifest
    report: Proof | None
    """None with `validate=False`"""
    verdict: dict[str, Any] | None = None
    """of the report in it, where evidence was asked for; `text` is one sentence"""

    @property
    def proven(self) -> bool:
        """Whether the whole proof passed."""
        return bool(self.report and self.report.passed)


def make_artifact(plan: Plan, progress: Progress = lambda text: None, finished: Callable[[Manifest], None] = lambda record: None) -> Result:
    """Edit, write, prove, rename.

    Args:
        plan: what is made.
        progress: told what is being done.
        finished: told its manifest, just before the artifact gets its name.

    Raises:
        SaeuronError: bad input or an impossible wish; nothing is left under the final name.
    """
    settings = plan.settings
    targets = tensorrt.ready(settings.engines, settings.quantize) if settings.engines else ()
    check_output(settings.output, settings.overwrite)
    check_packages(settings.formats, settings.validate)
    if settings.sign is not None:
        signature.check_private_key(settings.sign)
    check_engine_shapes(plan)
    check_removal(plan)
    progress("opening what the edit is made of")
    prepared = prepare(plan, progress)
    check_space(settings.output, sum(estimate(prepared).values()))
    progress(f"loading {plan.model}")
    pipeline = load_pipeline(plan.model, dtype_of(settings.precision), settings.device, variant=settings.variant)
    refuse_edited(network_of(pipeline))
    prepared.warnings += _from_files(pipeline)
    with building(settings.output, settings.overwrite) as folder:
        hook = (
            TokenEdit(prepared.edit, prepared.saes, dtype_of(settings.precision), settings.device, settings.gate)
            if settings.validate and prepared.edit.hookpoints
            else None
        )
        record = _write(prepared, pipeline, folder, progress)
        del pipeline
        gc.collect()

        def prove() -> Proof:
            contents.write(folder, record)
            return validate(
                folder, device=settings.device, check_files=False, progress=lambda text: progress(f"proving {text}"),
                reference=on_tokens(hook) if hook else None,
            )  # fmt: skip

        proof = prove() if settings.validate else None
        if settings.quantize and proof is not None and not proof.passed:
            unquantised(record, settings.quantize, proof)
        elif settings.quantize:
            proof = quantised(folder, record, plan, prepared.prompts, prove if settings.validate else None, progress)
        if proof is not None:
            report.write(proof, folder / "validation")
        record.validation = _summary(proof, settings.device)
        if settings.engines and (proof is None or proof.passed):
            _add_engines(folder, record, settings.engines, targets, progress)
        (folder / "README.md").write_text(model_card(record), encoding="utf-8")
        contents.write(folder, record)
        if settings.sign is not None and (proof is None or proof.passed):
            progress("signing")
            signature.sign(folder, settings.sign)
        finished(manifest.read(folder))
    return Result(settings.output, manifest.read(settings.output), proof)


def _add_engines(folder: Path, record: Manifest, wanted: tensorrt.EngineSettings, targets: tuple[Target, ...], progress: Progress) -> None:
    """Engines of graphs that passed their proof (or of which none was asked for)."""
    record.engines = tensorrt.write(folder, record, wanted, targets, progress)
    record.formats = sorted({*record.formats, *(e.backend for e in record.engines.values())})


def _write(prepared: Prepared, pipeline: Any, folder: Path, progress: Progress) -> Manifest:
    """Everything but proof, card and hashes; returns the manifest's content."""
    plan, s = prepared.plan, prepared.plan.settings
    original = network_sha256(network_of(pipeline))
    (folder / "edit").mkdir()
    known = prepared.edit.provenance
    known.model, known.network_sha256 = public_name(plan.model), original
    prepared.edit.save(folder / "edit" / "edit.safetensors")
    write_concepts(folder, prompts_on_record(plan))
    progress("running the dynamic hook on the original model (the reference of the proof)")
    between = tensorrt.between(prepared.model_folder, s.height, s.width, s.engines.shapes) if s.engines else []
    golden = make_golden(
        pipeline, prepared.edit, prepared.saes, prepared.prompts, plan.steps, plan.guidance, s.precision, s.gate, s.height, s.width, scope=s.proof,
        sizes=between,
    )  # fmt: skip
    golden.save(folder / GOLDEN)
    del golden
    progress("baking the edit into the UNet")
    changed = _changed(network_of(pipeline), prepared.edit)
    edited = checkpoint.edited_pipeline(pipeline, bake(network_of(pipeline), prepared.edit, prepared.saes, s.gate))
    setattr(pipeline, prepared.family.denoiser.component, None)
    prepared.saes.clear()
    progress("writing the diffusers checkpoint" if "checkpoint" in s.formats else "writing configs")
    checkpoint.write(edited, folder, read_json(prepared.model_folder / "model_index.json"), weights="checkpoint" in s.formats)
    keeps_checker = getattr(edited, "safety_checker", None) is not None and "checkpoint" in s.formats
    edit_hash = network_of(edited).config["ablation"]["sha256"] if prepared.edit.hookpoints else ""
    kind = type(edited).__name__
    seams: dict[str, dict[str, str]] = {}
    if "onnx" in s.formats:
        edited.to("cpu")
        parts = onnx.components(edited)
        # Only `parts` holds the networks from here on, so that each is freed once it is written.
        for name in family_of(pipeline).networks:
            setattr(pipeline, name, None)
        del edited
        while parts:
            progress(f"exporting {parts[0].folder} to ONNX")
            seams |= onnx.write(parts.pop(0), folder)
            gc.collect()
    tables = {h: Tables(len(p.features), len(p.timesteps)) for h, p in prepared.edit.hookpoints.items()}
    return manifest.of(
        created=datetime.now(UTC).isoformat(timespec="seconds"), versions={p: _version(p) for p in _PACKAGES}, concepts=prepared.edit.concepts,
        settings=known.concepts, residual=plan.residual, gate=s.gate, precision=s.precision, formats=sorted(f for f in s.formats if f != "trt"),
        model=Model(known.model, kind, original, keeps_checker, s.variant), saes=known.saes, activations=known.activations,
        edit=EditHashes(prepared.edit.sha256(), edit_hash, tables, changed), sampling=SamplingRecord(plan.steps, plan.guidance, s.height, s.width),
        onnx=Graphs(onnx.OPSET, {name: SeamNames(**names) for name, names in seams.items()}), device=s.device,
        license=licence.of_model(prepared.model_folder), warnings=prepared.warnings,
    )  # fmt: skip


def _from_files(pipeline: Any) -> list[str]:
    """What is said of networks that are too large for memory."""
    held = {name: streamed(getattr(pipeline, name)) for name in family_of(pipeline).networks}
    return [
        f"{name} was too large for memory ({sum(s.nbytes for s in reader.stored.values()) / 1e9:.3g} GB): every forward read its weights from its files"
        for name, reader in held.items()
        if reader
    ]


def _changed(network: Any, edit: Edit) -> dict[str, Changed]:
    """Digests of the weights that the edit changes."""
    new = edit.weights.changed(network) if edit.weights else {}
    return {name: Changed(exact(to_numpy(network.get_parameter(name))), exact(to_numpy(value))) for name, value in new.items()}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpu(device: str) -> str | None:
    """Name of the GPU that the reference and the checkpoint ran on; None on a CPU."""
    import torch

    return torch.cuda.get_device_name(device) if device.startswith("cuda") else None


def _summary(proof: Proof | None, device: str) -> ProofSummary | None:
    if proof is None:
        return None
    return ProofSummary(
        passed=proof.passed, scope=proof.scope, precision=proof.precision,
        seam={name: written(max(p.worst for p in b.seam.parts)) for name, b in proof.backends.items() if b.seam.parts},
        forwards={name: written(b.forwards.pooled) for name, b in proof.backends.items()}, failures=proof.failures, gpu=_gpu(device),
    )  # fmt: skip
