"""A denoiser's graph in 8 bits: schemes, which layers stay out of them, and what a manifest says of it. Needs nothing but the types."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Literal

from ...editor.common.typed import Number, Record, Whole

Scheme = Literal["w8", "fp8", "int8"]

SCHEMES = ("w8", "fp8", "int8")
"""w8: weights as int8, a scale for each output; fp8: weights and inputs as E4M3; int8: both as int8"""
INPUTS = ("fp8", "int8")
"""those in which a layer's input has 8 bits too"""
LARGEST = {"w8": 127.0, "int8": 127.0, "fp8": 448.0}
"""the code of the largest magnitude"""
WORDS = {"w8": "weights in int8", "fp8": "weights and inputs in FP8 (E4M3)", "int8": "weights and inputs in int8"}
LEFT_OUT = (
    "time_emb_proj", "time_embedding", "conv_in", "conv_out", "conv_shortcut", "add_embedding", "proj_out",
    "pos_embed", "time_text_embed", "context_embedder", "x_embedder", "norm_out",
)  # fmt: skip
"""parts of a layer's name that keep it in floats: those of NVIDIA's recipes for UNets and transformers, and `proj_out`, which gives the tokens that an edit reads"""


def left_out(weight: str) -> bool:
    """Whether a weight of this name stays in floats."""
    return bool(set(weight.split(".")) & set(LEFT_OUT))


LEAST_KEPT = 0.05
"""share of a concept's pictures by which removal may be worse than before quantising"""
LEAST_SEEN = 0.9
"""share of the unedited model's pictures of a concept in which a judge must see it, or it can't tell that it is gone"""


class Count(Record):
    """Pictures of which something is so."""

    hits: Whole
    trials: Whole

    @property
    def share(self) -> float:
        """NaN without pictures."""
        return self.hits / self.trials if self.trials else math.nan

    def __str__(self) -> str:
        return f"{self.hits} of {self.trials}"


class Removal(Record, kw_only=True):
    """What a judge sees of a concept on pictures of the same prompts and seeds, before and after quantising."""

    judge: str
    concept: str
    unedited: Count
    """pictures of the unedited model that ask for the concept and show it"""
    before: Count
    """pictures by the edited graph, not quantised, that ask for it and don't show it"""
    after: Count
    """the same by the quantised graph"""

    @property
    def fault(self) -> str:
        """Why it can't be said that the removal was kept; empty where it can."""
        of = f"removal of '{self.concept}' (judge '{self.judge}')"
        if not self.before.trials or not self.unedited.trials:
            return f"{of}: no picture asks for it, so nothing was judged"
        if self.after.trials != self.before.trials:
            return f"{of}: {self.after.trials} pictures after quantising and {self.before.trials} before, which can't be compared"
        if self.unedited.share < LEAST_SEEN:
            return f"{of}: inconclusive: this judge sees it in only {self.unedited} of the unedited model's pictures (bar {LEAST_SEEN:.0%}); give another --judge"
        if self.before.share - self.after.share > LEAST_KEPT:
            return f"{of}: gone from {self.after} pictures, from {self.before} before quantising (it may lose {LEAST_KEPT:.0%})"
        return ""

    def __str__(self) -> str:
        return f"{self.concept}: gone from {self.after} pictures, from {self.before} before quantising (judge '{self.judge}')"


class Layer(Record):
    """A layer in 8 bits."""

    weight: str
    """its name in the original model"""
    digest: str
    """of that weight in floats, see `weights.unordered`"""
    codes: str
    """SHA-256 of its codes and scales as they lie in the graph"""


class Calibration(Record):
    """By what the ranges of inputs were found."""

    prompts: Whole
    prompts_sha256: str
    """of the prompts, a line each"""
    forwards: Whole


class Quantisation(Record, kw_only=True):
    """How a denoiser's graph was quantised."""

    scheme: Scheme
    graph: dict[str, str]
    """files of the graph that was quantised → SHA-256"""
    layers: dict[str, Layer]
    """node of the graph → its layer; all others are in floats"""
    calibration: Calibration | None = None
    """None where weights alone are quantised"""
    drift: Number | None = None
    """how far quantising alone moves the network's output, as a share of what the edit does; None where nothing was proven"""
    removal: list[Removal] | None = None
    """None: not judged, like an empty one"""

    def faults(self, concepts: Collection[str]) -> list[str]:
        """Why the removal that was judged doesn't show that each of these concepts stays away, a line each; none where nothing was judged."""
        named = {one.concept for one in self.removal or ()}
        lacking = [f"removal of '{name}': not judged, and that of others was" for name in concepts if named and name not in named]
        foreign = [f"removal of '{name}': on record as judged, and the edit doesn't remove it" for name in sorted(named - set(concepts))]
        return [*lacking, *foreign, *(one.fault for one in self.removal or () if one.fault)]

    @property
    def verdict(self) -> str:
        """What a passed proof shows of it."""
        if not self.removal:
            return f"edit intact in a {self.scheme} graph, removal not judged"
        return f"edit exact in a {self.scheme} graph, removal judged again"
