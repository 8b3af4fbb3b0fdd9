"""What an evaluation or an attack is of: an artifact, or any other pipeline (`pipeline_subject.py`). Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from ...editor.common.errors import SaeuronError
from ...editor.common.files import file_sha256
from ...editor.features.prompt_sets import ConceptPrompts
from ..artifact import contents, manifest
from ..artifact.concepts import read_concepts
from ..artifact.installed import missing
from ..artifact.manifest import SamplingRecord
from ..backends.choose import choose_networks
from .evaluation_settings import EvaluationSettings
from .picture_backends import HOOK, UNEDITED, Draw, PictureBackends, Watch
from .smears import blocks_of


class Drawing(Protocol):
    """Opens what draws, one backend at a time; `PictureBackends` of an artifact."""

    watch: Watch | None
    """around each loop that draws, where the network's blocks can be looked at"""

    def check(self, backends: Sequence[str]) -> None:
        """Raise `SaeuronError` for a backend that isn't known or can't be run here; opens nothing."""
        ...

    def runs_on(self, name: str) -> dict[str, Any]:
        """What runs a backend and whose denoising loop it is: fields of a `results.Backend`."""
        ...

    def open(self, name: str, concepts: Sequence[str] = ()) -> AbstractContextManager[Draw]:
        """A backend that draws."""
        ...

    def original(self) -> Any:
        """The original and its edit, for the hook; only an artifact has them."""
        ...

    def forget(self) -> None:
        """Free what is kept open."""
        ...


class Subject(Protocol):
    """An edited model, as far as an evaluation needs to know it."""

    @property
    def path(self) -> Path:
        """What the user named; results lie beside it by default."""
        ...

    @property
    def name(self) -> str:
        """By which results call it."""
        ...

    @property
    def folder(self) -> Path:
        """Its files; no result may be put among them."""
        ...

    @property
    def concepts(self) -> list[str]:
        """What was removed."""
        ...

    @property
    def precision(self) -> str:
        """Of the networks that draw."""
        ...

    @property
    def kind(self) -> str:
        """Class of its pipeline."""
        ...

    @property
    def sampling(self) -> SamplingRecord:
        """How pictures are made, where nothing else is asked for."""
        ...

    @property
    def default(self) -> str:
        """The backend whose pictures are judged, where none is asked for."""
        ...

    @property
    def engines(self) -> dict[str, str] | None:
        """Folder of engines → hash of its files; None where there can be none."""
        ...

    @property
    def blocks(self) -> list[str]:
        """Names of blocks whose tokens show what the edit does; none: all."""
        ...

    def words(self) -> Mapping[str, ConceptPrompts]:
        """Concept → its prompts, as far as they are known."""
        ...

    def identity(self) -> dict[str, Any]:
        """Fields of a `SettingsRecord` and an `AttackReport` that say which model it is."""
        ...

    def check(self) -> None:
        """Raise `SaeuronError` where its files changed since they were written."""
        ...

    def check_stages(self) -> None:
        """Raise `SaeuronError` unless the edit can be taken apart by concepts."""
        ...

    def check_backends(self, options: EvaluationSettings, backends: Sequence[str], stages: bool) -> None:
        """Raise `SaeuronError` for options that none of the chosen backends has a use for."""
        ...

    def drawing(self, options: EvaluationSettings) -> Drawing:
        """What draws its pictures."""
        ...


class ArtifactSubject:
    """An artifact.

    Args:
        artifact: its folder.

    Raises:
        SaeuronError: no artifact.
    """

    def __init__(self, artifact: str | Path) -> None:
        self.path = self.folder = Path(artifact)
        self.record, self.name = manifest.read(self.folder), self.folder.resolve().name
        self.concepts, self.precision, self.sampling = self.record.concepts, self.record.precision, self.record.sampling
        self.kind = self.record.model.pipeline

    @property
    def default(self) -> str:
        """The checkpoint, or what can be run here."""
        there = "checkpoint" in self.record.formats and not missing()
        return "checkpoint" if there else choose_networks(self.folder, self.record).backend

    @property
    def engines(self) -> dict[str, str] | None:
        """Those in it."""
        return manifest.engines_sha256(self.record)

    @property
    def blocks(self) -> list[str]:
        """Those that it edits; of an edit in the weights alone, its presets'."""
        return list(self.record.edit.hookpoints) or blocks_of(self.concepts, self.record.model.source)

    def words(self) -> Mapping[str, ConceptPrompts]:
        """Those that the artifact holds."""
        return read_concepts(self.folder)

    def identity(self) -> dict[str, Any]:
        """By the hashes of manifest, edit and files."""
        return {
            "artifact": self.name, "manifest_sha256": file_sha256(self.folder / manifest.NAME),
            "edit_sha256": self.record.edit.sha256, "content_sha256": manifest.content_sha256(self.record),
        }  # fmt: skip

    def check(self) -> None:
        """Every file against the manifest."""
        contents.check(self.folder, self.record)

    def check_stages(self) -> None:
        """Weights were solved for all concepts at once."""
        if self.record.edit.weights:
            raise SaeuronError(
                "--sequential and --all-but-one take an edit apart, and the weights of this one were solved for all of its concepts at once; export the concepts apart"
            )

    def check_backends(self, options: EvaluationSettings, backends: Sequence[str], stages: bool) -> None:
        """The original model and SAEs are for the hook."""
        if options.model is not None and not stages and not {UNEDITED, HOOK} & set(backends):
            raise SaeuronError("--model is for 'unedited' and 'hook', and neither is asked for; leave it out")
        if options.saes and not stages and HOOK not in backends:
            raise SaeuronError("--sae is for 'hook', which is not asked for; leave it out")

    def drawing(self, options: EvaluationSettings) -> PictureBackends:
        """Its backends."""
        return PictureBackends(self.folder, self.record, options.model, options.saes, options.device, options.provider)
