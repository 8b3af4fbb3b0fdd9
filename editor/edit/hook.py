"""The dynamic reference: SAeUron's intervention as a hook, written to be read beside the paper, not to be fast.

Everything that we ship is proven against this. It differs from the released hook where that is wrong (METHOD: arXiv
2501.18052, section 3.3): it looks its step up by timestep value instead of counting calls, takes maps that aren't square,
and adds the reconstruction error back with the right sign unless `residual` is `upstream`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from ..denoisers.families import denoiser_of
from ..sae.sae import SparseAutoencoder, check_width
from .edit import Edit
from .replace import replaced


class Decision(NamedTuple):
    """What one hookpoint did in one forward."""

    fires: torch.Tensor
    """bool `[B, tokens, U]`"""
    picked: torch.Tensor
    """the same with membership in torch.topk's own pick; differs from `fires` at ties, and for the gate `threshold`"""
    members: torch.Tensor
    """which latents are active: int64 `[B, tokens, k]`, or of a JumpReLU SAE bool `[B, tokens, n]`"""


class Encoded(NamedTuple):
    """Latents of tokens, and what the edit decides of them."""

    latents: torch.Tensor
    """all of them before sparsification, `[B, tokens, n]`"""
    active: torch.Tensor
    """the same with all inactive ones zeroed; of latents that tie at place k, torch.topk picks"""
    kth: torch.Tensor | None
    """the k-th largest latent `[B, tokens, 1]`; None where no k-th latent decides (JumpReLU, and the gate `threshold`)"""
    thresholds: torch.Tensor
    """float32 `[B or 1, 1, U]`: the bar of each chosen latent besides `kth`"""
    gains: torch.Tensor
    """float32 `[B or 1, 1, U]`; `[B, tokens, U]` where they go by the token"""
    offsets: torch.Tensor
    """float32 `[B or 1, 1, U]`"""
    chosen: torch.Tensor
    """the chosen latents, `[B, tokens, U]`"""
    decision: Decision


class BlockOutput(NamedTuple):
    """Tokens of one block in one forward, `[B, tokens, d]`."""

    output: torch.Tensor
    """before the edit"""
    before: torch.Tensor | None
    """the block's input, for an SAE that reads `delta`"""
    places: np.ndarray | None = None
    """int `[tokens, 2]`, row and column of each, where tokens are replaced"""


