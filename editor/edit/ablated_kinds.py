"""The edited network of each kind: its stock class of diffusers with `FeatureAblation` modules on its hookpoints.

The last of three files that are shipped as one; see `ablated_network.py` for what they do and how they fail closed.
"""

from __future__ import annotations

import functools
import inspect
import sys
from typing import Any

import torch
from diffusers import (
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from diffusers.configuration_utils import register_to_config

# Pickles look for all classes here.
from .ablated_network import _Ablated, _Barrier, _explicit_signature, _stored  # noqa: F401
from .feature_ablation import _MODULE_NAME, AblationIntegrityError, FeatureAblation, FireGate, Seam, _Pickled  # noqa: F401


class AblatedUNet2DConditionModel(_Ablated, UNet2DConditionModel):
    """`UNet2DConditionModel` with an edit.

    Args:
        ablation: `{"format", "stock", "residual", "gate", "sha256", "hookpoints": {name: {"width", "latents",
            "k", "features", "timesteps", "unit_norm", "activation", "subtract_bias", "reads", "replace_by", "spread", "gain", "norm"}}}`; written by `saeuron`, checked at every load.
        **config: the stock network's config, except that the entry `KEY` holds `SENTINEL`.
    """

    __module__ = _MODULE_NAME
    KEY, RENAMED = "mid_block_type", "conv_in"
    conv_in = _stored("conv_in")

    @register_to_config
    @_explicit_signature(UNet2DConditionModel)
    def __init__(self, *, ablation: dict | None = None, **config: Any) -> None:
        self._edited_init(super().__init__, ablation, config)

    @functools.wraps(UNet2DConditionModel.forward)
    def forward(self, sample: torch.Tensor, timestep: Any, encoder_hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """As in the parent; `timestep` may be a number or a tensor, integer or float, one or one a row."""
        level = torch.as_tensor(timestep, dtype=torch.float32, device=sample.device).reshape(-1)
        return self._run(level, functools.partial(super().forward, sample, timestep, encoder_hidden_states, *args, **kwargs))


def _level(stock: Any, args: tuple, kwargs: dict[str, Any], scale: float) -> torch.Tensor:
    """The noise level of a transformer's call, float32 `[1]` or `[B]`."""
    given = inspect.signature(stock.forward).bind_partial(None, *args, **kwargs).arguments
    return torch.as_tensor(given["timestep"], dtype=torch.float32, device=given["hidden_states"].device).reshape(-1) * scale


class AblatedSD3Transformer2DModel(_Ablated, SD3Transformer2DModel):
    """`SD3Transformer2DModel` with an edit; arguments as of `AblatedUNet2DConditionModel`."""

    __module__ = _MODULE_NAME
    KEY, RENAMED = "qk_norm", "context_embedder"
    context_embedder = _stored("context_embedder")

    @register_to_config
    @_explicit_signature(SD3Transformer2DModel)
    def __init__(self, *, ablation: dict | None = None, **config: Any) -> None:
        self._edited_init(super().__init__, ablation, config)

    @functools.wraps(SD3Transformer2DModel.forward)
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As in the parent."""
        return self._run(_level(SD3Transformer2DModel, args, kwargs, 1.0), functools.partial(super().forward, *args, **kwargs))


class AblatedFluxTransformer2DModel(_Ablated, FluxTransformer2DModel):
    """`FluxTransformer2DModel` with an edit; arguments as of `AblatedUNet2DConditionModel`."""

    __module__ = _MODULE_NAME
    # No entry of its config is a string that is checked, so a number is none.
    KEY, RENAMED = "num_layers", "x_embedder"
    x_embedder = _stored("x_embedder")

    @register_to_config
    @_explicit_signature(FluxTransformer2DModel)
    def __init__(self, *, ablation: dict | None = None, **config: Any) -> None:
        self._edited_init(super().__init__, ablation, config)

    @functools.wraps(FluxTransformer2DModel.forward)
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As in the parent, whose timesteps are 0 to 1."""
        return self._run(_level(FluxTransformer2DModel, args, kwargs, 1000.0), functools.partial(super().forward, *args, **kwargs))


class AblatedSanaTransformer2DModel(_Ablated, SanaTransformer2DModel):
    """`SanaTransformer2DModel` with an edit; arguments as of `AblatedUNet2DConditionModel`."""

    __module__ = _MODULE_NAME
    KEY, RENAMED = "qk_norm", "proj_out"
    proj_out = _stored("proj_out")

    @register_to_config
    @_explicit_signature(SanaTransformer2DModel)
    def __init__(self, *, ablation: dict | None = None, **config: Any) -> None:
        self._edited_init(super().__init__, ablation, config)

    @functools.wraps(SanaTransformer2DModel.forward)
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As in the parent."""
        return self._run(_level(SanaTransformer2DModel, args, kwargs, 1.0), functools.partial(super().forward, *args, **kwargs))


class AblatedPixArtTransformer2DModel(_Ablated, PixArtTransformer2DModel):
    """`PixArtTransformer2DModel` with an edit; arguments as of `AblatedUNet2DConditionModel`."""

    __module__ = _MODULE_NAME
    KEY, RENAMED = "norm_type", "proj_out"
    proj_out = _stored("proj_out")

    @register_to_config
    @_explicit_signature(PixArtTransformer2DModel)
    def __init__(self, *, ablation: dict | None = None, **config: Any) -> None:
        self._edited_init(super().__init__, ablation, config)

    @functools.wraps(PixArtTransformer2DModel.forward)
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As in the parent."""
        return self._run(_level(PixArtTransformer2DModel, args, kwargs, 1.0), functools.partial(super().forward, *args, **kwargs))


# The classes claim a module name that carries the shipped text's hash (two repositories' files of one name overwrite each other
# in diffusers' cache, and `save_pretrained` writes the name into model_index.json); make that name importable here. A second
# copy of that very text takes the first one's classes, so that either's objects can be pickled by that name.
if (_first := sys.modules.setdefault(_MODULE_NAME, sys.modules[__name__])) is not sys.modules[__name__]:
    globals().update({k: v for k, v in vars(_first).items() if isinstance(v, type)})
