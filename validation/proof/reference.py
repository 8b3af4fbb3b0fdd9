"""Makes golden vectors: runs the dynamic hook on the original pipeline at the artifact's precision."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import numpy as np
import torch

from ...editor.denoisers.denoiser import Denoiser
from ...editor.denoisers.families import denoiser_of, family_of, network_of, rebuilt, sizes_of
from ...editor.denoisers.sampling import (
    autoencoder,
    check_finite,
    decode,
    denoise,
    initial_latents,
    step_generators,
    to_numpy,
    tokens_up_to,
)  # fmt: skip
from ...editor.denoisers.streamed import widened
from ...editor.edit.bake import refuse_edited
from ...editor.edit.edit import Edit
from ...editor.edit.hook import AblationHook
from ...editor.sae.sae import SparseAutoencoder
from ..artifact.golden import Case, Golden, Notes, Run
from ..artifact.seam import digest
from ..artifact.weights import of_original
from ..trust.configs import configs_of
from .seam_reference import expected, sample
from .surroundings import of_pipeline


class _Call(NamedTuple):
    """One forward of a denoiser: inputs and output."""

    inputs: dict[str, torch.Tensor]
    level: float
    """of noise, 0 to 1000"""
    output: torch.Tensor


class _Recorder:
    """Keeps the inputs and outputs of every forward of a denoiser."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.calls: list[_Call] = []
        self._denoiser = denoiser_of(network)
        self._handle = network.register_forward_hook(self._keep, with_kwargs=True)

    def _keep(self, module: Any, args: tuple, kwargs: dict, output: Any) -> None:
        inputs = {name: value.detach() for name, value in self._denoiser.inputs(args, kwargs).items()}
        result = output[0] if isinstance(output, tuple) else output.sample
        self.calls.append(_Call(inputs, float(self._denoiser.noise_level(inputs)[0]), result.detach()))

    def close(self) -> None:
        self._handle.remove()


@dataclass(frozen=True)
class _Job:
    """What every part of the reference needs."""

    pipeline: Any
    edit: Edit
    saes: Mapping[str, SparseAutoencoder]
    precision: str
    gate: str
    scope: str = "full"

    @property
    def network(self) -> Any:
        return network_of(self.pipeline)

    @property
    def denoiser(self) -> Denoiser:
        return family_of(self.pipeline).denoiser

    def hook(self, record: bool = False) -> AblationHook:
        return AblationHook(self.network, self.edit, self.saes, self.gate, record, record_tokens=record)

    def tokens(self, call: _Call) -> dict[str, tuple[Any, ...]]:
        """Tokens of each hookpoint in a forward of the hook, its weights left as they were."""
        with AblationHook(self.network, replace(self.edit, weights=None), self.saes, self.gate, record_tokens=True) as hook:
            self.forward(call)
        return dict(hook.seen[0])

    def forward(self, call: _Call) -> torch.Tensor:
        """The denoiser's output for a call's inputs."""
        return self.run(self.network, call.inputs)

    def run(self, network: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """A network's output; of scope `seam` the tokens of the hookpoints, behind the last of which it is left."""
        if self.scope == "seam":
            return tokens_up_to(network, sorted(self.edit.hookpoints), inputs)
        return self.denoiser.call(network, inputs)

    @functools.cached_property
    def wide(self) -> tuple[torch.nn.Module, AblationHook]:
        """Denoiser and hook with the same rounded weights, computing in float32."""
        network = widened(self.network)
        dtype = self.network.dtype
        self.denoiser.told_as(network, dtype)
        saes, directions = (
            {name: copy.deepcopy(sae).to(dtype).float() for name, sae in held.items()} for held in (self.saes, self.edit.directions)
        )
        return network, AblationHook(network, replace(self.edit, directions=directions), saes, self.gate)

    def drifts(self, call: _Call, unedited: torch.Tensor) -> tuple[float, float]:
        """How far rounding alone moves the unedited output and the hook's, see `Case.drift`."""
        if self.precision == "fp32":
            name, latents = next(iter(call.inputs.items()))
            signs = torch.randint(0, 2, latents.shape, generator=torch.Generator().manual_seed(0)).to(latents) * 2 - 1
            moved = call._replace(inputs={**call.inputs, name: latents * (1 + torch.finfo(latents.dtype).eps * signs)})
            with self.hook():
                return 0.0, _apart(self.forward(moved), call.output)
        network, hook = self.wide
        wide = {name: value.float() if value.is_floating_point() else value for name, value in call.inputs.items()}
        drift = _apart(self.run(network, wide), unedited)
        with hook:
            return drift, _apart(self.run(network, wide), call.output)

    def quiet(self, call: _Call) -> np.ndarray | None:
        """See `Case.quiet`."""
        if not (self.edit.weights and self.edit.hookpoints):
            return None
        with self.edit.weights.in_place(self.network):
            return to_numpy(self.forward(call))

    def neutral(self) -> contextlib.AbstractContextManager:
        """Nothing for `residual=keep`, where a gain of 1 changes nothing."""
        if self.edit.residual == "keep":
            return contextlib.nullcontext()
        return AblationHook(self.network, self.edit.neutral(), self.saes, self.gate)


def _apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm())


