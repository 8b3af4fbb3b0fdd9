"""CLIP score: how well pictures fit their prompts, by a CLIP model of the user's (arXiv 2104.08718)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...editor.common.errors import SaeuronError, first_line, panics_as_errors
from ...editor.common.files import file_sha256, hub_folder, read_header, read_json
from ...editor.common.quiet import quiet_loading
from ..artifact.installed import missing
from . import prompt_file
from .intervals import Mean
from .results import Figures
from .verdicts import VerdictRow, Wanted

COLUMNS = (*prompt_file.COLUMNS, "clip_score", "tokens_cut")
_WEIGHTS = "model.safetensors"
_MOST_LAYERS = 512
_FILES = ["*.json", "merges.txt", _WEIGHTS]


class ClipScore:
    """100 times the cosine between CLIP's embeddings of a picture and of its prompt, from -100 to 100.

    This is what papers on unlearning list as CLIP score. Hessel et al. multiply the cosine by 2.5, and cut at 0.

    Args:
        where: folder of a CLIP model in transformers' form (weights as model.safetensors), or its Hub id.
        device: torch device.

    Raises:
        SaeuronError: torch or transformers are missing, no CLIP model, or files that can't be read.
    """

    def __init__(self, where: str, device: str = "cpu") -> None:
        if lacking := missing():
            raise SaeuronError(f"--clip needs {', '.join(lacking)}; pip install 'saeuron-export[export]'")
        folder = Path(where) if Path(where).exists() else hub_folder(where, _FILES, None, "--clip")
        config = folder / "config.json"
        if not config.is_file() or read_json(config).get("model_type") != "clip":
            raise SaeuronError(f"--clip '{where}' is no CLIP model in transformers' form: its config.json has to say model_type 'clip'")
        if not (folder / _WEIGHTS).is_file():
            raise SaeuronError(f"--clip '{where}' has no {_WEIGHTS}; pickled weights are not opened")
        shapes = {name: shape for name, (_, shape) in read_header(folder / _WEIGHTS)[1].items()}
        import torch
        from transformers import CLIPModel, CLIPProcessor

        try:
            _check_weights(folder, shapes)
            with quiet_loading(), panics_as_errors():
                network = CLIPModel.from_pretrained(folder, use_safetensors=True)
                self._processor: Any = CLIPProcessor.from_pretrained(folder)
        except SaeuronError as error:
            raise SaeuronError(f"--clip '{where}' {error}") from None
        except Exception as error:  # a damaged file can raise anything
            raise SaeuronError(f"--clip '{where}' can't be read: {first_line(error, 200)}") from None
        self._network: Any = network.to(device, torch.float32).eval()
        self._length = int(self._network.config.text_config.max_position_embeddings)
        self.name = f"CLIP {Path(where).name}"
        self.sha256 = file_sha256(folder / _WEIGHTS)

    def look(self, files: Sequence[Path], wanted: Sequence[Wanted]) -> list[VerdictRow]:
        """Score of each picture, and how many tokens of its prompt CLIP had no place for."""
        import torch
        from PIL import Image

        prompts = [w.prompt for w in wanted]
        lengths = [len(ids) for ids in self._processor.tokenizer(prompts)["input_ids"]]
        text = self._processor.tokenizer(prompts, padding="max_length", truncation=True, max_length=self._length, return_tensors="pt")
        pictures = []
        for file in files:
            with Image.open(file) as picture:
                pictures.append(picture.convert("RGB"))
        pixels = self._processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
        device = self._network.device
        with torch.no_grad():
            out = self._network(
                input_ids=text["input_ids"].to(device), attention_mask=text["attention_mask"].to(device), pixel_values=pixels.to(device)
            )
            cosines = torch.nn.functional.cosine_similarity(out.image_embeds, out.text_embeds, dim=-1).tolist()
        rows = []
        for file, cosine, length in zip(files, cosines, lengths, strict=True):
            if not math.isfinite(cosine):
                raise SaeuronError(f"{self.name} gives no finite score for '{file}'")
            rows.append({"clip_score": f"{100 * cosine:.4f}", "tokens_cut": str(max(0, length - self._length))})
        return rows


def _check_weights(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise unless every weight that the config asks for is there in its shape: transformers would fill a missing one with random numbers.

    Nothing is allocated for what the config claims.
    """
    import torch
    from transformers import CLIPConfig, CLIPModel

    config = CLIPConfig.from_pretrained(folder)
    for part in (config.text_config, config.vision_config):
        if not 0 < part.num_hidden_layers <= _MOST_LAYERS:
            raise SaeuronError(f"claims {part.num_hidden_layers} layers; that is no CLIP model")
    with torch.device("meta"):
        wanted = {name: tuple(value.shape) for name, value in CLIPModel(config).named_parameters()}
    for name, shape in wanted.items():
        if name not in shapes:
            raise SaeuronError(f"lacks the weight '{name}'")
        if shapes[name] != shape:
            raise SaeuronError(f"has '{name}' of shape {list(shapes[name])}, its config says {list(shape)}")


def figures(rows: Sequence[VerdictRow], before: Sequence[VerdictRow] | None) -> Figures:
    """Mean score of a backend's pictures, and its mean change picture by picture.

    Args:
        rows: of verdicts.csv.
        before: the unedited model's, of the same prompts and seeds in the same order; None: without a change.
    """
    scores = [float(row["clip_score"]) for row in rows]
    changes = None if before is None else [now - float(row["clip_score"]) for now, row in zip(scores, before, strict=True)]
    return Figures(
        clip_score=Mean.of(scores), clip_change=None if changes is None else Mean.of(changes),
        prompts_cut=sum(row["tokens_cut"] != "0" for row in rows),
    )  # fmt: skip
