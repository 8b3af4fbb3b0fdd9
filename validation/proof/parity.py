"""Compares an artifact with the dynamic hook. Distances are given as a share of what the edit changes, not of the signal.

A fixed tolerance on the output passes an unedited model whenever the edit is small. Here every distance is divided by
`effect = |hook - neutral|` of the same input, where `neutral` is the hook with every gain at 1: the unedited model for
`residual=keep`. So the unedited model scores 1 (or more, where the reconstruction error alone moves it) and must fail.
The edit itself is compared at the seam (`seam`), the network around it by whole forwards (`forwards`) and free runs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from msgspec.structs import replace

from ...editor.common.errors import SaeuronError, first_line
from ..artifact.engines import OutsideShapes
from ..artifact.golden import Golden, Run
from ..artifact.quantised import Quantisation
from ..artifact.seam import BARS as SEAM_BARS
from ..artifact.seam import SHARE as SEAM_SHARE
from ..artifact.seam import Comparison, Seam, Tally, Tensors, together, turned_in
from ..backends.base import Inputs, Runner
from . import results
from .forwards import Forwards, compare_forwards, compare_quantised, compare_shipped, distance, fault_of_drift, place, quantised_drift
from .results import Backend, Components, Control, FreeRun, Proof, Runs

RUN_BARS = {"fp32": 0.10, "fp16": 0.25, "bf16": 0.25}
"""a free run may leave the hook's by this share of the edit's effect, by precision"""
CONTROL_ROOM = 3.0
"""a model without the edit must miss the bars at the seam by this factor"""
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


Reference = Callable[[str, float, Tensors], Seam]
"""the hook on a backend's own tokens, where the SAE is at hand: hookpoint, timestep, what the backend shows → arrays `[B, tokens, …]`"""


class NoSeam(Exception):
    """A graph of ours that shows no edit."""


def check_seam(golden: Golden, runner: Runner) -> Comparison | None:
    """Feed the edit alone with golden tokens and compare with the hook's result on them; None where a backend can't be cut."""
    tally = Tally(golden.precision)
    for case in golden.cases:
        for hookpoint, expected in case.seams.items():
            found = runner.edit(hookpoint, case.timestep, expected.input, expected.before, expected.places)
            if found is None:
                return None
            tally.add(place(case), hookpoint, expected, *found)
    return tally.result()


def observe(
    golden: Golden, runner: Runner, reference: Reference | None = None
) -> tuple[list[np.ndarray], list[int], Comparison | None] | None:
    """Run every golden forward with the seam's tensors shown; None where a backend hides them.

    Returns:
        outputs; by case, how many decisions came out otherwise than the hook's; the comparison on the backend's own tokens, given a reference.
    """
    tally = Tally(golden.precision)
    outputs, turned = [], []
    for case in golden.cases:
        shown = runner.observe(case.inputs, golden.notes.scope == "seam")
        lacking = sorted(set(case.fires) - set(shown.seams if shown else ()))
        if lacking and runner.shows_seam:
            raise NoSeam(f"it shows no edit at {', '.join(lacking)}, so it holds no edit or not all of it")
        if shown is None:
            return None
        outputs.append(shown.output)
        turned.append(turned_in(shown.seams, case.fires, case.members))
        for hookpoint in case.fires if reference else ():
            assert reference is not None
            mine = shown.seams[hookpoint]
            whole = reference(hookpoint, case.timestep, mine)
            for compared in together(whole, mine.output, mine.fires):
                tally.add(place(case), hookpoint, *compared)
    return outputs, turned, tally.result() if reference else None


class Network(NamedTuple):
    """What was compared of a backend's UNet."""

    seam: results.Seam
    forwards: Forwards


def check_network(golden: Golden, runner: Runner, reference: Reference | None = None) -> Network:
    """The denoiser of a backend: its edit at the seam, and its whole forwards."""
    shown = None if golden.weights_alone else observe(golden, runner, reference)
    runner.stop_watching()
    if golden.notes.scope == "seam":
        return _to_seam(golden, runner, shown)
    plain = run_forwards(golden, runner.denoise)
    if golden.weights_alone:
        return Network(results.Seam(passed=None, alone=True), compare_forwards(golden, plain))
    if shown is None and runner.quantised is not None:
        return _hidden_quantised(golden, runner.quantised, plain)
    if shown is None:
        return Network(results.Seam(passed=None, not_checked=_HIDDEN), compare_forwards(golden, plain))
    outputs, turned, own = shown
    cut = check_seam(golden, runner)
    forwards = compare_forwards(golden, outputs, turned) if runner.quantised is None else _quantised(golden, runner, outputs)
    forwards.shipped, failures = compare_shipped(golden, plain)
    forwards.failures += failures
    forwards.passed = not forwards.failures
    return Network(_seam(golden, cut, own, turned), forwards)


