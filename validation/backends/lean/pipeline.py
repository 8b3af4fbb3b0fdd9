"""Text to pictures around any backend that runs an artifact's networks; the loop is that of diffusers, in numpy.

What differs from kind to kind lies in `conditions.py`. Sources: the pipelines named there, stable_diffusion/pipeline_stable_diffusion_img2img.py and
pipeline_stable_diffusion_inpaint.py (and SDXL's), and diffusers/image_processor.py (0.42).
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
from .begin import Begin, left_out, sampled
from .conditions import Inputs, conditions_of
from .dpm import CLASS as DPM
from .dpm import DpmSolver
from .flow import CLASS as FLOW
from .flow import FlowEuler
from .noise import initial_noise, torch_draws
from .schedulers import Scheduler, make_scheduler


class NotFinite(SaeuronError):
    """A network or a step gave infinities or NaN."""


class Networks(Protocol):
    """Runs an artifact's networks: float32 arrays in and out, whatever the precision inside. Every `validation.runners.Runner` does."""

    def denoise(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """One forward of the denoiser; see `Runner.denoise`."""
        ...

    def component(self, name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray] | None:
        """Run a text encoder, `vae_decoder` or `vae_encoder`."""
        ...


class LeanPipeline:
    """An artifact's pipeline without torch, diffusers and transformers.

    Args:
        root: artifact folder.
        networks: runs its networks.
        scheduler: `ddim` or `euler`, made from the artifact's config; default: the artifact's own, which must be one of the two or DPM-Solver++. SD3,
            FLUX and Sana have their own alone.

    Raises:
        SaeuronError: a file is missing, or the pipeline has something that is not implemented here.
    """

    def __init__(self, root: str | Path, networks: Networks, scheduler: str | None = None) -> None:
        root = Path(root)
        index = read_json(root / "model_index.json")
        self.networks, self.family = networks, family_of(index)
        self.scheduler = scheduler_of(root, scheduler)
        denoiser, vae = self.family.denoiser, read_json(root / "vae" / "config.json")
        config = read_json(root / denoiser.component / "config.json")
        self._latents = next(iter(denoiser.axes(config)[0]))
        self._conditions = conditions_of(root, self.family, config, self._run)
        self._sizes = sizes_in(root)
        self.channels, self.factor = self._sizes.channels, self._sizes.factor
        scaling = vae.get("scaling_factor", self.family.vae.scaling)
        if not _finite(scaling) or scaling <= 0:
            raise SaeuronError(f"'{root}': the autoencoder's config holds no number above 0 as 'scaling_factor'")
        for key in ("latents_mean", "latents_std"):
            _check_channels(root / "vae" / "config.json", vae, key, self.channels)
        if denoiser.shifts and not _finite(vae.get("shift_factor")):
            raise SaeuronError(f"'{root}': the autoencoder's config holds no number as 'shift_factor'")
        self._vae = {**vae, "scaling_factor": float(scaling)}

    def truncated(self, prompt: str) -> int:
        """How many of a prompt's tokens no text encoder sees."""
        known = [(t, self._conditions.tokenizers[t.tokenizer]) for t in self.family.text_encoders if not t.cuts]
        return max(0, *(tokenizer.tokens(prompt) - tokenizer.length + text.kept for text, tokenizer in known))

    def guided(self, guidance: float) -> bool:
        """Whether a picture follows its negative prompt at this scale. Of FLUX none does: its guidance is an input of the network, or nothing."""
        return guidance > 1 and self.family.denoiser.rows(True) > 1

    def encode(self, prompts: Sequence[str]) -> Inputs:
        """Texts → inputs of the network, a row each."""
        return self._conditions.texts(prompts)

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

    def check_picture(self, height: int, width: int) -> None:
        """Raise `SaeuronError` unless a loop of this model can begin from pictures of this size in pixels."""
        denoiser = self.family.denoiser
        if not denoiser.begins:
            raise SaeuronError(
                f"a {denoiser.noun} of this kind ({self.family.pipeline}) can't begin from a picture without diffusers; UNets can"
            )
        for side, name in ((height, "height"), (width, "width")):
            self._sizes.check_side(side, name)

    def look(self, picture: np.ndarray) -> np.ndarray:
        """What the autoencoder's encoder says of a picture `[3, H, W]`, -1 to 1: mean and spread of its latents, for `begin`."""
        self.check_picture(*picture.shape[1:])
        found = self._run("vae_encoder", {"sample": picture[None].astype(np.float32)})[self.family.vae.encoded]
        if not np.isfinite(found).all():
            raise NotFinite("the autoencoder gave values that are not finite")
        return found

    def begin(self, seen: np.ndarray, seeds: Sequence[int], strength: float, mask: np.ndarray | None = None) -> tuple[np.ndarray, Begin]:
        """Noise for `denoise` and what it is added to: what diffusers draws for each seed from a float32 CPU generator of its own.

        Args:
            seen: what `look` gave.
            seeds: one a picture, 0 to 2³² - 1.
            strength: above 0, up to 1: the share of the steps that is taken.
            mask: bool `[H, W]`, true where the picture is drawn anew; default: everywhere.

        Returns:
            unit-variance noise `[B, C, h, w]`; the beginning.
        """
        # The generator gives the sample of the encoder's latents first.
        spread, noise = np.stack([torch_draws(int(seed), (self.channels, *seen.shape[2:]), 2) for seed in seeds], axis=1)
        clean = self.family.denoiser.scaled(sampled(seen, spread), self._vae).astype(np.float32)
        # As torch resizes it: the upper left pixel of each latent.
        small = None if mask is None else mask[None, None, :: self.factor, :: self.factor].astype(np.float32)
        return noise, Begin(clean, strength, small)

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
        callback: Callable[[int, int], None] | None = None, begin: Begin | None = None,
    ) -> np.ndarray:  # fmt: skip
        """Run the loop.

        Args:
            prompts: one a picture.
            latents: unit-variance noise `[B, C, h, w]`.
            steps: denoising steps.
            guidance: guidance scale; where it is classifier-free (all but FLUX) 1 or less switches it off.
            negative_prompts: one a picture; default: the empty text (zeros where SDXL's config says so). Unless `guided` they do nothing.
            callback: told how many steps of how many are done, after each.
            begin: a picture that the loop begins from; see `begin`, which also gives its noise. Default: from noise alone.

        Returns:
            final latents `[B, C, h, w]`.

        Raises:
            SaeuronError: numbers of prompts and latents differ, or so many steps can't be, or no step is left.
            NotFinite: a step gave infinities or NaN.
        """
        self.check_latents(latents)
        for texts, name in ((prompts, "prompts"), (negative_prompts, "negative prompts")):
            if texts is not None and len(texts) != len(latents):
                raise SaeuronError(f"{len(texts)} {name} for {len(latents)} pictures")
        denoiser, (height, width) = self.family.denoiser, latents.shape[2:]
        guided, given = self.guided(guidance), self.encode(prompts)
        if guided:
            # As in diffusers: the negative half comes first.
            other = self._conditions.nothing(given) if negative_prompts is None else self._conditions.negative(negative_prompts)
            given = {name: np.concatenate([other[name], value]) for name, value in given.items()}
        rows = len(latents) * (2 if guided else 1)
        given |= self._conditions.rest(rows, (height, width), self.factor, guidance)
        self._conditions.check(given)
        self.scheduler.set_timesteps(steps, (height, width))
        sample = denoiser.packed(latents.astype(np.float32)) * np.float32(self.scheduler.init_noise_sigma)
        total, first = len(self.scheduler.timesteps), 0
        if begin is not None:
            first = left_out(steps, begin.strength)
            sample = begin.start(self.scheduler, sample, latents, first)
        for i in range(first, total):
            t = self.scheduler.timesteps[i]
            seen = self.scheduler.scale_model_input(np.concatenate([sample, sample]) if guided else sample, i)
            output = self.networks.denoise({self._latents: seen, **denoiser.at_level(t, rows), **given})
            if guided:
                negative, positive = np.split(output, 2)
                output = negative + np.float32(guidance) * (positive - negative)
            sample = self.scheduler.step(denoiser.predicted(output, self.channels), i, sample)
            if begin is not None:
                sample = begin.kept(self.scheduler, sample, latents, i + 1)
            if not np.isfinite(sample).all():
                hint = "try other settings" if denoiser.flows else "try --scheduler, or other settings"
                raise NotFinite(f"step {i + 1} of {total} (timestep {float(t):g}) gave values that are not finite; {hint}")
            if callback is not None:
                callback(i + 1 - first, total - first)
        return denoiser.unpacked(sample, (height, width))

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Final latents `[B, C, h, w]` → pictures uint8 `[B, H, W, 3]`."""
        scaled = self.family.denoiser.unscaled(latents, self._vae)
        found = self._run("vae_decoder", {"latent_sample": scaled.astype(np.float32)})["sample"]
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

    def _run(self, component: str, inputs: Inputs) -> Inputs:
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
    family = family_of(index)
    entry, config = index.get("scheduler"), read_json(root / "scheduler" / "scheduler_config.json")
    name = entry[1] if isinstance(entry, list) and len(entry) == 2 else entry
    if family.denoiser.flows:
        if kind is not None:
            raise SaeuronError(f"scheduler '{kind}' is for UNets; a {family.denoiser.noun} of this kind is run by its own")
        if name not in family.denoiser.schedulers:
            able = " or ".join(family.denoiser.schedulers)
            raise SaeuronError(f"the scheduler is a {name}; a {family.denoiser.noun} of this kind is run by {able} alone")
        if name == FLOW:
            return FlowEuler(config, family.denoiser.told)
    if name == DPM and kind is None:
        return DpmSolver({**config, **family.mends})
    # A class whose config has no such setting never clips; DDIM in its place must not either.
    never = {} if name == "DDIMScheduler" else {"clip_sample": False}
    return make_scheduler({**never, **config, **family.mends, "_class_name": name}, kind)


def _check_channels(path: Path, config: dict[str, Any], key: str, channels: int) -> None:
    value = config.get(key)
    if value is None:
        return
    if not isinstance(value, list) or len(value) != channels or not all(_finite(v) for v in value):
        raise SaeuronError(f"{path}: '{key}' must be a list of {channels} numbers")


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST
