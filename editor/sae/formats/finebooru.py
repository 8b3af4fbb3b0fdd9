"""The form of RE-N-Y's SAEs of FLUX.1-schnell."""

from __future__ import annotations

from pathlib import Path

from ...common.errors import SaeuronError
from ...common.files import read_json
from .common import check_settings, holds, positive, register, tensors_of, top_k
from .config import SaeConfig, SaeFile

_both = holds("config.json", "model.safetensors")


def _recognises(folder: Path) -> bool:
    """Many models have files of these names, so the settings decide; what can't be read as JSON is none of ours."""
    if not _both(folder):
        return False
    try:
        return {"features", "pages"} <= read_json(folder / "config.json").keys()
    except SaeuronError:
        return False


@register("RE-N-Y (config.json with features and pages, model.safetensors)", _recognises)
def read_finebooru(folder: Path) -> SaeFile:
    """RE-N-Y's top-k SAEs of a block's output: `config.json` (features, pages, k, sample) and `model.safetensors`.

    The class takes `sample` and drops it. Source: https://github.com/RE-N-Y/finebooru, `TopkSparseAutoencoder`.
    """
    where = folder / "config.json"
    settings = read_json(where)
    if "k" not in settings:
        raise SaeuronError(f"{where}: 'k' is missing; of this form only top-k SAEs are supported, no gated, jumprelu or standard ones")
    check_settings(settings, where, {}, ("features", "pages", "k", "sample"))
    width, latents = positive(settings, "features", where), positive(settings, "pages", where)
    k = top_k(settings, latents, where)
    tensors = tensors_of(
        folder / "model.safetensors",
        {"encoder.weight": (latents, width), "encoder.bias": (latents,), "decoder.weight": (width, latents), "bias": (width,)},
    )
    ours = {
        "W_enc": tensors["encoder.weight"], "b_enc": tensors["encoder.bias"], "W_dec": tensors["decoder.weight"].T.contiguous(), "b_dec": tensors["bias"],
    }  # fmt: skip
    return SaeFile(SaeConfig(width, latents, k), ours, str(folder))
