"""Is an artifact equal to the dynamic hook? The yardstick is what the edit does, not the size of the signal.

A fixed tolerance on the output passes an unedited model whenever the edit is small. Here every distance is divided by
`effect = |hook - neutral|` of the same input, where `neutral` is the hook with every gain at 1: the unedited model for
`residual=keep`. So the unedited model scores 1 (or more, where the reconstruction error alone moves it) and must fail.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..editor.errors import SaeuronError
from .engines import OutsideShapes
from .golden import Golden, Run
from .runners import Runner

BARS = {"fp32": 0.01, "fp16": 0.10, "bf16": 0.10}
"""largest `|artifact - hook| / effect` by precision"""
COMPONENT_BARS = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 1e-1}
"""largest relative distance of the graphs around the UNet, which no edit touches"""
PICTURE_BARS = {"fp32": 45.0, "fp16": 35.0, "bf16": 25.0}
"""least PSNR in dB between the hook's final latents decoded by the artifact and by the original"""
DRIFT_FACTOR = 2.0
"""a free run may leave the hook's by this many times the larger of two drifts under that precision's rounding: the unedited
model's from itself and the hook's from itself"""


def relative(value: np.ndarray, reference: np.ndarray) -> float:
    """`|value - reference| / |reference|` in float64."""
    scale = float(np.linalg.norm(reference.astype(np.float64)))
    return float(np.linalg.norm(value.astype(np.float64) - reference.astype(np.float64))) / max(scale, 1e-30)


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a.astype(np.float64) - b.astype(np.float64)))


def check_forwards(golden: Golden, run_unet: Callable[..., np.ndarray]) -> dict[str, Any]:
    """Compare single forwards with the hook.

    Args:
        golden: the reference.
        run_unet: see `Runner.unet`.

    Returns:
        `{"passed", "worst", "forwards", "fired", "silent", "rows", "failures"}`; `worst` is the largest
        `|artifact - hook| / effect` over forwards in which the edit fired. Where it did not fire, the output is held to
        the same bar of the smallest effect seen.
    """
    bar = BARS[golden.precision]
    effects = [_distance(c.hook, c.neutral) if any(f.any() for f in c.fires.values()) else 0.0 for c in golden.cases]
    acting = [e for e in effects if e > 0]
    failures, rows, outside, ran = [], [], [], []
    if not acting:
        failures.append(
            "the edit never fired on the golden inputs, so nothing was proven; use prompts that show the concept (--proof-prompt)"
        )
    floor = min(acting, default=0.0)
    for case, effect in zip(golden.cases, effects, strict=True):
        try:
            output = run_unet(*case.inputs)
        except OutsideShapes as error:
            outside.append(str(error))
            continue
        ran.append(effect)
        where = f"{case.kind} t={case.timestep:g} batch={len(case.sample)} {case.sample.shape[-2]}x{case.sample.shape[-1]}"
        if not np.isfinite(output).all():
            failures.append(f"UNet output is not finite at {where}")
        ratio = _distance(output, case.hook) / (effect or floor or 1.0)
        rows.append(
            {
                "kind": case.kind,
                "timestep": case.timestep,
                "batch": len(case.sample),
                "height": case.sample.shape[-2],
                "width": case.sample.shape[-1],
                "effect": effect,
                "ratio": ratio,
            }
        )
        if not ratio <= bar:
            failures.append(f"UNet differs from the hook by {ratio:.2%} of the edit's effect at {where} (bar {bar:.0%})")
    if acting and not any(ran):
        failures.append(f"none of the forwards in which the edit fires fits this engine, so nothing was proven ({outside[0]})")
    worst = max((r["ratio"] for r, e in zip(rows, ran, strict=True) if e > 0), default=float("nan"))
    return {
        "passed": not failures,
        "worst": worst,
        "bar": bar,
        "forwards": len(rows),
        "fired": sum(e > 0 for e in ran),
        "silent": sum(e == 0 for e in ran),
        "outside": len(outside),
        "rows": rows,
        "failures": failures,
    }


