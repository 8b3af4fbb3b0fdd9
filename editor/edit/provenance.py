"""Where an edit comes from: in the header of its file, and in the manifest of what is made with it. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from msgspec import Meta

from ..common.names import BY_SAE, NOISIEST
from ..common.typed import Number, Record, Whole
from .how import How

Steps = Annotated[int, Meta(ge=1, le=1000)]
"""of denoising; as the option's bounds"""


class RowsUsed(Record):
    """The file that a concept's rows of `probe` were taken from."""

    file: str
    """its name, without folders"""
    sha256: str


class Setting(Record, omit_defaults=True):
    """How a concept, or a feature by hand, is changed at a hookpoint."""

    name: str
    hookpoint: str
    select: str
    """the rule that chose its features"""
    multiplier: Number | None
    status: str
    """`tuned`, `untuned` or `by hand`"""
    intervention: str = "multiply"
    """a part of `names.INTERVENTIONS`; weights have neither hookpoint nor rule"""
    becomes: str = ""
    """what a concept's words become where weights are edited; what its direction is taken from"""
    how: How = How()
    start: Whole = NOISIEST
    """timestep from which on it acts"""
    added: Whole = 0
    """discriminants more, of what attacks brought back"""
    rows: RowsUsed | None = None
    """where its discriminants were taken from; None: made anew"""

    @property
    def said(self) -> str:
        """What is done, in words: the rule, where one chooses features."""
        if not self.hookpoint:
            return f"its words become '{self.becomes}'"
        what = self.select or ("a linear discriminant" if self.intervention == "probe" else f"its direction, beside '{self.becomes}'")
        more = f"and {self.added} more of what attacks brought back" if self.added else ""
        return ", ".join(
            filter(
                None,
                [f"{what} {more}".rstrip(), str(self.how), f"from timestep {self.start} on" if self.start < NOISIEST else ""],
            )
        )


_WAYS = {
    "weights": "giving the words for it the keys and values of other words in every cross-attention (UCE, arXiv 2308.14761)",
    "probe": "moving away from it where a linear discriminant sees it in a block's output (Fisher's; LEACE, arXiv 2306.03819, erases along the same)",
    "project": "taking the direction of it out of blocks' outputs (CASteer, arXiv 2503.09630)",
    **dict.fromkeys(BY_SAE, "suppressing features of a sparse autoencoder while the model denoises (SAeUron, arXiv 2501.18052)"),
    "replace": "replacing what a block gives where features of a sparse autoencoder see it by what it gives elsewhere (after PER, arXiv 2606.31699)",
}
"""intervention → what it does"""


def ways(settings: Iterable[Setting], mark: str = "") -> str:
    """How each concept is removed; those that are removed alike stand together. `mark` goes around their names."""
    kinds: dict[str, list[str]] = {}
    for setting in settings:
        kinds.setdefault(setting.name, []).append(setting.intervention)
    by_way: dict[str, list[str]] = {}
    for name, own in kinds.items():
        way = " and by ".join(dict.fromkeys(text for kind, text in _WAYS.items() if kind in own))
        by_way.setdefault(way, []).append(name)
    return "; ".join(f"{mark}{', '.join(names)}{mark}, by {way}" for way, names in by_way.items())


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
    network_sha256: str = ""
    model_sha256: str = ""
    """where there are rows of `probe`: hash of what the model's activations depend on (`cache.model_sha256`)"""

    def named(self, model: str, saes: Mapping[str, str]) -> None:
        """Say by which names model and SAEs may be found."""
        self.model = model
        for hookpoint, source in saes.items():
            self.saes[hookpoint].source = source
