"""What tuning tries, and what it may spend. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...editor.common.declared import HOW, Checked, like, option
from ...editor.common.errors import SaeuronError
from ...editor.common.names import GAINS, NORMS, REPLACE_BY, WIDEST, interventions
from ...editor.common.seeds import LARGEST_SEED
from ...editor.denoisers.sampling_settings import Sampling
from ...editor.edit.gains import LARGEST
from ..attack.settings import LEARNED

_GRID, JUDGED = "Candidates", "What is judged"


@dataclass(frozen=True)
class TuneSettings(Checked):
    """What is tried (every rule with every multiplier, at each hookpoint or set of them), and how candidates are compared.

    Raises:
        SaeuronError: values that can't be meant, or a seed both for tuning and for the report.
    """

    judge: tuple[str, ...] = option(("demo",), "NAME", JUDGED)
    """demo, unlearncanvas=DIR or onnx=DIR, which name objects and styles; clip=DIR|ID, classifier=DIR|ID[:A,B] or nudenet[=SCORE], which look for
    the concept's words. Repeatable (not in attack); tuning goes by the worst of several. Default: demo."""
    judge_anyway: bool = option(False, panel=JUDGED)
    """Tune by a judge that tells the unedited model's pictures apart in fewer than 90 %."""
    budget: int = option(3000, "PICTURES", HOW, least=1, most=10_000_000)
    """Most pictures a concept to choose by; those of the unedited model and of the report come on top."""
    attack: str = option("", "NAME", HOW, known=("", *LEARNED))
    """Attack the last candidates too: prefix, embedding or straight-through. Pictures under attack then count as much as plain ones."""
    tune_seeds: tuple[int, ...] = option((42, 43, 44), "A,B", HOW, joined=True, least=0, most=LARGEST_SEED)
    """Seeds of the pictures that settings are chosen by, of the concept's prompts."""
    report_seeds: tuple[int, ...] = option((188, 288, 588), "A,B", HOW, joined=True, least=0, most=LARGEST_SEED)
    """Other seeds, for the figures."""
    shares: tuple[float, ...] = option((0.5, 0.4, 0.1), "A,B,C", HOW, joined=True, least=0)
    """What is maximised: removed, kept, likeness to the unedited pictures elsewhere."""
    clip: str | None = option(None, "DIR|ID", JUDGED)
    """In the report: CLIP score before and after, by this model."""
    fid: Path | None = option(None, "FILE", JUDGED)
    """In the report: FID of the pictures elsewhere from the unedited ones, by torch-fidelity's Inception weights."""
    select: tuple[str, ...] = option(("count:1", "count:2", "count:4", "count:8", "count:16"), "A,B", _GRID, joined=True)
    """Rules to try: percentile:P and count:N."""
    multiplier: tuple[float, ...] = option((-0.3, -1.0, -3.0, -10.0, -30.0), "A,B", _GRID, joined=True, least=-LARGEST, most=0)
    """Multipliers to try; a positive one would strengthen a concept."""
    hookpoint: tuple[str, ...] = option((), "NAME", _GRID)
    """Hookpoint to try, or A,B for both at once; repeatable. Default: each of the preset's, and all of them at once."""
    intervention: tuple[str, ...] = option((), "A,B", _GRID, joined=True)
    """Interventions to try, e.g. multiply,weights+multiply. Default: each preset's."""
    replace_by: tuple[str, ...] = option(("nearest",), "A,B", _GRID, joined=True, known=REPLACE_BY)
    """With replace, what a token becomes: nearest, mean."""
    spread: tuple[int, ...] = option((0,), "A,B", _GRID, joined=True, least=0, most=WIDEST)
    """With replace, places around one that fires which are replaced too."""
    gain: tuple[str, ...] = option(("mean",), "A,B", _GRID, joined=True, known=GAINS)
    """With multiply, what the multiplier is multiplied by: mean, token."""
    norm: tuple[str, ...] = option(("free",), "A,B", _GRID, joined=True, known=NORMS)
    """With project and probe, whether tokens keep their norm: free, kept."""
    steps: int = like(Sampling, "steps", 50)
    guidance: float = like(Sampling, "guidance", 7.5)
    residual: str = "keep"
    batch_size: int = like(Sampling, "batch_size", 8)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.shares) != 3 or self.shares[0] <= 0 or sum(self.shares[1:]) <= 0:
            given = ",".join(f"{w:g}" for w in self.shares)
            raise SaeuronError(
                f"--shares {given}: expected three shares of removed, kept and likeness, e.g. 0.5,0.4,0.1; the first and one more above 0"
            )
        for text in self.intervention:
            interventions(text)
        if not self.judge:
            raise SaeuronError("no judge: give --judge")
        if self.attack and min(len(self.tune_seeds), len(self.report_seeds)) < 2:
            raise SaeuronError(
                "--attack learns from the first seed and counts on the others: give at least two --tune-seeds and --report-seeds"
            )
        both = set(self.tune_seeds) & set(self.report_seeds)
        if both:
            raise SaeuronError(
                f"seed {min(both)} is both for tuning and for the report; figures on seeds that settings were chosen by flatter them"
            )
