"""`PixArtTransformer2DModel` of PixArt-Sigma and PixArt-Alpha: it predicts noise, and its spread beside it. Needs no torch until it has tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from ..common.errors import SaeuronError
from .cross_attending import CrossAttending
from .sizes import Sizes

_MULTIPLE = 8
"""its pipeline takes sides that are multiples of so many pixels"""
_CONDITIONED = 128
"""`sample_size` of models that take a picture's size as an input, unless their config says otherwise"""


class PixArt(CrossAttending):
    """See `CrossAttending`."""

    cls = "PixArtTransformer2DModel"
    sentinel = "norm_type"
    defaults: ClassVar = {"in_channels": 4, "out_channels": 8, "caption_channels": None}

    def sizes(self, config: Mapping[str, Any], vae: Mapping[str, Any]) -> Sizes:
        return self.sized(config, len(vae["block_out_channels"]), _MULTIPLE)

    def check_fit(self, config: Any, vae: Any, texts: Mapping[str, Any]) -> None:
        self.check_parts(config, vae, texts)
        if config.out_channels not in (None, config.in_channels, 2 * config.in_channels):
            raise SaeuronError(
                f"'out_channels' in transformer/config.json is {config.out_channels!r}; it must be {config.in_channels}, or twice as many"
            )
        conditioned = config.use_additional_conditions
        if config.sample_size == _CONDITIONED if conditioned is None else conditioned:
            raise SaeuronError(
                "this PixArt takes the picture's size as an input ('use_additional_conditions' in transformer/config.json, as the 1024 px models of PixArt-Alpha have it), which is not supported"
            )

    def predicted(self, output: Any, channels: int) -> Any:
        """The noise, without its spread, where that is predicted too."""
        return output[:, :channels]

    def calibrating(self, scheduler: Any, mended: Callable[[Any], Any]) -> Any:
        """Its own, if that is a DPM-Solver that draws no noise; else DDIM."""
        from .schedulers import ddim_of

        own = type(scheduler).__name__ == "DPMSolverMultistepScheduler" and "sde" not in scheduler.config.get("algorithm_type", "")
        return scheduler if own else ddim_of(mended, scheduler)

    def check_scheduler(self, scheduler: Any) -> None:
        super().check_scheduler(scheduler)
        if scheduler.config.get("use_flow_sigmas"):
            raise SaeuronError("its scheduler has 'use_flow_sigmas' on, but PixArt predicts noise; switch it off")
