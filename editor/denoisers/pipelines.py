"""Opening the original pipeline: what can be edited is loaded, everything else is refused in one line, before anything is computed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .. import demo
from ..common.errors import SaeuronError, first_line, panics_as_errors
from ..common.files import hub_folder, read_json, refuse_pointer
from ..common.names import SENTINEL
from ..common.quiet import quiet_loading
from .components import check_files, named, open_network, open_networks, weight_files
from .families import FAMILIES, Family, family_of

_NETWORKS = sorted({n for f in FAMILIES for n in (*f.networks, *f.optional)})
_SHORTEST = 3
"""tokens of a prompt: its start, one of its own, its end"""
_TOKENIZERS = sorted({t.tokenizer for f in FAMILIES for t in f.text_encoders})
_HUB_FILES = [
    "model_index.json",
    "README.md",  # tells the licence
    *(f"{folder}/*" for folder in ("scheduler", "feature_extractor", *_TOKENIZERS)),
    *(f"{network}/*.{ending}" for network in _NETWORKS for ending in ("json", "safetensors")),
]


def locate(model: str, revision: str | None = None, fetch: bool = True) -> Path:
    """Folder of a model: `demo`, `demo:dit`, a local folder, or a Hub id (fetched into huggingface_hub's cache; without `fetch` it must be there)."""
    if model == "demo" or model.startswith("demo:"):
        folder = demo.resolve(model)
        if not (folder / "model_index.json").is_file():
            raise SaeuronError(f"the embedded demo is missing from this installation ({folder}); install saeuron-export again")
        return folder
    if os.path.exists(model):  # False, not an error, where the name is too long to be one
        return Path(model)
    folder = hub_folder(model, _HUB_FILES, revision, "model", fetch)
    # Older models have pickles alone; where there are both, they would double what is fetched.
    bare = [n for n in _NETWORKS if (folder / n / "config.json").is_file() and not any((folder / n).glob("*.safetensors"))]
    return hub_folder(model, [f"{n}/*.bin" for n in bare], revision, "model", fetch) if bare else folder


def check_folder(folder: Path, variant: str | None = None) -> dict[str, Any]:
    """The folder's `model_index.json`, after checking that it is a whole pipeline of a kind that can be edited.

    Args:
        folder: the pipeline's.
        variant: of the weight files, e.g. `fp16`; None: the plain ones.

    Raises:
        SaeuronError: no pipeline, another kind, already edited, incomplete or truncated.
    """
    if not folder.is_dir():
        raise SaeuronError(f"'{folder}' is a file; a model is a diffusers folder, a Hub id or demo")
    if not (folder / "model_index.json").is_file():
        raise SaeuronError(f"'{folder}' is no diffusers pipeline: it has no model_index.json")
    index = read_json(folder / "model_index.json")
    kind = index.get("_class_name")
    known = [f.pipeline for f in FAMILIES]
    if kind not in known:
        if index.get("requires_aesthetics_score"):
            raise SaeuronError(f"'{folder}' holds an SDXL refiner ({kind}); only base models can be edited")
        raise SaeuronError(
            f"'{folder}' holds a {kind}; only text-to-image {', '.join(known[:-1])} and {known[-1]} folders can be edited. img2img, inpainting and ControlNet pipelines of the same base model can be built from the edited network afterwards"
        )
    family = family_of(index)
    for text in family.text_encoders:
        entry = index.get(text.name)
        if not (isinstance(entry, list) and entry and entry[0]):
            refiner = ", as SDXL's refiner has none" if kind == "StableDiffusionXLPipeline" else ""
            raise SaeuronError(f"'{folder}' has no {text.name}{refiner}; only whole base models can be edited")
    for name in family.folders:
        if not (folder / name).is_dir():
            raise SaeuronError(f"'{folder}' is incomplete: its '{name}' folder is missing")
    denoiser = family.denoiser
    if (folder / denoiser.component / "config.json").is_file():
        config = read_json(folder / denoiser.component / "config.json")
        # The manifest of an artifact: one whose edit is in the weights alone has nothing else that shows it.
        if SENTINEL in map(str, config.values()) or "ablation" in config or (folder / "saeuron.json").is_file():
            raise SaeuronError(f"the {denoiser.noun} in '{folder}' already carries an edit; start from the original model")
    try:
        networks = named(index, family)
    except SaeuronError as error:
        raise SaeuronError(f"'{folder}': {error}") from None
    for name in networks:
        if not (folder / name).is_dir():
            raise SaeuronError(f"'{folder}' is incomplete: model_index.json names {name}, but its folder is missing")
        if not (folder / name / "config.json").is_file():
            raise SaeuronError(f"'{folder}' is incomplete: {name}/config.json is missing")
        check_files(folder / name, variant)
        read_json(folder / name / "config.json")
    used = {weight_files(folder / name, variant)[0] for name in networks}
    if variant is not None and variant not in used:
        raise SaeuronError(f"--variant {variant}: no component of '{folder}' has weights of this variant")
    extractor = index.get("feature_extractor")
    whole = isinstance(extractor, list) and len(extractor) == 2 and all(extractor)
    if ("safety_checker" in networks or whole) and not (whole and (folder / "feature_extractor" / "preprocessor_config.json").is_file()):
        raise SaeuronError(
            f"'{folder}' is incomplete: its feature_extractor, with preprocessor_config.json, is missing; a pipeline without safety checker may have [null, null] there in model_index.json"
        )
    for name in {t.tokenizer for t in family.text_encoders}:
        for path in (folder / name).iterdir():
            if path.is_file():
                refuse_pointer(path)
    denoiser.axes(read_json(folder / denoiser.component / "config.json"))
    return index


def open_folder(
    model: str, revision: str | None = None, variant: str | None = None, size: tuple[int | None, int | None] | None = None
) -> Path:
    """Folder of a model whose parts are all there and fit together; no value of a weight is read.

    Args:
        model: `demo`, a diffusers folder, or a Hub id.
        revision: Hub revision.
        variant: of the weight files, e.g. `fp16`.
        size: height and width that pictures will have, pixels, None: the model's own; None: no pictures are made.

    Raises:
        SaeuronError: see `check_folder`; weights missing or surplus, parts that don't fit, a scheduler that can't be used.
    """
    folder = locate(model, revision)
    index = check_folder(folder, variant)
    family = family_of(index)
    networks = open_networks(folder, index, family, variant=variant, device="meta")
    _check_fit(folder, family, networks)
    if size is not None:
        family.denoiser.sizes(networks[family.denoiser.component].config, networks["vae"].config).latents(*size)
    _check_tokenizers(folder, index, family, networks)
    scheduler_in(folder)
    _check_extractor(folder, _assembled(folder, family, networks))
    return folder


def _check_fit(folder: Path, family: Family, networks: dict[str, Any]) -> None:
    """Raise `SaeuronError` unless each network takes what the one before it gives."""
    scale = networks["vae"].config.scaling_factor
    if type(scale) not in (int, float) or not 0 < scale < float("inf"):
        raise SaeuronError(f"'{folder}': 'scaling_factor' in vae/config.json is {scale!r}; it must be a number above 0")
    texts = {text.name: networks[text.name].config for text in family.text_encoders}
    for name, config in texts.items():
        if config.to_dict().get("use_attention_mask"):
            raise SaeuronError(
                f"'{folder}': 'use_attention_mask' in {name}/config.json is on; exported graphs take no mask, so such a model can't be edited"
            )
        if type(end := config.eos_token_id) is not int:
            raise SaeuronError(f"'{folder}': 'eos_token_id' in {name}/config.json is {end!r}; it must be a whole number")
    try:
        family.denoiser.check_fit(networks[family.denoiser.component].config, networks["vae"].config, texts)
    except SaeuronError as error:
        raise SaeuronError(f"'{folder}': {error}") from None


def scheduler_in(folder: Path) -> Any:
    """The scheduler that a pipeline's folder gives its pipeline; no network is opened.

    Raises:
        SaeuronError: none that the pipeline could run.
    """
    import diffusers

    index = read_json(folder / "model_index.json")
    family, entry = family_of(index), index.get("scheduler")
    name = str(entry[1] if isinstance(entry, list) and len(entry) == 2 else entry)
    cls: Any = getattr(diffusers, name, None) if name.isidentifier() else None
    try:
        known = hasattr(cls, "set_timesteps")
    except ImportError as error:  # of a package that diffusers has this scheduler from
        raise SaeuronError(f"'{folder}': its scheduler can't be opened: {first_line(error)}") from None
    if not known:
        raise SaeuronError(f"'{folder}': its scheduler is a {name[:60]}, which is none of diffusers'")
    read_json(folder / "scheduler" / "scheduler_config.json")
    try:
        with quiet_loading():
            opened = cls.from_pretrained(folder / "scheduler", local_files_only=True)
        family.denoiser.check_scheduler(opened)
        with quiet_loading():
            return family.mended(opened)
    except SaeuronError as error:
        raise SaeuronError(f"'{folder}': {error}") from None
    except Exception as error:  # each class checks its settings in its own way
        raise SaeuronError(f"'{folder}': its scheduler {name} can't be opened: {first_line(error)}") from None


def check_prompts(folder: Path, prompts: Mapping[str, Iterable[str]]) -> None:
    """Raise `SaeuronError` for the first prompt of which a text encoder would read a part only.

    Args:
        folder: the pipeline's, opened by `open_folder` before.
        prompts: what they are of, e.g. `concept 'Neon'` → prompts.
    """
    index = read_json(folder / "model_index.json")
    for text_encoder in family_of(index).text_encoders:
        if text_encoder.cuts:
            continue
        name = text_encoder.tokenizer
        tokenizer = _tokenizer_in(folder, index, name)
        most = text_encoder.most(tokenizer) - text_encoder.kept
        for what, texts in prompts.items():
            listed = list(dict.fromkeys(texts))
            try:
                with quiet_loading(), panics_as_errors():
                    counts = [len(ids) for ids in tokenizer(listed).input_ids] if listed else []
            except Exception as error:  # of a text that is none
                raise SaeuronError(f"{what}: the {name} of '{folder}' can't read the prompts: {first_line(error)}") from None
            for text, count in zip(listed, counts, strict=True):
                if count > most:
                    shown = text if len(text) <= 120 else f"{text[:120]}…"
                    raise SaeuronError(
                        f"{what}: the prompt '{shown}' has {count} tokens, of which the text encoder of '{folder}' reads {most} (both with start and end); say it in fewer words"
                    )


def _tokenizer_in(folder: Path, index: dict[str, Any], name: str) -> Any:
    """A tokenizer of a pipeline's folder; raises `SaeuronError` unless it opens."""
    import transformers

    where, entry = folder / name, index.get(name)
    cls: Any = getattr(transformers, str(entry[1]), None) if isinstance(entry, list) and len(entry) == 2 else None
    if not hasattr(cls, "from_pretrained"):
        raise SaeuronError(f"'{folder}': model_index.json names no tokenizer of transformers as {name}")
    if not any((where / file).is_file() for file in ("tokenizer.json", "vocab.json")):
        raise SaeuronError(f"'{folder}' is incomplete: '{name}' holds neither tokenizer.json nor vocab.json")
    try:
        with quiet_loading(), panics_as_errors():
            return cls.from_pretrained(where, local_files_only=True)
    except Exception as error:  # transformers and tokenizers raise many types
        raise SaeuronError(f"'{where}' can't be opened as a tokenizer: {first_line(error)}") from None


def _check_tokenizers(folder: Path, index: dict[str, Any], family: Family, networks: dict[str, Any]) -> None:
    """Raise `SaeuronError` unless each tokenizer opens, and its text encoder knows every token and every place."""
    import torch

    for text in family.text_encoders:
        where, config = folder / text.tokenizer, networks[text.name].config
        tokenizer = _tokenizer_in(folder, index, text.tokenizer)
        if (last := max(tokenizer.get_vocab().values(), default=0)) >= config.vocab_size:
            raise SaeuronError(
                f"'{folder}': the {text.tokenizer} has tokens up to number {last}, but {text.name} only knows {config.vocab_size}; after adding tokens, call {text.name}.resize_token_embeddings and save both"
            )
        length = text.most(tokenizer)
        if type(length) not in (int, float) or length < _SHORTEST:
            raise SaeuronError(f"'{where}': 'model_max_length' is {length!r}; it must be a whole number of at least {_SHORTEST} tokens")
        # A T5's positions are relative.
        if length > getattr(config, "max_position_embeddings", length):
            raise SaeuronError(
                f"'{folder}': the {text.tokenizer} pads to {length:g} tokens, but {text.name} takes {config.max_position_embeddings}; set 'model_max_length' in {text.tokenizer}/tokenizer_config.json"
            )
        try:
            with quiet_loading(), panics_as_errors():
                given = {n: torch.from_numpy(v).to("meta") for n, v in text.tokenized(tokenizer, ["a"], length).items()}
                if text.cls.startswith("T5"):
                    given.pop(
                        "attention_mask", None
                    )  # it looks at a mask's values, of which there are none here; a Gemma looks for others without one
                text.encode(networks[text.name], **given)
        except Exception as error:  # settings that only a call shows to be wrong
            raise SaeuronError(f"'{folder}': {text.tokenizer} and {text.name} can't encode a prompt: {first_line(error)}") from None


def _check_extractor(folder: Path, pipeline: Any) -> None:
    """Raise `SaeuronError` unless the safety checker takes the pictures that its feature extractor gives."""
    from PIL import Image

    checker = getattr(pipeline, "safety_checker", None)
    if checker is None:
        return
    side = checker.config.vision_config.image_size
    try:
        given = tuple(pipeline.feature_extractor(Image.new("RGB", (64, 64)), return_tensors="pt").pixel_values.shape[-2:])
    except Exception as error:  # settings that only a call shows to be wrong
        raise SaeuronError(f"'{folder}': its feature_extractor can't be used: {first_line(error)}") from None
    if given != (side, side):
        raise SaeuronError(
            f"'{folder}': its feature_extractor gives pictures of {given[0]}x{given[1]}, but its safety_checker takes {side}x{side}; its parts come from different models"
        )


def load_pipeline(model: str, dtype: Any = None, device: str = "cpu", revision: str | None = None, variant: str | None = None) -> Any:
    """The original pipeline.

    Args:
        model: `demo`, a diffusers folder, or a Hub id.
        dtype: torch dtype, default float32.
        device: torch device.
        revision: Hub revision.
        variant: of the weight files, e.g. `fp16`; None: the plain ones.

    Raises:
        SaeuronError: see `check_folder`; weights missing or surplus; or the device isn't there.
    """
    import torch

    folder = locate(model, revision)
    index = check_folder(folder, variant)
    family = family_of(index)
    target = check_device(device)
    dtype = dtype or torch.float32
    # A GPU holds weights that it needs at every step.
    streams = family.denoiser.flows and target.type == "cpu"
    pipeline = _assembled(folder, family, open_networks(folder, index, family, dtype, variant, streams=streams), torch_dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(target)


def load_network(folder: Path) -> Any:
    """The denoiser alone of a pipeline's folder that was checked, in float32; errors as of `load_pipeline`."""
    import torch

    denoiser = family_of(read_json(folder / "model_index.json")).denoiser
    return open_network(folder / denoiser.component, denoiser.network_class, torch.float32)


def load_texts(folder: Path, variant: str | None = None, device: str = "cpu") -> Any:
    """A pipeline of its text encoders and tokenizers alone, in float32.

    Args:
        folder: the pipeline's, checked.
        variant: of the weight files.
        device: torch device.

    Raises:
        SaeuronError: see `load_pipeline`.
    """
    import torch

    family = family_of(read_json(folder / "model_index.json"))
    others = dict.fromkeys((*family.networks, *family.optional))
    texts = {t.name: open_network(folder / t.name, family.class_of(t.name), torch.float32, variant) for t in family.text_encoders}
    return _assembled(folder, family, {**others, **texts}).to(check_device(device))


def _assembled(folder: Path, family: Family, networks: dict[str, Any], **options: Any) -> Any:
    """The pipeline of networks that are open; its other components come from the folder."""
    try:
        with quiet_loading(), panics_as_errors():
            return family.cls.from_pretrained(folder, **networks, local_files_only=True, **options, **family.fixed)
    except Exception as error:  # diffusers and transformers raise many types
        raise SaeuronError(f"'{folder}' can't be loaded by diffusers: {first_line(error)}") from None


def check_device(device: str) -> Any:
    """The torch device of that name; raises `SaeuronError` unless it is there."""
    import torch

    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError) as error:
        raise SaeuronError(f"device '{device}' can't be used: {first_line(error)}") from None
    return target


def network_sha256(network: Any) -> str:
    """Hash of a network's weights as they are stored (name, dtype, bytes)."""
    import hashlib

    import torch

    from .streamed import weights_of

    digest = hashlib.sha256()
    for name, tensor in weights_of(network, sorted(network.state_dict().items())):
        digest.update(f"{name}:{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
