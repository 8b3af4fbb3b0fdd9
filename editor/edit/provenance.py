"""Where an edit comes from: in the header of its file, and in the manifest of what is made with it. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import Meta

from ..common.typed import Number, Record, Whole

Steps = Annotated[int, Meta(ge=1, le=1000)]
"""of denoising; as the option's bounds"""


class Setting(Record):
    """How a concept, or a feature by hand, is changed at a hookpoint."""

    name: str
    hookpoint: str
    select: str
    """the rule that chose its features"""
    multiplier: Number | None
    status: str
    """`tuned`, `untuned` or `by hand`"""


class SaeUsed(Record):
    """The SAE of a hookpoint."""

    sha256: str
    latents: Whole
    k: Whole | None
    source: str = ""
    """a name by which others may find it: `demo:…`, a Hub id, or the last part of a local path"""

    @classmethod
    def of(cls, sae: Any, source: str = "") -> SaeUsed:
        """Of a `SparseAutoencoder`."""
        return cls(sae.sha256(), sae.config.num_latents, sae.config.k, source)


class ActivationsUsed(Record):
    """The file of concept activations that features of a hookpoint were chosen by."""

    hookpoint: str
    concepts: list[str]
    file: str | None = None
    sha256: str | None = None


class SamplingUsed(Record):
    """How pictures that show the edit are made."""

    steps: Steps
    guidance: Number


class Provenance(Record, kw_only=True):
    """All that is on record of an edit; what isn't known is left out."""

    concepts: list[Setting] = []
    saes: dict[str, SaeUsed] = {}
    """by hookpoint"""
    activations: list[ActivationsUsed] = []
    """none: made by hand"""
    prompts: list[str] = []
    """that show what it does"""
    sampling: SamplingUsed | None = None
    timesteps: list[Whole] | None = None
    """of an edit by hand: first and last in which it acts"""
    model: str = ""
    unet_sha256: str = ""

    def named(self, model: str, saes: Mapping[str, str]) -> None:
        """Say by which names model and SAEs may be found."""
        self.model = model
        for hookpoint, source in saes.items():
            self.saes[hookpoint].source = source
