"""The reference at the seam: the hook's result for given tokens, and how far rounding alone can move it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from ...editor.edit.hook import Encoded, TokenEdit
from ...editor.sae.sae import SparseAutoencoder
from ..artifact.seam import Seam, Tensors, flat

TOKENS = 64
"""tokens of a forward and hookpoint that golden vectors keep"""
_CLEAR = 0.05
"""share of a latent that rounding may be where its feature is measured alone"""


def rounding(sae: SparseAutoencoder, tokens: torch.Tensor, latents: torch.Tensor, rows: torch.Tensor | slice) -> torch.Tensor:
    """How far a latent may lie from another right computation of it, float32.

    The result is rounded once at the precision in which it is read, and so may be the inputs (`input_unit_norm`) and the product before the bias; the sum
    itself is accumulated in float32, whose error grows as a random walk over the channels.

    Args:
        sae: at the model's precision.
        tokens: what the encoder takes `[B, tokens, d]`.
        latents: `[B, tokens, U]`.
        rows: which latents these are, the same for all tokens or `[B, tokens, U]`.
    """
    weight, bias = sae.W_enc[rows].float().square(), sae.b_enc[rows].float()
    squares = tokens.float().square()
    reach = (squares @ weight.T if weight.ndim == 2 else torch.einsum("btd,btud->btu", squares, weight)).sqrt()
    # Latents without a k-th one are read in float32, whatever the model's precision (`SparseAutoencoder.latents`).
    wide = sae.config.k is None and not sae.config.input_unit_norm
    unit = torch.finfo(torch.float32 if wide else sae.W_enc.dtype).eps
    return unit * (latents.float().abs() + bias.abs() + reach) + tokens.shape[-1] ** 0.5 * 2.0**-23 * reach


def expected(
    edit: TokenEdit, name: str, timestep: torch.Tensor, output: torch.Tensor, before: torch.Tensor | None, places: np.ndarray | None = None
) -> Seam:
    """What the hook makes of a whole map; the arrays are `[B, tokens, …]`.

    Args:
        edit: the reference.
        name: hookpoint.
        timestep: float `[1]` or `[B]`.
        output: tokens of the block's output `[B, tokens, d]`, at the model's precision.
        before: tokens of its input, for an SAE that reads `delta`.
        places: int `[tokens, 2]`, row and column of each, where tokens are replaced.
    """
    x = output if before is None else output - before
    encoded = edit.decide(name, timestep, x)
    fires = encoded.decision.fires
    wide = edit.apply(name, encoded, x, output, fires, torch.float64, places)
    neutral = edit.apply(name, encoded, x, output, torch.zeros_like(fires), torch.float64) if edit.edit.residual != "keep" else output
    sae, features = edit.saes[name], edit.edit.hookpoints[name].features.to(x.device)
    room = 2 * rounding(sae, sae.encoded(x), encoded.chosen.float(), features)
    near, slack = _close(edit, name, encoded, x, room)
    change = fires * ((encoded.gains - 1) * encoded.chosen.float() + encoded.offsets)
    coefficients = change * (room < _CLEAR * encoded.chosen.float())
    moved = fires * (encoded.gains - 1).abs() * room * (sae.config.k is None)
    how = edit.edit.hookpoints[name].how
    if how.replace_by:  # no feature has a part of its own
        coefficients, moved = torch.zeros_like(coefficients), torch.zeros_like(moved)
    elif sae.config.input_unit_norm:
        coefficients, moved = (part * sae._scale(x)[1].float() for part in (coefficients, moved))
    if how.norm == "kept":  # a token that is brought back to its norm, and each part with it
        grown = (output.double() + change.double() @ sae.W_dec[features].double()).norm(dim=-1) / output.double().norm(dim=-1)
        coefficients, moved = (part / grown.clamp_min(1e-30)[..., None].float() for part in (coefficients, moved))
    return Seam(
        _numpy(output),
        _numpy(wide),
        _numpy(neutral),
        _numpy(fires),
        _numpy(near),
        _numpy(slack),
        _numpy(moved @ sae.W_dec[features].float().norm(dim=1)),
        _numpy(coefficients),
        _numpy(sae.W_dec[features]),
        None if before is None else _numpy(before),
        None if places is None else np.repeat(places[None], len(output), 0),
        how if how.replace_by else None,
    )


def on_tokens(edit: TokenEdit) -> Callable[[str, float, Tensors], Seam]:
    """The hook on a backend's own tokens: `(hookpoint, timestep, what the backend shows) -> Seam` of the whole map."""
    parameter = next(iter(next(iter(edit.saes.values())).parameters()))

    def tensor(values: np.ndarray | None) -> torch.Tensor | None:
        return None if values is None else torch.from_numpy(values).to(parameter)

    @torch.no_grad()
    def made(hookpoint: str, timestep: float, shown: Tensors) -> Seam:
        output = tensor(shown.input)
        assert output is not None
        places = None if shown.places is None else shown.places[0].astype(np.int64)
        return expected(edit, hookpoint, torch.tensor([timestep]), output, tensor(shown.before), places)

    return made


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    return tensor.numpy() if tensor.dtype == torch.bool else tensor.float().numpy()


