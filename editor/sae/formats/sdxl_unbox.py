"""sdxl-unbox's form."""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch

from ...common.errors import SaeuronError
from ...common.files import read_json, reading
from .common import check_settings, holds, positive, register, top_k
from .config import SaeConfig, SaeFile

# The last two are of training: which dead latents get an auxiliary loss.
_OTHERS = ("d_model", "n_dirs_local", "k", "auxk", "dead_steps_threshold")


@register("sdxl-unbox (config.json, state_dict.pth)", holds("config.json", "state_dict.pth"))
def read_sdxl_unbox(folder: Path) -> SaeFile:
    """sdxl-unbox's form: `config.json` and `state_dict.pth` (opened as tensors only), trained on output minus input of a block.

    Source: https://github.com/surkovv/sdxl-unbox, `SAE/sae.py` and `utils/hooks.py`.
    """
    where = folder / "config.json"
    settings = read_json(where)
    check_settings(settings, where, {}, _OTHERS)
    width, latents = positive(settings, "d_model", where), positive(settings, "n_dirs_local", where)
    k = top_k(settings, latents, where)
    path = folder / "state_dict.pth"
    with reading(path, "tensors alone"):
        content = torch.load(path, weights_only=True, map_location="cpu", mmap=zipfile.is_zipfile(path))  # older files can't be mapped
    held = content.get("state_dict", content) if isinstance(content, dict) else {}
    held = held if isinstance(held, dict) else {}
    shapes = {"encoder.weight": (latents, width), "decoder.weight": (width, latents), "latent_bias": (latents,), "pre_bias": (width,)}
    for name, shape in shapes.items():
        if not isinstance(held.get(name), torch.Tensor) or tuple(held[name].shape) != shape:
            found = list(held[name].shape) if isinstance(held.get(name), torch.Tensor) else "missing"
            raise SaeuronError(f"{path}: '{name}' is {found}, its config says {list(shape)}")
    surplus = sorted(str(name) for name in held if name not in shapes and name != "stats_last_nonzero")
    if surplus:
        raise SaeuronError(f"{path} holds '{surplus[0]}' too, which no SAE of this form has; it would be left out")
    tensors = {
        "W_enc": held["encoder.weight"], "b_enc": held["latent_bias"], "W_dec": held["decoder.weight"].T.contiguous(), "b_dec": held["pre_bias"],
    }  # fmt: skip
    return SaeFile(SaeConfig(width, latents, k, reads="delta"), tensors, str(folder))
