"""Any diffusers pipeline as the subject of an evaluation or an attack: an eraser's result, a fine-tune, weights over a base. Needs no torch to be imported."""

from __future__ import annotations

import gc
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...editor import demo
from ...editor.common.declared import WHAT, option
from ...editor.common.errors import SaeuronError
from ...editor.common.files import check_hub_id, file_sha256, read_json
from ...editor.common.names import SENTINEL
from ...editor.common.suggest import unknown
from ...editor.denoisers.families import family_in, network_of
from ...editor.features.concepts import KINDS, Concept
from ...editor.features.named import ConceptWords, known_concepts
from ...editor.features.prompt_sets import ConceptPrompts, prompts_of
from ..artifact import manifest
from ..artifact.installed import missing
from ..artifact.manifest import SamplingRecord
from .evaluation_settings import EvaluationSettings
from .picture_backends import UNEDITED, Draw, Watch, torch_draw
from .results import PipelineRecord
from .smears import blocks_of

PIPELINE = "pipeline"
"""the backend that draws the edited pipeline's pictures"""
_ALIKE = ("in_channels", "out_channels", "sample_size", "cross_attention_dim", "block_out_channels")
"""settings in which an edited UNet equals its original's"""


@dataclass(frozen=True)
class PipelineSettings(ConceptWords):
    """Options that name what isn't an artifact.

    Raises:
        SaeuronError: a value that can't be meant.
    """

    pipeline: str | None = option(None, "DIR|ID", WHAT)
    """Instead of an artifact: any diffusers pipeline of a kind that can be edited. Prompts, steps and guidance are those of the concepts' presets."""
    unet: Path | None = option(None, "FILE", WHAT)
    """Instead of an artifact: a UNet's weights as erasers publish them (safetensors or torch, all or some), put over --model."""
    concepts: tuple[str, ...] = option((), "A,B", WHAT, joined=True)
    """What was removed, where a model is no artifact and doesn't say it. In attack, some of an artifact's concepts; default: all."""


class PipelineSubject:  # see `subject.Subject`
    """A pipeline, its concepts, and the original that it is held against; everything is checked that can be.

    Args:
        wanted: `pipeline` or `unet`, and the concepts.
        model: the original model; with `unet`, the base that its weights are put over. Default: that of the concepts' presets.
        original: whether the original is needed.
        name: for results; default: that of folder or file.

    Raises:
        SaeuronError: no concept, an unknown one, an artifact, no pipeline, weights that don't fit, another model than the original.
    """

    precision, default, engines = "fp32", PIPELINE, None

    def __init__(self, wanted: PipelineSettings, model: str | None = None, original: bool = True, name: str | None = None) -> None:
        known = _concepts(wanted, model)
        self.concepts, self._known = list(known), known
        self.sampling, self.unet = _sampling(known.values()), wanted.unet
        if self.unet is not None and model is None:
            raise SaeuronError("--unet needs the base that its weights are put over: give --model DIR|ID")
        self.source = wanted.pipeline if wanted.pipeline is not None else str(model)
        self.path = self.unet or Path(self.source)
        self.name = name or (self.unet.name.partition(".")[0] if self.unet else Path(self.source).resolve().name)
        self.original = model or _model_of(known.values(), wanted)
        if original and self.original is None:
            raise SaeuronError("nothing says what the pipeline was made from, for the unedited model's pictures: give --model DIR|ID")
        if not original:
            self.original = None
        from ...editor.denoisers.pipelines import open_folder

        _refuse_artifact(self.source)
        self.folder = open_folder(self.source)
        self.kind = str(read_json(self.folder / "model_index.json")["_class_name"])
        self.record = PipelineRecord(sha256=_sha256(self.folder))
        if self.original is not None:
            _check_source(self.original, "--model")
            before = open_folder(self.original)
            _check_alike(self.source, self.folder, self.original, before)
            # Of a local folder only its name is on record.
            self.record.original = Path(self.original).resolve().name if os.path.exists(self.original) else self.original
            self.record.original_sha256 = self.record.sha256 if before == self.folder else _sha256(before)
        if self.unet is not None:
            from ...editor.denoisers.pipelines import load_network
            from ...editor.denoisers.weights_file import put_over

            self.record.unet = put_over(load_network(self.folder), self.unet, self.source)

    def words(self) -> Mapping[str, ConceptPrompts]:
        """Of the presets, or made from words."""
        return {name: prompts_of(concept) for name, concept in self._known.items()}

    @property
    def blocks(self) -> list[str]:
        """Its presets'."""
        return blocks_of(self.concepts, self.original)

    def identity(self) -> dict[str, Any]:
        """By the hash of its files, and of what is put over them."""
        return {"artifact": self.name, "pipeline": self.record}

    def check(self) -> None:
        """Its files were hashed when it was made."""

    def check_stages(self) -> None:
        """It holds no edit that could be taken apart."""
        raise SaeuronError("--sequential and --all-but-one take an artifact's edit apart; a pipeline has none, so leave them out")

    def check_backends(self, options: EvaluationSettings, backends: Sequence[str], stages: bool) -> None:
        """Only an artifact has graphs and a hook."""
        for option_, given in (("--sae", options.saes), ("--provider", options.provider)):
            if given:
                raise SaeuronError(f"{option_} is for artifacts; a pipeline is run by torch alone, so leave it out")

    def drawing(self, options: EvaluationSettings) -> PipelineBackends:
        """Its pictures, and the original's."""
        return PipelineBackends(self, options.device)

    def load(self, device: str = "cpu") -> Any:
        """The pipeline in float32, opened anew."""
        from ...editor.denoisers.pipelines import load_pipeline
        from ...editor.denoisers.weights_file import put_over

        pipeline = load_pipeline(self.source, device=device)
        if self.unet is not None and put_over(network_of(pipeline), self.unet, self.source) != self.record.unet:
            raise SaeuronError(f"'{self.unet}' or '{self.source}' changed while they were read; run it again")
        return pipeline

    def load_original(self, device: str = "cpu") -> Any:
        """The original in float32, opened anew."""
        from ...editor.denoisers.pipelines import load_pipeline

        assert self.original is not None
        return load_pipeline(self.original, device=device)