def check_gates(golden: Golden, runner: Runner) -> dict[str, Any]:
    """Compare gate decisions with the hook's, read from the backend itself."""
    total = equal = fired = flips_near = flips_far = close = 0
    exercised: dict[str, np.ndarray] = {}
    for case in golden.cases:
        found = runner.decisions(*case.inputs)
        if found is None or set(case.fires) - set(found):
            # Our own graphs show their gates; one that doesn't holds no edit, or not all of it.
            if runner.shows_gates:
                line = "it shows no gate decisions at every hookpoint of the edit, so it holds no edit or not all of it"
                return {"observable": False, "passed": False, "failures": [line]}
            return {"observable": False, "passed": None, "not_checked": "an engine hides its inner tensors", "failures": []}
        for hookpoint, reference in case.fires.items():
            differs = found[hookpoint] != reference
            near = case.near[hookpoint]
            seen = reference.any(axis=(0, 1))
            exercised[hookpoint] = exercised.get(hookpoint, np.zeros_like(seen)) | seen
            total, fired = total + reference.size, fired + int(reference.sum())
            equal += int((~differs).sum())
            close += int(near.sum())
            flips_near += int((differs & near).sum())
            flips_far += int((differs & ~near).sum())
    failures = [f"{flips_far} gate decisions differ from the hook beyond rounding"] if flips_far else []
    # Rounding is as likely to push a close decision one way as the other: more than half (and three standard deviations)
    # can't be rounding.
    if flips_near > close / 2 + 1.5 * close**0.5:
        failures.append(f"{flips_near} of {close} gate decisions within rounding differ from the hook: more than rounding can explain")
    return {
        "observable": True, "passed": not failures, "decisions": total, "equal": equal / max(total, 1), "fired": fired,
        "features_fired": sum(int(e.sum()) for e in exercised.values()), "features": sum(e.size for e in exercised.values()),
        "within_rounding": close, "flips_within_rounding": flips_near, "flips_beyond_rounding": flips_far, "failures": failures,
    }  # fmt: skip


