"""The dynamic reference: SAeUron's intervention as a hook, written to be read beside the paper, not to be fast.

Everything that we ship is proven against this. It differs from the released hook where that is wrong (METHOD: arXiv
2501.18052, section 3.3): it looks its step up by timestep value instead of counting calls, takes maps that aren't square,
and adds the reconstruction error back with the right sign unless `residual` is `upstream`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import nn

from .edit import Edit
from .errors import SaeuronError
from .hookpoints import find_hookpoint, output_tensor, read_map, replace_tensor, to_map, to_tokens
from .sae import SparseAutoencoder
from .sae_formats import check_width
from .straight_through import straight_through


class Decision(NamedTuple):
    """What one hookpoint did in one forward."""

    fires: torch.Tensor
    """bool `[B, tokens, U]`"""
    picked: torch.Tensor
    """the same with membership in torch.topk's own pick; differs from `fires` at ties, and for the gate `threshold`"""
    margin: torch.Tensor
    """float32 `[B, tokens, U]`: distance of the latent from the nearer of its two bars (threshold, k-th latent), relative
    to the bar; a decision with a margin below the precision's rounding could go either way"""


class AblationHook:
    """Applies an `Edit` to a UNet while the context is open.

    Args:
        unet: the original UNet.
        edit: what to suppress.
        saes: hookpoint → SAE; used at the UNet's precision.
        gate: `exact`, METHOD's rule; or `threshold`, the reference of artifacts baked without the membership test.
        record: keep every `Decision` in `decisions` (hookpoint → one a forward).
        open_gates: gradients also pass through the decisions, straight through (for attacks); no value changes.

    Differentiable: gradients pass through latents, gains and decoder (and not through the decisions, which are steps).
    """

    def __init__(
        self, unet: nn.Module, edit: Edit, saes: Mapping[str, SparseAutoencoder], gate: str = "exact", record: bool = False,
        open_gates: bool = False,
    ) -> None:  # fmt: skip
        self.unet, self.edit, self.gate, self.record, self.open_gates = unet, edit, gate, record, open_gates
        parameter = next(unet.parameters())
        self.saes = {}
        for name, part in edit.hookpoints.items():
            if name not in saes:
                raise SaeuronError(f"the edit needs an SAE for hookpoint '{name}'; given: {', '.join(saes) or 'none'}")
            if saes[name].config.num_latents != part.latents:
                raise SaeuronError(
                    f"hookpoint '{name}': the edit was made for {part.latents} latents, the SAE has {saes[name].config.num_latents}"
                )
            find_hookpoint(unet, name)
            self.saes[name] = copy.deepcopy(saes[name]).to(parameter.device, parameter.dtype)
        self.decisions: dict[str, list[Decision]] = {name: [] for name in edit.hookpoints}
        self.timestep: torch.Tensor | None = None
        """`[1]` or `[B]`: of the forward that runs; set it to edit tokens outside of one"""
        self._handles: list[Any] = []

    def __enter__(self) -> AblationHook:
        self._handles = [self.unet.register_forward_pre_hook(self._note_timestep, with_kwargs=True)]
        for name in self.edit.hookpoints:
            block = find_hookpoint(self.unet, name)
            self._handles.append(block.register_forward_hook(self._edit_output(name), with_kwargs=True))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _note_timestep(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        value = kwargs["timestep"] if "timestep" in kwargs else args[1]
        self.timestep = torch.as_tensor(value).reshape(-1)

    def _edit_output(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
            feature_map = output_tensor(output)
            read = read_map(self.saes[name].config.reads, args, kwargs, output)
            tokens = self.edit_tokens(name, to_tokens(read), to_tokens(feature_map))
            return replace_tensor(output, to_map(tokens, *feature_map.shape[-2:]))

        return hook

    def edit_tokens(self, name: str, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """Tokens that the SAE reads and tokens of the block's output, both `[B, tokens, d]` → edited output."""
        part, sae = self.edit.hookpoints[name], self.saes[name]
        check_width(sae, x.shape[-1], name)
        assert self.timestep is not None
        row = part.rows(self.timestep.cpu())
        features = part.features.to(x.device)
        thresholds = part.thresholds[row][:, None].to(x.device)
        gains = part.gains[row][:, None].to(x.device)

        latents = sae.latents(x)
        z, kth = sae.active(latents), sae.kth(latents)
        chosen = latents[..., features]
        picked = z[..., features].float() > thresholds
        if kth is None:
            # JumpReLU: a latent is a member by a threshold of its own, whatever the others do.
            thresholds = torch.maximum(thresholds, sae.threshold[features].float())
            fires, kth = chosen.float() > thresholds, chosen.new_zeros(())
        elif self.gate == "threshold":
            thresholds = part.gate_thresholds[row][:, None].to(x.device)
            fires, kth = chosen.float() > thresholds, torch.zeros_like(kth)
        else:
            # By value: of latents that tie at place k, which is frequent in 16 bits, topk picks one at random.
            fires = (chosen >= kth) & (chosen.float() > thresholds)
        # z_i becomes gain · z_i; written as a change, so that a latent outside topk's pick changes by as much.
        edited = z.to(torch.float32, copy=True)
        change = torch.where(fires, (gains - 1) * chosen.float(), 0.0)
        if self.open_gates:
            change = straight_through(fires, chosen, torch.maximum(thresholds, kth.float())) * ((gains - 1) * chosen.float())
        edited[..., features] += change
        if self.record:
            self.decisions[name].append(Decision(fires.detach(), picked.detach(), _margin(chosen, thresholds, kth)))

        # Decoded in float32: in 16 bits the difference of two decodes would be mostly rounding.
        like, output = x.float(), output.float()
        decoded, decoded_edited = sae.decode(z.float(), like), sae.decode(edited, like)
        # What the SAE doesn't read: nothing, or the block's input where it reads what the block adds to it.
        rest = output - like
        if self.edit.residual == "keep":
            y = output + (decoded_edited - decoded)
        elif self.edit.residual == "upstream":
            y = rest + decoded_edited + (decoded - like)
        else:
            y = rest + decoded_edited
        return y.to(x.dtype)


def _margin(latents: torch.Tensor, thresholds: torch.Tensor, kth: torch.Tensor) -> torch.Tensor:
    """Relative distance of a decision from flipping, see `Decision.margin`."""
    latents, kth = latents.detach().float(), kth.detach().float()
    to_threshold = (latents - thresholds).abs() / thresholds.clamp_min(1e-12)
    to_kth = (latents - kth).abs() / kth.clamp_min(1e-12)
    # A latent far below one bar does not fire whatever the other says; only the bar that decides counts.
    below_threshold, below_kth = latents <= thresholds, latents < kth
    one_bar = torch.where(below_threshold, to_threshold, torch.where(below_kth, to_kth, torch.minimum(to_threshold, to_kth)))
    return torch.where(below_threshold & below_kth, torch.maximum(to_threshold, to_kth), one_bar).nan_to_num(float("inf"))
