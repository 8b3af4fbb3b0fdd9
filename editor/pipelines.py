"""Opening the original pipeline: what can be edited is loaded, everything else is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import demo
from .ablated_unet import SENTINEL
from .conditions import conditions_of
from .errors import SaeuronError, first_line, panics_as_errors
from .families import FAMILIES, family_of
from .files import hub_folder, read_header, read_json
from .quiet import quiet_loading

_NETWORKS = sorted({n for f in FAMILIES for n in (*f.networks, *f.optional)})
_TOKENIZERS = sorted({t.tokenizer for f in FAMILIES for t in f.text_encoders})
_HUB_FILES = [
    "model_index.json",
    "README.md",  # tells the licence
    *(f"{folder}/*" for folder in ("scheduler", "feature_extractor", *_TOKENIZERS)),
    *(f"{network}/*.{ending}" for network in _NETWORKS for ending in ("json", "safetensors")),
]


def locate(model: str, revision: str | None = None) -> Path:
    """Folder of a model: `demo`, a local folder, or a Hub id (fetched into huggingface_hub's cache)."""
    if model == "demo" or model.startswith("demo:"):
        folder = demo.resolve(model)
        if not (folder / "model_index.json").is_file():
            raise SaeuronError(f"the embedded demo is missing from this installation ({folder}); install saeuron-export again")
        return folder
    if Path(model).exists():
        return Path(model)
    return hub_folder(model, _HUB_FILES, revision, "model")


def check_folder(folder: Path) -> dict[str, Any]:
    """The folder's `model_index.json`, after checking that it is a whole pipeline of a kind that can be edited.

    Raises:
        SaeuronError: no pipeline, another kind, already edited, incomplete or truncated.
    """
    if not (folder / "model_index.json").is_file():
        raise SaeuronError(f"'{folder}' is no diffusers pipeline: it has no model_index.json")
    index = read_json(folder / "model_index.json")
    kind = index.get("_class_name")
    known = [f.pipeline for f in FAMILIES]
    if kind not in known:
        if not isinstance(index.get("unet"), list):
            raise SaeuronError(f"'{folder}' holds a {kind}, which has no UNet (SD3, FLUX and other transformer models can't be edited)")
        if index.get("requires_aesthetics_score"):
            raise SaeuronError(f"'{folder}' holds an SDXL refiner ({kind}); only base models can be edited")
        raise SaeuronError(
            f"'{folder}' holds a {kind}; only text-to-image {' and '.join(known)} folders can be edited. img2img, inpainting and ControlNet pipelines of the same base model can be built from the edited UNet afterwards"
        )
    family = family_of(index)
    for text in family.text_encoders:
        entry = index.get(text.name)
        if not (isinstance(entry, list) and entry and entry[0]):
            raise SaeuronError(f"'{folder}' has no {text.name}, as SDXL's refiner has none; only whole base models can be edited")
    for name in family.folders:
        if not (folder / name).is_dir():
            raise SaeuronError(f"'{folder}' is incomplete: its '{name}' folder is missing")
    for name in family.networks:
        if not (folder / name / "config.json").is_file():
            raise SaeuronError(f"'{folder}' is incomplete: {name}/config.json is missing")
        files = sorted((folder / name).glob("*.safetensors"))
        if not files and not list((folder / name).glob("*.bin")):
            raise SaeuronError(f"'{folder}' is incomplete: '{name}' has no weights")
        for file in files:
            read_header(file)
    config = read_json(folder / "unet" / "config.json")
    if config.get("mid_block_type") == SENTINEL or "ablation" in config:
        raise SaeuronError(f"the UNet in '{folder}' already carries an edit; start from the original model")
    conditions_of(config)
    return index


def load_pipeline(model: str, dtype: Any = None, device: str = "cpu", revision: str | None = None) -> Any:
    """The original pipeline.

    Args:
        model: `demo`, a diffusers folder, or a Hub id.
        dtype: torch dtype, default float32.
        device: torch device.
        revision: Hub revision.

    Raises:
        SaeuronError: see `check_folder`; or the device isn't there.
    """
    import torch

    folder = locate(model, revision)
    family = family_of(check_folder(folder))
    target = check_device(device)
    try:
        with quiet_loading(), panics_as_errors():
            pipeline = family.cls.from_pretrained(folder, torch_dtype=dtype or torch.float32, local_files_only=True, **family.fixed)
    except Exception as error:  # diffusers and transformers raise many types
        raise SaeuronError(f"'{folder}' can't be loaded by diffusers: {first_line(error)}") from None
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(target)


def check_device(device: str) -> Any:
    """The torch device of that name; raises `SaeuronError` unless it is there."""
    import torch

    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError) as error:
        raise SaeuronError(f"device '{device}' can't be used: {first_line(error)}") from None
    return target


def unet_sha256(unet: Any) -> str:
    """Hash of a UNet's weights as they are stored (name, dtype, bytes)."""
    import hashlib

    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(unet.state_dict().items()):
        digest.update(f"{name}:{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
