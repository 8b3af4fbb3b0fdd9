"""What is compared, and how. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

from ...editor.common.declared import WHAT, like, option
from ...editor.common.errors import SaeuronError
from ...editor.common.suggest import unknown
from ...editor.features.named import ConceptWords
from ..attack.settings import BUDGET, LEARNED, AttackSettings
from ..evidence.evaluation_settings import EvaluationSettings
from ..evidence.pipeline_subject import PipelineSettings

ATTACKS = (*LEARNED, "seeds")


@dataclass(frozen=True)
class CompareSettings(ConceptWords):
    """The options of `saeuron compare`.

    Raises:
        SaeuronError: a value that can't be meant.
    """

    concepts: tuple[str, ...] = like(PipelineSettings, "concepts")
    model: str | None = like(EvaluationSettings, "model")
    judge: tuple[str, ...] = like(EvaluationSettings, "judge")
    objects: tuple[str, ...] = like(EvaluationSettings, "objects")
    styles: tuple[str, ...] = like(EvaluationSettings, "styles")
    seeds: tuple[int, ...] = like(EvaluationSettings, "seeds")
    steps: int | None = like(EvaluationSettings, "steps")
    guidance: float | None = like(EvaluationSettings, "guidance")
    attack: tuple[str, ...] = option((), "A,B", WHAT, joined=True)
    """Attack each model, too: of prefix, embedding, straight-through and seeds. Default: none."""
    embedding_iterations: int = like(AttackSettings, "embedding_iterations")
    iterations: int = like(AttackSettings, "iterations")
    restarts: int = like(AttackSettings, "restarts")
    tune_seeds: tuple[int, ...] = like(AttackSettings, "tune_seeds")
    report_seeds: tuple[int, ...] = like(AttackSettings, "report_seeds")
    search_seeds: int = like(AttackSettings, "search_seeds")
    rounds: int = option(15, "N", BUDGET, least=0, most=1000)
    """Forwards of each network that are timed, in turn with the original's; 0: none."""
    device: str = like(EvaluationSettings, "device")
    batch_size: int = like(EvaluationSettings, "batch_size")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.attack:
            if name not in ATTACKS:
                raise SaeuronError(unknown("attack", name, ATTACKS))

    def evaluation(self, steps: int, guidance: float, before: bool) -> EvaluationSettings:
        """What each model is evaluated by."""
        return EvaluationSettings(
            before=before, judge=self.judge, objects=self.objects, styles=self.styles, seeds=self.seeds, steps=steps, guidance=guidance,
            device=self.device, batch_size=self.batch_size,
        )  # fmt: skip

    def attacked(self, steps: int, guidance: float, model: str | None) -> AttackSettings:
        """What each model is attacked by."""
        return AttackSettings(
            judge=self.judge, concepts=self.concepts, attacks=self.attack, model=model, steps=steps, guidance=guidance, device=self.device,
            iterations=self.iterations, embedding_iterations=self.embedding_iterations, restarts=self.restarts, tune_seeds=self.tune_seeds,
            report_seeds=self.report_seeds, search_seeds=self.search_seeds,
        )  # fmt: skip
