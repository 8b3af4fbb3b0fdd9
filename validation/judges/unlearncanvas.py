"""UnlearnCanvas's two classifiers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...editor.common.errors import SaeuronError, first_line
from ...editor.common.files import file_sha256
from .judge import LabelJudge, softmax

# The style classifier's label for pictures without a style, at its place in the list of labels.
_SEED_LABEL, _SEED_AFTER = "Seed_Images", "Rust"


class UnlearnCanvasJudge(LabelJudge):
    """UnlearnCanvas's two classifiers (arXiv 2402.11846), from a folder with `style*.pth` and `object*.pth`.

    timm's `vit_large_patch16_224.augreg_in21k` with heads of 51 and 20 labels, `checkpoint["model_state_dict"]`, pictures at 224,
    normalised by 0.5. Not tested against the real checkpoints: they and timm's weights can't be had on the machines that this was
    built on.

    Args:
        where: the folder; read as tensors only.
    """

    name = "unlearncanvas"

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

    def probabilities(self, pictures: Sequence[Any]) -> dict[str, tuple[list[Any], np.ndarray]]:
        """See `LabelJudge.probabilities`."""
        import torch

        arrays = [np.asarray(p.convert("RGB").resize((224, 224))) for p in pictures]
        batch = (torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
        with torch.no_grad():
            objects, styles = softmax(self._object(batch).numpy()), softmax(self._style(batch).numpy())
        return {"object": (self.objects, objects), "style": ([None if s == _SEED_LABEL else s for s in self._style_labels], styles)}


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