def _to_seam(golden: Golden, runner: Runner, shown: tuple[list[np.ndarray], list[int], Comparison | None] | None) -> Network:
    """`check_network` up to the last edited block."""
    if shown is None:
        line = "seam: its inner tensors are hidden, so nothing of its edit was compared; golden vectors of --proof short or full are needed"
        return Network(results.Seam(passed=False, failures=[line]), Forwards(None, not_checked="golden vectors of scope 'seam' hold none"))
    outputs, turned, own = shown
    seam = _seam(golden, check_seam(golden, runner), own, turned)
    return Network(seam, compare_forwards(golden, outputs, turned))


def _seam(golden: Golden, cut: Comparison | None, own: Comparison | None, turned: list[int]) -> results.Seam:
    failures = [line for part in (cut, own) if part is not None for line in part.failures]
    if cut is None:
        failures.append("seam: its edit can't be run alone, so it was not compared on the golden tokens")
    decisions = sum(f.size for c in golden.cases for f in c.fires.values())
    return results.Seam(passed=not failures, golden_tokens=cut, own_tokens=own, turned=sum(turned), decisions=decisions, failures=failures)


_HIDDEN = "an engine hides its inner tensors; the graph that it was built from shows them"


def _quantised(golden: Golden, runner: Runner, outputs: Sequence[np.ndarray]) -> Forwards:
    """A quantised graph's forwards, beside its own without the edit, which must fail."""
    if golden.notes.edits_weights and any(case.quiet is None for case in golden.cases):
        raise SaeuronError("these golden vectors don't say what the edit's weights do alone, so no quantised graph can be compared; export again, or --model DIR|ID")  # fmt: skip
    ran = [runner.silent(case.inputs) for case in golden.cases]
    runner.stop_watching()
    silent = [output for output in ran if output is not None]
    if len(silent) < len(ran):
        raise NoSeam("it can't be run without its edit, so nothing says how far quantising moves it")
    drift = quantised_drift(golden, silent)
    found = compare_quantised(golden, outputs, drift)
    if runner.quantised is not None and (fault := fault_of_drift(drift, runner.quantised.drift)):
        found.failures.append(fault)
    # Where weights are edited too, they alone may do nearly all of it.
    if not golden.notes.edits_weights and compare_quantised(golden, silent, drift).passed:
        found.failures.append("control: the graph without its edit passed the comparison of whole forwards, so it proves nothing")
    return found


def _hidden_quantised(golden: Golden, quantised: Quantisation, outputs: Sequence[np.ndarray | str]) -> Network:
    """A quantised engine, by the drift of its graph: measured just now where that was run too, else on record."""
    seam = results.Seam(passed=None, not_checked=_HIDDEN)
    if quantised.drift is None:
        return Network(seam, Forwards(None, not_checked="nothing is on record of how far quantising moves the network; export it with its proof"))  # fmt: skip
    return Network(seam, compare_quantised(golden, outputs, quantised.drift))


def run_forwards(golden: Golden, denoise: Callable[[Inputs], np.ndarray]) -> list[np.ndarray | str]:
    """The golden vectors' forwards by a `Runner.denoise`; a text where an engine wasn't built for the shape."""
    outputs: list[np.ndarray | str] = []
    for case in golden.cases:
        try:
            outputs.append(denoise(case.inputs))
        except OutsideShapes as error:
            outputs.append(str(error))
    return outputs