def check_components(golden: Golden, runner: Runner) -> dict[str, Any]:
    """Compare text encoders and autoencoder halves with the original's."""
    bar = COMPONENT_BARS[golden.precision]
    found: dict[str, float] = {}
    failures = []
    outside: list[str] = []
    inputs = {"vae_decoder": "latent_sample", "vae_encoder": "sample"}
    missing = sorted({*inputs, "text_encoder"} - set(golden.components))
    if missing:
        failures.append(f"the golden vectors hold nothing of {', '.join(missing)}, so nothing was proven of them")
    for name, tensors in golden.components.items():
        given = inputs.get(name, "input_ids")
        if given not in tensors:
            failures.append(f"{name}: the golden vectors hold no '{given}' for it, so nothing was proven of it")
            continue
        try:
            outputs = runner.component(name, {given: tensors[given]})
        except OutsideShapes:
            outside.append(name)
            continue
        if outputs is None:
            # Text-to-image needs no encoder of pictures, so engines have none.
            if name != "vae_encoder":
                failures.append(f"{name}: this backend has none")
            continue
        if not set(tensors) - {given}:
            failures.append(f"{name}: the golden vectors hold no outputs of it, so nothing was proven of it")
        for key, reference in tensors.items():
            if key == given:
                continue
            if key not in outputs or outputs[key].shape != reference.shape:
                failures.append(
                    f"{name}: gives {list(outputs[key].shape) if key in outputs else 'no'} '{key}', not {list(reference.shape)}"
                )
                continue
            if not np.isfinite(outputs[key]).all():
                failures.append(f"{name}: '{key}' is not finite")
            found[f"{name}.{key}"] = distance = relative(outputs[key], reference)
            if not distance <= bar:
                failures.append(f"{name}: '{key}' differs by {distance:.2%} (bar {bar:.1%})")
    return {"passed": not failures, "bar": bar, "relative": found, "outside": outside, "failures": failures}


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of uint8 pictures of one shape in dB; infinite when equal."""
    if a.shape != b.shape:
        raise ValueError(f"pictures of shapes {list(a.shape)} and {list(b.shape)}")
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return 10 * math.log10(255**2 / error) if error else math.inf


def ssim(a: np.ndarray, b: np.ndarray) -> float | None:
    """Mean structural similarity of uint8 pictures `[B, H, W, 3]`; None without scikit-image. It is shown, never judged."""
    try:
        from skimage.metrics import structural_similarity
    except ImportError:
        return None
    return float(np.mean([structural_similarity(x, y, channel_axis=-1, data_range=255) for x, y in zip(a, b, strict=True)]))


def check_runs(golden: Golden, free_run: Callable[[Run], tuple[np.ndarray, np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """Compare free-running loops: final latents by effect and drift, pictures by PSNR and SSIM."""
    bar = BARS[golden.precision]
    rows, failures, outside = [], [], 0
    for run in golden.runs:
        try:
            latents, pictures, decoded = free_run(run)
        except OutsideShapes:
            outside += 1
            continue
        size = float(np.linalg.norm(run.unedited.astype(np.float64)))
        distance, effect = _distance(latents, run.hook) / size, _distance(run.hook, run.neutral) / size
        allowed = max(bar * effect, DRIFT_FACTOR * max(run.drift, run.hook_drift))
        where = f"guidance={run.guidance:g} {pictures.shape[1]}x{pictures.shape[2]}"
        # Where rounding alone carries a run as far as the edit does, it can't tell an edit from none and must not pretend to.
        conclusive = allowed < effect
        decoder = psnr(decoded, run.hook_pictures)
        if decoder < PICTURE_BARS[golden.precision]:
            failures.append(
                f"free run ({where}): the hook's final latents decode to another picture ({decoder:.1f} dB, bar {PICTURE_BARS[golden.precision]:.0f} dB)"
            )
        if not np.isfinite(latents).all():
            failures.append(f"free run ({where}): final latents are not finite")
        elif conclusive and not distance <= allowed:
            failures.append(
                f"free run ({where}): final latents are {distance:.2%} from the hook's, allowed {allowed:.2%} (edit's effect {effect:.2%}, drift of the unedited model {run.drift:.2%}, of the hook {run.hook_drift:.2%})"
            )
        rows.append({
            "prompts": run.prompts, "guidance": run.guidance, "height": pictures.shape[1], "width": pictures.shape[2], "steps": run.steps,
            "latents": distance, "effect": effect, "drift": run.drift, "hook_drift": run.hook_drift, "allowed": allowed, "conclusive": conclusive, "decoder_psnr": decoder,
            "psnr": psnr(pictures, run.hook_pictures), "ssim": ssim(pictures, run.hook_pictures),
            "psnr_unedited": psnr(run.unedited_pictures, run.hook_pictures), "ssim_unedited": ssim(run.unedited_pictures, run.hook_pictures),
        })  # fmt: skip
    if golden.notes.get("scope") == "full" and not rows and not outside:
        failures.append("the golden vectors say that free runs were made, but hold none")
    if rows and not any(r["conclusive"] for r in rows):
        failures.append(
            "free runs: rounding carries every run as far as the edit does, so none can be judged; use a higher precision or a milder multiplier"
        )
    return {"passed": not failures, "rows": rows, "outside": outside, "failures": failures}


def check_control(golden: Golden) -> dict[str, Any]:
    """The same comparisons of the *unedited* model: they must fail, or the proof could not tell an edit from none."""
    outputs = iter([c.unedited for c in golden.cases])
    forwards = check_forwards(golden, lambda *_: next(outputs))
    caught = sum(1 for r in forwards["rows"] if r["effect"] > 0 and not r["ratio"] <= forwards["bar"])
    runs = check_runs(golden, lambda run: (run.unedited, run.unedited_pictures, run.hook_pictures))
    failures = []
    if caught != forwards["fired"] or not caught:
        failures.append(
            f"control: the unedited model passed {forwards['fired'] - caught} of {forwards['fired']} forwards, so this comparison proves nothing"
        )
    judged = [r for r in runs["rows"] if r["conclusive"]]
    runs_caught = sum(1 for r in judged if not r["latents"] <= r["allowed"])
    if runs_caught != len(judged):
        failures.append(f"control: the unedited model passed {len(judged) - runs_caught} of {len(judged)} free runs that were judged")
    moved = max((relative(c.neutral, c.unedited) for c in golden.cases), default=0.0)
    return {
        "passed": not failures,
        "residual_alone": moved,
        "forwards_caught": caught,
        "forwards": forwards["fired"],
        "runs_caught": runs_caught,
        "runs_judged": len(judged),
        "runs": len(golden.runs),
        "failures": failures,
    }


# What a report reads of a check that could not be run.
_UNRUN: dict[str, dict[str, Any]] = {
    "gates": {"observable": False}, "components": {"relative": {}, "outside": []}, "runs": {"rows": [], "outside": 0},
    "forwards": {"worst": float("nan"), "bar": float("nan"), "forwards": 0, "fired": 0, "silent": 0, "outside": 0, "rows": []},
}  # fmt: skip


def prove(golden: Golden, runners: list[Runner], progress: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """The whole proof over several backends.

    Returns:
        the report: `{"passed", "precision", "scope", "prompts", "against_topk", "control", "backends": {name: …}, "failures": [line, …]}`.
    """
    report: dict[str, Any] = {
        "precision": golden.precision,
        "scope": golden.notes.get("scope"),
        "prompts": golden.notes.get("prompts"),
        "against_topk": golden.notes.get("against_topk"),
        "control": check_control(golden),
        "backends": {},
    }
    failures = list(report["control"]["failures"])
    if not runners:
        failures.append("no backend was run, so nothing was proven")
    kinds = {c.kind for c in golden.cases}
    if kinds != {"step", "between", "fractional"}:
        failures.append(
            f"the golden vectors hold forwards of kind {', '.join(sorted(kinds)) or 'none'} only, not at calibrated, halfway and fractional timesteps"
        )
    for runner in runners:
        parts: dict[str, Any] = {}
        for title, check in (
            ("gates", lambda r=runner: check_gates(golden, r)),
            ("forwards", lambda r=runner: check_forwards(golden, r.unet)),
            ("components", lambda r=runner: check_components(golden, r)),
            ("runs", lambda r=runner: check_runs(golden, r.free_run)),
        ):
            # What this installation lacks the means for is said, and neither passed nor failed.
            if reason := getattr(runner, "skips", {}).get(title):
                parts[title] = {"passed": None, "not_checked": reason, **_UNRUN.get(title, {})}
                continue
            progress(f"{runner.name}: {title}")
            try:
                parts[title] = check()
            except SaeuronError:
                raise
            except Exception as error:  # a graph that can't take the inputs raises its runtime's own types
                line = f"{title}: can't be run: {(str(error).splitlines() or [type(error).__name__])[0][:300]}"
                parts[title] = {"passed": False, "failures": [line], **_UNRUN.get(title, {})}
            if title == "gates":
                runner.stop_watching()
            failures += [f"{runner.name}: {line}" for line in parts[title].pop("failures")]
        parts["runs"]["loop"] = getattr(runner, "loop", "diffusers")
        if hasattr(runner, "close"):
            runner.close()
        parts["passed"] = all(part["passed"] is not False for part in parts.values())
        report["backends"][runner.name] = parts
    report["failures"], report["passed"] = failures, not failures
    return report
