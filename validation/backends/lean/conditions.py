"""What each kind of network is told besides the latents and their noise level: text, sizes, guidance. The one place where kinds differ here.

Sources: diffusers/pipelines/stable_diffusion/pipeline_stable_diffusion.py, stable_diffusion_xl/pipeline_stable_diffusion_xl.py,
stable_diffusion_3/pipeline_stable_diffusion_3.py, flux/pipeline_flux.py, sana/pipeline_sana.py and pixart_alpha/pipeline_pixart_sigma.py (0.42).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ....editor.common.errors import SaeuronError
from ....editor.common.files import read_json
from ....editor.denoisers.families import Family, TextEncoder
from ...artifact.graphs import layers_of
from .tokenizer import TextTokenizer, tokenizer_for

Inputs = dict[str, np.ndarray]
"""by the names that the network's graph has for them"""
Run = Callable[[str, Inputs], Inputs]
"""text encoder, its inputs → its outputs"""


class Read(NamedTuple):
    """Texts as a text encoder gives them."""

    states: np.ndarray
    """`[B, L, D]`, of the layer that the pipeline reads"""
    outputs: Inputs
    """all of them"""


class Conditions(ABC):
    """Of one pipeline.

    Args:
        root: its folder.
        family: of the pipeline.
        inputs: the network's, with their axes (`Denoiser.axes`).
        run: runs a text encoder.

    Raises:
        SaeuronError: a file is missing or damaged, or the network takes something that is not known here.
    """

    given: ClassVar[frozenset[str]]
    """inputs that come from here"""

    def __init__(self, root: Path, family: Family, inputs: Mapping[str, tuple[int | str, ...]], run: Run) -> None:
        self._family, self._run = family, run
        denoiser = family.denoiser
        self._widths = {name: axes[-1] if axes else "" for name, axes in inputs.items() if name in self.given}
        elsewhere = {next(iter(inputs)), *denoiser.at_level(0.0, 1)}
        if surplus := sorted(set(inputs) - self.given - elsewhere):
            raise SaeuronError(f"this {denoiser.noun} takes '{surplus[0]}', which needs diffusers")
        self.tokenizers: dict[str, TextTokenizer] = {t.tokenizer: tokenizer_for(root, t) for t in family.text_encoders}
        self._layers = {t.name: _layers(root / t.name / "config.json") for t in family.text_encoders}

    @abstractmethod
    def texts(self, prompts: Sequence[str]) -> Inputs:
        """The inputs that follow from texts, a row each."""

    def negative(self, prompts: Sequence[str]) -> Inputs:
        """Those of negative prompts."""
        return self.texts(prompts)

    def nothing(self, texts: Inputs) -> Inputs:
        """Those of the negative prompts where none are given.

        Args:
            texts: the prompts'.
        """
        return self.negative([""] * len(next(iter(texts.values()))))

    def rest(self, rows: int, sides: tuple[int, int], factor: int, guidance: float) -> Inputs:
        """The inputs that follow from no text.

        Args:
            rows: of a forward.
            sides: rows and columns of the latents.
            factor: pixels a latent, along each side.
            guidance: the loop's.
        """
        return {}

    def check(self, inputs: Inputs) -> None:
        """Raise `SaeuronError` unless the network takes inputs of these widths."""
        for name, width in self._widths.items():
            found = inputs[name].shape[-1] if name in inputs else None
            if isinstance(width, int) and found != width:
                raise SaeuronError(f"the {self._family.denoiser.noun} takes '{name}' of width {width}, its pipeline gives {found}")

    def _read(self, text: TextEncoder, prompts: Sequence[str], tokens: int | None = None) -> Read:
        """What a text encoder gives of texts, padded to so many tokens; default: to as many as its tokenizer pads to."""
        given = dict(zip(text.inputs, self.tokenizers[text.tokenizer].rows(prompts, tokens), strict=False))
        outputs = self._run(text.name, given)
        # Of a CLIP whose inner layers are read it is the last but one.
        wanted = f"hidden_states.{self._layers[text.name] - 1}" if text.hidden_states else text.outputs[0]
        if missing := {wanted, *text.outputs} - set(outputs):
            raise SaeuronError(f"{text.name} gives no '{min(missing)}'; its network and its config.json come from different models")
        return Read(outputs[wanted], {**outputs, **given})


class UNetConditions(Conditions):
    """One CLIP or two side by side; of SDXL also pooled text and the picture's sizes."""

    given = frozenset({"encoder_hidden_states", "text_embeds", "time_ids"})

    def __init__(self, root: Path, family: Family, inputs: Mapping[str, tuple[int | str, ...]], run: Run) -> None:
        super().__init__(root, family, inputs, run)
        # The class's own default.
        zeros = read_json(root / "model_index.json").get("force_zeros_for_empty_prompt", True)
        self._zeros = "force_zeros_for_empty_prompt" in family.options and bool(zeros)

    def texts(self, prompts: Sequence[str]) -> Inputs:
        read = [self._read(text, prompts) for text in self._family.text_encoders]
        found = {"encoder_hidden_states": np.concatenate([each.states for each in read], axis=-1)}
        # SDXL's pooled text is that of the encoder with a projection.
        pooled = [each.outputs["text_embeds"] for each in read if "text_embeds" in each.outputs]
        if "text_embeds" in self._widths and pooled:
            found["text_embeds"] = pooled[0]
        return found

    def nothing(self, texts: Inputs) -> Inputs:
        return {name: np.zeros_like(value) for name, value in texts.items()} if self._zeros else super().nothing(texts)

    def rest(self, rows: int, sides: tuple[int, int], factor: int, guidance: float) -> Inputs:
        if "time_ids" not in self._widths:
            return {}
        size = [float(side * factor) for side in sides]
        return {"time_ids": np.tile(np.array([*size, 0, 0, *size], np.float32), (rows, 1))}


