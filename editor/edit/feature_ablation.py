"""The edit of one block's output, as it is shipped: what fires, and what becomes of the token.

This file and the networks' classes travel inside published checkpoints as one file (`shipped.py`), so it needs torch and the standard library only.
"""

from __future__ import annotations

import hashlib
import sys
import threading
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .shipped import SHIPPED  # noqa: F401 - read below; the shipped file is its own source

_SOURCE: bytes = globals().get("SHIPPED") or Path(__file__).read_bytes()
_MODULE_NAME = "saeuron_edit_" + hashlib.sha256(_SOURCE).hexdigest()[:12]
_STATE = threading.local()
_UNPICKLE = """
import sys
if name not in sys.modules:
    sys.modules[name] = type(sys)(name)
    sys.modules[name].SHIPPED = source
    exec(source, vars(sys.modules[name]))
kind = getattr(sys.modules[name], kind)
"""
_REPLACED = "an edited network's 'forward' was replaced (by an accelerator?), or its blocks run apart, without their edit; call the network"


_TAKEN, _ROW, _LAST = 2.0**23, 2.0**12, 2.0**24
"""added to the distance of a place that is taken itself; number of a row's first place; beyond all numbers of places"""


class AblationIntegrityError(RuntimeError):
    """The edit is missing, altered or asked to run outside its network; the message says which and what to do."""


