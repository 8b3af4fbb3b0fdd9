"""Text to pictures around any backend that runs an artifact's networks; the loop is that of diffusers, in numpy.

Sources: diffusers/pipelines/stable_diffusion/pipeline_stable_diffusion.py, stable_diffusion_xl/pipeline_stable_diffusion_xl.py and
diffusers/image_processor.py (0.42).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ....editor.common.errors import SaeuronError
from ....editor.common.files import read_json
from ....editor.denoisers.families import family_of, sizes_in
from ....editor.edit.gains import LARGEST
from ...artifact.graphs import layers_of
from .noise import initial_noise
from .schedulers import Scheduler, make_scheduler
from .tokenizer import ClipTokenizer

Conditions = dict[str, np.ndarray]
_USUAL = {"sample", "timestep", "encoder_hidden_states"}
_SUPPORTED = {"text_embeds", "time_ids"}


class NotFinite(SaeuronError):
    """A network or a step gave infinities or NaN."""


class Networks(Protocol):
    """Runs an artifact's networks: float32 arrays in and out, whatever the precision inside. Every `validation.runners.Runner` does."""

    def denoise(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """One forward of the denoiser; see `Runner.denoise`."""
        ...

    def component(self, name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray] | None:
        """Run a text encoder or `vae_decoder`."""
        ...


class LeanPipeline:
    """An artifact's pipeline without torch, diffusers and transformers.

    Args:
        root: artifact folder.
        networks: runs its networks.
        scheduler: `ddim` or `euler`, made from the artifact's config; default: the artifact's own, which must be one of the two.

    Raises:
        SaeuronError: a file is missing, or the pipeline has something that is not implemented here.
    """

    def __init__(self, root: str | Path, networks: Networks, scheduler: str | None = None) -> None:
        root = Path(root)
        index = read_json(root / "model_index.json")
        self.networks, self.family = networks, family_of(index)
        self.scheduler = scheduler_of(root, scheduler)
        self.tokenizers = {t.tokenizer: ClipTokenizer(root / t.tokenizer) for t in self.family.text_encoders}
        self._layers = {t.name: _layers(root / t.name / "config.json") for t in self.family.text_encoders}
        # The class's own default.
        self._zeros = "force_zeros_for_empty_prompt" in self.family.options and bool(index.get("force_zeros_for_empty_prompt", True))
        denoiser, vae = self.family.denoiser, read_json(root / "vae" / "config.json")
        inputs, _ = denoiser.axes(read_json(root / denoiser.component / "config.json"))
        self._wanted = {name: axes[-1] for name, axes in inputs.items() if name not in _USUAL}
        if surplus := sorted(set(self._wanted) - _SUPPORTED):
            raise SaeuronError(f"this UNet takes '{surplus[0]}', which needs diffusers")
        self._sizes = sizes_in(root)
        self.channels, self.factor = self._sizes.channels, self._sizes.factor
        scaling = vae.get("scaling_factor", 0.18215)  # the class's own default
        if not _finite(scaling) or scaling <= 0:
            raise SaeuronError(f"'{root}': the autoencoder's config holds no number above 0 as 'scaling_factor'")
        for key in ("latents_mean", "latents_std"):
            _check_channels(root / "vae" / "config.json", vae, key, self.channels)
        self._vae = {**vae, "scaling_factor": float(scaling)}

    def truncated(self, prompt: str) -> int:
        """How many of a prompt's tokens no text encoder sees."""
        return max(0, *(t.tokens(prompt) - t.length for t in self.tokenizers.values()))

    def encode(self, prompts: Sequence[str]) -> tuple[np.ndarray, Conditions]:
        """Texts → context `[B, L, D]`, and the conditions `[B, width]` that follow from the text: `text_embeds` for SDXL."""
        parts, conditions = [], {}
        for text in self.family.text_encoders:
            found = self._run(text.name, input_ids=self.tokenizers[text.tokenizer](prompts))
            parts.append(found[f"hidden_states.{self._layers[text.name] - 1}" if text.hidden_states else text.outputs[0]])
            # SDXL's pooled text is the first output of the encoder that has a projection.
            if "text_embeds" in self._wanted and found[text.outputs[0]].ndim == 2:
                conditions["text_embeds"] = found[text.outputs[0]]
        return np.concatenate(parts, axis=-1), conditions

    def initial_latents(self, seeds: Sequence[int], height: int | None = None, width: int | None = None) -> np.ndarray:
        """Unit-variance noise `[B, C, h, w]`: what diffusers draws from one float32 CPU generator a seed.

        Args:
            seeds: one a picture, 0 to 2³² − 1.
            height: pixels; default: the model's own size.
            width: pixels.

        Raises:
            SaeuronError: a seed or a size that can't be.
        """
        for pixels, name in ((height, "height"), (width, "width")):
            if pixels is not None:
                self._sizes.check_side(pixels, name)
        sides = self._sizes.latents(height, width)
        for side, name in zip(sides, ("height", "width"), strict=True):
            self._sizes.check_side(side * self.factor, name)
        return initial_noise(seeds, (self.channels, *sides))

    def check_latents(self, latents: np.ndarray) -> None:
        """Raise `SaeuronError` unless these are finite latents `[B, C, h, w]` of this model."""
        if latents.ndim != 4 or latents.shape[1] != self.channels or not len(latents):
            raise SaeuronError(
                f"latents of shape {list(latents.shape)}; this model takes [pictures, {self.channels}, height/{self.factor}, width/{self.factor}]"
            )
        for side, name in zip(latents.shape[2:], ("height", "width"), strict=True):
            self._sizes.check_side(side * self.factor, name)
        if not np.isfinite(latents).all():
            raise SaeuronError("the latents hold values that are not finite")

    def denoise(
        self, prompts: Sequence[str], latents: np.ndarray, steps: int, guidance: float, negative_prompts: Sequence[str] | None = None,
        callback: Callable[[int, int], None] | None = None,
    ) -> np.ndarray:  # fmt: skip
        """Run the loop.

        Args:
            prompts: one a picture.
            latents: unit-variance noise `[B, C, h, w]`.
            steps: denoising steps.
            guidance: classifier-free guidance scale; 1 or less switches it off.
            negative_prompts: one a picture; default: the empty text (zeros where SDXL's config says so). Without guidance they do nothing.
            callback: told how many steps of how many are done, after each.

        Returns:
            final latents `[B, C, h, w]`.

        Raises:
            SaeuronError: numbers of prompts and latents differ, or so many steps can't be.
        NotFinite: a step gave infinities or NaN.
        """
        self.check_latents(latents)
        for texts, name in ((prompts, "prompts"), (negative_prompts, "negative prompts")):
            if texts is not None and len(texts) != len(latents):
                raise SaeuronError(f"{len(texts)} {name} for {len(latents)} pictures")
        guided = guidance > 1
        context, conditions = self.encode(prompts)
        if guided:
            # As in diffusers: the negative half comes first.
            other, others = self._negative(context, conditions, negative_prompts)
            context = np.concatenate([other, context])
            conditions = {name: np.concatenate([others[name], value]) for name, value in conditions.items()}
        if "time_ids" in self._wanted:
            size = [float(side * self.factor) for side in latents.shape[2:]]
            conditions["time_ids"] = np.tile(np.array([*size, 0, 0, *size], np.float32), (len(context), 1))
        self._check_conditions(conditions)
        self.scheduler.set_timesteps(steps)
        sample = latents.astype(np.float32) * np.float32(self.scheduler.init_noise_sigma)
        total = len(self.scheduler.timesteps)
        for i, t in enumerate(self.scheduler.timesteps):
            given = self.scheduler.scale_model_input(np.concatenate([sample, sample]) if guided else sample, i)
            level = np.array(t, np.float32)
            output = self.networks.denoise({"sample": given, "timestep": level, "encoder_hidden_states": context, **conditions})
            if guided:
                negative, positive = np.split(output, 2)
                output = negative + np.float32(guidance) * (positive - negative)
            sample = self.scheduler.step(output, i, sample)
            if not np.isfinite(sample).all():
                raise NotFinite(
                    f"step {i + 1} of {total} (timestep {float(t):g}) gave values that are not finite; try --scheduler, or other settings"
                )
            if callback is not None:
                callback(i + 1, total)
        return sample

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Final latents `[B, C, h, w]` → pictures uint8 `[B, H, W, 3]`."""
        scaled = self.family.denoiser.unscaled(latents, self._vae)
        found = self._run("vae_decoder", latent_sample=scaled.astype(np.float32))["sample"]
        if not np.isfinite(found).all():
            raise NotFinite("the autoencoder gave values that are not finite")
        unit = (found * np.float32(0.5) + np.float32(0.5)).clip(0, 1)
        return (unit.transpose(0, 2, 3, 1) * 255).round().astype(np.uint8)

    def __call__(
        self, prompts: Sequence[str], seeds: Sequence[int], steps: int, guidance: float, negative_prompts: Sequence[str] | None = None,
        height: int | None = None, width: int | None = None, callback: Callable[[int, int], None] | None = None,
    ) -> np.ndarray:  # fmt: skip
        """Pictures uint8 `[B, H, W, 3]` from seeds; arguments as those of `initial_latents` and `denoise`."""
        latents = self.initial_latents(seeds, height, width)
        return self.decode(self.denoise(prompts, latents, steps, guidance, negative_prompts, callback))

    def _negative(self, context: np.ndarray, conditions: Conditions, texts: Sequence[str] | None) -> tuple[np.ndarray, Conditions]:
        if texts is None and self._zeros:
            return np.zeros_like(context), {name: np.zeros_like(value) for name, value in conditions.items()}
        return self.encode(texts if texts is not None else [""] * len(context))

    def _check_conditions(self, conditions: Conditions) -> None:
        for name, width in self._wanted.items():
            found = conditions[name].shape[1] if name in conditions else None
            if found != width:
                raise SaeuronError(f"the UNet takes '{name}' of width {width}, its pipeline gives {found}")

    def _run(self, component: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        found = self.networks.component(component, inputs)
        if found is None:
            raise SaeuronError(f"this backend has no {component}, so it can't make pictures")
        return found


def scheduler_of(root: Path, kind: str | None = None) -> Scheduler:
    """An artifact's scheduler; the index names its class, as for diffusers, whose pipeline mends some of its settings.

    Raises:
        SaeuronError: see `make_scheduler`.
    """
    index = read_json(root / "model_index.json")
    entry = index.get("scheduler")
    name = entry[1] if isinstance(entry, list) and len(entry) == 2 else entry
    # A class whose config has no such setting never clips; DDIM in its place must not either.
    never = {} if name == "DDIMScheduler" else {"clip_sample": False}
    config = {**never, **read_json(root / "scheduler" / "scheduler_config.json"), **family_of(index).mends, "_class_name": name}
    return make_scheduler(config, kind)


def _layers(path: Path) -> int:
    """Layers of a text encoder."""
    if read_json(path).get("use_attention_mask"):
        raise SaeuronError(f"{path}: 'use_attention_mask' is on, which needs diffusers: the exported graph takes no mask")
    return layers_of(path)


def _check_channels(path: Path, config: dict[str, Any], key: str, channels: int) -> None:
    value = config.get(key)
    if value is None:
        return
    if not isinstance(value, list) or len(value) != channels or not all(_finite(v) for v in value):
        raise SaeuronError(f"{path}: '{key}' must be a list of {channels} numbers")


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST
