"""The main job with what may go before and after it: tune, export and prove, evaluate, attack, report. Goes on where it was stopped."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...editor.common.files import read_json
from ...editor.common.typed import read_as
from ...editor.common.writing import alone
from ...validation.artifact import manifest
from ...validation.artifact.manifest import Manifest
from ...validation.attack import run as attacking
from ...validation.evidence.evaluate import evaluate, make_plan
from ...validation.evidence.results import Begun
from ...validation.evidence.verdicts import RESULT
from ...validation.page.sources import own_proof
from ...validation.trust import signature
from ..plan import stage_state
from ..plan.prepare import open_model
from ..plan.progress import Remaining
from ..plan.resolve import resolve
from ..plan.settings import Plan, Settings
from ..plan.stage_state import State
from ..plan.stages import EVALUATED, Stages, stages_of, tune_settings
from ..plan.tuning import REPORT, SETTINGS, open_tuning
from .artifact import Progress, Result, make_artifact
from .into_artifact import HTML
from .report import ReportSettings, write_report


def export_artifact(wanted: Settings | Plan, progress: Progress = lambda text: None) -> Result:
    """Run the main job; with `tune` and `evidence` what goes before and after it, too.

    Args:
        wanted: what to remove from which model, and how; see `Settings`.
        progress: told what is being done.

    Raises:
        SaeuronError: bad input or an impossible wish; nothing is left under the final name. Later stages leave the artifact as it was proven.
    """
    plan = wanted if isinstance(wanted, Plan) else resolve(wanted)
    s = plan.settings
    if not s.staged:
        return make_artifact(plan, progress)
    work = stage_state.work_folder(s.output)
    stage_state.is_made(plan)
    stages = stages_of(plan, open_model(plan, (s.height, s.width)), progress)
    work.mkdir(parents=True, exist_ok=True)
    with alone(work, f"another process works in '{work}'; wait until it has ended"):
        # Once more: another process may have made it since.
        made, state, ours = stage_state.is_made(plan), stage_state.read(s.output) or State(""), stage_state.digest(plan)
        if not made:
            if state.settings_sha256 == ours and not state.finished:
                progress(f"going on: what was tuned so far lies in {work}" if s.tune else "beginning again: the artifact wasn't finished")
            _clear(work)
            state = State(ours)
            state.keep(work)

            def finished(record: Manifest) -> None:
                state.content_sha256 = manifest.content_sha256(record)
                state.keep(work)

            result = _made(plan, work, stages.told(progress), finished)
        else:
            progress(f"going on: {s.output} is made already, its evidence lies in {work}")
            own = s.output / "validation" / "report.json"
            result = Result(s.output, manifest.read(s.output), own_proof(own) if own.is_file() else None)
        if s.evidence and (result.proven or result.report is None):
            result.verdict = _evidence(plan, stages, work, state, stages.told(progress))
            result.manifest = manifest.read(s.output)
        state.finished = True
        state.keep(work)
    return result


def _clear(work: Path) -> None:
    """Remove what is of an earlier artifact. Tuning's results stay: they are found by what they depend on."""
    for name in (*EVALUATED, attacking.examples_of(work / "attack.json").name):
        shutil.rmtree(work / name, ignore_errors=True)
    (work / "attack.json").unlink(missing_ok=True)


def _made(plan: Plan, work: Path, told: Callable[[str], Progress], finished: Callable[[Manifest], None]) -> Result:
    """The artifact, by settings that are tuned first where that is wished for; signed once nothing will be added."""
    s = plan.settings
    if s.tune:
        open_tuning(plan, tune_settings(s), work / "tuning", told("tune")).run(told("tune"))
        # The file holds all that was said of the concepts.
        file = work / "tuning" / SETTINGS
        plan = resolve(replace(s, settings=file, kind=(), instead=(), activations=(), sae=(), hookpoint=None, model=None))
    return make_artifact(replace(plan, settings=replace(plan.settings, sign=None if s.evidence else s.sign)), told("export"), finished)


def _evidence(plan: Plan, stages: Stages, work: Path, state: State, told: Callable[[str], Progress]) -> dict[str, Any]:
    """Evaluations, attack and report of a finished artifact."""
    s, root = plan.settings, plan.settings.output
    text: dict[str, Any] = {"text": f"the report lies in {root / HTML}", "facts": []}
    if not state.reported:
        folders = []
        for wanted in stages.evaluations(manifest.read(root), told("evaluate")):
            planned, say, clock = make_plan(root, wanted), told("evaluate"), Remaining()
            folders.append(work / planned.protocol)

            def counted(name: str, done: int, total: int, say: Progress = say, clock: Remaining = clock) -> None:
                say(f"{name}, {done} of {total} pictures{clock.text(done, total)}")

            # Where a run was killed after the report, the manifest is another, and an evaluation that goes on would be refused.
            if not _evaluated(folders[-1], state.content_sha256):
                evaluate(planned, folders[-1], progress=counted)
        attack = None
        if stages.cases:
            attack = work / "attack.json"
            if not attack.is_file() or attacking.unfinished(attack) is not None:
                attacking.run(attacking.make_plan(root, stages.attack_settings), attack, told("attack"))

        tuning = work / "tuning" / REPORT if s.tune else None
        page = ReportSettings(evaluation=tuple(folders), attack=attack, tuning=tuning, into_artifact=True, overwrite=True)
        text = write_report(root, page, told("report")).content["verdict"]
        state.reported = True
        state.keep(work)
    if s.sign is not None:
        told("report")("signing")
        signature.sign(root, s.sign)
    return text


def _evaluated(folder: Path, content_sha256: str) -> bool:
    """Whether a finished evaluation of this artifact lies there."""
    path = folder / RESULT
    if not path.is_file():
        return False
    begun = read_as(Begun, read_json(path), path)
    return begun.finished and begun.settings.get("content_sha256") == content_sha256
