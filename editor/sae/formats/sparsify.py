"""SAeUron's and EleutherAI sparsify's form."""

from __future__ import annotations

from pathlib import Path

from ...common.errors import SaeuronError
from ...common.files import read_json
from .common import check_settings, holds, positive, register, tensors_of, top_k
from .config import SaeConfig, SaeFile

_ALLOWED = {
    "activation": ("topk", None), "transcode": (False, None), "skip_connection": (False, None), "signed": (False, None),
    "input_unit_norm": (False, True, None),
}  # fmt: skip
# How it was trained. SAeUron's own loader, too, takes the k largest of each token whatever `batch_topk` says, and neither project
# normalises the decoder or takes 4k latents (`multi_topk`) once an SAE is trained.
_OTHERS = ("d_in", "expansion_factor", "num_latents", "k", "normalize_decoder", "multi_topk", "batch_topk", "sample_topk")


@register("SAeUron and sparsify (cfg.json, sae.safetensors)", holds("cfg.json", "sae.safetensors"))
def read_sparsify(folder: Path) -> SaeFile:
    """SAeUron's and EleutherAI sparsify's form: `cfg.json` and `sae.safetensors`.

    Sources: https://github.com/cywinski/SAeUron, `SAE/sae.py`; https://github.com/EleutherAI/sparsify, `sparsify/sparse_coder.py`.
    """
    where = folder / "cfg.json"
    settings = read_json(where)
    check_settings(settings, where, _ALLOWED, _OTHERS)
    if settings.get("sample_topk") not in (False, None):
        raise SaeuronError(
            f"{where}: 'sample_topk': its k counts the active latents of a whole picture; only SAEs with k a token are supported"
        )
    width = positive(settings, "d_in", where)
    settings["num_latents"] = settings.get("num_latents") or positive(settings, "expansion_factor", where) * width
    latents = positive(settings, "num_latents", where)
    k = top_k(settings, latents, where)
    names = {
        "encoder.weight": ("W_enc", (latents, width)),
        "encoder.bias": ("b_enc", (latents,)),
        "W_dec": ("W_dec", (latents, width)),
        "b_dec": ("b_dec", (width,)),
    }
    tensors = tensors_of(folder / "sae.safetensors", {name: shape for name, (_, shape) in names.items()})
    config = SaeConfig(width, latents, k, settings.get("input_unit_norm") is True)
    return SaeFile(config, {ours: tensors[name] for name, (ours, _) in names.items()}, str(folder))
