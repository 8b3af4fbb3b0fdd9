"""What an attack, and the choice of an edit by attacks, may spend. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

from ...editor.common.declared import Checked, like, option
from ...editor.common.errors import SaeuronError
from ...editor.common.seeds import LARGEST_SEED
from ...editor.denoisers.sampling_settings import Sampling
from ...editor.edit.gains import LARGEST
from ..evidence.sweep_settings import SweepSettings

ATTACKS = ("prefix", "embedding", "straight-through", "seeds", "paraphrases")
LEARNED = ("prefix", "embedding", "straight-through")
BUDGET, _CANDIDATES = "Budget", "Candidates"
"""headings of the help"""


@dataclass(frozen=True)
class AttackSettings(Checked):
    """The budget.

    Raises:
        SaeuronError: values that can't be meant, or that figures can't be trusted with.
    """

    steps: int = like(Sampling, "steps", 20)
    guidance: float = like(Sampling, "guidance", 3.0)
    tokens: int = option(5, "N", BUDGET, least=1)
    """Learned tokens."""
    iterations: int = option(40, "N", BUDGET, least=1)
    """Of the search for a prefix."""
    embedding_iterations: int = option(80, "N", BUDGET, least=1)
    """Of a search by embeddings."""
    restarts: int = option(2, "N", BUDGET, least=1)
    """Searches from different beginnings; the one with most successes on the tuning pictures counts."""
    batch: int = option(4, least=1)
    """Noised pictures an iteration."""
    rate: float = 1.0
    """step of a search for vocabulary tokens, in standard deviations of the token embeddings"""
    embedding_rate: float = 3.0
    """step of a search by embeddings, likewise"""
    tune_seeds: tuple[int, ...] = option((42, 43), "A,B", BUDGET, joined=True, least=0, most=LARGEST_SEED)
    """Seeds of the pictures that are learned from."""
    report_seeds: tuple[int, ...] = like(SweepSettings, "report_seeds", (188, 288, 588, 688, 888, 988), panel=BUDGET)
    search_seeds: int = option(8, "N", BUDGET, least=1, most=10_000)
    """Seeds that the search over seeds tries a prompt, from 1000 on."""
    batch_size: int = like(Sampling, "batch_size", 32)
    seed: int = like(Sampling, "seed", 0, panel=BUDGET)
    """Of beginnings, timesteps and noise of the searches."""

    def __post_init__(self) -> None:
        super().__post_init__()
        both = set(self.tune_seeds) & set(self.report_seeds)
        if both:
            raise SaeuronError(
                f"seed {min(both)} is both learned from and counted; figures on seeds that were learned from flatter an attack"
            )

    @property
    def searched(self) -> tuple[int, ...]:
        """The seeds that the search over seeds tries."""
        return tuple(range(1000, 1000 + self.search_seeds))


@dataclass(frozen=True)
class HardenSettings(Checked):
    """What all candidates have in common.

    Raises:
        SaeuronError: values that can't be meant.
    """

    attack: AttackSettings = AttackSettings()
    """its budget; `tune_seeds` are learned from, `report_seeds` counted in the report alone"""
    row: str = option("embedding", "NAME", BUDGET, name="attack", known=LEARNED)
    """prefix, embedding or straight-through."""
    widen: tuple[float, ...] = option((2.0, 4.0), "A,B", _CANDIDATES, joined=True, above=1, most=1000)
    """How many times as many features a step to try."""
    multiplier: tuple[float, ...] = option((), "A,B", _CANDIDATES, joined=True, least=-LARGEST, most=0)
    """Multipliers to try. Default: the setting's own."""
    cost: float = option(2.0, "POINTS", _CANDIDATES, least=0, below=100)
    """Most that UA, IRA and CRA may each lose against the setting before, in points."""
    trial_seeds: tuple[int, ...] = option(tuple(range(300, 306)), "A,B", BUDGET, joined=True, least=0, most=LARGEST_SEED)
    """Other seeds, that candidates are compared on."""
    report_searches: int = option(2, "N", BUDGET, least=1)
    """Fresh attacks for the figures, from beginnings and noise that no candidate was compared on."""
    rest_seeds: int = 3
    """of the report seeds, how many the report's pictures without the concept are made with"""
    residual: str = "keep"

    def check(self) -> None:
        """Raise `SaeuronError` where candidates are compared on seeds that their attacks learn from or report on."""
        both = set(self.trial_seeds) & {*self.attack.tune_seeds, *self.attack.report_seeds}
        if both:
            raise SaeuronError(f"seed {min(both)} is used twice: to compare candidates, and to learn from or to report; take others")
