"""What everything else asks about the network that denoises. One file a kind of network fills it; `unet.py` is the example. Needs no torch."""

from __future__ import annotations

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..common.errors import SaeuronError
from ..common.names import normalise
from .sizes import Sizes

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

Axes = dict[str, tuple[int | str, ...]]
"""tensor → its axes: a number where an axis is fixed, else its name in the graph"""


@dataclass(frozen=True)
class Text:
    """What a denoiser is given of prompts."""

    states: Tensor
    """`[B, L, D]`"""
    pooled: Tensor | None = None
    """`[B, P]`, where it takes one"""

    def of(self, rows: slice) -> Text:
        """Some of the prompts."""
        return Text(self.states[rows], None if self.pooled is None else self.pooled[rows])

    def named(self) -> dict[str, Tensor]:
        """As the pipeline takes them."""
        return {"prompt_embeds": self.states} | ({} if self.pooled is None else {"pooled_prompt_embeds": self.pooled})


class Denoiser(ABC):
    """A kind of network: where it lies in a pipeline, how its blocks and calls are read, which latents it takes.

    *Inputs* are tensors by the names that the ONNX graph has for them, in its order. The first is the noised latents, batch first.
    """

    component: ClassVar[str]
    """attribute of the pipeline, folder of its files, and folder of its ONNX graph"""
    cls: ClassVar[str]
    """name of its class in diffusers"""
    sentinel: ClassVar[str]
    """entry of its config that the edited class fills with what no other class knows"""
    renamed: ClassVar[str]
    """its layer that the edited class stores under another name"""
    noun: ClassVar[str]
    """what messages call it"""
    blocks: ClassVar[str]
    """regular expression of the modules to which an SAE belongs; others may be hookpoints too"""
    float32: ClassVar[tuple[str, ...]]
    """inputs that are float32 at any precision"""
    whole: ClassVar[tuple[str, ...]] = ()
    """inputs that are whole numbers, int64: masks of text, 1 for a token and 0 for padding"""
    cross_attends: ClassVar[bool] = False
    """whether text comes in by cross-attention, whose keys and values `weights` edits"""
    mapped: ClassVar[bool] = False
    """whether tokens have places in a map, as `replace` needs them"""
    flows: ClassVar[bool] = False
    """whether noise turns into a picture along a straight flow (flow matching), not by diffusion"""
    schedulers: ClassVar[tuple[str, ...]] = ()
    """names of the only schedulers that it is run by; none: whichever its pipeline takes"""
    shifts: ClassVar[bool] = False
    """whether its autoencoder's latents are shifted too (`shift_factor`), and not only scaled"""
    begins: ClassVar[bool] = False
    """whether a loop without torch can begin from a picture: `scaled` is filled"""
    streams: ClassVar[tuple[str, ...]] = ()
    """streams of a block's tokens besides the picture's, which a hookpoint may name after a colon"""

    @property
    def edited_class(self) -> str:
        """Name of the class that ships its edit."""
        return f"Ablated{self.cls}"

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
        block, _, stream = normalise(name).partition(":")
        modules = dict(network.named_modules())
        if not block or block not in modules:
            known = ", ".join(n for n in modules if re.fullmatch(self.blocks, n)) or "none"
            raise SaeuronError(f"hookpoint '{block}' is not in this {self.noun}; its transformer blocks are: {known}")
        if stream and stream not in self.streams:
            raise SaeuronError(f"hookpoint '{name}': a block of this {self.noun} has no stream '{stream}'; name the block alone")
        return modules[block]

    @abstractmethod
    def tokens(self, name: str, output: Any) -> Tensor:
        """Tokens `[B, L, D]` of whatever a block returned.

        Args:
            name: of the hookpoint; of two streams it says which.
            output: of the block.

        Raises:
            SaeuronError: a module whose output holds none.
        """

    @abstractmethod
    def with_tokens(self, name: str, output: Any, tokens: Tensor) -> Any:
        """The same kind of output with other tokens `[B, L, D]` in it."""

    @abstractmethod
    def input_tokens(self, name: str, args: tuple, kwargs: Mapping[str, Any]) -> Tensor:
        """Tokens `[B, L, D]` that a block was called with."""

    def places(self, output: Any) -> np.ndarray:
        """Row and column of each of a block's tokens, int64 `[L, 2]`.

        Raises:
            SaeuronError: they have none.
        """
        raise SaeuronError(
            f"tokens of a {self.noun} have no places in a map, so none can be replaced by another; choose another --intervention"
        )

    def reads_text(self, weight: str) -> bool:
        """Whether the weight `[R, D]` of that name turns text states into keys or values of cross-attention; False for all where there is none."""
        return False

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
    def noise_level(self, inputs: Mapping[str, Any]) -> Any:
        """The noise level of a forward, of torch or numpy as its inputs are, `[1]` or `[B]`, 0 to 1000 from clean to noise: what an edit's tables are looked up by."""

    @abstractmethod
    def at_level(self, level: float, rows: int) -> dict[str, np.ndarray]:
        """The inputs that tell the network this noise level, float32, in a batch of `rows`."""

    def told_as(self, network: Any, dtype: Any) -> None:  # noqa: B027
        """Have a float32 copy of a network told its conditions as one of `dtype` is, where network or pipeline round them."""

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
        """Inputs and outputs of a network's graph; its dynamic axes are those of `lengths`.

        Raises:
            SaeuronError: the network takes something that isn't supported.
        """

    def shapes(self, config: Mapping[str, Any], rows: int, sides: tuple[int, int], tokens: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the inputs for a batch of `rows`, latents of these sides and a text of so many tokens."""
        known = self.lengths(rows, sides, tokens)
        return {name: tuple(known[a] if isinstance(a, str) else a for a in axes) for name, axes in self.axes(config)[0].items()}

    def lengths(self, rows: int, sides: tuple[int, int], tokens: int) -> dict[str, int]:
        """Lengths of the graph's dynamic axes; arguments as of `shapes`."""
        return {"batch_size": rows, "latent_height": sides[0], "latent_width": sides[1], "sequence_length": tokens}

    def packed(self, latents: Any) -> Any:
        """Latents `[B, C, h, w]`, of torch or numpy, in the form in which pipeline and scheduler have them."""
        return latents

    def unpacked(self, latents: Any, sides: tuple[int, int]) -> Any:
        """The counterpart of `packed`; `sides` are `h` and `w`."""
        return latents

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

    def scaled(self, latents: Any, vae: Mapping[str, Any]) -> Any:
        """The counterpart of `unscaled`: what the autoencoder's encoder gives `[B, C, h, w]` → clean latents, as the pipeline has them."""
        raise NotImplementedError

    @abstractmethod
    def check_fit(self, config: Any, vae: Any, texts: Mapping[str, Any]) -> None:
        """Raise `SaeuronError` unless the network takes what the pipeline's other networks give.

        Args:
            config: of the network, completed by its class's defaults; attributes and items.
            vae: the same of the autoencoder.
            texts: text encoder → its config, in the pipeline's order.
        """

    def check_scheduler(self, scheduler: Any) -> None:
        """Raise `SaeuronError` unless the pipeline can be run with this scheduler."""
        if not hasattr(scheduler, "scale_model_input"):
            name = type(scheduler).__name__
            raise SaeuronError(f"its scheduler is a {name}, which can't be run with a {self.noun} (flow matching is for other models)")

    def predicted(self, output: Any, channels: int) -> Any:
        """What of a network's output `[B, …]` a scheduler takes, for latents of so many channels."""
        return output

    def text(self, encoded: Mapping[str, Mapping[str, Tensor]]) -> Text:
        """What the pipeline makes of its text encoders' outputs (`TextEncoder.encode`, by encoder).

        Raises:
            SaeuronError: not known of this pipeline.
        """
        raise SaeuronError(f"what a pipeline of this {self.noun} makes of several text encoders is not built")

    def learning(
        self, network: Any, scheduler: Any, latents: Tensor, noise: Tensor, steps: Tensor, text: Text, guidance: float
    ) -> tuple[Tensor, Tensor]:
        """What the network says of noised latents, and what it was trained to say; one shape, batch first.

        Args:
            network: the denoiser's.
            scheduler: from `calibrating`.
            latents: clean ones `[B, C, h, w]`.
            noise: the same shape.
            steps: timesteps up to which they are noised `[B]`.
            text: of each.
            guidance: of a network that is told it.
        """
        raise NotImplementedError

    def told(self, scheduler: Mapping[str, Any], steps: int, sides: tuple[int, int]) -> dict[str, Any]:
        """What the pipeline gives to its scheduler's `set_timesteps`, besides the number of steps.

        Args:
            scheduler: its config.
            steps: of the loop.
            sides: rows and columns of the latents.
        """
        return {}

    @abstractmethod
    def calibrating(self, scheduler: Any, mended: Callable[[Any], Any]) -> Any:
        """The scheduler with which activations are collected in the place of a pipeline's own.

        Args:
            scheduler: the pipeline's.
            mended: a scheduler as the pipeline's constructor leaves it.

        Raises:
            SaeuronError: this one's noise can't be followed.
        """
