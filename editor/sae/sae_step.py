"""One training step of the sparse autoencoder, without the dense `[tokens, n]` matrix (METHOD: arXiv 2501.18052, section 3.1).

The loss is the batch's fraction of variance unexplained, with TopK or BatchTopK (arXiv 2412.06410), plus AuxK on dead latents
(arXiv 2406.04093). Pre-activations are made chunk by chunk in one buffer; what survives of a chunk are its few active latents,
and the backward pass touches only those. A step is

    result = step_loss(sae, tokens, dead=silence.dead)      # or SaeStep, for a wrapper such as DDP
    result.loss.backward()
    constrain_gradient(sae); optimizer.step(); normalise_decoder(sae)
    silence.update(result.fired, len(tokens))
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .initialise import _as_seen
from .sae import SparseAutoencoder

AUX_WEIGHT = 1 / 32
DEAD_AFTER = 10_000_000
CHUNK = 1024
"""tokens encoded at once: smaller ones read the whole of W_enc too often, larger ones only take memory"""

_ROWS = 32  # tokens searched first for the batch's largest latents: few, since all their positive ones are held
_TRIM = 512  # decoder rows constrained at once
_BLOCK = 2048  # dead latents treated at once in AuxK's backward pass


class Codes(NamedTuple):
    """Active latents of `N` tokens, all positive, flat in order of tokens; `M` in total."""

    values: Tensor
    """`[M]`"""
    indices: Tensor
    """`[M]`, int64, which latent"""
    offsets: Tensor
    """`[N + 1]`, int64: token t owns `offsets[t]:offsets[t + 1]`"""

    @property
    def rows(self) -> Tensor:
        """The token of each entry, `[M]`, int64."""
        counts = self.offsets.diff()
        return torch.arange(len(counts), device=counts.device).repeat_interleave(counts, output_size=len(self.indices))


class StepResult(NamedTuple):
    """What a step gives; all but `loss` are detached."""

    loss: Tensor
    """scalar, differentiable once: `fvu + 1/32 · min(dead / k_aux, 1) · aux`"""
    fvu: Tensor
    """scalar, squared error of the batch over its squared deviation from the mean token"""
    aux: Tensor
    """scalar, squared error of the dead latents' guess over the squared residual; 0 without dead latents"""
    active: Tensor
    """scalar, mean of active latents a token (L0)"""
    fired: Tensor
    """`[n]`, bool: latents active in any token"""


class DeadLatents(nn.Module):
    """Counts the tokens since each latent last fired. A module, so that `state_dict` and `to` carry it along."""

    silent: Tensor
    """`[n]`, int64"""

    def __init__(self, num_latents: int, after: int = DEAD_AFTER) -> None:
        super().__init__()
        self.after = after
        self.register_buffer("silent", torch.zeros(num_latents, dtype=torch.int64))

    @torch.no_grad()
    def update(self, fired: Tensor, tokens: int) -> None:
        """Note that `tokens` went by, in which the latents `fired` (`[n]`, bool) were active.

        With several processes or micro-batches, `fired` is the union over them and `tokens` the sum.
        """
        self.silent.add_(tokens).masked_fill_(fired, 0)

    @property
    def dead(self) -> Tensor:
        """`[n]`, bool: silent for more than `after` tokens."""
        return self.silent > self.after


@torch.no_grad()
def constrain_gradient(sae: SparseAutoencoder) -> None:
    """Remove from each row of `W_dec.grad` the part parallel to its (unit) decoder row, which renormalising would undo."""
    if sae.W_dec.grad is not None:
        # Block by block the product stays in the cache; whole, it would be a third matrix of the weights' size.
        for gradient, rows in zip(sae.W_dec.grad.split(_TRIM), sae.W_dec.split(_TRIM), strict=True):
            gradient.addcmul_((gradient * rows).sum(1, keepdim=True), rows, value=-1)


@torch.no_grad()
def normalise_decoder(sae: SparseAutoencoder) -> None:
    """Scale the rows of `W_dec` to unit norm, in place."""
    for rows in sae.W_dec.split(_TRIM):
        rows.div_(torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(1e-12))


