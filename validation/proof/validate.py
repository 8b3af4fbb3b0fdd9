"""Proves an artifact again, from its own golden vectors or from a fresh run of the hook.

Without torch, diffusers and transformers it proves what it can (graphs, free runs by `validation.lean`) and says what it can't.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...editor.common.errors import SaeuronError
from ...editor.common.files import read_json
from ...editor.denoisers.families import family_of, sizes_in
from ..artifact import contents, engines, manifest
from ..artifact.golden import Golden
from ..artifact.installed import missing
from ..artifact.manifest import GOLDEN, Manifest
from ..backends.base import Runner
from ..backends.choose import NETWORKS
from ..backends.onnx_runner import OnnxRunner
from ..backends.sessions import check_onnxruntime, check_provider, provider_of
from ..backends.torch_runner import CheckpointRunner
from ..trust.agreement import check_said
from . import surroundings
from .parity import Reference, prove
from .results import Backend, Check, Judged, NotChecked, Proof

_TORCH_ONLY = ("checkpoint",)
"""backends that torch runs"""


def validate(
    artifact: str | Path, backends: Sequence[str] = (), device: str = "cpu", golden: Golden | None = None, check_files: bool = True,
    progress: Callable[[str], None] = lambda text: None, provider: str | None = None, target: str | None = None,
    reference: Reference | None = None,
) -> Proof:  # fmt: skip
    """Prove an artifact.

    Args:
        artifact: its folder.
        backends: `checkpoint`, `onnx`, `trt`, `trt-rtx`; default: all that it holds and that can be run here.
        device: torch device of the checkpoint; ONNX Runtime takes its CUDA provider on `cuda`.
        golden: reference to compare with; default: the artifact's own golden file.
        check_files: compare every file with the manifest first.
        progress: told each check's name.
        provider: of ONNX Runtime, one of `runners.PROVIDERS`; default: the device's. An ONNX Runtime that falls back to another is refused.
        reference: the hook on any tokens (`seam_reference.on_tokens`), where the SAE is at hand.
        target: of engines, a folder below `tensorrt/`; default: all that fit this GPU, each proven as a backend `trt-rtx/<target>`.

    Returns:
        the proof; its `not_checked` is empty where torch, diffusers and transformers are installed, and a GPU for an artifact's engines.

    Raises:
        SaeuronError: no artifact, a changed file, a backend that it doesn't hold or that can't be run here.
    """
    root = Path(artifact)
    record = manifest.read(root)
    if check_files:
        contents.check(root, record)
        if wrong := manifest.own_hash_faults(root, record):
            raise SaeuronError(f"'{root}': {wrong[0]}; take the artifact again from its source")
    manifest.check_backends(root, record, backends)
    if golden is None and GOLDEN not in record.files:
        raise SaeuronError(f"'{root}' was published without golden vectors; prove it against the original model, with --model DIR|ID")
    check_provider(provider, backends or record.formats)
    if device != "cpu" and not {"checkpoint", "onnx"} & set(backends or record.formats):
        raise SaeuronError(f"--device {device} is for backends checkpoint and onnx, not for {', '.join(backends or record.formats)}")
    executor = provider_of(device, provider)
    lacking = missing()
    chosen, not_checked = _runnable(root, record, tuple(backends), target, lacking)
    vectors = golden or Golden.load(root / GOLDEN)
    lean = {name: _skips(root, vectors, lacking or backend in engines.BACKENDS) for name, backend, _ in chosen}
    loop = "lean" if lacking else "diffusers"
    runners: list[Runner] = []
    for name, backend, one in chosen:
        runner: Runner
        if backend == "checkpoint":
            runner = CheckpointRunner(root, device)
        elif backend == "onnx":
            runner = OnnxRunner(root, executor, loop)
        else:
            runner = NETWORKS[backend](root, executor, one)
        runner.skips = lean[name]
        runner.quantised = None if backend in _TORCH_ONLY else record.quantised
        runners.append(runner)
    not_checked += [NotChecked(backend=name, check=check, reason=reason) for name in lean for check, reason in lean[name].items()]
    record_check = around = said = None
    if lacking:
        reason = f"needs {', '.join(lacking)}"
        not_checked += [NotChecked(check=name, reason=reason) for name in ("record", "surroundings")]
        if wrong := check_said(root, record, vectors):
            said = Check(passed=False, failures=wrong)
    else:
        progress("the record against the tensors")
        from ..trust.record import check_record

        wrong = check_record(root, record, vectors)
        record_check = Check(passed=not wrong, failures=wrong)
        around = surroundings.compare(surroundings.of_folder(root, vectors.notes.prompts, vectors.notes.steps), vectors.surroundings)
    wrong = engines.check_entries(root, record)
    proof = prove(vectors, runners, progress, reference)
    proof.record, proof.surroundings, proof.said = record_check, around, said
    proof.engines = Check(passed=False, failures=wrong) if wrong else None
    if "onnx" in proof.backends:
        proof.backends["onnx"].provider = executor
    if vectors.notes.scope == "seam":
        reason = "proof of scope 'seam': the network was run up to its last edited block, and neither its end nor a picture was compared"
        not_checked.append(NotChecked(check="forwards", reason=reason))
    proof.not_checked = not_checked + _outside(proof.backends) + _between(root, record, vectors, chosen)
    # So that a reader can tell whose proof it is. The manifest's own hash is not final while an export proves what it wrote.
    proof.artifact = Judged(
        edit_sha256=record.edit.sha256, content_sha256=manifest.content_sha256(record), engines_sha256=manifest.engines_sha256(record)
    )
    checks = [check for check in (record_check, around, said, proof.engines) if check is not None]
    proof.failures = [line for check in checks for line in check.failures] + proof.failures
    proof.passed = not proof.failures
    if record.quantised is not None:
        proof.judge(record.quantised, record.concepts)
    return proof


_Part = tuple[str, str, str | None]
"""name in the report, backend, target of engines"""


def _runnable(
    root: Path, record: Manifest, wanted: tuple[str, ...], target: str | None, lacking: list[str]
) -> tuple[list[_Part], list[NotChecked]]:
    """What is run, and what the artifact holds but this machine can't run."""
    engines.check_target(record, target)
    if target is not None:
        backend = record.engines[target].backend
        if wanted and backend not in wanted:
            raise SaeuronError(f"--target {target} is for backend {backend}, not for {', '.join(wanted)}")
        wanted = wanted or (backend,)
    parts: list[_Part] = []
    left, errors = [], []
    for name in wanted or record.formats:
        try:
            found, reasons = _ways(root, record, name, target, lacking)
        except SaeuronError as error:
            if wanted or len(record.formats) == 1:
                raise
            errors.append(str(error))
            needed = f"needs {', '.join(lacking)}" if name in _TORCH_ONLY else str(error).partition(";")[0]
            left.append(NotChecked(check=name, reason=needed))
            continue
        parts += found
        left += [NotChecked(check=f"{name}/{other}", reason=reason) for other, reason in reasons.items()]
    if not parts:
        raise SaeuronError("; ".join(errors))
    return parts, left


