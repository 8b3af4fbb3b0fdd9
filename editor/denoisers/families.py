"""What differs between the kinds of pipelines that can be edited, in one table that everything else reads. Needs no torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..common.errors import SaeuronError
from ..common.files import read_json
from .autoencoders import DC, KL, Autoencoder
from .denoiser import Denoiser
from .flux import Flux
from .pixart import PixArt
from .sana import INSTRUCTION, Sana
from .sd3 import SD3
from .sizes import Sizes
from .unet import UNet


@dataclass(frozen=True)
class TextEncoder:
    """A text encoder of a pipeline."""

    name: str
    """component, its folder, and the folder of its ONNX graph"""
    tokenizer: str
    """component and folder of the tokenizer whose ids it takes"""
    outputs: tuple[str, ...]
    """fields of its output in optimum's order; clients take the first one by place"""
    cls: str
    """name of its class in transformers"""
    hidden_states: bool = False
    """whether the pipeline reads inner layers: `hidden_states.0` (embeddings) to `hidden_states.N` follow the other outputs"""
    length: int | None = None
    """tokens that the pipeline pads a prompt to, unless its caller says otherwise, as we do where its tokenizer takes fewer; None: as many as that says"""
    cuts: bool = False
    """whether it may read a part of a prompt only, since another encoder reads it whole"""
    masked: bool = False
    """whether it is told which tokens are padding; the denoiser then is too, and the length of its graph's texts is dynamic"""
    side: str | None = None
    """where the pipeline pads, whatever the tokenizer says; None: as that says"""
    kept: int = 0
    """tokens of `length` that no prompt gets, since the pipeline cuts so much earlier"""

    @property
    def copies(self) -> tuple[str, ...]:
        """Files that say once more what `tokenizer.json` says, for older clients; a CLIP's byte pairs have them."""
        return ("vocab.json", "merges.txt") if self.cls.startswith("CLIP") else ()

    def tokens(self, pipeline: Any) -> int:
        """Tokens that a prompt is padded to, which may be less than the network could take."""
        return int(self.most(getattr(pipeline, self.tokenizer)))

    def most(self, tokenizer: Any) -> Any:
        """The same by its tokenizer alone; that may say anything."""
        return self._padded(tokenizer.model_max_length)

    def _padded(self, said: Any) -> Any:
        """As many as the tokenizer says, or as the pipeline does where that is less."""
        return said if self.length is None or (isinstance(said, int | float) and said < self.length) else self.length

    def tokens_in(self, root: Path) -> int:
        """`tokens` of the pipeline in a folder.

        Raises:
            SaeuronError: its tokenizer's config has no such number.
        """
        path = root / self.tokenizer / "tokenizer_config.json"
        tokens = self._padded(read_json(path).get("model_max_length"))
        if type(tokens) is not int:
            raise SaeuronError(f"{path}: 'model_max_length' is {tokens!r}; it must be a whole number")
        return tokens

    @property
    def inputs(self) -> tuple[str, ...]:
        """Of its ONNX graph, in order, int64 `[B, L]`."""
        return ("input_ids", "attention_mask") if self.masked else ("input_ids",)

    def tokenized(self, tokenizer: Any, prompts: Sequence[str], tokens: int) -> dict[str, Any]:
        """`inputs` for prompts padded and cut to so many tokens, int64 `[P, tokens]` of numpy."""
        side = {} if self.side is None else {"padding_side": self.side}
        found = tokenizer(list(prompts), padding="max_length", max_length=tokens, truncation=True, return_tensors="np", **side)
        return {name: found[name].astype("int64") for name in self.inputs}

    def encode(self, network: Any, input_ids: Any, attention_mask: Any = None) -> dict[str, Any]:
        """Run it: `inputs` `[B, L]` → output name → tensor (`[B, L, D]`, pooled ones `[B, D]`), named and ordered as in the ONNX graph."""
        options: dict[str, Any] = {"output_hidden_states": True} if self.hidden_states else {}
        if self.masked:
            options["attention_mask"] = attention_mask
        if self.cls == "Gemma2Model":  # it would keep what a language model needs for its next word
            options["use_cache"] = False
        found = network(input_ids, **options)
        layers = found.hidden_states if self.hidden_states else ()
        return {**{name: getattr(found, name) for name in self.outputs}, **{f"hidden_states.{i}": h for i, h in enumerate(layers)}}

    def names(self, layers: int) -> list[str]:
        """Names that `encode` gives for a network of so many layers."""
        return [*self.outputs, *(f"hidden_states.{i}" for i in range(layers + 1 if self.hidden_states else 0))]

    def used(self, layers: int) -> list[str]:
        """Those of `names` that a pipeline reads or a client may take by place; of the inner layers the last but one."""
        return [*self.outputs, *([f"hidden_states.{layers - 1}"] if self.hidden_states else [])]


