"""The commands as functions: each takes its settings class, and returns what the command's file holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ..editor.common.writing import alone
from ..validation.attack.results import AttackReport
from ..validation.attack.settings import AttackSettings
from ..validation.compare.results import Comparison
from ..validation.compare.settings import CompareSettings
from ..validation.evidence.evaluation_settings import EvaluationSettings
from ..validation.evidence.results import Evaluation
from ..validation.tuning.results import TuningReport
from ..validation.tuning.settings import TuneSettings
from .plan.folder import check_attack_output, check_work_folder
from .plan.resolve import resolve_tuning
from .plan.settings import Settings
from .ship.report import ReportSettings, Written, write_report

Say = Callable[[str], None]


def tune(wanted: Settings, output: str | Path, settings: TuneSettings | None = None, progress: Say = lambda text: None) -> TuningReport:
    """Choose each concept's settings; `output/settings.toml` is what `Settings(settings=…)` reads. Goes on where it was stopped.

    Args:
        wanted: concepts and model, as for an export.
        output: folder of settings.toml, report.json and stored results.
        settings: what is tried, and who judges.
        progress: told what is being done.

    Raises:
        SaeuronError: bad input, or a judge that can't be believed.
    """
    from .plan.tuning import open_tuning

    check_work_folder(Path(output))
    tried = settings or TuneSettings()
    return open_tuning(resolve_tuning(wanted, tried), tried, Path(output), progress).run(progress)


def evaluate(
    artifact: str | Path, output: str | Path, settings: EvaluationSettings | None = None, progress: Say = lambda text: None
) -> Evaluation:
    """Measure what an artifact removes and keeps. Goes on where it was stopped.

    Args:
        artifact: its folder.
        output: folder of evaluation.json, verdicts.csv and the pictures.
        settings: whose pictures, and who judges.
        progress: told what is being done.

    Raises:
        SaeuronError: bad input, a changed artifact, a folder of another evaluation.
    """
    from ..validation.evidence import evaluate as module

    check_work_folder(Path(output))
    plan = module.make_plan(artifact, settings or EvaluationSettings())
    module.check_output(plan, Path(output), overwrite=False)
    with alone(Path(output), f"another evaluation writes into '{output}'; wait until it has ended"):
        found = module.evaluate(plan, Path(output), progress=lambda name, done, total: progress(f"{name}: {done} of {total} pictures"))
    assert found is not None  # of the only process
    return found


def attack(
    artifact: str | Path,
    output: str | Path | None = None,
    settings: AttackSettings | None = None,
    progress: Say = lambda text: None,
    overwrite: bool = False,
) -> AttackReport:
    """Attack what an artifact removes. Goes on where it was stopped, concept by concept.

    Args:
        artifact: its folder.
        output: file of the report, with example pictures beside it; None: nothing is written.
        settings: what attacks what, judged by whom, within which budget.
        progress: told what is being done.
        overwrite: replace a report that is there.

    Raises:
        SaeuronError: bad input, a changed artifact, or a file that is there.
    """
    from ..validation.attack import run as module

    file = None if output is None else Path(output)
    check_attack_output(file, overwrite)
    return module.run(module.make_plan(Path(artifact), settings or AttackSettings()), file, progress)


def compare(
    models: Sequence[str],
    output: str | Path,
    settings: CompareSettings | None = None,
    progress: Say = lambda text: None,
    overwrite: bool = False,
) -> Comparison:
    """Set artifacts and other edited models side by side. Goes on where it was stopped.

    Args:
        models: artifacts, pipelines (folder or Hub id) and files of UNet weights; each perhaps `NAME=MODEL`.
        output: folder of compare.json, .md and .html, and of each model's evaluation and attack.
        settings: concepts, prompts, seeds, judges and attacks.
        progress: told what is being done.
        overwrite: begin anew.

    Raises:
        SaeuronError: bad input, models that can't be compared, a folder of another comparison.
    """
    from ..validation.compare import run as module
    from ..validation.compare.plan import make_plan

    check_work_folder(Path(output))
    return module.compare(make_plan(models, settings or CompareSettings()), Path(output), overwrite, progress)


def report(artifact: str | Path, settings: ReportSettings | None = None, progress: Say = lambda text: None) -> Written:
    """Write what is known of an artifact as a page for people; see `write_report`."""
    return write_report(Path(artifact), settings, progress)
