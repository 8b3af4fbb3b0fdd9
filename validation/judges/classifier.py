"""Any image classifier in transformers' form as a judge."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...editor.common.errors import SaeuronError, first_line, panics_as_errors
from ...editor.common.files import file_sha256, read_header, read_json
from ...editor.common.quiet import quiet_loading
from ...editor.common.suggest import unknown
from ...editor.features.prompt_sets import ConceptPrompts
from ..artifact.installed import missing
from .embedder import model_folder
from .judge import Sightings, softmax

_WEIGHTS = "model.safetensors"
_FILES = ["*.json", _WEIGHTS]
_CHUNK = 64


class ClassifierJudge:
    """A concept is seen where one of its labels is the likeliest one; a multi-label model's, where it is likelier than not.

    Args:
        where: folder (weights as model.safetensors) or Hub id; with `:label,…` these labels together stand for the concept, of which there
            is then one; without, each concept is the label of its name.
        wanted: the concepts.
        device: torch device.

    Raises:
        SaeuronError: torch or transformers are missing, no image classifier, a label that it doesn't have, files that can't be read.
    """

    def __init__(self, where: str, wanted: Mapping[str, ConceptPrompts], device: str = "cpu") -> None:
        if lacking := missing():
            raise SaeuronError(f"judge classifier needs {', '.join(lacking)}; pip install 'saeuron-export[export]'")
        place, _, listed = where.partition(":")
        given = [text.strip() for text in listed.split(",") if text.strip()]
        if ":" in where and not given:
            raise SaeuronError(f"judge classifier: '{where}' ends without a label; write classifier=DIR|ID:label,…")
        if len(wanted) > 1 and given:
            raise SaeuronError(
                f"judge classifier: {', '.join(given)} can stand for one concept, and there are {len(wanted)}: {', '.join(wanted)}"
            )
        folder = model_folder(place, _FILES, "judge classifier:")
        config = folder / "config.json"
        said = read_json(config) if config.is_file() else {}
        if not any(str(a).endswith("ForImageClassification") for a in said.get("architectures") or ()):
            raise SaeuronError(
                f"judge classifier: '{place}' is no image classifier in transformers' form: its config.json names no …ForImageClassification"
            )
        if not (folder / _WEIGHTS).is_file():
            raise SaeuronError(f"judge classifier: '{place}' has no {_WEIGHTS}; pickled weights are not opened")
        import torch
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        try:
            read_header(folder / _WEIGHTS)
            with quiet_loading(), panics_as_errors():
                network, loaded = AutoModelForImageClassification.from_pretrained(folder, use_safetensors=True, output_loading_info=True)
                processor = AutoImageProcessor.from_pretrained(folder)
        except Exception as error:  # a damaged file can raise anything
            raise SaeuronError(f"judge classifier: '{place}' can't be read: {first_line(error, 200)}") from None
        # transformers fills a missing weight with random numbers.
        if lost := sorted(loaded["missing_keys"]):
            raise SaeuronError(f"judge classifier: '{place}' lacks the weight '{lost[0]}'")
        self._network: Any = network.to(device, torch.float32).eval()
        self._processor: Any = processor
        self._several = network.config.problem_type == "multi_label_classification"
        labels = {str(name).casefold(): int(i) for i, name in network.config.id2label.items()}
        if given:
            self._labels = {name: [_label(labels, text, place) for text in given] for name in wanted}
        else:
            self._labels = {name: [labels[spelt]] for name in wanted for spelt in _spellings(name, labels)}
        if wanted and not self._labels:
            _label(labels, next(iter(wanted)), place)  # raises
        self.concepts = tuple(self._labels)
        self.name = f"classifier {folder.name}"
        words = ";".join(f"{name}:{found}" for name, found in self._labels.items())
        self.sha256 = f"{file_sha256(folder / _WEIGHTS)} {hashlib.sha256(words.encode()).hexdigest()}"

    def see(self, pictures: Sequence[Any]) -> Sightings:
        """See `Judge.see`."""
        import torch

        found = []
        for start in range(0, len(pictures), _CHUNK):
            part = [p.convert("RGB") for p in pictures[start : start + _CHUNK]]
            pixels = self._processor(part, return_tensors="pt")["pixel_values"]
            with torch.no_grad():
                found.append(self._network(pixel_values=pixels.to(self._network.device)).logits.float().cpu().numpy())
        logits = np.concatenate(found)
        if not np.isfinite(logits).all():
            raise SaeuronError(f"{self.name} gives no finite scores of a picture")
        if self._several:
            shares = 1 / (1 + np.exp(-logits.astype(np.float64)))
            scores = np.stack([shares[:, at].max(1) for at in self._labels.values()], 1)
            return Sightings(scores > 0.5, scores.astype(np.float32), {"": shares.max(1)})
        shares = softmax(logits)
        likeliest = shares.argmax(1)
        seen = np.stack([np.isin(likeliest, at) for at in self._labels.values()], 1)
        scores = np.stack([shares[:, at].sum(1) for at in self._labels.values()], 1)
        return Sightings(seen, scores.astype(np.float32), {"": shares.max(1)})


def _spellings(text: str, labels: Mapping[str, int]) -> list[str]:
    """How a label is spelt that means this text: none or one."""
    return [w for w in dict.fromkeys(t.casefold() for t in (text, text.replace("_", " "), text.replace(" ", "_"))) if w in labels][:1]


def _label(labels: Mapping[str, int], text: str, place: str) -> int:
    if not (spelt := _spellings(text, labels)):
        raise SaeuronError(f"judge classifier: {unknown('label', text, labels, f'of {place!r}')}; write classifier=DIR|ID:label,…")
    return labels[spelt[0]]
