"""The demo's judge: a small CNN that names the object and the style in a picture; trained on rendered pictures alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn


class Verdict(NamedTuple):
    """Names per picture; a style of None is the plain look."""

    objects: list[str]
    styles: list[str | None]


class DemoClassifier(nn.Module):
    """Two-headed CNN.

    Args:
        objects: object labels.
        styles: style labels; one more class, the plain look, is added after them.
    """

    def __init__(self, objects: Sequence[str], styles: Sequence[str]) -> None:
        super().__init__()
        self.objects, self.styles = list(objects), list(styles)
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate([(3, 32), (32, 64), (64, 96)]):
            layers += [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
            layers += [nn.Conv2d(b, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if i < 2 else []
        self.trunk = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.2))
        self.object_head = nn.Linear(96 * 4, len(self.objects))
        self.style_head = nn.Linear(96 * 4, len(self.styles) + 1)

    def features(self, pictures: torch.Tensor) -> torch.Tensor:
        """Pictures `[B, 3, 32, 32]` in [0, 1] → features `[B, 384]`."""
        return self.trunk(pictures * 2 - 1)

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures `[B, 3, 32, 32]` in [0, 1] → logits `[B, objects]`, `[B, styles + 1]`."""
        features = self.features(pictures)
        return self.object_head(features), self.style_head(features)

    @torch.no_grad()
    def classify(self, pictures: Sequence[Image.Image]) -> Verdict:
        """Name the object and the style of each picture."""
        object_logits, style_logits = self.logits(pictures)
        names = [*self.styles, None]
        return Verdict(
            [self.objects[i] for i in object_logits.argmax(1)],
            [names[i] for i in style_logits.argmax(1)],
        )

    @torch.no_grad()
    def logits(self, pictures: Sequence[Image.Image]) -> tuple[torch.Tensor, torch.Tensor]:
        """PIL pictures → logits `[pictures, objects]`, `[pictures, styles + 1]`."""
        objects, styles = self.eval()(torch.stack([_to_tensor(p) for p in pictures]))
        return objects, styles

    @torch.no_grad()
    def features_of(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """PIL pictures → features `[pictures, 384]`."""
        return self.eval().features(torch.stack([_to_tensor(p) for p in pictures]))

    def save(self, path: Path) -> None:
        """Write weights, as float16, and labels to one safetensors file."""
        labels = {"objects": json.dumps(self.objects), "styles": json.dumps(self.styles)}
        tensors = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in self.state_dict().items()}
        save_file(tensors, path, metadata=labels)

    @classmethod
    def load(cls, path: Path) -> DemoClassifier:
        """Read a file written by `save`."""
        with safe_open(path, "pt") as handle:
            labels = handle.metadata()
        model = cls(json.loads(labels["objects"]), json.loads(labels["styles"]))
        model.load_state_dict(load_file(path))
        return model.eval()


def _to_tensor(picture: Image.Image) -> torch.Tensor:
    data = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8)
    return data.view(picture.height, picture.width, 3).permute(2, 0, 1).float() / 255
