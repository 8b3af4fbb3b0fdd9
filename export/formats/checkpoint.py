"""Writes the diffusers side of an artifact."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusers import ModelMixin
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file
from torch import nn

from ...editor.common.errors import SaeuronError, first_line, panics_as_errors
from ...editor.common.files import read_json
from ...editor.common.writing import temporary, whole_file
from ...editor.denoisers.families import TextEncoder, family_of, rebuilt
from ...editor.denoisers.streamed import streamed
from ...editor.edit.ablated_network import _Ablated
from ...editor.edit.shipped import SHIPPED
from .stored import save_weights


def edited_pipeline(pipeline: Any, network: Any) -> Any:
    """The same pipeline (safety checker and feature extractor included) around the edited denoiser."""
    pipeline.vae.register_to_config(_name_or_path="")  # else the exporting machine's folder is written down
    return rebuilt(pipeline, **{family_of(pipeline).denoiser.component: network})


def write(pipeline: Any, root: Path, base_index: dict[str, Any], weights: bool = True) -> None:
    """Save a pipeline with an edited UNet.

    Args:
        pipeline: see `edited_pipeline`.
        root: artifact folder.
        base_index: the base model's `model_index.json`.
        weights: False leaves the tensors out and writes configs only, for an artifact that is ONNX alone; it then has no
            safety checker either.
    """
    family = family_of(pipeline)
    texts = family.text_encoders
    if weights:
        # One file a network, however large: an SDXL UNet in float32 would be split at 10 GB.
        with _streaming(pipeline):
            pipeline.save_pretrained(root, max_shard_size="1TB")
        for text in texts:
            if text.cls.startswith("CLIP"):
                _write_older_text_encoder_names(root / text.name)
    else:
        pipeline.save_config(root)
        pipeline.scheduler.save_pretrained(root / "scheduler")
        for name in (family.denoiser.component, "vae"):
            getattr(pipeline, name).save_config(root / name)
        _drop_class(root / family.denoiser.component / "config.json")
        for text in texts:
            getattr(pipeline, text.tokenizer).save_pretrained(root / text.tokenizer)
            getattr(pipeline, text.name).config.save_pretrained(root / text.name)
    _mend_index(root / "model_index.json", base_index, weights, family.denoiser.component)
    for text in texts:
        _write_older_tokenizer_files(text, getattr(pipeline, text.tokenizer), root / text.tokenizer)


@contextmanager
def _streaming(pipeline: Any) -> Iterator[None]:
    """Have the networks that read their weights from files save them from there."""
    parts = [part for part in pipeline.components.values() if isinstance(part, nn.Module) and streamed(part)]
    for part in parts:
        vars(part)["save_pretrained"] = functools.partial(_save_streamed, part)
    try:
        yield
    finally:
        for part in parts:
            del vars(part)["save_pretrained"]


def _save_streamed(network: Any, folder: Any, **options: Any) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    if isinstance(network, _Ablated):
        network.seal()
        (Path(folder) / f"{type(network).__module__}.py").write_bytes(SHIPPED)
    if isinstance(network, ModelMixin):
        network.save_config(folder)
        name = SAFETENSORS_WEIGHTS_NAME
    else:
        network.config.architectures = [type(network).__name__]
        network.config.save_pretrained(folder)
        name = "model.safetensors"
    save_weights(network, Path(folder) / name)


def small_files(model: Path) -> list[str]:
    """Files of the components without weights (index, scheduler, tokenizers, feature extractor), as `write` will leave them.

    Which ones there are differs between versions of transformers, so they are written to a temporary folder and looked at.

    Raises:
        SaeuronError: diffusers can't open the folder.
    """
    family = family_of(read_json(model / "model_index.json"))
    heavy = dict.fromkeys((*family.networks, *family.optional))
    try:
        with panics_as_errors():
            pipeline = family.cls.from_pretrained(model, **heavy, local_files_only=True, **family.fixed)
        with temporary() as trial:
            pipeline.save_pretrained(trial)
            for text in family.text_encoders:
                _write_older_tokenizer_files(text, getattr(pipeline, text.tokenizer), trial / text.tokenizer)
            return [path.relative_to(trial).as_posix() for path in trial.rglob("*") if path.is_file()]
    except SaeuronError:
        raise
    except Exception as error:  # diffusers and transformers raise many types
        raise SaeuronError(f"'{model}' can't be loaded by diffusers: {first_line(error)}") from None


def _drop_class(path: Path) -> None:
    """Take the entry for `AutoModel` out of a config: without weights the file of the class isn't there, and nothing could be opened by it."""
    config = json.loads(path.read_text())
    if config.pop("auto_map", None) is not None:
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _mend_index(path: Path, base: dict[str, Any], weights: bool, edited: str) -> None:
    """Name component classes as the base model does, but for the one that is edited, and where every version of transformers knows them.

    Without torchvision, transformers 5 loads another image processor class and diffusers records that, which an older
    transformers doesn't know. Its `T5Tokenizer` is what version 4 calls `T5TokenizerFast`, which reads the `tokenizer.json` that is there; the
    other name stands there for a class that wants SentencePiece's file.
    """
    index = json.loads(path.read_text())
    for name, entry in index.items():
        if name != edited and isinstance(entry, list) and entry[0] and isinstance(base.get(name), list):
            index[name] = base[name]
        if name.startswith("tokenizer") and isinstance(entry, list) and entry[1] in ("T5Tokenizer", "GemmaTokenizer"):
            index[name] = [entry[0], f"{entry[1]}Fast"]
        if not weights and name in ("safety_checker", "feature_extractor", "image_encoder"):
            index[name] = [None, None]
    if not weights and "requires_safety_checker" in index:
        index["requires_safety_checker"] = False
    path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _write_older_tokenizer_files(text: TextEncoder, tokenizer: Any, folder: Path) -> None:
    """`vocab.json` and `merges.txt`: transformers 5 writes only `tokenizer.json`, which older clients don't read; further tokens by their older key."""
    _name_further_tokens(folder / "tokenizer_config.json")
    if all((folder / name).exists() for name in text.copies):
        return  # an older transformers wrote them, whose tokenizer has no backend to ask
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    if not (folder / "vocab.json").exists():
        (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    if not (folder / "merges.txt").exists():
        merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
        (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")


def _name_further_tokens(path: Path) -> None:
    """A list of further tokens is `additional_special_tokens` in every version; version 4 takes `extra_special_tokens` for a table, and breaks."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
        path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_older_text_encoder_names(folder: Path) -> None:
    """Prefix a text encoder's tensors with `text_model.`, the names that every version of transformers reads.

    transformers 5 leaves the prefix out of a model that it made itself; version 4 then starts from random weights with only
    a warning. One with a projection keeps it in every version.
    """
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        if not any(name.startswith("text_model.") for name in tensors):
            with whole_file(path) as made:
                save_file({f"text_model.{n}": t for n, t in tensors.items()}, made, metadata={"format": "pt"})