class _Pickled:
    """Takes this file's source with it into a pickle: another process may have neither saeuron nor the cache that it was opened from."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        kind, plain = type(self), super().__reduce_ex__(protocol)
        if vars(sys.modules[_MODULE_NAME]).get(kind.__name__) is not kind:  # made by somebody from one of ours
            return plain
        said = {"name": _MODULE_NAME, "source": _SOURCE, "kind": kind.__name__, "program": _UNPICKLE}
        return (eval, ("exec(program) or kind.__new__(kind)", said), *plain[2:])


class FireGate(_Pickled, nn.Module):
    """Which chosen features fire; a module of its own so that every backend can show its decisions."""

    def forward(self, latents: torch.Tensor, thresholds: torch.Tensor, kth: torch.Tensor | None) -> torch.Tensor:
        """Decide, bool `[B, L, U]`. A comparison with NaN counts as firing: a NaN latent thus reaches the output and is seen.

        Args:
            latents: chosen latents `[B, L, U]`.
            thresholds: `[B or 1, 1, U]`, float32; infinite where a feature isn't chosen at this timestep.
            kth: the token's k-th largest latent `[B, L, 1]`, or None to skip the membership test.
        """
        fires = ~(latents.float() <= thresholds)
        return fires if kth is None else fires & ~(latents < kth)


class Seam(_Pickled, nn.Module):
    """Marks a tensor, so that every backend can show it."""

    def forward(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.clone() if torch.compiler.is_compiling() else tensor


class FeatureAblation(_Pickled, nn.Module):
    """Suppresses chosen SAE features in the output of one hookpoint.

    Args:
        width, latents: channels `d` of the hookpoint, latents `n` of the SAE.
        k: active latents a token; None for `jumprelu`.
        features, timesteps: numbers `U` of chosen features, `T` of calibrated timesteps.
        residual: `keep`, `upstream` or `drop` (what becomes of the SAE's reconstruction error).
        gate: `exact` or `threshold` (`keep` only).
        unit_norm, subtract_bias: whether the SAE normalises each token first, and subtracts `b_dec` before encoding.
        replace_by, spread: empty, or what a token is replaced by where a feature fires: `nearest` or `mean` (`keep` only); how far around it too.
        stream: of a block that gives tokens of the text and of the picture: `text`, or empty for the picture's.
        gain: `mean`: gains are as they are in the table; `token`: times the norm of the token's k largest latents over that of the feature's decoder row.
        norm: `kept`: a token at which a feature fires is brought back to its norm (`keep` only); or `free`.
        activation, reads: `topk` or `jumprelu`; `output`, or `delta` for output minus input of the block. The sum goes to the output anyhow.
    """

    TABLES: tuple[str, ...] = ("thresholds", "gains", "offsets")
    DECIDES = ("features", "timesteps", *TABLES)
    encoder_weight: torch.Tensor
    encoder_bias: torch.Tensor
    pre_bias: torch.Tensor
    decoder_weight: torch.Tensor
    features: torch.Tensor
    timesteps: torch.Tensor
    gains: torch.Tensor
    latent_thresholds: torch.Tensor

    def __init__(
        self, width: int, latents: int, k: int | None, features: int, timesteps: int,
        residual: str = "keep", gate: str = "exact", unit_norm: bool = False, activation: str = "topk", subtract_bias: bool = True,
        reads: str = "output", replace_by: str = "", spread: int = 0, gain: str = "mean", norm: str = "free", stream: str = "",
    ) -> None:  # fmt: skip
        super().__init__()
        if residual not in ("keep", "upstream", "drop") or gate not in ("exact", "threshold") or (gate != "exact" and residual != "keep"):
            raise ValueError(f"unknown residual {residual!r} or gate {gate!r}, or two that don't go together")
        if activation not in ("topk", "jumprelu") or reads not in ("output", "delta") or (activation == "topk") != (k is not None):
            raise ValueError(f"unknown activation {activation!r} with k {k!r}, or reads {reads!r}")
        if replace_by not in ("", "nearest", "mean") or (replace_by and residual != "keep"):
            raise ValueError(f"unknown replace_by {replace_by!r}, or one that doesn't go together with residual {residual!r}")
        if stream not in ("", "text"):
            raise ValueError(f"unknown stream {stream!r}")
        if gain not in ("mean", "token") or norm not in ("free", "kept") or (gain == "token" and (k is None or gate != "exact")):
            raise ValueError(f"unknown gain {gain!r} or norm {norm!r}, or a gain that doesn't go together with k {k!r} and gate {gate!r}")
        if bool(replace_by) + (gain == "token") + (norm == "kept") > 1 or (norm == "kept" and residual != "keep"):
            raise ValueError(f"replace_by {replace_by!r}, gain {gain!r}, norm {norm!r} and residual {residual!r} don't go together")
        self.k, self.residual, self.gate_kind, self.unit_norm, self.gain, self.norm = k, residual, gate, unit_norm, gain, norm
        self.subtract_bias, self.reads, self.replace_by, self.spread, self.stream = subtract_bias, reads, replace_by, spread, stream
        if replace_by:  # nothing is added to a latent, and nothing decoded
            self.TABLES = ("thresholds", "gains")
            self.seam_places = Seam()
        # Only membership in a top k needs the latents that aren't chosen, and only a whole decode.
        self.chosen_rows = residual == "keep" and (gate == "threshold" or activation == "jumprelu")
        rows, decoded = features if self.chosen_rows else latents, features if residual == "keep" else latents
        floats: dict[str, tuple[int, ...]] = {
            "encoder_weight": (rows, width), "encoder_bias": (rows,), "pre_bias": (width,),
            **({} if replace_by else {"decoder_weight": (decoded, width)}), **dict.fromkeys(self.TABLES, (timesteps, features)),
        }  # fmt: skip
        for name, shape in (floats | ({"latent_thresholds": (rows,)} if activation == "jumprelu" else {})).items():
            self.register_buffer(name, torch.full(shape, float("nan"), dtype=torch.float32))
        self.register_buffer("timesteps", torch.full((timesteps,), float("nan"), dtype=torch.float32))
        self.register_buffer("features", torch.full((features,), -1, dtype=torch.int64))
        self.gate, self.seam_input, self.seam_output = FireGate(), Seam(), Seam()
        if reads == "delta":
            self.seam_before = Seam()
        if residual != "keep":
            self.members = Seam()

    def _apply(self, fn, recurse: bool = True):  # noqa: ANN001, ANN202
        # `.half()` and `.to(bfloat16)` must not touch the tables: they decide what fires and how strongly.
        kept = {name: getattr(self, name) for name in (*self.TABLES, "timesteps")}
        super()._apply(fn, recurse)
        for name, table in kept.items():
            moved = getattr(self, name)
            if moved.dtype != torch.float32:
                self._buffers[name] = torch.empty_like(table, device="meta") if moved.is_meta else table.to(moved.device)
        return self

    def rows(self, timestep: torch.Tensor) -> torch.Tensor:
        """Table rows (int64) of the calibrated timesteps nearest to float32 `[B or 1]`; halfway takes the noisier, larger one."""
        middles = (self.timesteps[:-1] + self.timesteps[1:]) / 2  # descending
        return torch.where(timestep[:, None] < middles[None], 1, 0).sum(-1)

    def forward(
        self, tokens: torch.Tensor, timestep: torch.Tensor, before: torch.Tensor | None = None, places: torch.Tensor | None = None
    ) -> torch.Tensor:  # fmt: skip
        """The edited tokens, same shape and dtype; exactly `tokens` where nothing fires and `residual` is `keep`.

        Args:
            tokens: the block's output `[B, L, d]`.
            timestep: float32, `[1]` for the batch or `[B]`.
            before: the block's input `[B, L, d]`, for an SAE that reads `delta`.
            places: float32 `[1, L, 2]`, row and column of each token, where tokens are replaced.
        """
        out = self.seam_input(tokens)
        x = out if before is None else out - self.seam_before(before)
        row = self.rows(timestep)
        thresholds, gains, *offsets = (getattr(self, name).index_select(0, row)[:, None] for name in self.TABLES)
        read = x
        if self.unit_norm:
            # With `keepdim`, the exporter would take its shape from the UNet's input, which a cut-out edit doesn't have.
            mean, std = x.mean(-1, keepdim=True), x.std(-1)[..., None]
            read = (x - mean) / (std + 1e-5)
        read = read - self.pre_bias if self.subtract_bias else read
        weight, bias = self.encoder_weight, self.encoder_bias
        if self.k is None:
            # What a direction reads is a small difference of large numbers: in 16 bits mostly rounding, and the change with it.
            read, weight, bias = read.float(), weight.float(), bias.float()
        z = F.relu(F.linear(read, weight, bias))
        chosen = z if self.chosen_rows else z.index_select(-1, self.features)
        top = kth = None
        if self.k is None:
            bars = self.latent_thresholds if self.chosen_rows else self.latent_thresholds.index_select(0, self.features)
            thresholds = torch.maximum(thresholds, bars.float())
        elif self.gate_kind == "exact":
            top = z.topk(self.k, dim=-1)
            kth = top.values[..., -1:]
        fires = self.gate(chosen, thresholds, kth)
        # Multiplied, not selected: a NaN in a table must reach the output. Not cast from bool: float16 converters of ONNX break on that.
        firing = (torch.where(fires, 1.0, 0.0) if fires.dtype == torch.bool else fires).float()
        if self.replace_by:
            return self.seam_output(self.replaced(out.float(), (firing * (1 - gains)).amax(-1), self.seam_places(places)).to(out.dtype))
        # Decoded in float32: rounding in 16 bits would be a share of a small edit's effect.
        rows = self.decoder_weight.float()
        own = rows if self.residual == "keep" else rows.index_select(0, self.features)
        if self.gain == "token" and top is not None:
            gains = gains * self.by_token(top.values.float(), own)
        change = firing * ((gains - 1) * chosen.float() + offsets[0])
        scale = (std + 1e-5).float() if self.unit_norm else 1.0
        if self.residual == "keep":
            y = out.float() + (change @ own) * scale
        else:
            if top is None:
                active = z * torch.where(self.members(z > self.latent_thresholds), 1.0, 0.0).to(z.dtype)
            else:
                active = torch.zeros_like(z).scatter(-1, self.members(top.indices), top.values)
            decoded = (active.float() @ rows + self.pre_bias.float()) * scale + (mean.float() if self.unit_norm else 0.0)
            y = decoded + (change @ own) * scale
            if self.residual == "upstream":
                y = y + (decoded - x.float())
            y = y if before is None else y + (out - x).float()
        if self.norm == "kept":
            # A token of zeros stays one. Where nothing fires the token stays, to the last bit.
            y = y * torch.where(firing.amax(-1)[..., None] > 0, _norm(out.float()) / _norm(y).clamp(min=1e-30), 1.0)
        return self.seam_output(y.to(out.dtype))

    def by_token(self, kept: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """What gains are multiplied by, `[B, L, U]`: the norm of the latents that each token keeps `[B, L, k]` over that of each decoder row `[U, d]`."""
        return _norm(kept) / (_norm(rows)[..., 0] + 1e-8)

    def replaced(self, x: torch.Tensor, flags: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Tokens `[B, L, d]` with those flagged (`[B, L]`, 1 or 0) replaced; as they are where none or all are. No shape depends on the flags.

        A flag is multiplied, as a gate is: a NaN in a token or a table stays one.
        """
        rows, columns = places[..., 0], places[..., 1]
        down, across = (place[:, :, None] - place[:, None] for place in (rows, columns))
        # Below 0 where too far away, so that only what lies within the spread has a share in the largest, and in its gradient.
        far = torch.where(torch.maximum(down.abs(), across.abs()) <= self.spread, 0.0, 2.0)
        flags = (flags[:, None] - far).amax(-1)
        taken = torch.where(flags > 0, 1.0, 0.0)
        if self.replace_by == "mean":
            count = (1 - taken).sum(-1)[:, None, None]
            other = ((1 - taken)[..., None] * x).sum(1)[:, None] / count.clamp(min=1.0)
            flags = flags * torch.where(count[..., 0] > 0, 1.0, 0.0)
        else:
            # Squares are whole numbers, exact in float32 up to maps of 2000 rows. Where all are taken, the nearest is the token itself.
            distance = down.square() + across.square() + (taken * _TAKEN)[:, None]
            nearest = distance == distance.amin(-1)[..., None]
            # The first in row order, by a number of its own for each place: which of equals a backend's ArgMin takes is not for sure.
            first = torch.where(nearest, (rows * _ROW + columns)[:, None], _LAST).argmin(-1)
            other = x.gather(1, torch.zeros_like(x, dtype=torch.int64) + first[..., None])
        return x + flags[..., None] * (other - x)

    def on_output(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        """Forward hook of the hookpoint; a method, so that copying or pickling the UNet copies it too."""
        timestep, _STATE.left = getattr(_STATE, "timestep", None), getattr(_STATE, "left", 0) - 1
        if timestep is None:
            raise AblationIntegrityError(_REPLACED)
        pair = isinstance(output, tuple) and len(output) == 2 and not self.is_map(output[0])
        place = 1 if pair and not self.stream else 0
        before = None
        if self.reads == "delta":
            name = "encoder_hidden_states" if self.stream else "hidden_states"
            before = kwargs[name] if name in kwargs else args[1 if self.stream else 0]
        hidden = output[place] if isinstance(output, tuple) else output if isinstance(output, torch.Tensor) else output.sample
        edited = self.in_form(hidden, before, timestep)
        if isinstance(output, tuple):
            return (*output[:place], edited, *output[place + 1 :])
        if isinstance(output, torch.Tensor):
            return edited
        output.sample = edited
        return output

    @staticmethod
    def is_map(value: Any) -> bool:
        """Whether it is a feature map `[B, d, H, W]`, as a UNet's blocks take and give it; a transformer's give tokens."""
        return isinstance(value, torch.Tensor) and value.ndim == 4

    def in_form(self, hidden: torch.Tensor, before: torch.Tensor | None, timestep: torch.Tensor) -> torch.Tensor:
        """`forward` for maps too."""
        if not self.is_map(hidden):
            return self(hidden, timestep, before)
        tokens, *others = (m.flatten(2).transpose(1, 2) for m in (hidden, before) if m is not None)
        edited = self(tokens, timestep, *others, places=_places(hidden) if self.replace_by else None)
        return edited.transpose(1, 2).unflatten(-1, hidden.shape[-2:])


def _norm(values: torch.Tensor) -> torch.Tensor:
    """`[…, n]` → `[…, 1]`."""
    return values.square().sum(-1).sqrt()[..., None]


def _places(hidden: torch.Tensor) -> torch.Tensor:
    """Row and column of each token of a map `[B, d, H, W]`, float32 `[1, H·W, 2]`."""
    height, width = hidden.shape[-2:]
    rows, columns = (torch.arange(n, dtype=torch.float32, device=hidden.device) for n in (height, width))
    return torch.stack([rows[:, None].expand(height, width), columns[None].expand(height, width)], -1).flatten(0, 1)[None]
