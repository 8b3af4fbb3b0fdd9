"""What goes before and after an export (tune, evaluate, attack, report): checked before anything is made, and what it takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...editor.common.errors import SaeuronError
from ...editor.common.files import read_json
from ...editor.features.prompt_sets import ConceptPrompts
from ...validation.artifact.manifest import Manifest
from ...validation.attack import run as attacking
from ...validation.attack.attack import ATTACKED
from ...validation.attack.cases import AttackCase, cases, cases_by_words
from ...validation.attack.settings import AttackSettings
from ...validation.evidence import by_words
from ...validation.evidence.evaluation_settings import EvaluationSettings
from ...validation.evidence.picture_backends import PictureBackends
from ...validation.judges.choose import LABELS, open_judge, open_judges, open_labels
from ...validation.judges.judge import LabelJudge
from ...validation.tuning.settings import TuneSettings
from .concepts import prompts_on_record
from .settings import Plan, Settings
from .tuning import judged_words, plan_tasks

Say = Callable[[str], None]
EVALUATED = ("unlearncanvas", "concepts")
"""folders of evaluations: their protocols"""
QUICK_SEEDS, _QUICK_ATTACKS = (188, 288), ("embedding", "seeds")


@dataclass(frozen=True)
class Stages:
    """What was found out before the first one."""

    plan: Plan
    names: tuple[str, ...]
    judges: tuple[tuple[str, ...], ...] = ()
    """of each evaluation"""
    pictures: int = 0
    """of all evaluations, by one backend with one seed"""
    attack_judge: str = ""
    cases: tuple[AttackCase, ...] = ()
    """none: nothing is attacked"""
    left_out: str = ""
    """why nothing is attacked"""

    @property
    def quick(self) -> bool:
        """Whether little evidence is asked for."""
        return self.plan.settings.evidence == "quick"

    def told(self, progress: Say) -> Callable[[str], Say]:
        """A stage's progress, with its place among the stages."""

        def of(name: str) -> Say:
            head = f"{self.names.index(name) + 1} of {len(self.names)}, {name}: "
            return lambda text: progress(head + text)

        return of

    def evaluations(self, record: Manifest, say: Say) -> list[EvaluationSettings]:
        """Of the finished artifact: quick with one backend, else with all that run here; `say` is told which don't, as the report will say too."""
        names = [name for name in ("checkpoint", "onnx", "trt", "trt-rtx") if name in record.formats]
        root, device = self.plan.settings.output, self.plan.settings.device
        backends = (
            tuple(names[:1]) if self.quick else tuple(n for n in names if _runs(PictureBackends(root, record, device=device), n, say))
        )
        common = EvaluationSettings(backends=backends, model=self.plan.model, device=device)
        if self.quick:
            common = replace(common, seeds=QUICK_SEEDS)
        return [replace(common, judge=judges) for judges in self.judges]

    @property
    def attack_settings(self) -> AttackSettings:
        """Through the artifact's checkpoint, else through the hook; steps and guidance will be on record."""
        hook = "checkpoint" not in self.plan.settings.formats
        common = AttackSettings(
            judge=(self.attack_judge,), model=self.plan.model, device=self.plan.settings.device, steps=self.plan.steps, guidance=self.plan.guidance,
            through="hook" if hook else "checkpoint", saes=tuple(f"{h}={source}" for h, source in self.plan.saes.items()) if hook else (),
        )  # fmt: skip
        return replace(common, restarts=1, attacks=_QUICK_ATTACKS) if self.quick else replace(common, attacks=attacking.DEFAULT)


def tune_settings(s: Settings) -> TuneSettings:
    """Of the tuning before an export."""
    return TuneSettings(judge=s.judge, judge_anyway=s.judge_anyway, budget=s.budget)


def stages_of(plan: Plan, folder: Path | None, say: Say = lambda text: None) -> Stages:
    """Check all stages: opens the judges, and reads the model's kind.

    Args:
        plan: of the export.
        folder: of the model; None where it isn't here, and is taken for one that can be attacked.
        say: told what goes on.

    Raises:
        SaeuronError: a judge that can't be opened or doesn't see a concept, prompts that are missing, too small a budget.
    """
    s = plan.settings
    if s.tune:
        words = {task.words.name: task.words for task in plan_tasks(plan, tune_settings(s))}
        if not s.evidence:  # which opens them below
            say("opening the judges")
            open_judges(s.judge, words, s.device)
    names = [*(["tune"] if s.tune else []), "export"]
    if not s.evidence:
        return Stages(plan, tuple(names))
    words = prompts_on_record(plan)
    wanted = {name: words[name] for name in dict.fromkeys(s.concepts) if name in words}
    say("opening the judges")
    labels = [text for text in s.judge if text.partition("=")[0] in LABELS]
    sets = [s.judge, *([(labels[0],)] if s.evidence == "full" and labels and len(s.judge) > 1 else [])]
    pictures = [_pictures(judges, labels, plan) for judges in sets]
    names.append("evaluate")
    kind = "StableDiffusionPipeline" if folder is None else read_json(folder / "model_index.json").get("_class_name")
    judge, found, left_out = "", [], f"only {', '.join(ATTACKED)} can be attacked, not {kind}"
    if kind in ATTACKED:
        judge, found, left_out = *_attacked(s, wanted), ""
        names.append("attack")
    return Stages(plan, (*names, "report"), tuple(sets), sum(pictures), judge, tuple(found), left_out)


def _pictures(judges: Sequence[str], labels: Sequence[str], plan: Plan) -> int:
    """Pictures of an evaluation by one backend with one seed, once it is known that its judges see what is removed."""
    if len(judges) == 1 and judges[0] in labels:
        judge = open_labels(judges[0])
        cases(judge, plan.settings.concepts, ())
        return len(judge.objects) * (len(judge.styles) + 1)
    wanted = judged_words(plan)
    open_judges(judges, wanted, plan.settings.device)
    return sum(map(len, by_words.prompt_sets(wanted).values()))


def _attacked(s: Settings, wanted: dict[str, ConceptPrompts]) -> tuple[str, list[AttackCase]]:
    """The first judge that sees every concept, and its prompts."""
    for text in s.judge:
        judge = open_judge(text, wanted or None, s.device)
        if set(s.concepts) <= set(judge.concepts):
            concepts = tuple(dict.fromkeys(s.concepts))
            return text, cases(judge, concepts, concepts) if isinstance(judge, LabelJudge) else cases_by_words(wanted, concepts)
    raise SaeuronError(
        f"no judge of {', '.join(s.judge)} sees all of {', '.join(s.concepts)}, and an attack is judged by one; add one that does, e.g. --judge clip=DIR|ID"
    )


def _runs(backends: PictureBackends, name: str, say: Say) -> bool:
    try:
        backends.check([name])
    except SaeuronError as error:
        say(f"{name} is left out: {error}")
        return False
    return True