@dataclass(frozen=True)
class Family:
    """A diffusers pipeline class."""

    pipeline: str
    """its name in diffusers, and in `model_index.json`"""
    denoiser: Denoiser
    text_encoders: tuple[TextEncoder, ...]
    optional: tuple[str, ...]
    """networks that a pipeline may lack"""
    options: tuple[str, ...]
    """settings of its constructor, kept in `model_index.json`"""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """settings of its constructor that we always give"""
    upcasts_vae: bool = False
    """whether it runs a float16 autoencoder in float32 where the autoencoder's config says `force_upcast`"""
    sequence: tuple[str, ...] = ("text_encoder",)
    """text encoders whose tokens, one after the other, the denoiser attends to"""
    mends: Mapping[str, Any] = field(default_factory=dict)
    """settings of a scheduler that its constructor sets, whatever the file says, where the scheduler has them"""
    vae: Autoencoder = KL
    lowers: bool = False
    """whether it reads prompts in lower case, without blanks around them"""
    instruction: str = ""
    """what it puts before each prompt, but not before a negative one"""
    calls: Mapping[str, Any] = field(default_factory=dict)
    """what we give to each call"""

    @property
    def cls(self) -> Any:
        """The class itself."""
        import diffusers

        return getattr(diffusers, self.pipeline)

    @property
    def networks(self) -> tuple[str, ...]:
        """Components with weights that every pipeline of the family has."""
        return (self.denoiser.component, *(t.name for t in self.text_encoders), "vae")

    @property
    def classes(self) -> dict[str, str]:
        """Network → name of the class that it has to have."""
        found = {self.denoiser.component: self.denoiser.cls, **{t.name: t.cls for t in self.text_encoders}, "vae": self.vae.cls}
        return {**found, **{name: _OPTIONAL[name] for name in self.optional}}

    def class_of(self, network: str) -> Any:
        """The class of a network, from diffusers or transformers."""
        import diffusers
        import transformers

        if network == "safety_checker":
            from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

            return StableDiffusionSafetyChecker
        return getattr(diffusers if network in (self.denoiser.component, "vae") else transformers, self.classes[network])

    def mended(self, scheduler: Any) -> Any:
        """A scheduler as the pipeline's constructor leaves it."""
        from ..common.quiet import quiet_loading

        parts = (*self.networks, *(t.tokenizer for t in self.text_encoders), *self.extras)
        switches = {"requires_safety_checker": False} if "requires_safety_checker" in self.options else {}
        with quiet_loading():
            return self.cls(**dict.fromkeys(parts), scheduler=scheduler, **switches, **self.fixed).scheduler

    @property
    def extras(self) -> tuple[str, ...]:
        """Components of its constructor that text-to-image does without."""
        given = inspect.signature(self.cls.__init__).parameters
        return tuple(name for name in ("feature_extractor", *self.optional) if name in given)

    @property
    def folders(self) -> tuple[str, ...]:
        """Folders that a whole pipeline has."""
        return (*self.networks, *(t.tokenizer for t in self.text_encoders), "scheduler")

    @property
    def graphs(self) -> tuple[str, ...]:
        """Folders of the ONNX graphs, the denoiser's last."""
        return (*(t.name for t in self.text_encoders), "vae_decoder", "vae_encoder", self.denoiser.component)

    def calibrating(self, scheduler: Any) -> Any:
        """The scheduler with which activations are collected in the place of a pipeline's own; see `Denoiser.calibrating`."""
        return self.denoiser.calibrating(scheduler, self.mended)

    def text_tokens(self, pipeline: Any) -> int:
        """Tokens of text that the denoiser is given."""
        return sum(text.tokens(pipeline) for text in self.text_encoders if text.name in self.sequence)

    def telling(self, scheduler: Any, sides: tuple[int, int]) -> Callable[[int], Mapping[str, Any]]:
        """Number of steps → what a pipeline of this family gives to `set_timesteps` besides, for latents of these sides."""
        return lambda steps: self.denoiser.told(scheduler.config, steps, sides)

    def calling(self, pipeline: Any) -> dict[str, Any]:
        """What each call of a pipeline is given besides, so that it pads prompts as `TextEncoder.tokens` says, and draws the size that is asked for."""
        lengths = [text.tokens(pipeline) for text in self.text_encoders if text.length is not None]
        return {**self.calls, **({"max_sequence_length": lengths[0]} if lengths else {})}

    def text_encoder(self, name: str) -> TextEncoder | None:
        """The text encoder of that name, or None."""
        return next((t for t in self.text_encoders if t.name == name), None)


