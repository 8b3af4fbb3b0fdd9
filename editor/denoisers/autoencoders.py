"""The autoencoders of the pipelines, and what their two graphs are called and give. Needs no torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Autoencoder:
    """A kind of autoencoder."""

    cls: str
    """name of its class in diffusers"""
    encoded: str
    """what its encoder's graph gives, by the name that optimum reads"""
    scaling: float
    """its class's own `scaling_factor`"""
    _encode: Callable[[Any, Any], Any]

    def encode(self, vae: Any, pictures: Any) -> Any:
        """Pictures `[B, 3, H, W]`, -1 to 1 → what the encoder's graph gives: latents, or mean and spread of them, `[B, C, h, w]`."""
        return self._encode(vae, pictures)

    def completed(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A config with the class's defaults where it has nothing."""
        import diffusers

        given = inspect.signature(getattr(diffusers, self.cls).__init__).parameters
        return {**{name: p.default for name, p in given.items() if p.default is not p.empty}, **config}


KL = Autoencoder("AutoencoderKL", "latent_parameters", 0.18215, lambda vae, pictures: vae.encode(pictures).latent_dist.parameters)
DC = Autoencoder("AutoencoderDC", "latent_sample", 1.0, lambda vae, pictures: vae.encode(pictures).latent)
"""without a spread: a picture has one latent"""
