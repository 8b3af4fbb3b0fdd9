"""What `evaluate` and `attack` are given: an artifact, or by options any other pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...editor.common.errors import SaeuronError
from ...validation.evidence.pipeline_subject import PipelineSettings

if TYPE_CHECKING:
    from ...validation.evidence.results import PipelineRecord
    from ...validation.evidence.subject import Subject

Artifact = Annotated[Path | None, typer.Argument(help="Folder of the artifact; none with --pipeline or --unet.")]


def subject_of(artifact: Path | None, wanted: PipelineSettings, model: str | None, original: bool) -> Subject:
    """The one that was named.

    Args:
        artifact: its folder.
        wanted: what is named by options.
        model: the original model.
        original: whether a pipeline's original is needed.

    Raises:
        SaeuronError: none or several, options that go with another one, no such artifact or pipeline.
    """
    from ...validation.evidence.pipeline_subject import PipelineSubject
    from ...validation.evidence.subject import ArtifactSubject

    named = [given for given in (artifact, wanted.pipeline, wanted.unet) if given is not None]
    if len(named) != 1:
        text = "several models are named" if named else "no model is named"
        raise SaeuronError(f"{text}; give one: an artifact's folder, --pipeline DIR, or --unet FILE with --model DIR")
    if artifact is None:
        return PipelineSubject(wanted, model, original)
    for option, given in (("--kind", wanted.kind), ("--instead", wanted.instead)):
        if given:
            raise SaeuronError(f"{option} goes with --pipeline or --unet; an artifact holds its concepts' prompts, so leave it out")
    return ArtifactSubject(artifact)


def pipeline_lines(of: PipelineRecord | None) -> list[str]:
    """What is said of a pipeline that is no artifact: what was put over it, and what it is held against."""
    if of is None:
        return []
    put = of.unet
    lines = [f"{put.file}: {put.changed} of its {put.tensors} weights are other than the base's"] if put else []
    unedited = f"unedited: {of.original}" if of.original else "not held against an unedited model"
    return [
        *lines,
        f"{unedited}; prompts, and steps and guidance where no option gives them, are those of the concepts' presets, or of their kind",
    ]
