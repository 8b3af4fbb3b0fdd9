"""Collects concept activations: runs the unedited pipeline on each concept's prompts and averages an SAE's latents.

Method: arXiv 2501.18052, section 3.2 (DDIM, conditional half, every step). Sums are kept in fixed point (int64), because
integer addition doesn't care for order: one process or many, in one go or after a kill, the file is the same bit by bit.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file

from ..common.errors import SaeuronError
from ..common.files import read_header
from ..common.names import normalise
from ..common.process import Process
from ..common.writing import whole_file
from ..denoisers.families import Family, family_in, family_of, network_of, sizes_of, telling_in
from ..denoisers.pipelines import scheduler_in
from ..denoisers.sampling import generate, observe, scheduler_of
from ..denoisers.sampling_settings import Sampling
from ..denoisers.schedulers import check_loop, timesteps
from ..sae.sae import SparseAutoencoder
from .activations import ConceptActivations
from .prompt_sets import check_sets

METHOD = 2
"""of sampling, part of the names of stored work: until 1, DDIM clipped samples where the pipeline's own scheduler never does"""
_SCALE = float(2**40)
_FINE = float(2**10)
"""tokens are rounded to so many parts of 1 before they are multiplied: sums of their products in float64 are then exact up to 2^33, in any order"""
PARTS = 10
"""parts of the timesteps that have a covariance of their own, at most"""
# |sum| stays below 2^22 · 2^40; a mean latent of 1000 over four thousand prompts.
_LARGEST = float(2**22)


_DEFAULT, _ALONE = Sampling(), Process()


class _Unit(NamedTuple):
    """A batch of prompts of one concept: what is computed as a whole or not at all."""

    number: int
    concept: int
    prompts: tuple[str, ...]
    seed: int


@dataclass
class _Sums:
    """Fixed-point sums of one concept over finished units."""

    done: list[int] = field(default_factory=list)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    """`<hookpoint>/sum` int64 `[T, n]`, `<hookpoint>/kth` int64 `[T]`, `timesteps` float32 `[T]`; `<hookpoint>/products` float64 `[S, d, d]`,
    `<hookpoint>/count` int64: tokens at a timestep"""


def collect(
    pipeline: Any, saes: Mapping[str, SparseAutoencoder], prompts: Mapping[str, Sequence[str]], sampling: Sampling = _DEFAULT,
    provenance: Mapping[str, Any] | None = None, state: Path | None = None, process: Process = _ALONE, within: bool = False,
    progress: Callable[[int, int, str], None] = lambda done, total, concept: None,
) -> dict[str, ConceptActivations] | None:  # fmt: skip
    """Average the latents of every concept at every hookpoint, in one pass of the pipeline over the prompts.

    Memory doesn't grow with prompts or tokens: sums `[T, n]` of one concept lie on the device.

    Args:
        pipeline: the unedited text-to-image pipeline.
        saes: hookpoint → its SAE.
        prompts: concept (or contrast set) → prompts; one domain, at least two names.
        sampling: how the pipeline is run.
        provenance: recorded in the file's header.
        state: folder for unfinished work; give the same one after a kill and finished prompts are not run again. It must be
            a folder of this very job (name it by a hash of model, SAEs, prompts and sampling). Remove it once the result is
            written: a kill in between then costs nothing.
        process: this process's share, for several under `torchrun` or `accelerate launch`; all need the same `state`.
        within: also how tokens vary within a concept (`ConceptActivations.within`); the SAEs are `project.token_parts`.
        progress: told prompts done, prompts in all and the concept, by this process; finished ones are done at the first call.

    Returns:
        hookpoint → activations; None in every process but the first.

    Raises:
        SaeuronError: fewer than two concepts, an empty prompt set, several processes without `state`, a scheduler that calls the
            UNet twice at one timestep, non-finite latents.
    """
    names = list(prompts)
    check_sets(prompts)
    if process.count > 1 and state is None:
        raise SaeuronError("several processes need a state folder to put their sums into")
    saes = {normalise(name): sae.to(network_of(pipeline).device) for name, sae in saes.items()}
    units = _units(prompts, sampling)
    finished = {number for sums in _stored(state) for number in sums[1].done}
    process.barrier()  # nobody writes before everybody has read what was finished before
    remaining = [u for u in units if u.number not in finished]
    mine = remaining[process.rank :: process.count]
    # Who finished what isn't known of the others: each process counts its share of it.
    before = (sum(len(u.prompts) for u in units) - sum(len(u.prompts) for u in remaining)) // process.count
    total, done = before + sum(len(u.prompts) for u in mine), before
    kept: dict[int, _Sums] = {}
    with scheduler_of(pipeline, sampling.scheduler), torch.no_grad():
        _check_timesteps(family_of(pipeline), pipeline.scheduler, sampling, sizes_of(pipeline).latents(sampling.height, sampling.width))
        for position, unit in enumerate(mine):
            progress(done, total, names[unit.concept])
            sums = kept.setdefault(unit.concept, _resume(state, process.rank, unit.concept))
            _add(sums, _run_unit(pipeline, saes, unit, sampling, names[unit.concept], within))
            sums.done.append(unit.number)
            done += len(unit.prompts)
            if state is not None:
                _store(state, process.rank, unit.concept, sums)
                if position + 1 == len(mine) or mine[position + 1].concept != unit.concept:
                    del kept[unit.concept]  # it lies on disk
    progress(total, total, "")
    process.barrier()
    if process.rank:
        return None
    everything = _stored(state) if state is not None else list(kept.items())
    return _merge(everything, units, names, prompts, saes, sampling, dict(provenance or {}), within)


