"""What everything else asks about the network that denoises. One file a kind of network fills it; `unet.py` is the example. Needs no torch."""

from __future__ import annotations

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from ..common.errors import SaeuronError
from ..common.names import normalise
from .sizes import Sizes

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

Axes = dict[str, tuple[int | str, ...]]
"""tensor → its axes: a number where an axis is fixed, else its name in the graph"""


class Denoiser(ABC):
    """A kind of network: where it lies in a pipeline, how its blocks and calls are read, which latents it takes.

    *Inputs* are tensors by the names that the ONNX graph has for them, in its order. The first is the noised latents, batch first.
    """

    component: ClassVar[str]
    """attribute of the pipeline, folder of its files, and folder of its ONNX graph"""
    cls: ClassVar[str]
    """name of its class in diffusers"""
    noun: ClassVar[str]
    """what messages call it"""
    blocks: ClassVar[str]
    """regular expression of the modules to which an SAE belongs; others may be hookpoints too"""
    float32: ClassVar[tuple[str, ...]]
    """inputs that are float32 at any precision"""

    @property
    def network_class(self) -> Any:
        """The class itself."""
        import diffusers

        return getattr(diffusers, self.cls)

    def find_hookpoint(self, network: nn.Module, name: str) -> nn.Module:
        """The block called `name`.

        Raises:
            SaeuronError: no such block; the message lists those to which an SAE belongs.
        """
        name = normalise(name)
        modules = dict(network.named_modules())
        if not name or name not in modules:
            known = ", ".join(n for n in modules if re.fullmatch(self.blocks, n)) or "none"
            raise SaeuronError(f"hookpoint '{name}' is not in this {self.noun}; its transformer blocks are: {known}")
        return modules[name]

    @abstractmethod
    def tokens(self, output: Any) -> Tensor:
        """Image tokens `[B, L, D]` of whatever a block returned.

        Raises:
            SaeuronError: a module whose output holds none.
        """

    @abstractmethod
    def with_tokens(self, output: Any, tokens: Tensor) -> Any:
        """The same kind of output with other tokens `[B, L, D]` in it."""

    @abstractmethod
    def input_tokens(self, args: tuple, kwargs: Mapping[str, Any]) -> Tensor:
        """Image tokens `[B, L, D]` that a block was called with."""

    def bound(self, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of a call of the network by name, however they were given."""
        return dict(inspect.signature(self.network_class.forward).bind(None, *args, **kwargs).arguments)

    @abstractmethod
    def inputs(self, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Inputs of a call of the network."""

    @abstractmethod
    def call(self, network: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        """One forward of the network; the counterpart of `inputs`."""

    @abstractmethod
    def noise_level(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The noise level of a forward, `[1]` or `[B]`, 0 to 1000 from clean to noise: what an edit's tables are looked up by."""

    @abstractmethod
    def at_level(self, level: float) -> dict[str, np.ndarray]:
        """The inputs that tell the network this noise level, float32."""

    @abstractmethod
    def rows(self, guided: bool) -> int:
        """Rows of a forward for each picture, with or without classifier-free guidance."""

    @abstractmethod
    def prompted(self, call: int, pictures: int, guided: bool) -> slice | None:
        """Rows of a forward that follow the prompts, and not the negative ones.

        Args:
            call: number of the forward within its loop, from 0.
            pictures: of the loop.
            guided: whether the loop uses classifier-free guidance.

        Returns:
            rows, one a picture; None where the whole forward follows the negative prompts.
        """

    @abstractmethod
    def axes(self, config: Mapping[str, Any]) -> tuple[Axes, Axes]:
        """Inputs and outputs of a network's graph; its dynamic axes are `batch_size`, `latent_height`, `latent_width` and `sequence_length` (the text's).

        Raises:
            SaeuronError: the network takes something that isn't supported.
        """

    def shapes(self, config: Mapping[str, Any], rows: int, sides: tuple[int, int], tokens: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the inputs for a batch of `rows`, latents of these sides and a text of so many tokens."""
        known = {"batch_size": rows, "latent_height": sides[0], "latent_width": sides[1], "sequence_length": tokens}
        return {name: tuple(known[a] if isinstance(a, str) else a for a in axes) for name, axes in self.axes(config)[0].items()}

    @abstractmethod
    def unit(self, config: Mapping[str, Any]) -> int:
        """Sides of the latents are multiples of this."""

    @abstractmethod
    def sizes(self, config: Mapping[str, Any], vae: Mapping[str, Any]) -> Sizes:
        """Sizes that a network takes, from its config and the autoencoder's.

        Raises:
            KeyError, TypeError, ValueError: the configs lack them.
        """

    @abstractmethod
    def unscaled(self, latents: Any, vae: Mapping[str, Any]) -> Any:
        """Final latents `[B, C, h, w]`, of torch or numpy → what the autoencoder of this config decodes, as the pipeline itself does it."""

    @abstractmethod
    def check_fit(self, config: Any, vae: Any, texts: Mapping[str, Any]) -> None:
        """Raise `SaeuronError` unless the network takes what the pipeline's other networks give.

        Args:
            config: of the network, completed by its class's defaults; attributes and items.
            vae: the same of the autoencoder.
            texts: text encoder → its config, in the pipeline's order.
        """

    @abstractmethod
    def calibrating(self, scheduler: Any, mended: Callable[[Any], Any]) -> Any:
        """The scheduler with which activations are collected in the place of a pipeline's own.

        Args:
            scheduler: the pipeline's.
            mended: a scheduler as the pipeline's constructor leaves it.

        Raises:
            SaeuronError: this one's noise can't be followed.
        """
