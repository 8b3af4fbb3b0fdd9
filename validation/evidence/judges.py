"""Judges: classifiers that name the object and the style in a picture, and the prompts that they are used with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ...editor.common.errors import SaeuronError, first_line
from ...editor.common.files import file_sha256, plain_text
from ...editor.common.suggest import unknown
from .unlearning import DOMAINS, Job, Picture

if TYPE_CHECKING:
    import numpy as np


class Verdict(NamedTuple):
    """Names per picture; a style of None is the plain look."""

    objects: list[str]
    styles: list[str | None]


class Judge(Protocol):
    """Names what it sees."""

    name: str
    sha256: str
    """of its weights: what one judge saw is no result of another"""
    objects: list[str]
    styles: list[str]
    judged: tuple[str, ...]
    """the domains that it looks at, of `style` and `object`"""

    def prompt(self, object_name: str, style: str | None) -> str:
        """The evaluation prompt; a style of None asks for the plain look."""
        ...

    def classify(self, pictures: Sequence[Any]) -> Verdict:
        """Name object and style of PIL pictures."""
        ...


def look(judge: Judge, jobs: Sequence[Job], pictures: Sequence[Any]) -> list[Picture]:
    """What was asked for beside what the judge sees."""
    seen = judge.classify(pictures)
    return [Picture(o, style, a, b) for (o, style, _), a, b in zip(jobs, seen.objects, seen.styles, strict=True)]


class DemoJudge:
    """The embedded demo's classifier, trained on rendered pictures alone."""

    name = "demo"
    judged: tuple[str, ...] = DOMAINS

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

    def prompt(self, object_name: str, style: str | None) -> str:
        """UnlearnCanvas's evaluation form."""
        return _evaluation_prompt(object_name, style)

    def classify(self, pictures: Sequence[Any]) -> Verdict:
        """Name object and style of PIL pictures."""
        seen = self._classifier.classify(pictures)
        return Verdict(list(seen.objects), list(seen.styles))

    def features(self, pictures: Sequence[Any]) -> np.ndarray:
        """What its two heads read, `[pictures, 384]`."""
        return self._classifier.features_of(pictures).double().numpy()


def _evaluation_prompt(object_name: str, style: str | None) -> str:
    return f"An image of {object_name} in {style.replace('_', ' ')} style." if style else f"An image of {object_name}."


# The style classifier's label for pictures without a style, at its place in the list of labels.
_SEED_LABEL, _SEED_AFTER = "Seed_Images", "Rust"


class UnlearnCanvasJudge:
    """UnlearnCanvas's two classifiers (arXiv 2402.11846), from a folder with `style*.pth` and `object*.pth`.

    timm's `vit_large_patch16_224.augreg_in21k` with heads of 51 and 20 labels, `checkpoint["model_state_dict"]`, pictures at 224,
    normalised by 0.5. Not tested against the real checkpoints: they and timm's weights can't be had on the machines that this was
    built on.

    Args:
        where: the folder; read as tensors only.
    """

    name = "unlearncanvas"
    judged: tuple[str, ...] = DOMAINS

    def __init__(self, where: str) -> None:
        from ...editor.features.concepts import presets

        known = presets().values()
        self.styles = [c.name for c in known if c.domain == "unlearncanvas-style"]
        self.objects = [c.name for c in known if c.domain == "unlearncanvas-object"]
        place = self.styles.index(_SEED_AFTER) + 1
        self._style_labels: list[str] = [*self.styles[:place], _SEED_LABEL, *self.styles[place:]]
        folder = Path(where)
        if not where or not folder.is_dir():
            raise SaeuronError(f"judge unlearncanvas: give its folder of checkpoints (unlearncanvas=DIR); '{where}' is none")
        files = {kind: _checkpoint(folder, kind) for kind in ("style", "object")}
        self.sha256 = " ".join(file_sha256(path) for path in files.values())
        self._style, self._object = _vit(files["style"], len(self._style_labels)), _vit(files["object"], len(self.objects))

    def prompt(self, object_name: str, style: str | None) -> str:
        """The benchmark's evaluation form."""
        return _evaluation_prompt(object_name, style)

    def classify(self, pictures: Sequence[Any]) -> Verdict:
        """Name object and style of PIL pictures."""
        import numpy as np
        import torch

        arrays = [np.asarray(p.convert("RGB").resize((224, 224))) for p in pictures]
        batch = (torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
        with torch.no_grad():
            objects = [self.objects[i] for i in self._object(batch).argmax(1).tolist()]
            styles = [self._style_labels[i] for i in self._style(batch).argmax(1).tolist()]
        return Verdict(objects, [None if s == _SEED_LABEL else s for s in styles])


def _checkpoint(folder: Path, kind: str) -> Path:
    files = sorted(folder.glob(f"{kind}*.pth"))
    if len(files) != 1:
        raise SaeuronError(f"judge unlearncanvas: expected one file {kind}*.pth in '{folder}', found {len(files)}")
    return files[0]


def _vit(path: Path, labels: int) -> Any:
    import torch

    try:
        import timm
    except ImportError:
        raise SaeuronError("judge unlearncanvas needs timm (and torchvision): pip install timm torchvision") from None
    try:
        weights = torch.load(path, weights_only=True, map_location="cpu")["model_state_dict"]
        model = timm.create_model("vit_large_patch16_224.augreg_in21k", pretrained=False, num_classes=labels)
        model.load_state_dict(weights)
    except Exception as error:  # a damaged file can raise anything
        raise SaeuronError(f"judge unlearncanvas: '{path}' can't be read: {first_line(error, 200)}") from None
    return model.eval()


_PLAIN_LABELS = ("plain", _SEED_LABEL)
NOT_JUDGED = "?"
"""seen by a judge that does not look at a domain"""


class OnnxJudge:
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

    def prompt(self, object_name: str, style: str | None) -> str:
        """UnlearnCanvas's evaluation form."""
        return _evaluation_prompt(object_name, style)

    def classify(self, pictures: Sequence[Any]) -> Verdict:
        """Name object and style of PIL pictures."""
        import numpy as np
        from PIL.Image import Resampling

        rows = []
        for picture in pictures:
            plain = picture.convert("RGB")
            if self._size is not None:
                plain = plain.resize(self._size[::-1], Resampling.BILINEAR)
            rows.append(((np.asarray(plain, np.float32) / 255 - self._mean) / self._std).transpose(2, 0, 1))
        seen = {kind: self._run(kind, rows) if kind in self._sessions else [NOT_JUDGED] * len(rows) for kind in DOMAINS}
        return Verdict(seen["object"], [None if s in _PLAIN_LABELS else s for s in seen["style"]])

    def _run(self, kind: str, rows: list[np.ndarray]) -> list[str]:
        import numpy as np

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
        return [labels[i] for i in scores.argmax(1)]


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
    import numpy as np

    from ...editor.common.files import read_json

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


_JUDGES: dict[str, Callable[[str], Judge]] = {"demo": DemoJudge, "unlearncanvas": UnlearnCanvasJudge, "onnx": OnnxJudge}


def open_judge(text: str) -> Judge:
    """`demo`, `unlearncanvas=DIR` or `onnx=DIR`.

    Raises:
        SaeuronError: an unknown judge, or its files are missing.
    """
    name, _, where = text.partition("=")
    if name not in _JUDGES:
        raise SaeuronError(unknown("judge", name, _JUDGES))
    return _JUDGES[name](where)
