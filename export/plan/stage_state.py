"""How far a job with stages has come: `stages.json` in its work folder. Needs no torch."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from pathlib import Path

from ...editor.common.errors import SaeuronError
from ...editor.common.files import read_json
from ...editor.common.typed import Record, read_as, strict_json
from ...editor.common.writing import whole_file
from ...validation.artifact import manifest
from .folder import check_output
from .settings import Plan

NAME = "stages.json"


class State(Record):
    """How far a run has come; `stages.json` in its work folder."""

    settings_sha256: str
    content_sha256: str = ""
    """of the artifact that it made, written down before that gets its name"""
    reported: bool = False
    """whether its own report is in the artifact"""
    finished: bool = False

    def keep(self, work: Path) -> None:
        """Write it into its work folder."""
        with whole_file(work / NAME) as file:
            file.write_text(strict_json(self) + "\n", encoding="utf-8")


def digest(plan: Plan) -> str:
    """Of a job: the plan, not the settings, since what their files say counts, too."""
    return hashlib.sha256(str(asdict(replace(plan, settings=replace(plan.settings, overwrite=False)))).encode()).hexdigest()


def work_folder(output: Path) -> Path:
    """Where tuning, evaluations and attack of an artifact lie; raises `SaeuronError` for an output that has no name."""
    if output == Path() or not output.absolute().name:
        check_output(output, overwrite=False)
    return output.absolute().with_name(f"{output.absolute().name}-work")


def read(output: Path) -> State | None:
    """Of an artifact's work folder, None if it has none; raises `SaeuronError` if something else lies there."""
    work = work_folder(output)
    if (not work.exists() and not work.is_symlink()) or (work.is_dir() and all(path.name.startswith(".") for path in work.iterdir())):
        return None
    if not (work / NAME).is_file():
        raise SaeuronError(f"'{work}' is there and holds no {NAME}, so it is left alone; choose another --output")
    return read_as(State, read_json(work / NAME), work / NAME)


def is_made(plan: Plan) -> bool:
    """Whether the artifact is this very job's, and only what comes after it is left.

    Raises:
        SaeuronError: it isn't, and something lies where it is to be written; see `read`.
    """
    output, state = plan.settings.output, read(plan.settings.output)
    ours = state is not None and not state.finished and state.settings_sha256 == digest(plan)
    if state and ours and (output / manifest.NAME).is_file() and manifest.content_sha256(manifest.read(output)) == state.content_sha256:
        return True
    check_output(output, plan.settings.overwrite)
    return False