def _close(edit: TokenEdit, name: str, encoded: Encoded, x: torch.Tensor, room: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Decisions that rounding can turn `[B, tokens, U]`, and `Seam.slack` `[B, tokens]`."""
    sae, chosen = edit.saes[name], encoded.chosen.float()
    tokens = sae.encoded(x)
    above, below = chosen - room > encoded.thresholds, chosen + room < encoded.thresholds
    slack = torch.zeros(x.shape[:2], device=x.device)
    whole = edit.edit.residual != "keep"
    every = rounding(sae, tokens, encoded.latents, slice(None)) if whole else None
    if encoded.kth is not None:
        k, n = sae.config.k or 0, sae.config.num_latents
        top = encoded.latents.topk(min(k + 1, n), dim=-1)
        kth, following = top.values[..., k - 1 : k].float(), top.values[..., k:].float()
        # The k-th and the next latent are those that a latent is weighed against.
        place = rounding(sae, tokens, top.values[..., k - 1 :], top.indices[..., k - 1 :])
        above = above & (chosen - following > room + 2 * place[..., 1:]) if n > k else above
        below = below | (kth - chosen > room + 2 * place[..., :1])
        if every is not None:
            slack = _other_picks(edit, sae, encoded, x, kth, (encoded.latents.float() - kth).abs() <= 2 * (every + place[..., :1]))
    elif every is not None:
        close = (encoded.latents.float() - sae.threshold.float()).abs() <= 2 * every
        slack = (close * encoded.latents.float()) @ sae.W_dec.float().norm(dim=1) * _factor(edit, sae, x)
    return ~(above | below), slack


def _other_picks(
    edit: TokenEdit, sae: SparseAutoencoder, encoded: Encoded, x: torch.Tensor, kth: torch.Tensor, tied: torch.Tensor
) -> torch.Tensor:  # fmt: skip
    """How far another pick among the latents `tied` with the k-th moves a token `[B, tokens]`: as many swaps as there can be, of the longest rows."""
    picked = torch.zeros_like(tied).scatter(-1, encoded.decision.members, True)
    inside, outside = tied & picked, tied & ~picked
    norms = sae.W_dec.float().norm(dim=1)
    swaps = torch.minimum(inside.sum(-1), outside.sum(-1))
    rows = sum((norms * side).amax(-1) for side in (inside, outside))
    return swaps * kth[..., 0] * rows * _factor(edit, sae, x)


def _factor(edit: TokenEdit, sae: SparseAutoencoder, x: torch.Tensor) -> torch.Tensor | float:
    """How often, and at which scale, a latent's row is added to a token."""
    times = 2.0 if edit.edit.residual == "upstream" else 1.0
    return times * sae._scale(x)[1][..., 0].float() if sae.config.input_unit_norm else times


def sample(whole: Seam, number: int = TOKENS, seed: int = 0) -> Seam:
    """Some tokens of a map: of each feature that fires the one where it changes most beside the others, then others that fire, close ones, silent ones.

    Args:
        whole: arrays `[B, tokens, …]`.
        number: how many tokens at most.
        seed: of the choice among equals.

    Returns:
        arrays `[L, …]`.
    """
    every = whole.each(lambda values: values[_telling(whole)]) if whole.replacing else flat(whole)
    order = np.random.default_rng(seed).permutation(len(every.input))
    fires, near = every.fires[order], every.near[order]
    # A feature shows best where its own part is the largest beside the whole change, and where nothing is in doubt it shows at all.
    doubt = near.any(1) | (every.slack[order] > 0)
    part = np.abs(every.coefficients[order]) * np.linalg.norm(every.rows, axis=1) + 1e-12
    change = np.linalg.norm(every.output - every.input, axis=1)[order] + np.linalg.norm(every.input, axis=1)[order] * 1e-3 + 1e-12
    if every.replacing:  # no part of its own: where the token changes much and few others fire
        part = change[:, None] ** 2 / np.maximum(fires.sum(1, keepdims=True), 1)
    alone = np.where(fires, part / change[:, None], 0.0) * np.where(doubt, 1e-3, 1.0)[:, None]
    best = [int(alone[:, i].argmax()) for i in np.random.default_rng(seed).permutation(np.flatnonzero(fires.any(0)))]
    still = (every.output == every.input).all(1)[order] if every.replacing else True
    silent = np.flatnonzero(~fires.any(1) & ~near.any(1) & still)
    ranked = [*best, *silent[: number // 8], *np.flatnonzero(near.any(1))[: number // 4], *np.flatnonzero(fires.any(1)), *silent]
    kept = order[list(dict.fromkeys(map(int, ranked)))[:number]]
    if every.places is not None:  # in row order, as in a map
        kept = np.sort(kept)
    found = every.each(lambda values: values[kept])
    return found.by(found.fires) if found.replacing else found  # of these tokens alone


def _telling(whole: Seam) -> int:
    """A picture with many tokens of both kinds, replaced and not, and many features that fire: tokens of several don't go together where they are replaced."""
    changed = (whole.output != whole.input).any(2).sum(1)
    both = np.minimum(changed, whole.output.shape[1] - changed)
    return int((both * (1 + whole.fires.any(1).sum(1))).argmax())
