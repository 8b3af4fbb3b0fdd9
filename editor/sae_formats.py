"""Readers of SAE folders, one small function a family, in a registry."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import SaeuronError
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
        raise SaeuronError(f"{where}: '{key}' is {json.dumps(value)}, not a positive whole number")
    return value


@register("sparsify", lambda folder: (folder / "cfg.json").is_file() and (folder / "sae.safetensors").is_file())
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
    if k > latents:
        raise SaeuronError(f"{where}: k = {k} is larger than num_latents = {latents}")
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


def read(source: str | Path, hookpoint: str | None = None, revision: str | None = None) -> SparseAutoencoder:
    """Open `source` by the first reader that recognises it; see `SparseAutoencoder.load`."""
    names = [] if hookpoint is None else [f"unet.{normalise(hookpoint)}", normalise(hookpoint)]
    root = Path(source)
    if not root.exists():
        root = hub_folder(str(source), ["cfg.json", "*.safetensors", *(f"{n}/*" for n in names)], revision, "SAE")
    folders = [root, *(root / name for name in names)]
    for folder in folders:
        for _, recognises, reader in _READERS:
            if folder.is_dir() and recognises(folder):
                return reader(folder)
    seen = ", ".join(sorted(p.name for p in root.iterdir())[:8]) if root.is_dir() else "not a folder"
    raise SaeuronError(
        f"no SAE in '{source}' for hookpoint '{hookpoint}': expected cfg.json and sae.safetensors there or in a folder of the hookpoint's name; found: {seen}"
    )


def check_width(sae: SparseAutoencoder, channels: int, hookpoint: str) -> None:
    """Raise unless the SAE reads as many channels as the hookpoint has."""
    if sae.config.d_in != channels:
        raise SaeuronError(
            f"the SAE reads {sae.config.d_in} channels, but hookpoint '{hookpoint}' has {channels}; is it the SAE of another block or model?"
        )