class TokenEdit:
    """An `Edit` of tokens, at the precision of a model.

    Args:
        edit: what to suppress.
        saes: hookpoint → SAE.
        dtype: of the model; the SAEs are cast to it.
        device: where the tokens are.
        gate: `exact`, METHOD's rule; or `threshold`, the reference of artifacts baked without the membership test.
    """

    def __init__(
        self, edit: Edit, saes: Mapping[str, SparseAutoencoder], dtype: torch.dtype, device: torch.device | str = "cpu", gate: str = "exact"
    ) -> None:  # fmt: skip
        self.edit, self.gate, self.dtype = edit, gate, dtype
        self.saes = {name: copy.deepcopy(sae).to(device, dtype) for name, sae in edit.saes(saes).items()}

    def reads_delta(self, name: str) -> bool:
        """Whether the SAE reads what the block adds to its input."""
        return self.saes[name].config.reads == "delta"

    def decide(self, name: str, timestep: torch.Tensor, x: torch.Tensor) -> Encoded:
        """What fires at a hookpoint.

        Args:
            name: hookpoint.
            timestep: float `[1]` or `[B]`.
            x: tokens that the SAE reads `[B, tokens, d]`.
        """
        part, sae = self.edit.hookpoints[name], self.saes[name]
        check_width(sae, x.shape[-1], name)
        row = part.rows(timestep.cpu())
        features = part.features.to(x.device)
        thresholds = part.thresholds[row][:, None].to(x.device)
        gains, offsets = (table[row][:, None].to(x.device) for table in (part.gains, part.offsets))

        latents = sae.latents(x)
        chosen, kth = latents[..., features], None
        if sae.config.k is None:
            # JumpReLU: a latent is a member by a threshold of its own, whatever the others do.
            members = latents > sae.threshold
            z = latents * members
            thresholds = bars = torch.maximum(thresholds, sae.threshold[features].float())
            fires = chosen.float() > thresholds
        else:
            top = sae.top(latents)
            members, bars = top.indices, thresholds
            z = torch.zeros_like(latents).scatter(-1, top.indices, top.values)
            if self.gate == "threshold":
                thresholds = part.gate_thresholds[row][:, None].to(x.device)
                fires = chosen.float() > thresholds
            else:
                # By value: of latents that tie at place k, which is frequent in 16 bits, topk picks one at random.
                kth = top.values[..., -1:]
                fires = (chosen >= kth) & (chosen.float() > thresholds)
        picked = z[..., features].float() > bars
        if part.how.gain == "token":  # SAEmnesia's: the norm of what the token keeps, for each unit of the feature's decoder row
            gains = gains * (z.float().norm(dim=-1, keepdim=True) / (sae.W_dec[features].float().norm(dim=-1) + 1e-8))
        return Encoded(latents, z, kth, thresholds, gains, offsets, chosen, Decision(fires.detach(), picked.detach(), members.detach()))

    def apply(
        self, name: str, encoded: Encoded, x: torch.Tensor, output: torch.Tensor, fires: torch.Tensor, dtype: torch.dtype,
        places: np.ndarray | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """The edited output.

        Args:
            name: hookpoint.
            encoded: see `decide`.
            x: tokens that the SAE reads `[B, tokens, d]`.
            output: tokens of the block's output, same shape.
            fires: `[B, tokens, U]`, 0 or 1 or bool.
            dtype: to decode in; float32 or wider: in 16 bits the difference of two decodes would be mostly rounding.
            places: int `[tokens, 2]`, row and column of each, where tokens are replaced.

        Returns:
            `[B, tokens, d]` in `dtype`.
        """
        part = self.edit.hookpoints[name]
        if part.how.replace_by:
            assert places is not None
            marks = (fires.to(dtype) * (1 - encoded.gains).to(dtype)).amax(-1)
            return torch.stack([replaced(tokens, mark, places, part.how) for tokens, mark in zip(output.to(dtype), marks, strict=True)])
        sae, features = self.saes[name], part.features.to(x.device)
        # z_i becomes gain · z_i + offset; written as a change, so that a latent outside topk's pick changes by as much.
        z = encoded.active.to(dtype)
        edited = z.clone()
        edited[..., features] += fires.to(dtype) * ((encoded.gains - 1).to(dtype) * encoded.chosen.to(dtype) + encoded.offsets.to(dtype))
        like, output = x.to(dtype), output.to(dtype)
        decoded, decoded_edited = sae.decode(z, like), sae.decode(edited, like)
        # What the SAE doesn't read: nothing, or the block's input where it reads what the block adds to it.
        rest = output - like
        if part.how.norm == "kept":  # CASteer's: a token that was changed has its old norm again
            changed = output + (decoded_edited - decoded)
            kept = torch.nn.functional.normalize(changed, dim=-1) * output.norm(dim=-1, keepdim=True)
            return torch.where((fires > 0).any(-1, keepdim=True), kept, changed)
        if self.edit.residual == "keep":
            return output + (decoded_edited - decoded)
        if self.edit.residual == "upstream":
            return rest + decoded_edited + (decoded - like)
        return rest + decoded_edited


class AblationHook:
    """Applies an `Edit` to a denoiser while the context is open.

    Args:
        network: the original denoiser, of one of `families`.
        edit: what to suppress.
        saes: hookpoint → SAE; used at the network's precision.
        gate: see `TokenEdit`.
        record: keep every `Decision` in `decisions` (hookpoint → one a forward).
        record_tokens: keep what the blocks gave in `seen`, which takes memory.

    Differentiable: gradients pass through latents, gains and decoder (and not through the decisions, which are steps).
    """

    def __init__(
        self, network: nn.Module, edit: Edit, saes: Mapping[str, SparseAutoencoder], gate: str = "exact", record: bool = False,
        record_tokens: bool = False,
    ) -> None:  # fmt: skip
        self.network, self.record, self.record_tokens = network, record, record_tokens
        self._denoiser = denoiser_of(network)
        for name in edit.hookpoints:
            self._denoiser.find_hookpoint(network, name)
        parameter = next(network.parameters())
        self.tokens = TokenEdit(edit, saes, parameter.dtype, parameter.device, gate)
        self.decisions: dict[str, list[Decision]] = {name: [] for name in edit.hookpoints}
        self.seen: list[dict[str, BlockOutput]] = []
        """one a forward: hookpoint → what its block gave"""
        self.timestep: torch.Tensor | None = None
        """noise level `[1]` or `[B]`, 0 to 1000, of the forward that runs; set it to edit tokens outside of one"""
        self._open = ExitStack()

    def __enter__(self) -> AblationHook:
        with ExitStack() as stack:
            if self.tokens.edit.weights:
                stack.enter_context(self.tokens.edit.weights.in_place(self.network))
            stack.callback(self.network.register_forward_pre_hook(self._note_timestep, with_kwargs=True).remove)
            for name in self.decisions:
                block = self._denoiser.find_hookpoint(self.network, name)
                stack.callback(block.register_forward_hook(self._edit_output(name), with_kwargs=True).remove)
            self._open = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._open.close()

    def _note_timestep(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self.timestep = self._denoiser.noise_level(self._denoiser.inputs(args, kwargs))
        if self.record_tokens:
            self.seen.append({})

    def _edit_output(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
            given = self._denoiser.tokens(name, output)
            before = self._denoiser.input_tokens(name, args, kwargs) if self.tokens.reads_delta(name) else None
            places = self._denoiser.places(output) if self.tokens.edit.hookpoints[name].how.replace_by else None
            if self.record_tokens:
                self.seen[-1][name] = BlockOutput(given.detach(), None if before is None else before.detach(), places)
            tokens = self.edit_tokens(name, given if before is None else given - before, given, places)
            return self._denoiser.with_tokens(name, output, tokens)

        return hook

    def edit_tokens(self, name: str, x: torch.Tensor, output: torch.Tensor, places: np.ndarray | None = None) -> torch.Tensor:
        """Tokens that the SAE reads and tokens of the block's output, both `[B, tokens, d]`, and places as `TokenEdit.apply` takes them → edited output."""
        assert self.timestep is not None
        encoded = self.tokens.decide(name, self.timestep, x)
        if self.record:
            self.decisions[name].append(encoded.decision)
        return self.tokens.apply(name, encoded, x, output, self.fires(encoded), torch.float32, places).to(x.dtype)

    def fires(self, encoded: Encoded) -> torch.Tensor:
        """The decisions that are applied, `[B, tokens, U]`; a subclass may give them a gradient."""
        return encoded.decision.fires
