# Made from editor/edit by `python -m tests.comfyui.generated`; change it there.
"""A diffusers network that carries its SAE edit inside its graph and its weights: what all kinds share.

This file, `feature_ablation.py` and `ablated_kinds.py` travel inside published checkpoints as one (`<component>/saeuron_edit_<hash>.py`), so they need torch and diffusers only.
Nothing here decides what to suppress; that is read from tensors. Method: SAeUron, arXiv 2501.18052, section 3.

For a token `x` of a hookpoint's output, with encoder `W`, chosen features `F`, and tables by timestep:

    z = relu(W (x - b_dec) + b)                     latents
    fires_i = z_i among the token's k largest (JumpReLU: above a bar of its own) and z_i > threshold_i(t)
    y = x + sum over i in F of fires_i ((gain_i(t) - 1) z_i + offset_i(t)) W_dec[i]

or, where tokens are replaced: y = the nearest token of the same map at which no feature fires, or the mean of all of these. A gain may be multiplied
by |the k largest| / |W_dec[i]|, and y brought back to the norm of x.

It fails closed: one entry of the config holds what no other class knows, one stock weight is stored under another name with
a tensor of a wrong shape in its place, and edit tensors start as NaN, so a loader that ignores the edit raises or yields NaN
instead of the unedited model.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from torch import nn
from typing import Any
import hashlib
import inspect
import json
import sys
import threading
import torch
import torch.nn.functional as F


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


SENTINEL = "SaeuronAblated"
FORMAT = 5
_AGAIN = "take the artifact again from its source"
_OFFLOAD = ("group_offloading", "lazy_prefetch", "layer_execution", "layerwise_casting", "peft_autocast")
"""beginnings of the names of diffusers' hooks that leave what a block computes as it is"""