def _weighted_sums(table: Tensor, indices: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """`out[b] = Σ weights[m] · table[indices[m]]` over `m` in `offsets[b]:offsets[b + 1]`, without the gathered rows."""
    return F.embedding_bag(indices, table, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True)


def _products(left: Tensor, right: Tensor, codes: Codes) -> Tensor:
    """`out[m] = left[row of m] · right[index of m]`, `[M]`."""
    # This is the derivative of `_weighted_sums` by its weights. Torch's kernel for it is asked directly: by way of autograd the
    # sums would be made as well.
    derivative = torch.ops.aten._embedding_bag_per_sample_weights_backward
    return derivative(left, right, codes.indices, codes.offsets[:-1], codes.rows, 0)  # type: ignore[no-any-return]


def _sum_of_squares(matrix: Tensor) -> Tensor:
    """Sum of all squares of `[N, d]`, scalar, without a second matrix of that size."""
    return torch.stack([part.square().sum() for part in matrix.split(512)]).sum()


class _Largest:
    """The `count` largest positive entries of a matrix `[N, n]` whose rows arrive in order; exact."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.bar: Tensor | None = None
        """the `count`-th best so far: no smaller entry can be among the best of all"""
        self.values: list[Tensor] = []
        self.places: list[Tensor] = []
        self.held = 0
        self.seen = 0
        """rows so far"""

    def offer(self, rows: Tensor) -> None:
        """Take the next rows `[r, n]`, contiguous."""
        n = rows.shape[1]
        while len(rows):
            # As many rows as came before: about `count` of their entries reach the bar, so that what is held stays small.
            flat, rows = rows[: max(_ROWS, self.seen)].view(-1), rows[max(_ROWS, self.seen) :]
            # Entries equal to the bar stay until the end: only there is it known which of them are among the best.
            chosen = (flat > 0 if self.bar is None else flat >= self.bar).nonzero()[:, 0]
            self.values.append(flat[chosen])
            self.places.append(chosen.add_(self.seen * n))
            self.held += len(chosen)
            self.seen += len(flat) // n
            if self.held > 2 * self.count:
                self._prune()

    def _prune(self) -> None:
        values, places = self.shortlist()
        self.bar = values.topk(self.count, sorted=False).values.min()
        keep = values >= self.bar
        self.values, self.places = [values[keep]], [places[keep]]
        self.held = len(self.values[0])

    def shortlist(self) -> tuple[Tensor, Tensor]:
        """A superset of the best: values and flat places `[M]`, in order of places."""
        return torch.cat(self.values), torch.cat(self.places)


def _keep_largest(values: Tensor, count: int) -> Tensor:
    """Mask `[M]` of the `count` largest positive values; of equal ones at the edge, the first."""
    keep = values > 0
    if int(keep.sum()) > count:
        bar = values.topk(count, sorted=False).values.min()
        keep = values > bar
        keep[(values == bar).nonzero()[: count - int(keep.sum()), 0]] = True
    return keep


class _Forward(NamedTuple):
    """Results of the forward pass that the backward pass needs too."""

    codes: Codes
    aux_values: Tensor
    """`[N, a]`, dead latents' values, some zero; a = 0 without dead latents"""
    aux_indices: Tensor
    """`[N, a]`, int32, places in the list of dead latents"""
    guess: Tensor | None
    """`[N, d]`, what the dead latents say of the residual"""


def _spread(values: Tensor, indices: Tensor, first: int, width: int) -> Tensor:
    """Codes `[N, a]` as the dense columns `first:first + width`, `[N, width]`."""
    local = indices.long() - first
    # Codes of other columns go to one more, which is cut off.
    local = torch.where((local >= 0) & (local < width), local, width)
    return values.new_zeros(len(values), width + 1).scatter_(1, local, values)[:, :width]


def _encode(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    k: int,
    batch_topk: bool,
    dead: Tensor | None,
    chunk: int,
    low: torch.dtype | None,
) -> _Forward:
    """Active latents of tokens `[N, d]`; `dead` lists dead latents, `low` is the dtype of products."""
    (N, d), n = x.shape, len(W_enc)
    weight, bias = (W_enc, b_enc) if low is None else (W_enc.to(low), b_enc.to(low))
    buffer = torch.empty(min(chunk, N), n, dtype=weight.dtype, device=weight.device)
    largest = _Largest(k * N)
    values, places = [], []
    if dead is not None:
        k_aux = min(d // 2, len(dead))
        dead_rows = W_dec[dead].to(weight.dtype)
        aux_values, aux_indices = x.new_empty(N, k_aux), torch.empty(N, k_aux, dtype=torch.int32, device=x.device)
        guess = torch.empty_like(x)
    for first in range(0, N, chunk):
        part = (x[first : first + chunk] - b_dec).to(weight.dtype)
        pre = torch.addmm(bias, part, weight.t(), out=buffer[: len(part)])
        if batch_topk:
            largest.offer(pre)
        else:
            top = pre.topk(min(k, n), dim=1)
            values.append(top.values.flatten())
            places.append((top.indices + torch.arange(first, first + len(part), device=pre.device)[:, None] * n).flatten())
        if dead is not None:
            here = slice(first, first + len(part))
            top = pre.index_select(1, dead).topk(k_aux, dim=1, sorted=False)
            active = top.values.relu_()
            aux_values[here], aux_indices[here] = active, top.indices
            guess[here] = _spread(active, top.indices, 0, len(dead)) @ dead_rows
    del buffer
    flat, place = largest.shortlist() if batch_topk else (torch.cat(values), torch.cat(places))
    if low is not None:
        # Half precision is good enough to find candidates, not to rank near ones; their few products in full cost nothing.
        candidates = _at(flat.to(x.dtype), place, N, n)
        flat = _products(x - b_dec, W_enc, candidates) + b_enc[candidates.indices]
    keep = _keep_largest(flat, k * N)
    codes = _at(flat[keep], place[keep], N, n)
    if dead is None:
        return _Forward(codes, x.new_empty(N, 0), torch.empty(N, 0, dtype=torch.int32, device=x.device), None)
    return _Forward(codes, aux_values, aux_indices, guess)


def _at(values: Tensor, places: Tensor, N: int, n: int) -> Codes:
    """Codes from values and flat places of a matrix `[N, n]`, grouped by row."""
    rows = places.div(n, rounding_mode="floor")
    return Codes(values, places - rows * n, _starts(rows, N))


def _starts(groups: Tensor, count: int) -> Tensor:
    """Where each of `count` groups starts in an ordered list of group numbers, and where the last one ends: `[count + 1]`."""
    return F.pad(groups.bincount(minlength=count).cumsum(0), (1, 0))


class _StepLoss(torch.autograd.Function):
    """The loss as one node, so that the parameters' gradients arrive through autograd as wrappers expect."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        W_enc: Tensor,
        b_enc: Tensor,
        W_dec: Tensor,
        b_dec: Tensor,
        k: int,
        batch_topk: bool,
        dead: Tensor | None,
        chunk: int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        kind = x.device.type
        low = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        with torch.autocast(kind, enabled=False):
            found = _encode(x, W_enc, b_enc, W_dec, b_dec, k, batch_topk, dead, chunk, low)
            codes = found.codes
            error = _weighted_sums(W_dec, codes.indices, codes.offsets, codes.values).add_(b_dec).neg_().add_(x)
            variance = x.var(0, correction=0).sum() * len(x)
            squared = _sum_of_squares(error)
            fvu = squared / variance
            loss, aux, miss, weight = fvu, torch.zeros_like(fvu), None, 0.0
            if found.guess is not None and dead is not None:
                miss = found.guess.sub_(error)
                aux = _sum_of_squares(miss) / squared
                weight = AUX_WEIGHT * min(1.0, len(dead) / max(1, x.shape[1] // 2))
                loss = fvu + weight * aux
            fired = torch.zeros(len(W_enc), dtype=torch.bool, device=x.device).index_fill_(0, codes.indices, True)
            active = fvu.new_tensor(len(codes.indices) / len(x))
        ctx.save_for_backward(x, W_enc, W_dec, b_dec, error, variance, squared, *codes, found.aux_values, found.aux_indices, miss, dead)
        ctx.weight, ctx.chunk = weight, chunk
        fvu = fvu.clone()
        ctx.mark_non_differentiable(fvu, aux, active, fired)
        ctx.set_materialize_grads(False)
        return loss, fvu, aux, active, fired

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if upstream is None:
            return (None,) * 9
        x, W_enc, W_dec, b_dec, error, variance, squared, *saved = ctx.saved_tensors
        codes, (aux_values, aux_indices, miss, dead) = Codes(*saved[:3]), saved[3:]
        with torch.autocast(x.device.type, enabled=False):
            # The gradient by the reconstruction is this multiple of the error; scaling few numbers spares a copy of the error.
            factor = -2 * upstream / variance
            by_value = _products(error, W_dec, codes) * factor
            order = codes.indices.argsort(stable=True)
            rows, starts = codes.rows[order], _starts(codes.indices, len(W_enc))
            to_W_dec = _weighted_sums(error, rows, starts, codes.values[order] * factor)
            to_b_dec = error.sum(0) * factor
            to_W_enc = _weighted_sums(x, rows, starts, by_value[order])
            to_b_enc = torch.zeros_like(W_enc[:, 0]).index_add_(0, codes.indices, by_value)
            if dead is not None:
                factor = 2 * ctx.weight * upstream / squared
                for first in range(0, len(dead), _BLOCK):
                    which = dead[first : first + _BLOCK]
                    rows_dec = W_dec[which]
                    add_dec, add_enc, add_bias = torch.zeros_like(rows_dec), torch.zeros_like(rows_dec), torch.zeros_like(rows_dec[:, 0])
                    for row in range(0, len(x), ctx.chunk):
                        here = slice(row, row + ctx.chunk)
                        z = _spread(aux_values[here], aux_indices[here], first, len(which))
                        gradient = miss[here] * factor
                        add_dec.addmm_(z.t(), gradient)
                        by_z = (gradient @ rows_dec.t()).mul_(z > 0)
                        add_enc.addmm_(by_z.t(), x[here])
                        add_bias += by_z.sum(0)
                    to_W_dec.index_add_(0, which, add_dec)
                    to_W_enc.index_add_(0, which, add_enc)
                    to_b_enc.index_add_(0, which, add_bias)
            # The encoder sees x - b_dec, and b_dec is the same in every token: its share is added once for all, with no copy of x.
            to_W_enc.addr_(to_b_enc, b_dec, alpha=-1)
            to_b_dec -= to_b_enc @ W_enc
        return None, to_W_enc, to_b_enc, to_W_dec, to_b_dec, None, None, None, None


def step_loss(
    sae: SparseAutoencoder, tokens: Tensor, k: int | None = None, *, batch_topk: bool = True, dead: Tensor | None = None, chunk: int = CHUNK
) -> StepResult:
    """Loss of one batch; `result.loss.backward()` gives all four parameters their gradients.

    Under `torch.autocast` only the encoder's product and AuxK's guess run in half precision: it finds the candidates among the latents,
    whose values are then computed in full. With gradient accumulation each micro-batch is a batch of its own: BatchTopK ranks
    within it, and its loss is over its own variance. With `input_unit_norm` the loss is that of the normalised tokens.

    Args:
        sae: the autoencoder; unit-norm decoder rows are the caller's business (`normalise_decoder`).
        tokens: `[N, d]`, N ≥ 2, of any floating dtype; no gradient flows to them.
        k: active latents a token; the SAE's own if not given.
        batch_topk: keep the k · N largest of the batch rather than the k largest of each token; zeros never count.
        dead: `[n]`, bool, latents that AuxK is to revive (`DeadLatents.dead`).
        chunk: tokens encoded at once; sets memory and speed, not the result (but for rounding).

    Raises:
        ValueError: shapes or k that don't fit.
    """
    k, n = sae.config.k if k is None else k, sae.config.num_latents
    if tokens.dim() != 2 or tokens.shape[1] != sae.config.d_in or len(tokens) < 2:
        raise ValueError(f"expected tokens [N ≥ 2, {sae.config.d_in}], got {list(tokens.shape)}")
    if k is None or not 1 <= k <= n:
        raise ValueError(f"k = {k} is not between 1 and the {n} latents")
    if chunk < 1:
        raise ValueError(f"chunk = {chunk} is not positive")
    listed = None if dead is None else dead.nonzero()[:, 0]
    if listed is not None and len(listed) == 0:
        listed = None
    x = _as_seen(sae, tokens)
    return StepResult(*_StepLoss.apply(x, sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, k, batch_topk, listed, chunk))


class SaeStep(nn.Module):
    """`step_loss` as a module, for wrappers that hook into `forward`, such as DistributedDataParallel."""

    def __init__(self, sae: SparseAutoencoder, k: int | None = None, *, batch_topk: bool = True, chunk: int = CHUNK) -> None:
        super().__init__()
        self.sae, self.k, self.batch_topk, self.chunk = sae, k, batch_topk, chunk

    def forward(self, tokens: Tensor, dead: Tensor | None = None) -> StepResult:
        """Loss of tokens `[N, d]`; see `step_loss`."""
        return step_loss(self.sae, tokens, self.k, batch_topk=self.batch_topk, dead=dead, chunk=self.chunk)
