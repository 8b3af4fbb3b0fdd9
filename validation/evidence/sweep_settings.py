"""What a sweep tries, and what every trial has in common. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

from ...editor.common.declared import HOW, Checked, like, option
from ...editor.common.errors import SaeuronError
from ...editor.common.seeds import LARGEST_SEED
from ...editor.denoisers.sampling_settings import Sampling
from ...editor.edit.gains import LARGEST

_GRID = "Grid"


@dataclass(frozen=True)
class Grid(Checked):
    """What is tried: every rule with every multiplier, at each hookpoint (or set of them)."""

    select: tuple[str, ...] = option(("count:1", "count:2", "count:4", "count:12", "count:32"), "A,B", _GRID, joined=True)
    """Rules to try: percentile:P and count:N."""
    multiplier: tuple[float, ...] = option((-0.3, -1.0, -3.0, -15.0, -40.0), "A,B", _GRID, joined=True, least=-LARGEST, most=0)
    """Multipliers to try; a positive one would strengthen a concept."""
    hookpoint: tuple[str, ...] = option((), "NAME", _GRID)
    """Hookpoint to try, or A,B for both at once; repeatable. Default: the preset's."""


@dataclass(frozen=True)
class SweepSettings(Checked):
    """What every trial has in common.

    Raises:
        SaeuronError: values that can't be meant, or a seed both for tuning and for the report.
    """

    steps: int = like(Sampling, "steps", 50)
    guidance: float = like(Sampling, "guidance", 7.5)
    residual: str = "keep"
    tune_seeds: tuple[int, ...] = option((42, 43, 44), "A,B", HOW, joined=True, least=0, most=LARGEST_SEED)
    """Seeds that settings are chosen by."""
    report_seeds: tuple[int, ...] = option((188, 288, 588), "A,B", HOW, joined=True, least=0, most=LARGEST_SEED)
    """Other seeds, for the figures."""
    rest: float = option(0.25, "SHARE", HOW, above=0, most=1)
    """Share of the pictures without the target that a tuning trial makes; a report makes all."""
    weights: tuple[float, ...] = option((0.5, 0.5, 0.0), "UA,IRA,CRA", _GRID, joined=True, least=0)
    """What is maximised; the released code's is 0.5,0.5,0."""
    batch_size: int = like(Sampling, "batch_size", 64)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.weights) != 3 or sum(self.weights) <= 0:
            raise SaeuronError(
                f"--weights {','.join(f'{w:g}' for w in self.weights)}: expected three shares of UA, IRA and CRA, e.g. 0.5,0.5,0"
            )
        both = set(self.tune_seeds) & set(self.report_seeds)
        if both:
            raise SaeuronError(
                f"seed {min(both)} is both for tuning and for the report; figures on seeds that settings were chosen by flatter them"
            )
