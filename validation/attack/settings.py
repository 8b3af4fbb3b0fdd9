"""What an attack may spend. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...editor.common.declared import HOW, WHAT, Checked, like, option
from ...editor.common.errors import SaeuronError
from ...editor.common.seeds import LARGEST_SEED
from ...editor.denoisers.sampling_settings import Sampling
from ..evidence.evaluation_settings import EvaluationSettings
from ..evidence.pipeline_subject import PipelineSettings

ATTACKS = ("prefix", "embedding", "straight-through", "seeds", "paraphrases")
LEARNED = ("prefix", "embedding", "straight-through")
BUDGET = "Budget"
"""heading of the help"""


@dataclass(frozen=True)
class AttackSettings(Checked):
    """The options of `saeuron attack`.

    Raises:
        SaeuronError: values that can't be meant, or that figures can't be trusted with.
    """

    judge: tuple[str, ...] = like(EvaluationSettings, "judge")
    concepts: tuple[str, ...] = like(PipelineSettings, "concepts")
    attacks: tuple[str, ...] = option((), "A,B", WHAT, joined=True)
    """Of prefix, embedding, straight-through, seeds, paraphrases. Default: all but the last."""
    protocol: tuple[str, ...] = option(("ours",), "A,B", WHAT, joined=True)
    """Of ours (--attacks) and, as their papers have them, unlearndiffatk, cce, p4d, ring-a-bell, noise-start, completion, relearn, leak, prompts=FILE."""
    paraphrases: Path | None = option(None, "FILE", WHAT)
    """Prompts, one a line; {name} stands for the concept. Adds that attack."""
    through: str = option("checkpoint", "WAY", HOW, known=("checkpoint", "hook"))
    """checkpoint (the artifact's), or hook (the dynamic hook)."""
    model: str | None = like(EvaluationSettings, "model")
    saes: tuple[str, ...] = like(EvaluationSettings, "saes")
    device: str = like(EvaluationSettings, "device")
    steps: int | None = like(EvaluationSettings, "steps")
    guidance: float | None = like(EvaluationSettings, "guidance")
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
    guided_rows: int = 2
    """rows of a forward for each picture with guidance; follows from the pipeline"""
    tune_seeds: tuple[int, ...] = option((42, 43), "A,B", BUDGET, joined=True, least=0, most=LARGEST_SEED)
    """Seeds of the pictures that are learned from."""
    report_seeds: tuple[int, ...] = option((188, 288, 588, 688, 888, 988), "A,B", BUDGET, joined=True, least=0, most=LARGEST_SEED)
    """Other seeds, for the figures."""
    search_seeds: int = option(8, "N", BUDGET, least=1, most=10_000)
    """Seeds that the search over seeds tries a prompt, from 1000 on."""
    share: float = option(1.0, "S", BUDGET, above=0, most=1)
    """Of the iterations that the papers of --protocol name; the report has the counts."""
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
    def sampling(self) -> Sampling:
        """Steps and guidance, once they are known; else the demo's."""
        return Sampling(20 if self.steps is None else self.steps, 3.0 if self.guidance is None else self.guidance)

    @property
    def a_picture(self) -> int:
        """Forwards of the denoiser on one latent that a picture takes."""
        return self.sampling.steps * (self.guided_rows if self.sampling.guidance > 1 else 1)

    @property
    def searched(self) -> tuple[int, ...]:
        """The seeds that the search over seeds tries."""
        return tuple(range(1000, 1000 + self.search_seeds))


@dataclass(frozen=True)
class HardenSettings(Checked):
    """What `saeuron harden` may spend.

    Raises:
        SaeuronError: values that can't be meant.
    """

    judge: tuple[str, ...] = like(EvaluationSettings, "judge")
    rounds: int = option(3, "N", BUDGET, least=1, most=100)
    """Attacks, one after the other, each on what the last one left."""
    tokens: int = like(AttackSettings, "tokens")
    embedding_iterations: int = like(AttackSettings, "embedding_iterations", 240)
    restarts: int = like(AttackSettings, "restarts")
    tune_seeds: tuple[int, ...] = like(AttackSettings, "tune_seeds")
    batch_size: int = like(AttackSettings, "batch_size")
    seed: int = like(AttackSettings, "seed", 10_000)

    def __post_init__(self) -> None:
        super().__post_init__()
        if both := set(self.tune_seeds) & {*AttackSettings.report_seeds, *EvaluationSettings.seeds}:
            raise SaeuronError(f"seed {min(both)} is one that attack and evaluate count on; harden on others")

    def attack(self, steps: int, guidance: float, number: int) -> AttackSettings:
        """What one of the rounds spends; beginnings and noise are its own."""
        return AttackSettings(
            steps=steps, guidance=guidance, tokens=self.tokens, embedding_iterations=self.embedding_iterations, restarts=self.restarts,
            tune_seeds=self.tune_seeds, report_seeds=(max(self.tune_seeds) + 1,), batch_size=self.batch_size, seed=self.seed + 1000 * number,
        )  # fmt: skip
