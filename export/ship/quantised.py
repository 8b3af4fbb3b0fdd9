"""A proven artifact's denoiser in 8 bits: calibrated, written in the place of the graph in floats, its removal judged before and after."""

from __future__ import annotations

import gc
import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from ...editor.common.files import read_json
from ...editor.common.writing import scratch
from ...editor.denoisers.families import family_of
from ...validation.artifact import contents
from ...validation.artifact.golden import Golden
from ...validation.artifact.manifest import GOLDEN, Manifest
from ...validation.artifact.quantised import INPUTS, Calibration, Quantisation
from ...validation.artifact.quantised import Layer as Recorded
from ...validation.evidence.evaluate import evaluate, make_plan
from ...validation.evidence.evaluation_settings import EvaluationSettings
from ...validation.evidence.removal import BACKEND, removals
from ...validation.evidence.results import Evaluation
from ...validation.proof.results import Proof
from ..formats import calibrate
from ..formats.quantise import Layer, check_written, layers_of, write_quantised
from ..plan.progress import Remaining
from ..plan.removal import SEEDS, STEPS, calibration_prompts
from ..plan.settings import Plan

Progress = Callable[[str], None]
_PLACE = "saeuron-quantised"


def quantised(
    folder: Path, record: Manifest, plan: Plan, prompts: Sequence[str], prove: Callable[[], Proof] | None, progress: Progress
) -> Proof | None:  # fmt: skip
    """Quantise the graph of an artifact that is being made, and prove it.

    Args:
        folder: of the artifact, its manifest and graphs in it.
        record: its manifest; what is found is put into it.
        plan: of the export.
        prompts: of the proof, by which inputs are calibrated where no others are known.
        prove: the artifact as it then is; None: nothing is proven or judged.
        progress: told what is being done.

    Returns:
        the proof, removal included.
    """
    with scratch(folder.parent, _PLACE) as work:
        judged = prove is not None and plan.settings.evaluate
        contents.write(folder, record)
        earlier = _evaluated(folder, plan, work / "before", True, progress) if judged else None
        record.quantised = _quantise(folder, record, plan, prompts, work, progress)
        if prove is None:
            contents.write(folder, record)  # engines are built from what is on record
            return None
        proof = prove()
        if BACKEND in proof.backends:
            record.quantised.drift = proof.backends[BACKEND].forwards.drift
        if earlier is not None and proof.passed:
            record.quantised.removal = removals(earlier, _evaluated(folder, plan, work / "after", False, progress))
            proof.judge(record.quantised, record.concepts)
    return proof


def _evaluated(folder: Path, plan: Plan, output: Path, unedited: bool, progress: Progress) -> Evaluation:
    s, clock = plan.settings, Remaining()
    wanted = EvaluationSettings(
        backends=(BACKEND,), before=unedited, judge=s.judge, seeds=SEEDS, model=plan.model if unedited else None, device=s.device
    )

    def counted(name: str, done: int, total: int) -> None:
        progress(
            f"judging removal {'before' if unedited else 'after'} quantising: {name}, {done} of {total} pictures{clock.text(done, total)}"
        )

    made = make_plan(folder, wanted)
    # What the quantised graph keeps of everything else is no part of this: `saeuron evaluate` says it of the whole.
    rest = set(made.rest)
    asked = [picture for i, picture in enumerate(made.wanted) if i not in rest]
    found = evaluate(replace(made, wanted=asked), output, progress=counted, tokens=False)
    assert found is not None  # one process
    return found


def _quantise(folder: Path, record: Manifest, plan: Plan, prompts: Sequence[str], work: Path, progress: Progress) -> Quantisation:
    """Put the quantised graph in the place of the one in floats."""
    s = plan.settings
    component = family_of(read_json(folder / "model_index.json")).denoiser.component
    graph = folder / component / "model.onnx"
    progress(f"looking for the layers of {component} that can be quantised")
    original = Golden.load(folder / GOLDEN).weights[component]
    model = ir.load(graph)
    layers = layers_of(model.graph, record.onnx.seams, original, record.edit.weights)
    most: dict[str, float] = {}
    calibration = None
    if s.quantize in INPUTS:
        most, calibration = _calibrated(folder, component, record, plan, prompts, layers, progress)
    before = {name: file.sha256 for name, file in record.files.items() if name.startswith(f"{component}/model.onnx")}
    progress(f"writing {component} in {s.quantize}")
    write_quantised(model, layers, s.quantize, most, work / component)
    codes = check_written(work / component / "model.onnx", layers, s.quantize)
    said = {layer.node.name or "": Recorded(layer.name, layer.digest, codes[layer.node.name or ""]) for layer in layers}
    del model, layers
    gc.collect()
    for file in graph.parent.glob("model.onnx*"):
        file.unlink()
    for file in (work / component).iterdir():
        os.replace(file, graph.parent / file.name)
    shutil.rmtree(work / component)
    return Quantisation(scheme=s.quantize, graph=before, layers=said, calibration=calibration)  # type: ignore[arg-type]


def _calibrated(
    folder: Path, component: str, record: Manifest, plan: Plan, prompts: Sequence[str], layers: Sequence[Layer], progress: Progress
) -> tuple[dict[str, float], Calibration]:  # fmt: skip
    s, clock = plan.settings, Remaining()
    texts = calibration_prompts(plan, prompts)
    names = list(dict.fromkeys(layer.input.name or "" for layer in layers))

    def counted(done: int, total: int) -> None:
        progress(f"calibrating {component} for {s.quantize}: {done} of {total} prompts{clock.text(done, total)}")

    steps = min(plan.steps, STEPS[s.proof])
    most, forwards = calibrate.ranges(folder, component, names, texts, record.sampling, steps, counted)
    digest = hashlib.sha256("".join(f"{text}\n" for text in texts).encode()).hexdigest()
    return most, Calibration(len(texts), digest, forwards)


def unquantised(record: Manifest, scheme: str, proof: Proof) -> None:
    """Say of an artifact why it was left in floats."""
    line = f"not quantised ({scheme}): the graph in floats is not proven, and only a proven one is quantised"
    record.warnings = [*record.warnings, line]
    proof.failures.append(line)
