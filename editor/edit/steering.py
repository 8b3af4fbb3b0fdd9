"""An `Edit` by hand: single features multiplied by numbers that the user names, wherever they are active."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from .. import demo
from ..common.errors import SaeuronError
from ..common.names import RESIDUALS, normalise
from ..sae.sae import SparseAutoencoder
from .edit import Edit, HookpointEdit
from .gains import BY_HAND, check_gain
from .provenance import Provenance, SaeUsed, Setting


def steer(
    features: Mapping[int, float], sae: str | Path | SparseAutoencoder, hookpoint: str, timesteps: tuple[int, int] | None = None,
    residual: str = "keep", name: str | None = None, allow_amplify: bool = False,
) -> Edit:  # fmt: skip
    """The edit that multiplies features of one hookpoint; save it, and export it with `Settings((), output, edit=file)`.

    Args:
        features: feature → number that it is multiplied by wherever it is active. 0 removes it, below 0 turns it round, above 1
            strengthens it.
        sae: the SAE, its folder, Hub id or `demo:saes`.
        hookpoint: block name.
        timesteps: first and last timestep (both included, e.g. `(999, 500)`) at which this happens; None: always.
        residual: `keep`, `upstream` or `drop`.
        name: what the edit calls the features together; None: each is called `feature N`.
        allow_amplify: accept numbers above 1.

    Raises:
        SaeuronError: see `steering_edit`; or no SAE there.
    """
    if not isinstance(sae, SparseAutoencoder):
        sae = SparseAutoencoder.load(demo.path_of(str(sae)), hookpoint)
    return steering_edit({hookpoint: features}, {normalise(hookpoint): sae}, timesteps, residual, name, allow_amplify)


def steering_edit(
    gains: Mapping[str, Mapping[int, float]], saes: Mapping[str, SparseAutoencoder], timesteps: tuple[int, int] | None = None,
    residual: str = "keep", name: str | None = None, allow_amplify: bool = False, train_timesteps: int = 1000,
) -> Edit:  # fmt: skip
    """The same for several hookpoints.

    A feature's threshold is 0: it is multiplied wherever it is in the token's top k (JumpReLU: above its bar) and not zero.

    Args:
        gains: hookpoint → feature → number.
        saes: hookpoint → SAE.
        timesteps: first and last timestep, both included.
        residual: `keep`, `upstream` or `drop`.
        name: one name for all features.
        allow_amplify: accept numbers above 1.
        train_timesteps: how many timesteps the model was trained on.

    Raises:
        SaeuronError: no feature, one that the SAE doesn't have, a number that can't be meant, an empty range.
    """
    if residual not in RESIDUALS:
        raise SaeuronError(f"residual '{residual}' is not known; it is one of {', '.join(RESIDUALS)}")
    if not any(gains.values()):
        raise SaeuronError("no feature to steer")
    grid, inside = _grid(timesteps, train_timesteps)
    parts: dict[str, HookpointEdit] = {}
    said = []
    for raw, wanted in gains.items():
        hookpoint = normalise(raw)
        if hookpoint in parts:
            raise SaeuronError(f"hookpoint '{hookpoint}' is named twice")
        if hookpoint not in saes:
            raise SaeuronError(f"hookpoint '{hookpoint}': no SAE given")
        latents = saes[hookpoint].config.num_latents
        for feature, gain in wanted.items():
            check_gain(feature, gain, allow_amplify)
            if not 0 <= feature < latents:
                raise SaeuronError(f"feature {feature}: the SAE at '{hookpoint}' has features 0 to {latents - 1}")
        if not wanted:
            continue
        features = sorted(wanted)
        on = torch.tensor(inside)[:, None].expand(-1, len(features))
        row = torch.tensor([[float(wanted[f]) for f in features]])
        thresholds = torch.where(on, 0.0, float("inf"))
        concepts = {name: features} if name else {_name(f, hookpoint, len(gains) > 1): [f] for f in features}
        chosen = {concept: [list(own) if yes else [] for yes in inside] for concept, own in concepts.items()}
        parts[hookpoint] = HookpointEdit(
            torch.tensor(features),
            grid.clone(),
            thresholds,
            torch.where(on, row, 1.0),
            torch.zeros_like(thresholds),
            thresholds.clone(),
            latents,
            chosen,
        )
        said += [Setting(concept, hookpoint, f"feature {f}", float(wanted[f]), BY_HAND) for concept, own in concepts.items() for f in own]
    used = {hookpoint: SaeUsed.of(saes[hookpoint]) for hookpoint in parts}
    return Edit(parts, residual, Provenance(concepts=said, saes=used, timesteps=None if timesteps is None else list(timesteps)))


def _name(feature: int, hookpoint: str, several: bool) -> str:
    return f"feature {feature} of {hookpoint}" if several else f"feature {feature}"


def _grid(timesteps: tuple[int, int] | None, train_timesteps: int) -> tuple[torch.Tensor, list[bool]]:
    """Rows of the tables, float32 `[T]` descending, and which of them lie in the range.

    The tables are constant inside the range and outside, so rows on both sides of each end are enough: the lookup takes the
    nearest row, and thereby keeps to the range with any scheduler and any number of steps.
    """
    last = train_timesteps - 1
    if timesteps is None:
        return _descending((last, 0)), [True] * len(_descending((last, 0)))
    high, low = timesteps
    if not 0 <= low <= high <= last:
        raise SaeuronError(
            f"timesteps {high}-{low}: give the noisier, larger one first, between {last} and 0 (e.g. {last}-{(last + 1) // 2})"
        )
    rows = _descending(t for t in (high + 1, high, low, low - 1) if 0 <= t <= last)
    return rows, [low <= t <= high for t in rows.tolist()]


def _descending(values: Iterable[int]) -> torch.Tensor:
    return torch.tensor(sorted(set(values), reverse=True), dtype=torch.float32)