class PipelineBackends:
    """Draws the pictures of a pipeline and of its original; see `subject.Drawing`."""

    def __init__(self, subject: PipelineSubject, device: str) -> None:
        self._subject, self._device = subject, device
        self.watch: Watch | None = None

    def check(self, backends: Sequence[str]) -> None:
        """Raise `SaeuronError` for another backend than the two, or without torch."""
        for name in backends:
            if name not in (UNEDITED, PIPELINE):
                raise SaeuronError(unknown("backend", name, (PIPELINE, UNEDITED), "of a pipeline that is no artifact"))
        if UNEDITED in backends and self._subject.original is None:
            raise SaeuronError("the unedited model's pictures need the original model: give --model DIR|ID")
        if lacking := missing():
            raise SaeuronError(f"a pipeline needs {', '.join(lacking)}; pip install 'saeuron-export[export]'")
        from ...editor.denoisers.pipelines import check_device

        check_device(self._device)

    def runs_on(self, name: str) -> dict[str, Any]:
        """torch and diffusers' loop."""
        return {"runtime": "torch", "device": self._device, "loop": "diffusers"}

    @contextmanager
    def open(self, name: str, concepts: Sequence[str] = ()) -> Iterator[Draw]:
        """Draw with one of the two."""
        pipeline = self._subject.load_original(self._device) if name == UNEDITED else self._subject.load(self._device)
        with torch_draw(pipeline, self._subject.sampling.height, self._subject.sampling.width, lambda: self.watch) as draw:
            yield draw

    def original(self) -> Any:
        """There is no hook."""
        raise AssertionError("a pipeline has no edit")

    def forget(self) -> None:
        """Nothing is kept open."""
        gc.collect()


def _concepts(wanted: PipelineSettings, model: str | None) -> dict[str, Concept]:
    """What is named, with its prompts."""
    if not wanted.concepts:
        raise SaeuronError("a pipeline doesn't say what was removed from it; name it: --concepts A,B")
    known = known_concepts(wanted.concepts, wanted, model)
    for name in wanted.concepts:
        if name not in known:
            raise SaeuronError(unknown("concept", name, known) + f". Of one without a preset say what it is (--kind {'|'.join(KINDS)})")
    return {name: known[name] for name in dict.fromkeys(wanted.concepts)}


def _sampling(concepts: Any) -> SamplingRecord:
    """Steps and guidance of the concepts' presets; the first one's, which `--steps` and `--guidance` override."""
    found = next(iter(concepts))
    return SamplingRecord(steps=found.steps, guidance=found.guidance, height=None, width=None)


def _model_of(concepts: Any, wanted: PipelineSettings) -> str | None:
    """The one model that the concepts' presets are of; what is made from words is of no model in particular."""
    models = {concept.model for concept in concepts}
    return models.pop() if len(models) == 1 and "" not in models and not wanted.kind else None


def _check_source(source: str, what: str) -> None:
    if source not in demo.MODELS and not os.path.exists(source):
        check_hub_id(source, what)


def _refuse_artifact(source: str) -> None:
    """Raise `SaeuronError` for an artifact, or a network that carries an edit of ours."""
    _check_source(source, "--pipeline")
    folder = Path(source)
    if (folder / manifest.NAME).is_file():
        raise SaeuronError(f"'{source}' is an artifact, which says itself what it removes: leave --pipeline out and name it alone")
    for part in manifest.DENOISERS:
        config = read_json(folder / part / "config.json") if (folder / part / "config.json").is_file() else {}
        if "ablation" in config or SENTINEL in map(str, config.values()):
            raise SaeuronError(
                f"the {part} in '{source}' carries an edit of saeuron-export; name the artifact that it is from, without --pipeline"
            )


def _check_alike(source: str, folder: Path, original: str, before: Path) -> None:
    """Raise `SaeuronError` unless two networks are of one form, so that the same noise and prompts go into both."""
    kinds = {family_in(of).pipeline for of in (folder, before)}
    if len(kinds) > 1:
        raise SaeuronError(
            f"'{source}' was not made from '{original}': they are {' and '.join(sorted(kinds))}; name the original with --model"
        )
    part = family_in(folder).denoiser.component
    ours, theirs = (read_json(of / part / "config.json") for of in (folder, before))
    for key in _ALIKE:
        if ours.get(key) != theirs.get(key):
            raise SaeuronError(
                f"'{source}' was not made from '{original}': {key} of its network is {ours.get(key)}, there {theirs.get(key)}; name the original with --model"
            )


def _sha256(folder: Path) -> str:
    """Hash of the files that a pipeline is loaded from."""
    from ...editor.denoisers.components import weight_files

    family = family_in(folder)
    parts = [name for name in (*family.folders, *family.optional) if (folder / name).is_dir()]
    files = [folder / "model_index.json"]
    for part in parts:
        files += [path for path in sorted((folder / part).iterdir()) if path.suffix in (".json", ".txt", ".model")]
        if part in (*family.networks, *family.optional):
            files += weight_files(folder / part)[1]
    said = [f"{file_sha256(path)} {path.relative_to(folder).as_posix()}\n" for path in dict.fromkeys(files)]
    return hashlib.sha256("".join(said).encode()).hexdigest()
