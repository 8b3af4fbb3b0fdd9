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

import hashlib
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .feature_ablation import _MODULE_NAME, _REPLACED, _SOURCE, _STATE, AblationIntegrityError, FeatureAblation, _Pickled

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