def check_sampling(folder: Path, sampling: Sampling) -> None:
    """Raise `SaeuronError` unless the pipeline in a folder can be sampled so; no network is opened."""
    scheduler = scheduler_in(folder)
    if sampling.scheduler == "ddim":
        scheduler = family_in(folder).calibrating(scheduler)
    check_loop(scheduler, sampling.steps, telling_in(folder, scheduler, sampling.height, sampling.width))


def _check_timesteps(family: Family, scheduler: Any, sampling: Sampling, sides: tuple[int, int]) -> None:
    """Activations are stored by timestep, so no two steps may have the same."""
    told = family.telling(scheduler, sides)
    check_loop(scheduler, sampling.steps, told)
    found = timesteps(scheduler, sampling.steps, told).tolist()
    if max(found) < scheduler.config.num_train_timesteps / 2 and sampling.steps > 1:
        raise SaeuronError(
            f"{type(scheduler).__name__} calls the {family.denoiser.noun} at timesteps up to {max(found):g}, so they are of other units than noise levels from 0 to 1000; give a copy of the pipeline another scheduler (in its folder 'scheduler' and in model_index.json)"
        )
    if len(set(found)) < len(found):
        try:
            family.calibrating(scheduler)
            advice = "collect with the scheduler ddim"
        except SaeuronError:  # EDM's: ln σ / 4
            advice = "give a copy of the pipeline another scheduler (in its folder 'scheduler' and in model_index.json)"
        raise SaeuronError(
            f"{type(scheduler).__name__} calls the {family.denoiser.noun} more than once at a timestep, and activations are stored by timestep; {advice}"
        )


def _units(prompts: Mapping[str, Sequence[str]], sampling: Sampling) -> list[_Unit]:
    found: list[_Unit] = []
    for concept, texts in enumerate(prompts.values()):
        for start in range(0, len(texts), sampling.batch_size):
            found.append(_Unit(len(found), concept, tuple(texts[start : start + sampling.batch_size]), sampling.seed + start))
    return found