class _Barrier(_Pickled, nn.Module):
    """Stands where a stock layer was.

    Its bias has a shape that no such layer has, so that a loader which passes over unknown keys (`strict=False`) raises. It is NaN.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.register_buffer("bias", torch.full((1,), float("nan")))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise AblationIntegrityError(_REPLACED)

    def extra_repr(self) -> str:
        return f"an edited network's '{self.name}' is stored as 'edited_{self.name}'; name that"

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        # By itself, and not as a part of the network: someone copies block by block.
        if not args and kwargs.get("destination") is None:
            raise AblationIntegrityError(
                f"this network carries an edit that a copy of its blocks would lose; its '{self.name}' is 'edited_{self.name}'"
            )
        return super().state_dict(*args, **kwargs)


def _explicit_signature(parent: Any) -> Callable:
    """Give `__init__(**kwargs)` the parent's parameters, of any version, and `ablation`: diffusers drops config entries it can't find there."""

    def decorate(init):  # noqa: ANN001, ANN202
        stock = inspect.signature(parent.__init__)
        extra = inspect.Parameter("ablation", inspect.Parameter.KEYWORD_ONLY, default=None)
        init.__signature__ = stock.replace(parameters=[*stock.parameters.values(), extra])
        return init

    return decorate


def _stored(name: str) -> Any:
    """The stock layer of that name, stored under another so that no stock loader takes this file's weights.

    It is here only while the network runs: classes that copy it block by block (`UNetMotionModel.from_unet2d`) find a module that raises.
    """
    return property(lambda self: self._modules[name if getattr(_STATE, "timestep", None) is None else f"edited_{name}"])


_Stock: Any = object


class _Ablated(_Pickled, _Stock):
    """What the edited network of each kind has beside its stock class, which comes after it among the bases."""

    KEY: str
    """entry of the config that holds `SENTINEL`; what the stock network has there is `stock` in `ablation`"""
    RENAMED: str
    """the stock layer that is stored under another name"""
    _keep_in_fp32_modules = ["ablations"]
    _auto_class = "AutoModel"
    ablations: nn.ModuleDict

    def _edited_init(self, stock: Callable, ablation: Any, config: dict[str, Any]) -> None:
        """Everything that `__init__` does; `stock` is the parent's."""
        if not isinstance(ablation, dict) or not ablation.get("hookpoints"):
            raise AblationIntegrityError(f"this network's config has no 'ablation' entry: its edit is missing; {_AGAIN}")
        if ablation.get("format") != FORMAT:
            raise AblationIntegrityError(f"edit format {ablation.get('format')!r} is not known to this file (it knows {FORMAT})")
        if config.get(self.KEY) != SENTINEL:
            raise AblationIntegrityError(f"'{self.KEY}' in the network's config is not {SENTINEL!r}: the config was altered")
        stock(**{**config, self.KEY: ablation["stock"]})
        # The parent registered its own values over ours.
        self.register_to_config(**{**config, self.KEY: SENTINEL, "ablation": ablation})
        self._modules[f"edited_{self.RENAMED}"] = self._modules.pop(self.RENAMED)
        self._modules[self.RENAMED] = _Barrier(self.RENAMED)
        self.ablations = nn.ModuleDict()
        for name, shape in ablation["hookpoints"].items():
            block, _, stream = name.partition(":")
            module = FeatureAblation(**shape, stream=stream, residual=ablation["residual"], gate=ablation["gate"])
            self.ablations[name.replace(".", "-")] = module
            self.get_submodule(block).register_forward_hook(module.on_output, with_kwargs=True)

    def _run(self, level: torch.Tensor, forward: Callable[[], Any]) -> Any:
        """A forward of the stock class, with the edit, at noise levels float32 `[1]` or `[B]`, 0 to 1000."""
        for name in self.ablations:
            hooks = getattr(self.get_submodule(name.replace("-", ".").partition(":")[0]), "_diffusers_hook", None)
            if odd := [h for h in getattr(hooks, "hooks", ()) if not h.startswith(_OFFLOAD)]:
                raise AblationIntegrityError(
                    f"a cache or a layer-skipping guidance ('{odd[0]}') would pass edited blocks by; switch it off"
                )
        outer = getattr(_STATE, "timestep", None), getattr(_STATE, "left", 0)
        _STATE.timestep, _STATE.left = level, len(self.ablations)
        try:
            found = forward()
            if _STATE.left:
                raise AblationIntegrityError(
                    "an edited block was replaced, passed by (layer-skipping guidance?), or its hooks removed, and its edit with it; load it again"
                )
            return found
        finally:
            _STATE.timestep, _STATE.left = outer

    def enable_cache(self, config: Any) -> None:
        """Refused: a cache passes blocks by, and the edit would see tokens that are not theirs."""
        raise AblationIntegrityError("caches pass blocks by, and their edit with them; an edited network runs without")

    def edit_sha256(self) -> str:
        """Hash of the edit: its settings and every edit tensor (floats widened to float32)."""
        return self._digest({k: v for k, v in self.config["ablation"].items() if k != "sha256"}, self.ablations.state_dict())

    @staticmethod
    def _digest(settings: dict, tensors: dict[str, torch.Tensor]) -> str:
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for name, tensor in sorted(tensors.items()):
            value = tensor.detach().to("cpu", torch.float32 if tensor.is_floating_point() else tensor.dtype).contiguous()
            digest.update(f"{name}:{list(value.shape)}:{value.dtype}".encode())
            digest.update(value.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def check_edit(self) -> None:
        """Raise `AblationIntegrityError` unless the edit's tensors are those on record."""
        self._check_loaded()
        if (found := self.edit_sha256()) != (recorded := self.config["ablation"].get("sha256")):
            hashes = f"{found[:12]} instead of {str(recorded)[:12]}"
            raise AblationIntegrityError(f"the edit's tensors do not match their recorded hash ({hashes}): altered or truncated; {_AGAIN}")

    def _check_loaded(self) -> None:
        for name, tensor in self.ablations.state_dict().items():
            if tensor.is_meta or (tensor.is_floating_point() and bool(tensor.isnan().any())):
                raise AblationIntegrityError(f"edit tensor 'ablations.{name}' was not loaded; {_AGAIN}")

    def tables_sha256(self) -> str:
        """Hash of what decides (features, timesteps, thresholds, gains, offsets); no cast of the model changes it."""
        return self._digest({}, {n: t for n, t in self.ablations.state_dict().items() if n.rpartition(".")[2] in FeatureAblation.DECIDES})

    def seal(self) -> None:
        """Record the hash of the edit as it is now: cast weights are fine; unloaded ones or changed tables raise `AblationIntegrityError`."""
        self._check_loaded()
        tables = self.tables_sha256()
        if self.config["ablation"].get("tables_sha256") not in (None, tables):
            raise AblationIntegrityError("the edit's tables were changed since they were made; make a new edit instead")
        self.register_to_config(ablation={**dict(self.config["ablation"]), "tables_sha256": tables, "sha256": None})
        self.register_to_config(ablation={**dict(self.config["ablation"]), "sha256": self.edit_sha256()})

    @classmethod
    def extract_init_dict(cls, config_dict: Any, **kwargs: Any) -> Any:
        """As in the parent, but `auto_map`, which is written for `AutoModel`, is no setting to warn about."""
        return super().extract_init_dict({k: v for k, v in config_dict.items() if k != "auto_map"}, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """As in the parent, but any missing, surplus or altered tensor raises `AblationIntegrityError`."""
        if kwargs.get("quantization_config") is not None:
            raise AblationIntegrityError("quantising an edited network on load is not supported: its edit could not be checked")
        want_info = kwargs.pop("output_loading_info", False)
        try:
            model, info = super().from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **kwargs)
        except ValueError as error:
            if "expected shape" not in str(error):
                raise
            what = str(error).partition(". If you want")[0]  # diffusers goes on to advise how to load it all the same
            raise AblationIntegrityError(f"weights that don't fit the network's config ({what}): altered or truncated; {_AGAIN}") from error
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if info.get(kind):
                names = ", ".join(sorted(str(k) for k in info[kind])[:4])
                raise AblationIntegrityError(f"{kind.replace('_', ' ')} in the edited network's weights: {names}; {_AGAIN}")
        model.check_edit()
        model.ablations.to(model.dtype)
        return (model, info) if want_info else model

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As in the parent; the code is written too."""
        self.seal()
        Path(save_directory).mkdir(parents=True, exist_ok=True)  # the code first, since the parent may upload the folder
        (Path(save_directory) / f"{_MODULE_NAME}.py").write_bytes(_SOURCE)
        super().save_pretrained(save_directory, *args, **kwargs)

    def load_lora_adapter(self, weights: Any, prefix: Any = "transformer", **kwargs: Any) -> Any:
        """As in the parent; what is for the layer under another name goes to where that is stored."""
        start = f"{prefix}." if prefix else ""
        weights = dict(weights) if isinstance(weights, dict) else weights
        for held in (h for h in (weights, kwargs.get("network_alphas")) if isinstance(h, dict)):
            for key in [k for k in held if k.startswith(f"{start}{self.RENAMED}.")]:
                held[start + "edited_" + key.removeprefix(start)] = held.pop(key)
        return super().load_lora_adapter(weights, prefix, **kwargs)


sys.modules.setdefault(_MODULE_NAME, sys.modules[__name__])
