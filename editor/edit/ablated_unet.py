"""A diffusers UNet that carries its SAE edit inside its graph and its weights.

This file travels inside published checkpoints (`unet/saeuron_unet_<hash>.py`), so it needs torch and diffusers only.
Nothing here decides what to suppress; that is read from tensors. Method: SAeUron, arXiv 2501.18052, section 3.

For a token `x` of a hookpoint's output, with encoder `W`, chosen features `F`, and tables by timestep:

    z = relu(W (x - b_dec) + b)                     latents
    fires_i = z_i among the token's k largest (JumpReLU: above a bar of its own) and z_i > threshold_i(t)
    y = x + sum over i in F of fires_i (gain_i(t) - 1) z_i W_dec[i]

It fails closed: the config names a mid block that no other class knows, one stock weight is stored under another name with
a tensor of a wrong shape in its place, and edit tensors start as NaN, so a loader that ignores the edit raises or yields NaN
instead of the unedited model.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import sys
import threading
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from torch import nn

SENTINEL = "SaeuronAblatedMidBlock"
FORMAT = 2
_RENAMED = {"conv_in": "edited_conv_in"}
BARRIER = "conv_in.bias"
_SOURCE: bytes = globals().get("_SOURCE") or Path(__file__).read_bytes()
_MODULE_NAME = "saeuron_unet_" + hashlib.sha256(_SOURCE).hexdigest()[:12]
_STATE = threading.local()
_UNPICKLE = """
import sys
if name not in sys.modules:
    sys.modules[name] = type(sys)(name)
    sys.modules[name]._SOURCE = source
    exec(source, vars(sys.modules[name]))
kind = getattr(sys.modules[name], kind)
"""
_AGAIN = "take the artifact again from its source"
_COPIED = "this UNet carries an edit that a copy of its blocks would lose; its input convolution is 'edited_conv_in'"
_REPLACED = "an edited UNet's 'unet.forward' was replaced (by an accelerator?), or its blocks run apart, without their edit; call the UNet"


class AblationIntegrityError(RuntimeError):
    """The edit is missing, altered or asked to run outside its UNet; the message says which and what to do."""


class _Pickled:
    """Takes this file's source with it into a pickle: another process may have neither saeuron nor the cache that it was opened from."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        kind, plain = type(self), super().__reduce_ex__(protocol)
        if vars(sys.modules[_MODULE_NAME]).get(kind.__name__) is not kind:  # made by somebody from one of ours
            return plain
        said = {"name": _MODULE_NAME, "source": _SOURCE, "kind": kind.__name__, "program": _UNPICKLE}
        return (eval, ("exec(program) or kind.__new__(kind)", said), *plain[2:])


