"""What the transformers that are edited share: tokens of text and picture side by side, flow matching. Needs no torch until it has tensors."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common.errors import SaeuronError
from ..common.names import stream_of
from .denoiser import Denoiser, Text
from .sizes import Sizes, multiple_of

if TYPE_CHECKING:
    from torch import Tensor

TEXT = "text"
_MOST = 8192


class Doubled(Denoiser):
    """Guidance doubles the batch; a forward is told its noise levels as `timestep`, one a row."""

    def call(self, network: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        return network(**inputs, return_dict=False)[0]

    def noise_level(self, inputs: Mapping[str, Any]) -> Any:
        return inputs["timestep"].reshape(-1)

    def at_level(self, level: float, rows: int) -> dict[str, np.ndarray]:
        return {"timestep": full(level, rows)}

    def rows(self, guided: bool) -> int:
        return 2 if guided else 1

    def prompted(self, call: int, pictures: int, guided: bool) -> slice | None:
        """The negative half comes first."""
        return slice(-pictures, None)


class Transformer(Denoiser):
    """A block takes and gives tokens of the text and of the picture; a hookpoint is the picture's, or `NAME:text` the text's."""

    component = "transformer"
    noun = "transformer"
    flows = shifts = True
    schedulers = ("FlowMatchEulerDiscreteScheduler",)
    streams = (TEXT,)

    def tokens(self, name: str, output: Any) -> Tensor:
        """The stream's of `(text, picture)`, as the blocks return them; of the last block of some the text is missing."""
        found = output[_place(name)] if isinstance(output, tuple) and len(output) == 2 else output
        if getattr(found, "ndim", None) != 3:
            what = "text" if stream_of(name) else "picture"
            raise SaeuronError(f"'{name}' gives no tokens [B, L, D] of the {what}; choose a transformer block, or its other stream")
        return found

    def with_tokens(self, name: str, output: Any, tokens: Tensor) -> Any:
        if not isinstance(output, tuple):
            return tokens
        place = _place(name)
        return (*output[:place], tokens, *output[place + 1 :])

    def input_tokens(self, name: str, args: tuple, kwargs: Mapping[str, Any]) -> Tensor:
        by_name = "encoder_hidden_states" if stream_of(name) else "hidden_states"
        return kwargs[by_name] if by_name in kwargs else args[1 if stream_of(name) else 0]

    def learning(
        self, network: Any, scheduler: Any, latents: Tensor, noise: Tensor, steps: Tensor, text: Text, guidance: float
    ) -> tuple[Tensor, Tensor]:
        """The velocity on the straight line from the latents to the noise; packed, as the network has them."""
        along = (steps / scheduler.config.num_train_timesteps).to(latents)[:, None, None, None]
        noised = (1 - along) * latents + along * noise
        return self.call(network, self.fed(network.config, noised, steps, text, guidance)), self.packed(noise - latents)

    @abstractmethod
    def fed(self, config: Any, latents: Tensor, steps: Tensor, text: Text, guidance: float) -> dict[str, Tensor]:
        """Inputs of a forward on noised latents `[B, C, h, w]`, as the pipeline makes them; arguments as of `learning`."""

    def unscaled(self, latents: Any, vae: Mapping[str, Any]) -> Any:
        return latents / vae["scaling_factor"] + vae["shift_factor"]

    def calibrating(self, scheduler: Any, mended: Callable[[Any], Any]) -> Any:
        """Its own: Euler steps along the flow draw no noise, and any number of them is one of its schedules."""
        self.check_scheduler(scheduler)
        return scheduler

    def check_scheduler(self, scheduler: Any) -> None:
        name = type(scheduler).__name__
        if name not in self.schedulers:
            raise SaeuronError(f"its scheduler is a {name}; with a {self.noun} of this kind only {self.schedulers[0]} is supported")
        for key in ("stochastic_sampling", "invert_sigmas"):
            if scheduler.config.get(key):
                raise SaeuronError(f"its scheduler has '{key}' on, which is not supported; switch it off")

    def told(self, scheduler: Mapping[str, Any], steps: int, sides: tuple[int, int]) -> dict[str, Any]:
        """A shift of the noise that grows with the picture, where the scheduler has one (dynamic shifting)."""
        if not scheduler.get("use_dynamic_shifting"):
            return {}
        few, many = scheduler.get("base_image_seq_len", 256), scheduler.get("max_image_seq_len", 4096)
        low, high = scheduler.get("base_shift", 0.5), scheduler.get("max_shift", 1.15)
        slope = (high - low) / (many - few)
        return {"mu": sides[0] * sides[1] // 4 * slope + (low - slope * few)}

    @abstractmethod
    def channels(self, config: Mapping[str, Any]) -> int:
        """Channels of the latents that the autoencoder gives."""

    def sized(self, config: Mapping[str, Any], vae: Mapping[str, Any], own: Any, most: int | None) -> Sizes:
        """`sizes`, where the sides of the latents are multiples of two.

        Args:
            config: the network's.
            vae: the autoencoder's.
            own: latents along each side that the model was made for.
            most: latents along each side, at most.

        Raises:
            KeyError, TypeError, ValueError: the configs lack something.
        """
        levels = len(vae["block_out_channels"])
        numbers = (self.channels(config), own, levels, *(() if most is None else (most,)))
        if not all(type(n) is int and 1 <= n <= _MOST for n in numbers):
            raise ValueError(f"sizes from 1 to {_MOST}")
        factor = 2 ** (levels - 1)
        return Sizes(numbers[0], (own, own), factor, multiple_of(factor, 2), None if most is None else most * factor)

    def unit(self, config: Mapping[str, Any]) -> int:
        """Two latents along each side are a token."""
        return 2

    def check_vae(self, config: Any, vae: Any) -> None:
        """Raise `SaeuronError` unless the autoencoder's latents are those that the network was trained on."""
        shift = vae.get("shift_factor")
        if type(shift) not in (int, float) or not isfinite(shift):
            raise SaeuronError(f"'shift_factor' in vae/config.json is {shift!r}; it must be a number")
        if self.channels(config) != vae.latent_channels:
            raise SaeuronError(
                f"the transformer takes {self.channels(config)} channels, the autoencoder's latents have {vae.latent_channels}; inpainting and control models can't be edited, only text-to-image ones"
            )


def _place(name: str) -> int:
    return 0 if stream_of(name) else 1


def check_width(what: str, takes: Any, parts: Mapping[str, int]) -> None:
    """Raise `SaeuronError` unless the network takes what its text encoders give together."""
    if takes != sum(parts.values()):
        said = " and ".join(f"{name} gives {number}" for name, number in parts.items())
        raise SaeuronError(f"the transformer takes {what} of width {takes}, but {said}; its parts come from different models")


def full(value: float, rows: int) -> np.ndarray:
    """The same number for each row, float32 `[rows]`."""
    return np.full((rows,), value, np.float32)