def _run_unit(
    pipeline: Any, saes: Mapping[str, SparseAutoencoder], unit: _Unit, sampling: Sampling, concept: str, within: bool
) -> dict[str, torch.Tensor]:
    """Latents averaged over tokens and summed over the unit's prompts, in fixed point; of tokens also how many there are, and their products."""
    rows: dict[str, list[torch.Tensor]] = {}
    timesteps: list[float] = []
    found: dict[str, torch.Tensor] = {}
    count, parts = len(unit.prompts), min(PARTS, sampling.steps)

    def look(timestep: float, tokens: dict[str, torch.Tensor]) -> None:
        timesteps.append(timestep)
        for name, sae in saes.items():
            latents = sae.latents(tokens[name].float())
            # Averaged as float64 already: a mean of fp32 sums over thousands of tokens would lose the small ones.
            rows.setdefault(f"{name}/sum", []).append(_fixed(sae.active(latents).mean(1, dtype=torch.float64).sum(0), concept, name))
            kth = sae.kth(latents)
            if within:
                found[f"{name}/count"] = torch.tensor(tokens[name].shape[:2].numel())
                _multiply(found, f"{name}/products", tokens[name], (len(timesteps) - 1) * parts // sampling.steps, parts)
            if kth is not None:
                rows.setdefault(f"{name}/kth", []).append(_fixed(kth[..., 0].mean(1, dtype=torch.float64).sum(), concept, name))

    with observe(network_of(pipeline), {name: sae.config.reads for name, sae in saes.items()}, look, count, sampling.guided):
        generate(
            pipeline, unit.prompts, range(unit.seed, unit.seed + count), sampling.steps, sampling.guidance, sampling.height, sampling.width,
            "latent", count,
        )  # fmt: skip
    found |= {name: torch.stack(values) for name, values in rows.items()}
    return {**found, "timesteps": torch.tensor(timesteps, dtype=torch.float32)}


def _multiply(found: dict[str, torch.Tensor], name: str, tokens: torch.Tensor, part: int, parts: int) -> None:
    """Add the products of tokens `[B, L, d]` to those of a part of the timesteps."""
    x = (tokens.double() * _FINE).round().flatten(0, 1) / _FINE
    sums = found.setdefault(name, torch.zeros(parts, x.shape[1], x.shape[1], dtype=torch.float64, device=x.device))
    sums[part] += x.T @ x


def _fixed(value: torch.Tensor, concept: str, hookpoint: str) -> torch.Tensor:
    if not bool((value.abs() < _LARGEST).all()):  # also false for NaN
        raise SaeuronError(
            f"latents of '{concept}' at '{hookpoint}' are not finite or beyond {_LARGEST:g}; is the model sound at this precision?"
        )
    return (value * _SCALE).round().long()


def _add(sums: _Sums, found: dict[str, torch.Tensor]) -> None:
    for name, value in found.items():
        known = sums.tensors.get(name)
        sums.tensors[name] = value if known is None or name == "timesteps" else known.to(value.device) + value


def _file(state: Path, rank: int, concept: int) -> Path:
    return state / f"{concept:04d}.{rank:04d}.safetensors"


def _resume(state: Path | None, rank: int, concept: int) -> _Sums:
    if state is None or not _file(state, rank, concept).is_file():
        return _Sums()
    return _read(_file(state, rank, concept))


def _read(path: Path) -> _Sums:
    header, _ = read_header(path)
    return _Sums(json.loads(header["done"]), load_file(path))


def _store(state: Path, rank: int, concept: int, sums: _Sums) -> None:
    """Sums and the list of what is in them, in one file that is there whole or not at all."""
    with whole_file(_file(state, rank, concept)) as made:
        save_file({k: v.cpu().contiguous() for k, v in sums.tensors.items()}, made, metadata={"done": json.dumps(sums.done)})


def clear(state: Path) -> None:
    """Remove finished work, once its result is written."""
    for path in state.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _stored(state: Path | None) -> list[tuple[int, _Sums]]:
    """Finished work of all processes, as (concept, sums)."""
    if state is None or not state.is_dir():
        return []
    return [(int(path.name.split(".")[0]), _read(path)) for path in sorted(state.glob("*.safetensors"))]


def _merge(
    parts: Sequence[tuple[int, _Sums]], units: list[_Unit], names: list[str], prompts: Mapping[str, Sequence[str]],
    saes: Mapping[str, SparseAutoencoder], sampling: Sampling, provenance: dict[str, Any], within: bool,
) -> dict[str, ConceptActivations]:  # fmt: skip
    done = [number for _, sums in parts for number in sums.done]
    if sorted(done) != [u.number for u in units]:
        raise SaeuronError("the state folder holds other work than this job's; remove it and start again")
    totals, products = [_Sums() for _ in names], _Sums()
    for concept, sums in parts:
        _add(totals[concept], {k: v.cpu() for k, v in sums.tensors.items() if not k.endswith("/products")})
        _add(products, {k: v.cpu() for k, v in sums.tensors.items() if k.endswith("/products")})
    counts = torch.tensor([len(prompts[n]) for n in names], dtype=torch.float64)
    found = {}
    for hookpoint, sae in saes.items():
        stacked = torch.stack([t.tensors[f"{hookpoint}/sum"] for t in totals])
        means = (stacked.double() / _SCALE / counts[:, None, None]).float()
        kth = None
        if f"{hookpoint}/kth" in totals[0].tensors:
            kth = (torch.stack([t.tensors[f"{hookpoint}/kth"] for t in totals]).sum(0).double() / _SCALE / counts.sum()).float()
        varied = _within(means, totals, products.tensors.pop(f"{hookpoint}/products"), hookpoint) if within else None
        record = {
            "hookpoint": hookpoint, "sae_sha256": sae.sha256(), "steps": sampling.steps, "guidance": sampling.guidance, "seed": sampling.seed,
            "batch_size": sampling.batch_size, "scheduler": sampling.scheduler, "height": sampling.height, "width": sampling.width,
            "prompts": {n: list(prompts[n]) for n in names},
        }  # fmt: skip
        found[hookpoint] = ConceptActivations(
            list(names), [len(prompts[n]) for n in names], means, totals[0].tensors["timesteps"], kth, {**record, **provenance}, varied
        )
    return found


def _within(means: torch.Tensor, totals: Sequence[_Sums], products: torch.Tensor, hookpoint: str) -> torch.Tensor:
    """Covariance of tokens around the mean of their concept and timestep, float32 `[S, d, d]`."""
    positive, negative = means.double().chunk(2, -1)
    tokens, counts = positive - negative, torch.stack([t.tensors[f"{hookpoint}/count"] for t in totals]).double()
    part = torch.arange(tokens.shape[1]) * len(products) // tokens.shape[1]
    for step in range(tokens.shape[1]):
        products[part[step]] -= (tokens[:, step] * counts[:, None]).T @ tokens[:, step]
    return (products / (counts.sum() * part.bincount().double())[:, None, None]).float()
