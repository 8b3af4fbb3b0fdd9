"""The embedded demo's judge."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...editor.common.errors import SaeuronError, first_line
from ...editor.common.files import file_sha256
from .judge import LabelJudge


class DemoJudge(LabelJudge):
    """The embedded demo's classifier, trained on rendered pictures alone."""

    name = "demo"

    def __init__(self, where: str = "") -> None:
        from ...editor import demo
        from ...editor.demo.classifier import DemoClassifier

        path = Path(where) if where else demo.CLASSIFIER
        if not path.is_file():
            raise SaeuronError(f"judge demo: '{path}' is no file")
        try:
            self._classifier = DemoClassifier.load(path)
        except Exception as error:  # a damaged file can raise anything
            raise SaeuronError(f"judge demo: '{path}' can't be read: {first_line(error, 200)}") from None
        self.sha256 = file_sha256(path)
        self.objects, self.styles = self._classifier.objects, self._classifier.styles

    def probabilities(self, pictures: Sequence[Any]) -> dict[str, tuple[list[Any], np.ndarray]]:
        """See `LabelJudge.probabilities`."""
        objects, styles = (logits.softmax(1).numpy() for logits in self._classifier.logits(pictures))
        return {"object": (self.objects, objects), "style": ([*self.styles, None], styles)}

    def features(self, pictures: Sequence[Any]) -> np.ndarray:
        """What its two heads read, `[pictures, 384]`."""
        return self._classifier.features_of(pictures).double().numpy()