_OPTIONAL = {"safety_checker": "StableDiffusionSafetyChecker", "image_encoder": "CLIPVisionModelWithProjection"}

# Prompts would be cleaned only where a package happens to be installed, and pictures of other sizes resized.
_PLAIN = {"clean_caption": False, "use_resolution_binning": False}

FAMILIES = (
    Family(
        "StableDiffusionPipeline",
        UNet(),
        (TextEncoder("text_encoder", "tokenizer", ("last_hidden_state", "pooler_output"), "CLIPTextModel"),),
        optional=("safety_checker", "image_encoder"),
        options=("requires_safety_checker",),
        mends={"steps_offset": 1, "clip_sample": False},
    ),
    Family(
        "StableDiffusionXLPipeline",
        UNet(normalises_latents=True),
        (
            TextEncoder("text_encoder", "tokenizer", ("last_hidden_state", "pooler_output"), "CLIPTextModel", hidden_states=True),
            TextEncoder(
                "text_encoder_2", "tokenizer_2", ("text_embeds", "last_hidden_state"), "CLIPTextModelWithProjection", hidden_states=True
            ),
        ),
        optional=("image_encoder",),
        options=("force_zeros_for_empty_prompt",),
        # A watermark that is drawn only where a package happens to be installed can't be compared.
        fixed={"add_watermarker": False},
        upcasts_vae=True,
    ),
    Family(
        "StableDiffusion3Pipeline",
        SD3(),
        (
            TextEncoder(
                "text_encoder",
                "tokenizer",
                ("text_embeds", "last_hidden_state"),
                "CLIPTextModelWithProjection",
                hidden_states=True,
                cuts=True,
            ),
            TextEncoder(
                "text_encoder_2",
                "tokenizer_2",
                ("text_embeds", "last_hidden_state"),
                "CLIPTextModelWithProjection",
                hidden_states=True,
                cuts=True,
            ),
            TextEncoder("text_encoder_3", "tokenizer_3", ("last_hidden_state",), "T5EncoderModel", length=256),
        ),
        optional=(),
        options=(),
        sequence=("text_encoder", "text_encoder_3"),
    ),
    Family(
        "FluxPipeline",
        Flux(),
        (
            TextEncoder("text_encoder", "tokenizer", ("last_hidden_state", "pooler_output"), "CLIPTextModel", cuts=True),
            TextEncoder("text_encoder_2", "tokenizer_2", ("last_hidden_state",), "T5EncoderModel", length=512),
        ),
        optional=(),
        options=(),
        sequence=("text_encoder_2",),
    ),
    Family(
        "SanaPipeline",
        Sana(),
        (TextEncoder("text_encoder", "tokenizer", ("last_hidden_state",), "Gemma2Model", length=300, masked=True, side="right", kept=1),),
        optional=(),
        options=(),
        vae=DC,
        lowers=True,
        instruction=INSTRUCTION,
        calls=_PLAIN,
    ),
    *(
        Family(
            pipeline,
            PixArt(),
            (TextEncoder("text_encoder", "tokenizer", ("last_hidden_state",), "T5EncoderModel", length=length, masked=True),),
            optional=(),
            options=(),
            lowers=True,
            calls=_PLAIN,
        )
        for pipeline, length in (("PixArtSigmaPipeline", 300), ("PixArtAlphaPipeline", 120))
    ),
)