def _ways(root: Path, record: Manifest, name: str, target: str | None, lacking: list[str]) -> tuple[list[_Part], dict[str, str]]:
    """How a backend runs here; target → why it doesn't."""
    if name in engines.BACKENDS:
        fit, reasons = engines.fitting(record, name, target)
        if not fit:
            raise engines.none_fits(root, reasons)
        return [(f"{name}/{one}", name, one) for one in fit], reasons
    if name in _TORCH_ONLY and lacking:
        raise SaeuronError(f"backend '{name}' of '{root}' needs {', '.join(lacking)}; pip install 'saeuron-export[export]'")
    if name == "onnx":
        check_onnxruntime()
    return [(name, name, None)], {}


def _outside(backends: Mapping[str, Backend]) -> list[NotChecked]:
    """Checks that were made in part or not at all, since an engine wasn't built for the golden vectors' shapes."""
    found = []
    for name, parts in backends.items():
        if parts.seam.not_checked:
            found.append(NotChecked(backend=name, check="seam", reason=parts.seam.not_checked))
        left = {"forwards": parts.forwards.outside, "components": ", ".join(parts.components.outside), "runs": parts.runs.outside}
        for check, what in left.items():
            if what:
                which = what if isinstance(what, str) else f"{what} {check}"
                found.append(NotChecked(backend=name, check=check, reason=f"{which}: of shapes that the engine wasn't built for"))
    return found


def _between(root: Path, record: Manifest, reference: Golden, chosen: list[_Part]) -> list[NotChecked]:
    """Engines of a range of sizes of which no golden vector lies between the points that the builder knew."""
    found = []
    sizes, denoiser = sizes_in(root), family_of(read_json(root / "model_index.json")).denoiser
    latents, axes = next(iter(denoiser.axes(read_json(root / denoiser.component / "config.json"))[0].items()))
    side = sizes.multiple // sizes.factor
    # Axis → what it counts, and how far apart two sizes of it are at least.
    known = {
        "batch_size": ("rows", denoiser.rows(record.sampling.guidance > 1)), "latent_height": ("heights", side),
        "latent_width": ("widths", side), "packed_height_width": ("tokens", 1),
    }  # fmt: skip
    for name, _, target in chosen:
        if target is None:
            continue
        points = record.engines[target].components[denoiser.component].shapes[latents]
        low, usual, high = points
        for axis, (what, unit) in ((axis, known[kind]) for axis, kind in enumerate(axes) if kind in known):
            held = {case.sample.shape[axis] for case in reference.cases if engines.inside(case.sample.shape, points)}
            room = [(a, b) for a, b in ((low[axis], usual[axis]), (usual[axis], high[axis])) if b - a > unit]
            open_ones = [f"{a} and {b}" for a, b in room if not any(a < value < b for value in held)]
            if open_ones:
                between = f"no golden vector has {what} between {' or between '.join(open_ones)}"
                found.append(NotChecked(backend=name, check="forwards", reason=between))
    return found


def _skips(root: Path, reference: Golden, lean: Any) -> dict[str, str]:
    """Checks that can't be made without diffusers: free runs, where only it has the scheduler's loop."""
    if not lean or not reference.runs:
        return {}
    from ..backends.lean.pipeline import scheduler_of

    try:
        scheduler_of(root)
    except SaeuronError as error:
        return {"runs": f"needs diffusers' loop: {str(error).partition(';')[0]}"}
    return {}