class _Stop(Exception):
    """Ends a pipeline's loop early."""


@torch.no_grad()
def make_golden(
    pipeline: Any, edit: Edit, saes: Mapping[str, SparseAutoencoder], prompts: Sequence[str], steps: int, guidance: float,
    precision: str, gate: str = "exact", height: int | None = None, width: int | None = None, seed: int = 0, scope: str = "full",
    sizes: Sequence[tuple[int, int, int]] = (),
) -> Golden:  # fmt: skip
    """Run the reference.

    Args:
        pipeline: the original pipeline, already at `precision`.
        edit: what to suppress.
        saes: hookpoint → SAE.
        prompts: prompts on which the edit should fire, the concepts taking turns.
        steps: denoising steps.
        guidance: classifier-free guidance scale of the guided runs.
        precision: `fp32`, `fp16` or `bf16`.
        gate: the artifact's gate; the reference decides by the same rule, and how often that differs from torch.topk's pick is noted.
        height: pixels; default: the model's own size.
        width: pixels.
        seed: of the initial latents.
        scope: `full` (whole trajectories, free runs), `short` (a few forwards, for a large model on a CPU), or `seam` (the least of them, each
            up to the last edited block: a case's outputs are the edited tokens).
        sizes: pictures, height and width in pixels: one guided forward more of each.
    """
    refuse_edited(network_of(pipeline))
    job = _Job(pipeline, edit, saes, precision, gate, scope)
    prompts = list(prompts)
    # Prompts take turns between concepts: the first as many as there are concepts show each of them.
    shown = prompts[: max(1, len(edit.concepts))]
    several = shown if len(shown) > 1 else (prompts * 2)[:2]
    known = sizes_of(pipeline)
    unit = known.multiple
    h, w = (side * known.factor for side in known.latents(height, width))
    # Not square, and of another width than the other cases.
    wide = max(unit, (h * 3 // 4) // unit * unit), w + unit
    cases: list[Case] = []
    runs: list[Run] = []
    against_topk = {"decisions": 0, "differ": 0, "fired": 0, "fired_topk": 0}
    plans: list[tuple[list[str], float, int, int, int | None]]
    if scope == "full":
        plans = [(several, guidance, h, w, None), (prompts[:1], 1.0, h, w, None), (prompts[-1:], guidance, *wide, None)]
    else:
        plans = [(shown, guidance, h, w, 2), (prompts[:1], 1.0, *wide, 1)]
    if scope == "seam":
        plans, sizes = [], ()
        first = _first_call(pipeline, shown, [seed + j for j in range(len(shown))], steps, guidance, h, w)
        with job.hook(record=True) as hook:
            first = first._replace(output=job.forward(first))
        _count(hook, against_topk)
        cases = [_case(job, "step", first, hook, 0, 0), *_off_grid(job, [first], 1, 1)]
    plans += [((prompts * pictures)[:pictures], guidance, rows, columns, 1) for pictures, rows, columns in sizes]
    for number, (texts, scale, rows, columns, limit) in enumerate(plans):
        seeds = [seed + 100 * number + j for j in range(len(texts))]
        recorder = _Recorder(network_of(pipeline))
        try:
            with job.hook(record=True) as hook:
                final = _run(pipeline, texts, seeds, steps, scale, rows, columns, limit)
        finally:
            recorder.close()
        _count(hook, against_topk)
        for i, call in enumerate(recorder.calls):
            cases.append(_case(job, "step", call, hook, i, seed=len(cases)))
        if final is not None:
            runs.append(_free_run(job, texts, seeds, steps, scale, rows, columns, final))
        if number < len(plans) - len(sizes):
            cases += _off_grid(job, recorder.calls, 3 if scope == "full" else 1, len(cases))
    notes = Notes(cast(Any, scope), prompts, steps, seed, against_topk, configs_of(pipeline), edit.weights is not None)
    around = of_pipeline(pipeline, prompts, steps)
    weights = of_original(pipeline, edit, saes, gate)
    return Golden(cast(Any, precision), cases, runs, _components(pipeline, [*prompts[:7], ""], h, w, seed), notes, around, weights)


def _count(hook: AblationHook, against_topk: dict[str, int]) -> None:
    """Add a hook's decisions to `Notes.against_topk`."""
    for d in (d for made in hook.decisions.values() for d in made):
        against_topk["decisions"] += d.fires.numel()
        against_topk["differ"] += int((d.fires != d.picked).sum())
        against_topk["fired"] += int(d.fires.sum())
        against_topk["fired_topk"] += int(d.picked.sum())


def _first_call(pipeline: Any, texts: list[str], seeds: list[int], steps: int, scale: float, height: int, width: int) -> _Call:
    """Inputs of a loop's first forward, which is not made."""
    network, found = network_of(pipeline), []
    denoiser = denoiser_of(network)

    def look(module: Any, args: tuple, kwargs: dict) -> None:
        inputs = {name: value.detach() for name, value in denoiser.inputs(args, kwargs).items()}
        found.append(_Call(inputs, float(denoiser.noise_level(inputs)[0]), next(iter(inputs.values()))))
        raise _Stop

    handle = network.register_forward_pre_hook(look, with_kwargs=True)
    try:
        _run(pipeline, texts, seeds, steps, scale, height, width, 1)
    finally:
        handle.remove()
    return found[0]


def _run(pipeline: Any, texts: list[str], seeds: list[int], steps: int, scale: float, height: int, width: int, limit: int | None) -> Any:
    """Final latents; None where the loop was to end after `limit` forwards."""
    done = 0

    # Not every pipeline has a callback for it.
    def stop(module: Any, args: Any) -> None:
        nonlocal done
        if done == limit:
            raise _Stop
        done += 1

    latents = initial_latents(pipeline, seeds, height, width)
    handle = network_of(pipeline).register_forward_pre_hook(stop)
    try:
        final = denoise(pipeline, texts, latents, seeds, steps, scale)
    except _Stop:
        return None
    finally:
        handle.remove()
    return final if limit is None else None


def _case(job: _Job, kind: str, call: _Call, hook: AblationHook, forward: int, seed: int) -> Case:
    """One forward of a hook that recorded it, the number `forward` of its forwards."""
    raw = job.forward(call)
    given = [(f"pipeline's {name}", value) for name, value in list(call.inputs.items())[1:]]
    for what, values in (*given, (f"unedited {job.denoiser.noun}", raw), (f"{job.denoiser.noun} with the hook", call.output)):
        check_finite(values, f"the {what} (timestep {call.level:g})")
    unedited = to_numpy(raw)
    with job.neutral():
        neutral = unedited if job.edit.residual == "keep" else to_numpy(job.forward(call))
    decisions = {name: made[forward] for name, made in hook.decisions.items()}
    members = {} if job.edit.residual == "keep" else {n: digest(to_numpy(d.members)) for n, d in decisions.items()}
    timestep = torch.tensor([call.level])
    tokens = job.tokens(call) if job.edit.weights and job.edit.hookpoints else hook.seen[forward]
    seams = {n: sample(expected(hook.tokens, n, timestep, *seen), seed=seed) for n, seen in tokens.items()}
    return Case(
        kind, call.level, {n: to_numpy(v) for n, v in call.inputs.items()}, to_numpy(call.output), unedited, neutral,
        {n: to_numpy(d.fires) for n, d in decisions.items()}, members, seams, *job.drifts(call, raw), job.quiet(call),
    )  # fmt: skip


def _off_grid(job: _Job, calls: list[_Call], number: int, seed: int) -> list[Case]:
    """Cases at timesteps that were not calibrated: halfway between two (of each hookpoint's own grid), and fractional."""
    grids = list({tuple(p.timesteps.tolist()): p.timesteps.double() for p in job.edit.hookpoints.values()}.values())
    if not grids:  # weights alone: the loop's own
        grids = [torch.tensor(sorted({c.level for c in calls}, reverse=True), dtype=torch.float64)]
    found: list[Case] = []
    for j, grid in ((j, grid) for j in range(number) for grid in grids):
        call = calls[min(len(calls) - 1, len(calls) * (2 * j + 1) // (2 * number + 2))]
        row = int((grid - call.level).abs().argmin())
        other = row + 1 if row + 1 < len(grid) else row - 1
        halfway = float((grid[row] + grid[other]) / 2) if len(grid) > 1 else call.level + 0.5
        for kind, t in (("between", halfway), ("fractional", max(0.0, call.level - 0.3 - 0.2 * j))):
            told = {
                name: torch.from_numpy(value).to(call.output.device) for name, value in job.denoiser.at_level(t, len(call.output)).items()
            }
            moved = call._replace(inputs={**call.inputs, **told}, level=t)
            with job.hook(record=True) as hook:
                moved = moved._replace(output=job.forward(moved))
            found.append(_case(job, kind, moved, hook, 0, seed + len(found)))
    return found


def _free_run(
    job: _Job, texts: list[str], seeds: list[int], steps: int, scale: float, height: int, width: int, hooked: torch.Tensor
) -> Run:
    initial = initial_latents(job.pipeline, seeds, height, width)

    def final(pipe: Any, latents: torch.Tensor) -> torch.Tensor:
        return denoise(pipe, texts, latents, seeds, steps, scale)

    unedited = final(job.pipeline, initial)
    with job.neutral():
        neutral = unedited if job.edit.residual == "keep" else final(job.pipeline, initial)
    # How far rounding alone carries a run: the unedited model's, and the hook's own. An edit decides by thresholds, so a
    # strong one is the more sensitive of the two, and no artifact can be closer to the hook than the hook is to itself.
    noise = torch.randint(0, 2, initial.shape, generator=torch.Generator().manual_seed(seeds[0])) * 2 - 1
    unit = torch.finfo(initial.dtype).eps * noise.to(initial.device, initial.dtype)
    moved = [initial * (1 + unit), initial * (1 - unit)]
    if job.precision == "fp32" or _draws_noise(job.pipeline.scheduler, initial):
        again = final(job.pipeline, moved[0])
    else:
        parts = {name: widened(getattr(job.pipeline, name)) for name in family_of(job.pipeline).networks}
        wide = rebuilt(job.pipeline, **parts, scheduler=copy.deepcopy(job.pipeline.scheduler))
        job.denoiser.told_as(network_of(wide), job.network.dtype)
        again = final(wide, initial.float())
    with job.hook():
        hook_drift = max(_relative(final(job.pipeline, latents), hooked) for latents in moved)
    drift = _relative(again, unedited)
    pictures = decode(job.pipeline, hooked), decode(job.pipeline, unedited)
    return Run(
        list(texts), scale, steps, to_numpy(initial), to_numpy(hooked), to_numpy(unedited), to_numpy(neutral), *pictures, drift, hook_drift,
        seeds,
    )  # fmt: skip


def _draws_noise(scheduler: Any, latents: torch.Tensor) -> bool:
    """Whether a step adds noise: from the same generator it would be other noise at another precision, no drift."""
    if "generator" not in inspect.signature(scheduler.step).parameters or not hasattr(scheduler, "scale_model_input"):
        return False  # flow matching's noise is refused before
    own = copy.deepcopy(scheduler)
    own.set_timesteps(4)
    generator = step_generators([0], (1,))[0]
    before, sample = generator.get_state(), latents[:1].cpu()
    own.step(sample, own.timesteps[0], own.scale_model_input(sample, own.timesteps[0]), generator=generator)
    return not torch.equal(generator.get_state(), before)


def _relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.float() - b.float()).norm() / b.float().norm())


def _components(pipeline: Any, prompts: list[str], height: int, width: int, seed: int) -> dict[str, dict[str, np.ndarray]]:
    """Inputs and outputs of the graphs around the UNet."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for text in family_of(pipeline).text_encoders:
        network = getattr(pipeline, text.name)
        given = text.tokenized(getattr(pipeline, text.tokenizer), prompts, text.tokens(pipeline))
        encoded = text.encode(network, **{n: torch.from_numpy(v).to(network.device) for n, v in given.items()})
        found[text.name] = {**given, **{n: to_numpy(encoded[n]) for n in text.used(network.config.num_hidden_layers)}}
    kind = family_of(pipeline).vae
    with autoencoder(pipeline) as vae:
        latents = initial_latents(pipeline, [seed, seed + 1], height, width).to(vae.dtype)
        decoded = vae.decode(latents, return_dict=False)[0]
        picture = decoded.clamp(-1, 1)
        encoded = kind.encode(vae, picture)
    found["vae_decoder"] = {"latent_sample": to_numpy(latents), "sample": to_numpy(decoded)}
    found["vae_encoder"] = {"sample": to_numpy(picture), kind.encoded: to_numpy(encoded)}
    return found
