"""An artifact as a technique of PyPI's eval-unlearn, which runs ESD, UCE, MACE and others under one roof.

What eval-unlearn asks for is a class in an entry point (see pyproject.toml), made from a config's keys, with `generate`. So nothing of it is imported.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta
from PIL import Image

from ...editor.common.errors import SaeuronError
from ...editor.common.seeds import LARGEST_SEED
from ...editor.common.suggest import unknown
from ...editor.common.typed import Number, Record, plain, read_as
from ...editor.edit.provenance import Steps
from ..artifact import contents, manifest
from .picture_backends import PictureBackends

TECHNIQUE = "saeuron_export"


class Config(Record, kw_only=True):
    """Keys of `technique.config`, with eval-unlearn's names where its other techniques have them."""

    artifact: str
    """the artifact's folder"""
    backend: str = "checkpoint"
    """checkpoint, onnx, trt or trt-rtx"""
    device: str = "cpu"
    """torch device; ONNX Runtime's provider follows it"""
    erase_concept: str | None = None
    """which of the artifact's concepts the run is about: eval-unlearn puts it into its report, and its metric `err` wants `nudity`"""
    num_inference_steps: Steps | None = None
    """default: those on record"""
    guidance_scale: Number | None = None
    """default: that on record"""
    seed: Annotated[int, Meta(ge=0, le=LARGEST_SEED)] = 42
    """of the first picture where a run gives no seed, as eval-unlearn's command never does; each next takes the next one"""
    batch_size: Annotated[int, Meta(ge=1)] = 16
    """pictures at a time"""


class SaeuronExport:
    """Draws with an artifact; its files are checked and its backend is opened at once.

    Args:
        **config: see `Config`.

    Raises:
        SaeuronError: a key or value that can't be meant, no such artifact, a changed file, a backend that isn't in it or can't be run here.
    """

    def __init__(self, **config: Any) -> None:
        for key in config:
            if key not in Config.__struct_fields__:
                raise SaeuronError(unknown("key", key, Config.__struct_fields__, f"to {TECHNIQUE}"))
        self.config = read_as(Config, config, TECHNIQUE)
        root, backend, concept = Path(self.config.artifact), self.config.backend, self.config.erase_concept
        record = manifest.read(root)
        manifest.check_backends(root, record, [backend])
        if concept is not None and concept.lower() not in [name.lower() for name in record.concepts]:
            raise SaeuronError(unknown("erase_concept", concept, record.concepts, f"to '{root}'"))
        pictures_by = PictureBackends(root, record, device=self.config.device)
        pictures_by.check([backend])
        contents.check(root, record)
        self._sampling = record.sampling
        self._free = itertools.count(self.config.seed)
        self._opened = ExitStack()
        self._draw = self._opened.enter_context(pictures_by.open(backend))

    def generate(
        self, prompts: Sequence[str], seed: int | None = None, num_inference_steps: int | None = None, guidance_scale: float | None = None
    ) -> list[Image.Image]:
        """Draw a picture for each prompt.

        Args:
            prompts: texts.
            seed: of the first picture; each next takes the next one, as with eval-unlearn's own techniques. Default: see `Config`.
            num_inference_steps: in place of the config's.
            guidance_scale: in place of the config's.

        Returns:
            RGB pictures of the size on record. On one backend, those of the same prompt and seed are the same, but for rounding in a batch of another size.

        Raises:
            SaeuronError: a value that can't be.
        """
        if isinstance(prompts, str):
            raise SaeuronError(f"{TECHNIQUE}: prompts are a list of texts, not one text")
        asked = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
        config = read_as(Config, {**plain(self.config), **{k: v for k, v in asked.items() if v is not None}}, TECHNIQUE)
        steps = config.num_inference_steps or self._sampling.steps
        guidance = self._sampling.guidance if config.guidance_scale is None else config.guidance_scale
        seeds = list(itertools.islice(self._free, len(prompts))) if seed is None else [seed + i for i in range(len(prompts))]
        pictures: list[Image.Image] = []
        for start in range(0, len(prompts), config.batch_size):
            part = slice(start, start + config.batch_size)
            pictures += map(Image.fromarray, self._draw(prompts[part], seeds[part], steps, guidance))
        return pictures