class _Barrier(_Pickled, nn.Module):
    """Stands where the stock input convolution was.

    Its bias has a shape that no UNet has, so that a loader which passes over unknown keys (`strict=False`) raises. It is NaN.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bias", torch.full((1,), float("nan")))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise AblationIntegrityError(_REPLACED)

    def extra_repr(self) -> str:
        return f"an edited UNet's 'conv_in' is stored as '{_RENAMED['conv_in']}'; name that"

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        # By itself, and not as a part of the UNet: someone copies block by block.
        if not args and kwargs.get("destination") is None:
            raise AblationIntegrityError(_COPIED)
        return super().state_dict(*args, **kwargs)


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
        activation, reads: `topk` or `jumprelu`; `output`, or `delta` for output minus input of the block. The sum goes to the output anyhow.
    """

    TABLES = ("thresholds", "gains")
    DECIDES = ("features", "timesteps", *TABLES)
    encoder_weight: torch.Tensor
    encoder_bias: torch.Tensor
    pre_bias: torch.Tensor
    decoder_weight: torch.Tensor
    features: torch.Tensor
    timesteps: torch.Tensor
    thresholds: torch.Tensor
    gains: torch.Tensor
    latent_thresholds: torch.Tensor

    def __init__(
        self, width: int, latents: int, k: int | None, features: int, timesteps: int,
        residual: str = "keep", gate: str = "exact", unit_norm: bool = False, activation: str = "topk", subtract_bias: bool = True,
        reads: str = "output",
    ) -> None:  # fmt: skip
        super().__init__()
        if residual not in ("keep", "upstream", "drop") or gate not in ("exact", "threshold") or (gate != "exact" and residual != "keep"):
            raise ValueError(f"unknown residual {residual!r} or gate {gate!r}, or two that don't go together")
        if activation not in ("topk", "jumprelu") or reads not in ("output", "delta") or (activation == "topk") != (k is not None):
            raise ValueError(f"unknown activation {activation!r} with k {k!r}, or reads {reads!r}")
        self.k, self.residual, self.gate_kind, self.unit_norm = k, residual, gate, unit_norm
        self.subtract_bias, self.reads = subtract_bias, reads
        # Only membership in a top k needs the latents that aren't chosen, and only a whole decode.
        self.chosen_rows = residual == "keep" and (gate == "threshold" or activation == "jumprelu")
        rows, decoded = features if self.chosen_rows else latents, features if residual == "keep" else latents
        floats: dict[str, tuple[int, ...]] = {
            "encoder_weight": (rows, width), "encoder_bias": (rows,), "pre_bias": (width,), "decoder_weight": (decoded, width),
            "thresholds": (timesteps, features), "gains": (timesteps, features),
        }  # fmt: skip
        for name, shape in (floats | ({"latent_thresholds": (rows,)} if activation == "jumprelu" else {})).items():
            self.register_buffer(name, torch.full(shape, float("nan"), dtype=torch.float32))
        for name, length in {"features": features, "timesteps": timesteps}.items():
            self.register_buffer(name, torch.full((length,), -1, dtype=torch.int64))
        self.gate, self.seam_input, self.seam_output = FireGate(), Seam(), Seam()
        if reads == "delta":
            self.seam_before = Seam()
        if residual != "keep":
            self.members = Seam()

    def _apply(self, fn, recurse: bool = True):  # noqa: ANN001, ANN202
        # `.half()` and `.to(bfloat16)` must not touch the tables: they decide what fires and how strongly.
        kept = {name: getattr(self, name) for name in self.TABLES}
        super()._apply(fn, recurse)
        for name, table in kept.items():
            moved = getattr(self, name)
            if moved.dtype != torch.float32:
                self._buffers[name] = torch.empty_like(table, device="meta") if moved.is_meta else table.to(moved.device)
        return self

    def rows(self, timestep: torch.Tensor) -> torch.Tensor:
        """Table rows (int64) of the calibrated timesteps nearest to float32 `[B or 1]`; halfway takes the noisier, larger one."""
        stored = self.timesteps.float()  # descending
        middles = (stored[:-1] + stored[1:]) / 2
        return torch.where(timestep[:, None] < middles[None], 1, 0).sum(-1)

    def forward(self, tokens: torch.Tensor, timestep: torch.Tensor, before: torch.Tensor | None = None) -> torch.Tensor:
        """The edited tokens, same shape and dtype; exactly `tokens` where nothing fires and `residual` is `keep`.

        Args:
            tokens: the block's output `[B, L, d]`.
            timestep: float32, `[1]` for the batch or `[B]`.
            before: the block's input `[B, L, d]`, for an SAE that reads `delta`.
        """
        out = self.seam_input(tokens)
        x = out if before is None else out - self.seam_before(before)
        row = self.rows(timestep)
        thresholds, gains = (table.index_select(0, row)[:, None] for table in (self.thresholds, self.gains))
        read = x
        if self.unit_norm:
            # With `keepdim`, the exporter would take its shape from the UNet's input, which a cut-out edit doesn't have.
            mean, std = x.mean(-1, keepdim=True), x.std(-1)[..., None]
            read = (x - mean) / (std + 1e-5)
        read = read - self.pre_bias if self.subtract_bias else read
        z = F.relu(F.linear(read, self.encoder_weight, self.encoder_bias))
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
        change = (torch.where(fires, 1.0, 0.0) if fires.dtype == torch.bool else fires).float() * (gains - 1) * chosen.float()

        # Decoded in float32: rounding in 16 bits would be a share of a small edit's effect.
        rows = self.decoder_weight.float()
        scale = (std + 1e-5).float() if self.unit_norm else 1.0
        if self.residual == "keep":
            y = out.float() + (change @ rows) * scale
        else:
            if top is None:
                active = z * torch.where(self.members(z > self.latent_thresholds), 1.0, 0.0).to(z.dtype)
            else:
                active = torch.zeros_like(z).scatter(-1, self.members(top.indices), top.values)
            decoded = (active.float() @ rows + self.pre_bias.float()) * scale + (mean.float() if self.unit_norm else 0.0)
            y = decoded + (change @ rows.index_select(0, self.features)) * scale
            if self.residual == "upstream":
                y = y + (decoded - x.float())
            y = y if before is None else y + (out - x).float()
        return self.seam_output(y.to(out.dtype))

    def on_output(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        """Forward hook of the hookpoint; a method, so that copying or pickling the UNet copies it too."""
        timestep, _STATE.left = getattr(_STATE, "timestep", None), getattr(_STATE, "left", 0) - 1
        if timestep is None:
            raise AblationIntegrityError(_REPLACED)
        before = None if self.reads == "output" else args[0] if args else kwargs["hidden_states"]
        hidden = output if isinstance(output, torch.Tensor) else output[0] if isinstance(output, tuple) else output.sample
        # A UNet's blocks take and give maps `[B, d, H, W]`.
        tokens, *others = (m.flatten(2).transpose(1, 2) for m in (hidden, before) if m is not None)
        edited = self(tokens, timestep, *others).transpose(1, 2).unflatten(-1, hidden.shape[-2:])
        if isinstance(output, torch.Tensor):
            return edited
        if isinstance(output, tuple):
            return (edited, *output[1:])
        output.sample = edited
        return output


def _explicit_signature(init):  # noqa: ANN001, ANN202
    """Give `__init__(**kwargs)` the parent's parameters, of any version, and `ablation`: diffusers drops config entries it can't find there."""
    parent = inspect.signature(UNet2DConditionModel.__init__)
    extra = inspect.Parameter("ablation", inspect.Parameter.KEYWORD_ONLY, default=None)
    init.__signature__ = parent.replace(parameters=[*parent.parameters.values(), extra])
    return init


class AblatedUNet2DConditionModel(_Pickled, UNet2DConditionModel):
    """`UNet2DConditionModel` with `FeatureAblation` modules on its hookpoints.

    Args:
        ablation: `{"format", "mid_block_type", "residual", "gate", "sha256", "hookpoints": {name: {"width", "latents",
            "k", "features", "timesteps", "unit_norm", "activation", "subtract_bias", "reads"}}}`; written by `saeuron`, checked at every load.
        **config: the stock UNet's config, except that `mid_block_type` holds `SENTINEL`.
    """

    __module__ = _MODULE_NAME
    _keep_in_fp32_modules = ["ablations"]
    _auto_class = "AutoModel"

    @register_to_config
    @_explicit_signature
    def __init__(self, *args: Any, ablation: dict | None = None, **config: Any) -> None:
        if args:
            raise TypeError("AblatedUNet2DConditionModel takes keyword arguments only")
        if not isinstance(ablation, dict) or not ablation.get("hookpoints"):
            raise AblationIntegrityError(f"this UNet's config has no 'ablation' entry: its edit is missing; {_AGAIN}")
        if ablation.get("format") != FORMAT:
            raise AblationIntegrityError(f"edit format {ablation.get('format')!r} is not known to this file (it knows {FORMAT})")
        if config.get("mid_block_type") != SENTINEL:
            raise AblationIntegrityError(f"'mid_block_type' in the UNet's config is not {SENTINEL!r}: the config was altered")
        super().__init__(**{**config, "mid_block_type": ablation["mid_block_type"]})
        # The parent registered its own values over ours.
        self.register_to_config(**{**config, "mid_block_type": SENTINEL, "ablation": ablation})
        for stock, stored in _RENAMED.items():
            self._modules[stored] = self._modules.pop(stock)
            self._modules[stock] = _Barrier()
        self.ablations = nn.ModuleDict()
        for name, shape in ablation["hookpoints"].items():
            module = FeatureAblation(**shape, residual=ablation["residual"], gate=ablation["gate"])
            self.ablations[name.replace(".", "-")] = module
            self.get_submodule(name).register_forward_hook(module.on_output, with_kwargs=True)

    @property
    def conv_in(self) -> nn.Module:
        """The stock input convolution, stored under another name so that no stock loader takes this file's weights.

        It is here only while the UNet runs: classes that copy it block by block (`UNetMotionModel.from_unet2d`) find a module that raises.
        """
        return self._modules["conv_in" if getattr(_STATE, "timestep", None) is None else _RENAMED["conv_in"]]

    def forward(self, sample: torch.Tensor, timestep: Any, encoder_hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """As in the parent; `timestep` may be a number or a tensor, integer or float, one or one a row."""
        outer = getattr(_STATE, "timestep", None), getattr(_STATE, "left", 0)
        _STATE.timestep, _STATE.left = torch.as_tensor(timestep, dtype=torch.float32, device=sample.device).reshape(-1), len(self.ablations)
        try:
            found = super().forward(sample, timestep, encoder_hidden_states, *args, **kwargs)
            if _STATE.left:
                raise AblationIntegrityError("a block of this UNet was replaced, or its hooks removed, and its edit with it; load it again")
            return found
        finally:
            _STATE.timestep, _STATE.left = outer

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
        """Hash of what decides (features, timesteps, thresholds, gains); no cast of the model changes it."""
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
            raise AblationIntegrityError("quantising an edited UNet on load is not supported: its edit could not be checked")
        want_info = kwargs.pop("output_loading_info", False)
        try:
            model, info = super().from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **kwargs)
        except ValueError as error:
            if "expected shape" not in str(error):
                raise
            what = str(error).partition(". If you want")[0]  # diffusers goes on to advise how to load it all the same
            raise AblationIntegrityError(f"weights that don't fit the UNet's config ({what}): altered or truncated; {_AGAIN}") from error
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if info.get(kind):
                names = ", ".join(sorted(str(k) for k in info[kind])[:4])
                raise AblationIntegrityError(f"{kind.replace('_', ' ')} in the edited UNet's weights: {names}; {_AGAIN}")
        model.check_edit()
        model.ablations.to(model.dtype)
        return (model, info) if want_info else model

    @functools.wraps(UNet2DConditionModel.save_pretrained)
    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        self.seal()
        Path(save_directory).mkdir(parents=True, exist_ok=True)  # the code first, since the parent may upload the folder
        (Path(save_directory) / f"{_MODULE_NAME}.py").write_bytes(_SOURCE)
        super().save_pretrained(save_directory, *args, **kwargs)

    def load_lora_adapter(self, weights: Any, prefix: Any = "transformer", **kwargs: Any) -> Any:
        """As in the parent; what is for the input convolution goes to where that is stored."""
        start = f"{prefix}." if prefix else ""
        weights = dict(weights) if isinstance(weights, dict) else weights
        for held in (h for h in (weights, kwargs.get("network_alphas")) if isinstance(h, dict)):
            for key in [k for k in held if k.startswith(f"{start}conv_in.")]:
                held[start + "edited_" + key.removeprefix(start)] = held.pop(key)
        return super().load_lora_adapter(weights, prefix, **kwargs)


# The class claims a module name that carries this file's hash (two repositories' files of one name overwrite each other
# in diffusers' cache, and `save_pretrained` writes the name into model_index.json); make that name importable here. A second
# copy of this very file takes the first one's classes, so that either's objects can be pickled by that name.
if (_first := sys.modules.setdefault(_MODULE_NAME, sys.modules[__name__])) is not sys.modules[__name__]:
    globals().update({k: v for k, v in vars(_first).items() if isinstance(v, type) and v.__module__ in (_first.__name__, _MODULE_NAME)})
