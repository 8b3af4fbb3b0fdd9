"""Judges: classifiers that name the object and the style in a picture, and the prompts that they are used with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ..editor.errors import SaeuronError
from ..editor.files import file_sha256
from ..editor.suggest import unknown


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

    def prompt(self, object_name: str, style: str | None) -> str:
        """The evaluation prompt; a style of None asks for the plain look."""
        ...

    def classify(self, pictures: Sequence[Any]) -> Verdict:
        """Name object and style of PIL pictures."""
        ...


class DemoJudge:
    """The embedded demo's classifier, trained on rendered pictures alone."""

    name = "demo"

    def __init__(self, where: str = "") -> None:
        from ..editor import demo
        from ..editor.demo.classifier import DemoClassifier

        path = Path(where) if where else demo.CLASSIFIER
        if not path.is_file():
            raise SaeuronError(f"judge demo: '{path}' is no file")
        try:
            self._classifier = DemoClassifier.load(path)
        except Exception as error:  # a damaged file can raise anything
            raise SaeuronError(f"judge demo: '{path}' can't be read: {str(error).splitlines()[0][:200]}") from None
        self.sha256 = file_sha256(path)
        self.objects, self.styles = self._classifier.objects, self._classifier.styles

    def prompt(self, object_name: str, style: str | None) -> str:
        """UnlearnCanvas's evaluation form."""
        return f"An image of {object_name} in {style} style." if style else f"An image of {object_name}."

    def classify(self, pictures: Sequence[Any]) -> Verdict:
        """Name object and style of PIL pictures."""
        seen = self._classifier.classify(pictures)
        return Verdict(list(seen.objects), list(seen.styles))


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

    def __init__(self, where: str) -> None:
        from ..editor.concepts import presets

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
        return f"An image of {object_name} in {style.replace('_', ' ')} style." if style else f"An image of {object_name}."

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
        raise SaeuronError(f"judge unlearncanvas: '{path}' can't be read: {str(error).splitlines()[0][:200]}") from None
    return model.eval()


_JUDGES: dict[str, Callable[[str], Judge]] = {"demo": DemoJudge, "unlearncanvas": UnlearnCanvasJudge}


def open_judge(text: str) -> Judge:
    """`demo`, or `unlearncanvas=DIR`.

    Raises:
        SaeuronError: an unknown judge, or its files are missing.
    """
    name, _, where = text.partition("=")
    if name not in _JUDGES:
        raise SaeuronError(unknown("judge", name, _JUDGES))
    return _JUDGES[name](where)
