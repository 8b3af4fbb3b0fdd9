"""Any two classifiers as ONNX graphs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...editor.common.errors import SaeuronError, first_line
from ...editor.common.files import file_sha256, plain_text, read_json
from ...editor.common.suggest import unknown
from .judge import DOMAINS, LabelJudge, softmax

_PLAIN_LABELS = ("plain", "Seed_Images")


class OnnxJudge(LabelJudge):
    """Any two classifiers as ONNX graphs, without torch.

    `style.onnx` and `object.onnx` take pictures `[B, 3, H, W]` and give scores `[B, labels]` as their first output; `style.txt` and
    `object.txt` hold one label a line, in the order of the scores. A style label `plain` (or `Seed_Images`) is the plain look. With labels but
    no graph a domain's names are used in prompts and not judged. `preprocess.json` says `{"size", "mean", "std"}`: pictures are resized
    (bilinear) to `size` pixels, a number or `[height, width]`, scaled to [0, 1], then `(x - mean) / std` by channel. Without it
    they go in as they are, in [0, 1].

    Args:
        where: the folder.
    """

    name = "onnx"

    def __init__(self, where: str) -> None:
        from ..backends.sessions import open_session

        self._folder = folder = Path(where)
        if not where or not folder.is_dir():
            raise SaeuronError(f"judge onnx: give its folder (onnx=DIR); '{where}' is none")
        self._labels = {kind: _label_lines(folder / f"{kind}.txt") for kind in DOMAINS}
        graphs = {kind: folder / f"{kind}.onnx" for kind in DOMAINS if (folder / f"{kind}.onnx").is_file()}
        if not graphs:
            raise SaeuronError(f"judge onnx: neither style.onnx nor object.onnx in '{folder}'")
        if not self._labels["object"]:
            raise SaeuronError(f"judge onnx: '{folder / 'object.txt'}' is missing or empty; its names are needed for the prompts")
        for kind in graphs:
            if not self._labels[kind]:
                raise SaeuronError(f"judge onnx: '{folder / (kind + '.txt')}' is missing or empty; it names what {kind}.onnx tells apart")
        self.judged = tuple(graphs)
        self.objects = list(self._labels["object"])
        self.styles = [s for s in self._labels["style"] if s not in _PLAIN_LABELS]
        self._size, self._mean, self._std = _preprocessing(folder / "preprocess.json")
        self._sessions = {kind: open_session(path) for kind, path in graphs.items()}
        files = [*graphs.values(), *(p for p in sorted([*folder.glob("*.txt"), folder / "preprocess.json"]) if p.is_file())]
        self.sha256 = " ".join(file_sha256(path) for path in files)

    def probabilities(self, pictures: Sequence[Any]) -> dict[str, tuple[list[Any], np.ndarray]]:
        """See `LabelJudge.probabilities`; a graph's scores are taken for logits."""
        from PIL.Image import Resampling

        rows = []
        for picture in pictures:
            plain = picture.convert("RGB")
            if self._size is not None:
                plain = plain.resize(self._size[::-1], Resampling.BILINEAR)
            rows.append(((np.asarray(plain, np.float32) / 255 - self._mean) / self._std).transpose(2, 0, 1))
        named = {kind: [None if kind == "style" and n in _PLAIN_LABELS else n for n in self._labels[kind]] for kind in self.judged}
        return {kind: (named[kind], softmax(self._run(kind, rows))) for kind in self.judged}

    def _run(self, kind: str, rows: list[np.ndarray]) -> np.ndarray:
        session, labels = self._sessions[kind], self._labels[kind]
        given = session.get_inputs()[0]
        # A graph with a fixed batch takes that many at a time; only one can always be filled.
        batches = [np.stack(rows)] if not isinstance(given.shape[0], int) else [row[None] for row in rows]
        kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
        if given.type not in kinds:
            raise SaeuronError(f"judge onnx: {kind}.onnx takes {given.type}; it must be floats")
        try:
            scores = np.concatenate([session.run(None, {given.name: batch.astype(kinds[given.type])})[0] for batch in batches])
        except Exception as error:  # onnxruntime raises many private types
            raise SaeuronError(f"judge onnx: {kind}.onnx can't be run: {first_line(error, 200)}") from None
        if scores.ndim != 2 or scores.shape[1] != len(labels):
            raise SaeuronError(f"judge onnx: {kind}.onnx gives scores of shape {list(scores.shape)}, {kind}.txt has {len(labels)} labels")
        return scores


def _label_lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    try:
        found = [line.strip() for line in plain_text(path).splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise SaeuronError(f"judge onnx: '{path}' can't be read: {first_line(error, 200)}") from None
    if twice := [name for name in found if found.count(name) > 1]:
        raise SaeuronError(f"judge onnx: '{path}' names '{twice[0]}' twice")
    return found


def _preprocessing(path: Path) -> tuple[tuple[int, int] | None, np.ndarray, np.ndarray]:
    """Size (height, width), mean and spread by channel."""
    said = read_json(path) if path.is_file() else {}
    if surplus := sorted(set(said) - {"size", "mean", "std"}):
        raise SaeuronError(f"judge onnx: {unknown('key', surplus[0], ('size', 'mean', 'std'), 'in preprocess.json')}")
    try:
        size = said.get("size")
        pair = None if size is None else (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))
        mean, std = (np.broadcast_to(np.array(said.get(k, d), np.float32), 3) for k, d in (("mean", 0.0), ("std", 1.0)))
    except (TypeError, ValueError, LookupError, OverflowError):
        pair, mean, std = (0, 0), np.zeros(3, np.float32), np.zeros(3, np.float32)
    if (pair is not None and min(pair) < 1) or not np.isfinite(mean).all() or not (std > 0).all():
        raise SaeuronError(f"judge onnx: '{path}': expected size (pixels), mean and std (a number or three, std above 0)")
    return pair, mean, std
