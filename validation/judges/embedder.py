"""Embeddings of texts and pictures by a CLIP or SigLIP model in transformers' form."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...editor.common.errors import SaeuronError, first_line, panics_as_errors
from ...editor.common.files import file_sha256, hub_folder, read_header, read_json
from ...editor.common.quiet import quiet_loading
from ..artifact.installed import missing

_WEIGHTS = "model.safetensors"
_FILES = ["*.json", "merges.txt", "*.model", _WEIGHTS]
_KINDS = {"clip": "CLIP", "siglip": "SigLIP", "siglip2": "SigLIP"}
_MOST_LAYERS = 512
_CHUNK = 64


class Embedder:
    """Embeds texts and pictures into one space, in float32.

    Args:
        where: folder of a model (weights as model.safetensors), its Hub id, or `demo:clip`.
        device: torch device.
        asked: what asked for it, for errors, e.g. `--clip`.

    Raises:
        SaeuronError: torch or transformers are missing, a model of another kind or without a projection, files that can't be read.
    """

    def __init__(self, where: str, device: str = "cpu", asked: str = "--clip") -> None:
        if lacking := missing():
            raise SaeuronError(f"{asked} needs {', '.join(lacking)}; pip install 'saeuron-export[export]'")
        folder = model_folder(where, _FILES, asked)
        config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
        kind = config.get("model_type")
        if kind not in _KINDS:
            part = (
                f" (it says '{kind}': half a model, without the projection into a common space)"
                if str(kind).startswith(("clip_", "siglip_"))
                else ""
            )
            raise SaeuronError(
                f"{asked} '{where}' is no CLIP or SigLIP model in transformers' form: its config.json has to say model_type {', '.join(_KINDS)}{part}"
            )
        if not (folder / _WEIGHTS).is_file():
            raise SaeuronError(f"{asked} '{where}' has no {_WEIGHTS}; pickled weights are not opened")
        shapes = {name: shape for name, (_, shape) in read_header(folder / _WEIGHTS)[1].items()}
        import torch
        from transformers import AutoModel, AutoProcessor

        try:
            check_weights(folder, shapes)
            with quiet_loading(), panics_as_errors():
                network = AutoModel.from_pretrained(folder, use_safetensors=True)
                processor = AutoProcessor.from_pretrained(folder)
        except SaeuronError as error:
            raise SaeuronError(f"{asked} '{where}' {error}") from None
        except Exception as error:  # a damaged file can raise anything
            raise SaeuronError(f"{asked} '{where}' can't be read: {first_line(error, 200)}") from None
        self._network: Any = network.to(device, torch.float32).eval()
        self._processor: Any = processor
        self.length = int(self._network.config.text_config.max_position_embeddings)
        """tokens that it reads"""
        self.scale = float(self._network.logit_scale.detach().exp())
        """cosines are multiplied by this before a softmax"""
        if not math.isfinite(self.scale):
            raise SaeuronError(f"{asked} '{where}' has a logit_scale that is not finite")
        self.name = f"{_KINDS[kind]} {Path(where).name}"
        self.sha256 = file_sha256(folder / _WEIGHTS)

    def tokens(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each text has."""
        return [len(ids) for ids in self._processor.tokenizer(list(texts))["input_ids"]]

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors `[texts, width]`; what is longer than `length` is cut."""
        import torch

        found = []
        for start in range(0, len(texts), _CHUNK):
            made = self._processor.tokenizer(
                list(texts[start : start + _CHUNK]), padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
            )
            with torch.no_grad():
                out = self._network.get_text_features(**made.to(self._network.device))
            found.append(_unit(out))
        return np.concatenate(found)

    def pictures(self, pictures: Sequence[Any]) -> np.ndarray:
        """PIL pictures → unit vectors `[pictures, width]`.

        Raises:
            SaeuronError: a picture that it gives no finite vector for.
        """
        import torch

        found = []
        for start in range(0, len(pictures), _CHUNK):
            part = [p.convert("RGB") for p in pictures[start : start + _CHUNK]]
            pixels = self._processor.image_processor(part, return_tensors="pt")["pixel_values"]
            with torch.no_grad():
                out = self._network.get_image_features(pixel_values=pixels.to(self._network.device))
            found.append(_unit(out))
        vectors = np.concatenate(found)
        if not np.isfinite(vectors).all():
            raise SaeuronError(f"{self.name} gives no finite embedding of a picture")
        return vectors


def model_folder(where: str, files: Sequence[str], asked: str) -> Path:
    """A folder here, one of the demo's, or one of the Hub's."""
    from ...editor import demo

    if where.startswith("demo:"):
        return Path(demo.resolve(where))
    return Path(where) if Path(where).exists() else hub_folder(where, list(files), None, asked)


def _unit(out: Any) -> np.ndarray:
    """transformers 4 gives vectors, 5 an output that holds them."""
    vectors = out if hasattr(out, "shape") else out.pooler_output
    found = vectors.float().cpu().numpy()
    return found / np.linalg.norm(found, axis=-1, keepdims=True)


def check_weights(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise unless every weight that the config asks for is there in its shape: transformers would fill a missing one with random numbers.

    Nothing is allocated for what the config claims.
    """
    import torch
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(folder)
    for part in (config.text_config, config.vision_config):
        if not 0 < part.num_hidden_layers <= _MOST_LAYERS:
            raise SaeuronError(f"claims {part.num_hidden_layers} layers; that is no such model")
    with torch.device("meta"):
        wanted = {name: tuple(value.shape) for name, value in AutoModel.from_config(config).named_parameters()}
    for name, shape in wanted.items():
        if name not in shapes:
            raise SaeuronError(f"lacks the weight '{name}'")
        if shapes[name] != shape:
            raise SaeuronError(f"has '{name}' of shape {list(shapes[name])}, its config says {list(shape)}")