def check_components(golden: Golden, runner: Runner) -> Components:
    """Compare text encoders and autoencoder halves with the original's."""
    bar = COMPONENT_BARS[golden.precision]
    found: dict[str, float] = {}
    failures = []
    outside: list[str] = []
    inputs = {"vae_decoder": ("latent_sample",), "vae_encoder": ("sample",)}
    missing = sorted({*inputs, "text_encoder"} - set(golden.components))
    if missing:
        failures.append(f"the golden vectors hold nothing of {', '.join(missing)}, so nothing was proven of them")
    for name, tensors in golden.components.items():
        given = inputs.get(name, ("input_ids", *(["attention_mask"] if "attention_mask" in tensors else [])))
        if given[0] not in tensors:
            failures.append(f"{name}: the golden vectors hold no '{given[0]}' for it, so nothing was proven of it")
            continue
        try:
            outputs = runner.component(name, {key: tensors[key] for key in given})
        except OutsideShapes:
            outside.append(name)
            continue
        if outputs is None:
            # Text-to-image needs no encoder of pictures, so engines have none.
            if name != "vae_encoder":
                failures.append(f"{name}: this backend has none")
            continue
        if not set(tensors) - set(given):
            failures.append(f"{name}: the golden vectors hold no outputs of it, so nothing was proven of it")
        for key, reference in tensors.items():
            if key in given:
                continue
            if key not in outputs or outputs[key].shape != reference.shape:
                failures.append(
                    f"{name}: gives {list(outputs[key].shape) if key in outputs else 'no'} '{key}', not {list(reference.shape)}"
                )
                continue
            if not np.isfinite(outputs[key]).all():
                failures.append(f"{name}: '{key}' is not finite")
            found[f"{name}.{key}"] = apart = relative(outputs[key], reference)
            if not apart <= bar:
                failures.append(f"{name}: '{key}' differs by {apart:.2%} (bar {bar:.1%})")
    return Components(passed=not failures, bar=bar, relative=found, outside=outside, failures=failures)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of uint8 pictures of one shape in dB; infinite when equal."""
    if a.shape != b.shape:
        raise ValueError(f"pictures of shapes {list(a.shape)} and {list(b.shape)}")
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return 10 * math.log10(255**2 / error) if error else math.inf


def check_runs(golden: Golden, free_run: Callable[[Run], tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Runs:
    """Compare free-running loops: final latents by effect and drift, pictures by PSNR."""
    bar = RUN_BARS[golden.precision]
    rows, failures, outside = [], [], 0
    for run in golden.runs:
        try:
            latents, pictures, decoded = free_run(run)
        except OutsideShapes:
            outside += 1
            continue
        size = float(np.linalg.norm(run.unedited.astype(np.float64)))
        apart, effect = distance(latents, run.hook) / size, distance(run.hook, run.neutral) / size
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
        elif conclusive and not apart <= allowed:
            failures.append(
                f"free run ({where}): final latents are {apart:.2%} from the hook's, allowed {allowed:.2%} (edit's effect {effect:.2%}, drift of the unedited model {run.drift:.2%}, of the hook {run.hook_drift:.2%})"
            )
        rows.append(FreeRun(
            prompts=run.prompts, guidance=run.guidance, height=pictures.shape[1], width=pictures.shape[2], steps=run.steps, latents=apart,
            effect=effect, drift=run.drift, hook_drift=run.hook_drift, allowed=allowed, conclusive=conclusive, decoder_psnr=decoder,
            psnr=psnr(pictures, run.hook_pictures), psnr_unedited=psnr(run.unedited_pictures, run.hook_pictures),
        ))  # fmt: skip
    if golden.notes.scope == "full" and not rows and not outside:
        failures.append("the golden vectors say that free runs were made, but hold none")
    if rows and not any(r.conclusive for r in rows):
        failures.append(
            "free runs: rounding carries every run as far as the edit does, so none can be judged; use a higher precision or a milder multiplier"
        )
    return Runs(passed=not failures, rows=rows, outside=outside, failures=failures)


def check_control(golden: Golden) -> Control:
    """The same comparisons of models that lack the edit: they must fail, or the proof could not tell an edit from none.

    The unedited model at the seam, in whole forwards and in free runs; at the seam also the hook with every gain at 1, which treats the
    reconstruction error alike (`residual` not `keep`) and suppresses nothing.
    """
    failures = []
    seams = [(place(c), h, s) for c in golden.cases for h, s in c.seams.items() if s.changes]
    caught = sum(all(_fails(golden.precision, *seam, other) for other in (seam[2].input, seam[2].neutral)) for seam in seams)
    if caught != len(seams) or (not seams and not golden.weights_alone):
        failures.append(
            f"control: a model without the edit passed {len(seams) - caught} of {len(seams)} comparisons at the seam, so they prove nothing"
        )
    forwards = compare_forwards(golden, [c.unedited for c in golden.cases])
    forwards_caught = sum(1 for r in forwards.rows if r.effect > 0 and not r.ratio <= forwards.allowed)
    if forwards.passed:
        failures.append("control: the unedited model passed the comparison of whole forwards, so it proves nothing")
    runs = check_runs(golden, lambda run: (run.unedited, run.unedited_pictures, run.hook_pictures))
    judged = [r for r in runs.rows if r.conclusive]
    runs_caught = sum(1 for r in judged if not r.latents <= r.allowed)
    if runs_caught != len(judged):
        failures.append(f"control: the unedited model passed {len(judged) - runs_caught} of {len(judged)} free runs that were judged")
    moved = max((relative(c.neutral, c.unedited) for c in golden.cases), default=0.0)
    return Control(
        passed=not failures, residual_alone=moved, seams_caught=caught, seams=len(seams), forwards_caught=forwards_caught,
        forwards=forwards.fired, runs_caught=runs_caught, runs_judged=len(judged), runs=len(golden.runs), failures=failures,
    )  # fmt: skip


def _fails(precision: str, where: str, hookpoint: str, seam: Seam, output: np.ndarray) -> bool:
    """Whether these tokens in place of the edited ones fail by their values, with room to spare."""
    tally = Tally(precision)
    tally.add(where, hookpoint, seam, output, seam.fires)
    found = tally.result()
    return found.worst > CONTROL_ROOM * SEAM_BARS[precision] or not abs(found.share - 1) <= CONTROL_ROOM * SEAM_SHARE


def prove(
    golden: Golden, runners: Sequence[Runner], progress: Callable[[str], None] = lambda text: None, reference: Reference | None = None
) -> Proof:
    """The whole proof over several backends.

    Args:
        golden: the reference.
        runners: one a backend.
        progress: told each check's name.
        reference: the hook on any tokens, where the SAE is at hand.
    """
    control = check_control(golden)
    failures = list(control.failures)
    if not runners:
        failures.append("no backend was run, so nothing was proven")
    kinds = {c.kind for c in golden.cases}
    if kinds != {"step", "between", "fractional"}:
        failures.append(
            f"the golden vectors hold forwards of kind {', '.join(sorted(kinds)) or 'none'} only, not at calibrated, halfway and fractional timesteps"
        )
    if any(set(c.seams) != set(c.fires) or not (c.fires or golden.weights_alone) for c in golden.cases):
        failures.append("the golden vectors lack tokens of a hookpoint, so its edit was not compared")
    backends: dict[str, Backend] = {}
    measured = None
    # Graphs come before the engines that were built from them, whose drift can only be measured on the graph.
    for runner in sorted(runners, key=lambda one: not one.shows_seam):
        if runner.quantised is not None and measured is not None:
            runner.quantised = replace(runner.quantised, drift=measured)
        backends[runner.name] = found = _backend(golden, runner, progress, reference)
        parts = (found.seam, found.forwards, found.components, found.runs)
        failures += [f"{runner.name}: {line}" for part in parts for line in part.failures]
        found.passed = all(part.passed is not False for part in parts)
        if runner.quantised is not None and runner.shows_seam and math.isfinite(found.forwards.drift):
            measured = found.forwards.drift
    return Proof(
        passed=not failures, precision=golden.precision, scope=golden.notes.scope, prompts=golden.notes.prompts,
        against_topk=golden.notes.against_topk, control=control, backends=backends, failures=failures,
    )  # fmt: skip


def _backend(golden: Golden, runner: Runner, progress: Callable[[str], None], reference: Reference | None) -> Backend:
    """What one backend gives; of a check that can't be run, that it failed and why."""

    def tried(title: str, check: Callable[[], T], otherwise: Callable[[bool | None, str, list[str]], T]) -> T:
        # What this installation lacks the means for is said, and neither passed nor failed.
        if reason := runner.skips.get(title):
            return otherwise(None, reason, [])
        progress(f"{runner.name}: {_TITLES[title]}")
        try:
            return check()
        except SaeuronError:
            raise
        except Exception as error:  # a graph that can't take the inputs raises its runtime's own types
            if isinstance(error, MemoryError | OSError) or _NO_MEMORY.search(str(error)):
                # This machine's fault and not the artifact's: no verdict.
                raise SaeuronError(f"{runner.name}: {_TITLES[title]} could not be checked on this machine ({first_line(error)}), so nothing is said of the artifact") from None  # fmt: skip
            line = f"{_TITLES[title]}: can't be run: {(str(error).splitlines() or [type(error).__name__])[0][:300]}"
            return otherwise(False, "", [line])

    seam, forwards = tried(
        "seam", lambda: check_network(golden, runner, reference),
        lambda passed, why, lines: Network(results.Seam(passed=passed, not_checked=why, failures=lines), Forwards(passed, not_checked=why)),
    )  # fmt: skip
    components = tried(
        "components", lambda: check_components(golden, runner),
        lambda passed, why, lines: Components(passed=passed, not_checked=why, failures=lines),
    )  # fmt: skip
    runs = tried(
        "runs", lambda: check_runs(golden, runner.free_run) if runner.quantised is None else Runs(passed=None, not_checked=_NO_RUNS),
        lambda passed, why, lines: Runs(passed=passed, not_checked=why, failures=lines),
    )  # fmt: skip
    runs.loop = runner.loop
    runner.close()
    return Backend(seam=seam, forwards=forwards, components=components, runs=runs)


T = TypeVar("T")
_NO_RUNS = "a quantised model's free runs tell nothing: one rounding unit on the first latents carries them as far apart; its removal is judged instead"
_NO_MEMORY = re.compile(r"out of memory|bad_alloc|failed to allocate|no space left", re.IGNORECASE)
_TITLES = {"seam": "edit and forwards of the network", "components": "components", "runs": "free runs"}