def family_of(pipeline: Any) -> Family:
    """The family of an open pipeline, or of a `model_index.json`.

    Raises:
        SaeuronError: none of `FAMILIES`.
    """
    names = [pipeline.get("_class_name")] if isinstance(pipeline, Mapping) else [c.__name__ for c in type(pipeline).__mro__]
    found = next((f for f in FAMILIES if f.pipeline in names), None)
    if found is None:
        raise SaeuronError(f"{names[0]} can't be edited; only {_listed([f.pipeline for f in FAMILIES])} can")
    return found


def _listed(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def family_in(root: Path) -> Family:
    """The family of the pipeline in a folder.

    Raises:
        SaeuronError: see `family_of`; no index.
    """
    return family_of(read_json(root / "model_index.json"))


def network_of(pipeline: Any) -> Any:
    """The network of an open pipeline that denoises."""
    return getattr(pipeline, family_of(pipeline).denoiser.component)


def denoiser_of(network: Any) -> Denoiser:
    """What kind of network it is, or is made from; settings of its pipeline (`UNet.normalises_latents`) are not known here.

    Raises:
        SaeuronError: none of `FAMILIES`.
    """
    names = [c.__name__ for c in type(network).__mro__]
    found = next((f.denoiser for f in FAMILIES if f.denoiser.cls in names), None)
    if found is None:
        raise SaeuronError(f"{names[0]} can't be edited; only {_listed(list(dict.fromkeys(f.denoiser.cls for f in FAMILIES)))} can")
    return found


def sizes_of(pipeline: Any) -> Sizes:
    """Sizes that an open pipeline takes."""
    return family_of(pipeline).denoiser.sizes(network_of(pipeline).config, pipeline.vae.config)


def sizes_in(root: Path) -> Sizes:
    """Sizes that the pipeline in a folder takes.

    Raises:
        SaeuronError: a config lacks them.
    """
    denoiser = family_in(root).denoiser
    config, vae = (read_json(root / name / "config.json") for name in (denoiser.component, "vae"))
    try:
        return denoiser.sizes(config, vae)
    except (KeyError, TypeError, ValueError) as error:
        raise SaeuronError(
            f"'{root}': the {denoiser.noun}'s or the autoencoder's config lacks {error}, or holds something else there"
        ) from None


def telling_in(root: Path, scheduler: Any, height: int | None = None, width: int | None = None) -> Callable[[int], Mapping[str, Any]]:
    """`Family.telling` of the pipeline in a folder, for pictures of this size in pixels; default: the model's own."""
    sizes = sizes_in(root)
    # Of a model without a size of its own nothing depends on it, unless one is given.
    sides = sizes.latents(height, width) if sizes.own or (height and width) else (0, 0)
    return family_in(root).telling(scheduler, sides)


def rebuilt(pipeline: Any, **parts: Any) -> Any:
    """The same pipeline with some of its components replaced."""
    family = family_of(pipeline)
    options = {name: getattr(pipeline.config, name) for name in family.options}
    return family.cls(**{**pipeline.components, **parts}, **options, **family.fixed)
