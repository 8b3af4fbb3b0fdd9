"""Readers of SAE folders, one small function a family, in a registry."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .errors import SaeuronError, first_line
from .files import hub_folder, open_safetensors, read_json
from .names import normalise
from .sae import SaeConfig, SparseAutoencoder

Reader = Callable[[Path], SparseAutoencoder]
_READERS: list[tuple[str, Callable[[Path], bool], Reader]] = []


def register(name: str, recognises: Callable[[Path], bool]) -> Callable[[Reader], Reader]:
    """Add a reader for folders that `recognises` accepts."""

    def add(reader: Reader) -> Reader:
        _READERS.append((name, recognises, reader))
        return reader

    return add


def _positive(settings: dict[str, Any], key: str, where: Path) -> int:
    value = settings.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        found = json.dumps(value) if key in settings else "missing"
        raise SaeuronError(f"{where}: '{key}' is {found}, expected a positive whole number")
    return value


@register(
    "SAeUron and sparsify (cfg.json, sae.safetensors)",
    lambda folder: (folder / "cfg.json").is_file() and (folder / "sae.safetensors").is_file(),
)
def read_sparsify(folder: Path) -> SparseAutoencoder:
    """SAeUron's and EleutherAI sparsify's form: `cfg.json` and `sae.safetensors`."""
    where = folder / "cfg.json"
    settings = read_json(where)
    for key, allowed in {
        "activation": ("topk", None),
        "transcode": (False, None),
        "skip_connection": (False, None),
        "multi_topk": (False, True, None),
    }.items():
        if settings.get(key) not in allowed:
            raise SaeuronError(f"{where}: '{key}' = {json.dumps(settings[key])} is not supported; only plain top-k SAEs are")
    width, k = _positive(settings, "d_in", where), _positive(settings, "k", where)
    latents = settings.get("num_latents") or _positive(settings, "expansion_factor", where) * width
    settings["num_latents"] = latents
    latents = _positive(settings, "num_latents", where)
    _at_most(k, latents, where)
    names = {
        "encoder.weight": ("W_enc", (latents, width)),
        "encoder.bias": ("b_enc", (latents,)),
        "W_dec": ("W_dec", (latents, width)),
        "b_dec": ("b_dec", (width,)),
    }
    # Shapes are compared in the header, before anything is allocated.
    tensors = open_safetensors(folder / "sae.safetensors", {name: shape for name, (_, shape) in names.items()})
    config = SaeConfig(width, latents, k, bool(settings.get("input_unit_norm", False)))
    return SparseAutoencoder.from_tensors(config, {ours: tensors[name] for name, (ours, _) in names.items()}, str(folder))


_SAELENS_KINDS = {"topk": "topk", "jumprelu": "jumprelu", "standard": "jumprelu"}


@register(
    "SAELens (cfg.json, sae_weights.safetensors)",
    lambda folder: (folder / "cfg.json").is_file() and (folder / "sae_weights.safetensors").is_file(),
)
def read_saelens(folder: Path) -> SparseAutoencoder:
    """SAELens's form: `cfg.json` and `sae_weights.safetensors`, architectures topk, jumprelu and standard.

    Its BatchTopK SAEs are saved as jumprelu. `layer_norm` is `input_unit_norm`, but for its way back, which multiplies by the
    standard deviation without the 1e-5 that it divided by. Source: https://github.com/decoderesearch/SAELens, `sae_lens/saes`.
    """
    where = folder / "cfg.json"
    settings = read_json(where)
    kind = settings.get("architecture", "standard")
    if not isinstance(kind, str) or kind not in _SAELENS_KINDS:
        raise SaeuronError(f"{where}: architecture {json.dumps(kind)} is not supported; supported are {', '.join(_SAELENS_KINDS)}")
    for key, allowed in {
        "normalize_activations": ("none", "layer_norm", None),
        "reshape_activations": ("none", None),
        "activation_fn": ("relu", "topk", None),
        "activation_fn_str": ("relu", "topk", None),
        "finetuning_scaling_factor": (False, None),
    }.items():
        if settings.get(key) not in allowed:
            raise SaeuronError(f"{where}: '{key}' = {json.dumps(settings[key])} is not supported")
    width, latents = _positive(settings, "d_in", where), _positive(settings, "d_sae", where)
    shapes: dict[str, tuple[int, ...]] = {"W_enc": (width, latents), "W_dec": (latents, width), "b_enc": (latents,), "b_dec": (width,)}
    if kind == "jumprelu":
        shapes["threshold"] = (latents,)
    tensors = open_safetensors(folder / "sae_weights.safetensors", shapes)
    tensors["W_enc"] = tensors["W_enc"].T.contiguous()
    if kind == "standard":
        tensors["threshold"] = torch.zeros(latents)
    if settings.get("rescale_acts_by_decoder_norm"):
        # Latents are ranked as if every decoder row had unit norm: moved into the weights, nothing else has to know.
        norm = tensors["W_dec"].float().norm(dim=1)
        tensors["W_enc"], tensors["b_enc"] = tensors["W_enc"].float() * norm[:, None], tensors["b_enc"].float() * norm
        tensors["W_dec"] = tensors["W_dec"].float() / norm[:, None]
    k = _at_most(_positive(settings, "k", where), latents, where) if kind == "topk" else None
    config = SaeConfig(
        width,
        latents,
        k,
        settings.get("normalize_activations") == "layer_norm",
        _SAELENS_KINDS[kind],
        bool(settings.get("apply_b_dec_to_input", True)),
    )
    return SparseAutoencoder.from_tensors(config, tensors, str(folder))


@register(
    "sdxl-unbox (config.json, state_dict.pth)", lambda folder: (folder / "config.json").is_file() and (folder / "state_dict.pth").is_file()
)
def read_sdxl_unbox(folder: Path) -> SparseAutoencoder:
    """sdxl-unbox's form: `config.json` and `state_dict.pth` (opened as tensors only), trained on output minus input of a block.

    Source: https://github.com/surkovv/sdxl-unbox, `SAE/sae.py` and `utils/hooks.py`.
    """
    where = folder / "config.json"
    settings = read_json(where)
    width, latents = _positive(settings, "d_model", where), _positive(settings, "n_dirs_local", where)
    k = _at_most(_positive(settings, "k", where), latents, where)
    path = folder / "state_dict.pth"
    try:
        content = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except Exception as error:  # a damaged or hostile file can raise anything
        raise SaeuronError(f"{path} can't be opened as tensors alone: {first_line(error, 200)}") from None
    held = content.get("state_dict", content) if isinstance(content, dict) else {}
    shapes = {"encoder.weight": (latents, width), "decoder.weight": (width, latents), "latent_bias": (latents,), "pre_bias": (width,)}
    for name, shape in shapes.items():
        if not isinstance(held.get(name), torch.Tensor) or tuple(held[name].shape) != shape:
            found = list(held[name].shape) if isinstance(held.get(name), torch.Tensor) else "missing"
            raise SaeuronError(f"{path}: '{name}' is {found}, its config says {list(shape)}")
    tensors = {
        "W_enc": held["encoder.weight"], "b_enc": held["latent_bias"], "W_dec": held["decoder.weight"].T.contiguous(), "b_dec": held["pre_bias"],
    }  # fmt: skip
    return SparseAutoencoder.from_tensors(SaeConfig(width, latents, k, reads="delta"), tensors, str(folder))


def _at_most(k: int, latents: int, where: Path) -> int:
    if k > latents:
        raise SaeuronError(f"{where}: k = {k} is larger than the number of latents, {latents}")
    return k


def read(source: str | Path, hookpoint: str | None = None, revision: str | None = None) -> SparseAutoencoder:
    """Open `source` by the first reader that recognises it; see `SparseAutoencoder.load`."""
    names = [] if hookpoint is None else [f"unet.{normalise(hookpoint)}", normalise(hookpoint)]
    root = Path(source)
    if not root.exists():
        # sdxl-unbox names its folders after the hookpoint and the training's settings, with a `final` folder inside.
        patterns = [f"{n}{tail}" for n in names for tail in ("/*", "_k*/final/*")]
        root = hub_folder(str(source), ["cfg.json", "config.json", "*.safetensors", "state_dict.pth", *patterns], revision, "SAE")
    inside = sorted(f for n in names for f in root.glob(f"{n}_k*/final")) if root.is_dir() else []
    if len(inside) > 1:
        raise SaeuronError(f"'{source}' holds several SAEs of '{hookpoint}': {', '.join(f.parent.name for f in inside)}; name one folder")
    folders = [root, *(root / name for name in names), *inside]
    for folder in folders:
        for _, recognises, reader in _READERS:
            if folder.is_dir() and recognises(folder):
                return reader(folder)
    if root.is_file():
        raise SaeuronError(f"SAE: '{source}' is a file; give the folder that holds it")
    seen = ", ".join(sorted(p.name for p in root.iterdir())[:8]) if root.is_dir() else "not a folder"
    raise SaeuronError(
        f"no SAE in '{source}' for hookpoint '{hookpoint}': expected the files of {_families()} there or in a folder of the hookpoint's name; found: {seen}"
    )


def _families() -> str:
    return ", ".join(name for name, _, _ in _READERS)


def check_width(sae: SparseAutoencoder, channels: int, hookpoint: str) -> None:
    """Raise unless the SAE reads as many channels as the hookpoint has."""
    if sae.config.d_in != channels:
        raise SaeuronError(
            f"the SAE reads {sae.config.d_in} channels, but hookpoint '{hookpoint}' has {channels}; is it the SAE of another block or model?"
        )