class SD3Conditions(Conditions):
    """Two CLIPs side by side, filled up to T5's width with zeros, and T5's tokens after them; pooled text of both CLIPs."""

    given = frozenset({"encoder_hidden_states", "pooled_projections"})

    def __init__(self, root: Path, family: Family, inputs: Mapping[str, tuple[int | str, ...]], run: Run) -> None:
        super().__init__(root, family, inputs, run)
        # diffusers pads both to the first one's length.
        first, second, _ = self.tokenizers.values()
        if first.length != second.length:
            raise SaeuronError(
                f"'{root}': tokenizer has rows of {first.length} tokens, tokenizer_2 of {second.length}, which needs diffusers"
            )

    def texts(self, prompts: Sequence[str]) -> Inputs:
        first, second, t5 = (self._read(text, prompts) for text in self._family.text_encoders)
        clips = np.concatenate([first.states, second.states], axis=-1)
        short = t5.states.shape[-1] - clips.shape[-1]
        if short < 0:
            raise SaeuronError(
                f"the CLIPs give text of width {clips.shape[-1]}, T5 only {t5.states.shape[-1]}; the parts come from different models"
            )
        return {
            "encoder_hidden_states": np.concatenate([np.pad(clips, ((0, 0), (0, 0), (0, short))), t5.states], axis=1),
            "pooled_projections": np.concatenate([each.outputs["text_embeds"] for each in (first, second)], axis=-1),
        }  # fmt: skip


class FluxConditions(Conditions):
    """T5's tokens, pooled text of CLIP, places of all tokens; of a network that was distilled from guidance its scale."""

    given = frozenset({"encoder_hidden_states", "pooled_projections", "txt_ids", "img_ids", "guidance"})

    def texts(self, prompts: Sequence[str]) -> Inputs:
        clip, t5 = (self._read(text, prompts) for text in self._family.text_encoders)
        return {"encoder_hidden_states": t5.states, "pooled_projections": clip.outputs["pooler_output"]}

    def rest(self, rows: int, sides: tuple[int, int], factor: int, guidance: float) -> Inputs:
        """A token of the picture is two by two latents: its row and column are the second and third number. Those of text have no place."""
        height, width = (side // 2 for side in sides)
        places = np.zeros((height, width, 3), np.float32)
        places[..., 1], places[..., 2] = np.arange(height)[:, None], np.arange(width)
        tokens = self.tokenizers[self._family.text_encoders[-1].tokenizer].length
        found = {"txt_ids": np.zeros((tokens, 3), np.float32), "img_ids": places.reshape(-1, 3)}
        return found | ({"guidance": np.full(rows, guidance, np.float32)} if "guidance" in self._widths else {})


def added_tokens(tokenizer: TextTokenizer, instruction: str) -> int:
    """By how many tokens rows are longer behind an instruction. Its start token counts twice, and diffusers leaves one more out."""
    return max(tokenizer.tokens(instruction) - 2, 0) if instruction else 0


class MaskedConditions(Conditions):
    """Tokens of one text encoder with their mask. Sana's prompts stand behind an instruction, of whose tokens the network is given the first alone."""

    given = frozenset({"encoder_hidden_states", "encoder_attention_mask"})

    def texts(self, prompts: Sequence[str]) -> Inputs:
        return self._masked(prompts, self._family.instruction)

    def negative(self, prompts: Sequence[str]) -> Inputs:
        return self._masked(prompts, "")

    def _masked(self, prompts: Sequence[str], instruction: str) -> Inputs:
        (text,) = self._family.text_encoders
        tokenizer = self.tokenizers[text.tokenizer]
        longer = added_tokens(tokenizer, instruction)
        read = self._read(text, [instruction + prompt.lower().strip() for prompt in prompts], tokenizer.length + longer)
        states, mask = read.states, read.outputs["attention_mask"]
        cut = [0, *range(1 + longer, states.shape[1])]
        return {"encoder_hidden_states": states[:, cut], "encoder_attention_mask": mask[:, cut]}


_KINDS: dict[str, type[Conditions]] = {
    "UNet2DConditionModel": UNetConditions, "SD3Transformer2DModel": SD3Conditions, "FluxTransformer2DModel": FluxConditions,
    "SanaTransformer2DModel": MaskedConditions, "PixArtTransformer2DModel": MaskedConditions,
}  # fmt: skip


def conditions_of(root: Path, family: Family, config: Mapping[str, Any], run: Run) -> Conditions:
    """Those of a pipeline; arguments and errors as of `Conditions`.

    Args:
        config: of the network.
    """
    denoiser = family.denoiser
    if denoiser.cls not in _KINDS:
        raise SaeuronError(f"the loop of a {denoiser.cls} needs diffusers")
    return _KINDS[denoiser.cls](root, family, denoiser.axes(config)[0], run)


def _layers(path: Path) -> int:
    """Layers of a text encoder."""
    if read_json(path).get("use_attention_mask"):
        raise SaeuronError(f"{path}: 'use_attention_mask' is on, which needs diffusers: the exported graph takes no mask")
    return layers_of(path)
