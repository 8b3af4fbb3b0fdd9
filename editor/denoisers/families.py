"""What differs between the kinds of pipelines that can be edited, in one table that everything else reads. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..common.errors import SaeuronError
from ..common.files import read_json
from .denoiser import Denoiser
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

    def tokens(self, pipeline: Any) -> int:
        """Tokens that the pipeline pads a prompt to: the tokenizer's length, which may be less than the network could take."""
        return int(getattr(pipeline, self.tokenizer).model_max_length)

    def encode(self, network: Any, input_ids: Any) -> dict[str, Any]:
        """Run it: ids `[B, L]` → output name → tensor (`[B, L, D]`, pooled ones `[B, D]`), named and ordered as in the ONNX graph."""
        found = network(input_ids, **({"output_hidden_states": True} if self.hidden_states else {}))
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
    mends: Mapping[str, Any] = field(default_factory=dict)
    """settings of a scheduler that its constructor sets, whatever the file says, where the scheduler has them"""

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
        found = {self.denoiser.component: self.denoiser.cls, **{t.name: t.cls for t in self.text_encoders}, "vae": "AutoencoderKL"}
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

        parts = (*self.networks, *(t.tokenizer for t in self.text_encoders), "feature_extractor", *self.optional)
        switches = {"requires_safety_checker": False} if "requires_safety_checker" in self.options else {}
        with quiet_loading():
            return self.cls(**dict.fromkeys(parts), scheduler=scheduler, **switches, **self.fixed).scheduler

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

    def text_encoder(self, name: str) -> TextEncoder | None:
        """The text encoder of that name, or None."""
        return next((t for t in self.text_encoders if t.name == name), None)


_OPTIONAL = {"safety_checker": "StableDiffusionSafetyChecker", "image_encoder": "CLIPVisionModelWithProjection"}

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
)


def family_of(pipeline: Any) -> Family:
    """The family of an open pipeline, or of a `model_index.json`.

    Raises:
        SaeuronError: none of `FAMILIES`.
    """
    names = [pipeline.get("_class_name")] if isinstance(pipeline, Mapping) else [c.__name__ for c in type(pipeline).__mro__]
    found = next((f for f in FAMILIES if f.pipeline in names), None)
    if found is None:
        raise SaeuronError(f"{names[0]} can't be edited; only {' and '.join(f.pipeline for f in FAMILIES)} can")
    return found


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
        raise SaeuronError(f"{names[0]} can't be edited; only {' and '.join(dict.fromkeys(f.denoiser.cls for f in FAMILIES))} can")
    return found


def sizes_of(pipeline: Any) -> Sizes:
    """Sizes that an open pipeline takes."""
    return family_of(pipeline).denoiser.sizes(network_of(pipeline).config, pipeline.vae.config)


def sizes_in(root: Path) -> Sizes:
    """Sizes that the pipeline in a folder takes.

    Raises:
        SaeuronError: a config lacks them.
    """
    denoiser = family_of(read_json(root / "model_index.json")).denoiser
    config, vae = (read_json(root / name / "config.json") for name in (denoiser.component, "vae"))
    try:
        return denoiser.sizes(config, vae)
    except (KeyError, TypeError, ValueError) as error:
        raise SaeuronError(
            f"'{root}': the {denoiser.noun}'s or the autoencoder's config lacks {error}, or holds something else there"
        ) from None


def rebuilt(pipeline: Any, **parts: Any) -> Any:
    """The same pipeline with some of its components replaced."""
    family = family_of(pipeline)
    options = {name: getattr(pipeline.config, name) for name in family.options}
    return family.cls(**{**pipeline.components, **parts}, **options, **family.fixed)
