"""ComfyUI's MODEL, CLIP and VAE from an artifact."""

from __future__ import annotations

from typing import Any

import comfy.diffusers_convert
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.text_encoders.sd2_clip
import comfy.utils
import torch

from . import convert
from .artifact import Artifact, ArtifactError
from .fired import Fired
from .guard import Edit, guard, install

Weights = dict[str, torch.Tensor]
_CLIPS = {
    ("clip_l",): (comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel),
    ("clip_h",): (comfy.text_encoders.sd2_clip.SD2Tokenizer, comfy.text_encoders.sd2_clip.SD2ClipModel),
    ("clip_l", "clip_g"): (comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel),
}
"""text encoders → ComfyUI's classes"""


def load_model(artifact: Artifact, dtype: torch.dtype | None = None) -> Any:
    """The edited UNet as a `ModelPatcher`.

    Args:
        artifact: to load.
        dtype: of the weights; what the artifact was proven at by default, and not ComfyUI's choice.

    Raises:
        ArtifactError: altered, or not a UNet that ComfyUI has.
    """
    settings, config = artifact.unet_config, artifact.json("vae/config.json")
    kind, noise = convert.sampling(artifact.json("scheduler/scheduler_config.json"))
    shape = convert.unet(settings)
    state, blocks = artifact.unet()
    xl = shape["adm_in_channels"] is not None
    family = (
        comfy.supported_models.SDXL
        if xl
        else comfy.supported_models.SD20
        if shape["use_linear_in_transformer"]
        else comfy.supported_models.SD15
    )
    described = family(shape)
    # The class puts its own numbers of heads over these.
    described.unet_config = {**shape, **({"attn_precision": torch.float32} if settings.get("upcast_attention") else {})}
    described.sampling_settings = noise
    described.latent_format = comfy.latent_formats.SDXL() if xl else comfy.latent_formats.SD15()
    described.latent_format.scale_factor = config.get("scaling_factor", 0.18215)

    names = comfy.utils.unet_to_diffusers(shape)
    places = {name: _place(name, names) for name in blocks}
    device, offload = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    supported = list(described.supported_inference_dtypes)
    dtype = dtype or artifact.dtype
    described.set_inference_dtype(dtype, comfy.model_management.unet_manual_cast(dtype, device, supported))
    prediction = comfy.model_base.ModelType.EPS if kind == "eps" else comfy.model_base.ModelType.V_PREDICTION
    base = comfy.model_base.SDXL if xl else comfy.model_base.BaseModel
    model = base(described, model_type=prediction, device=offload)
    _fill(model.diffusion_model, {names.get(name, name): value for name, value in state.items()}, "UNet")
    if blocks:
        chosen = artifact.chosen()
        install(model, places, Edit(blocks, Fired({n: chosen.get(n, {}) for n in blocks}, {n: b.features for n, b in blocks.items()})))
    patcher = comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=offload)
    if blocks:
        guard(patcher)
    patcher.set_attachments("saeuron", artifact)
    return patcher


def load_clip(artifact: Artifact, embeddings: Any = None) -> Any:
    """The text encoders.

    Args:
        artifact: to load.
        embeddings: ComfyUI's folders of textual inversions.

    Raises:
        ArtifactError: weights that ComfyUI's CLIP doesn't take, or that make no numbers.
    """
    folders = sorted({name.split("/")[0] for name in artifact.manifest["files"] if name.startswith("text_encoder")})
    states: list[tuple[str, Weights]] = []
    options: dict[str, Any] = {"dtype": artifact.dtype}
    for folder in folders:
        state, config = artifact.tensors(folder), artifact.json(f"{folder}/config.json")
        # transformers 5 writes a CLIPTextModel without this prefix; ComfyUI then fills nothing, and gives NaN.
        start = "" if any(name.startswith("text_model.") for name in state) else "text_model."
        state = {
            name if name.startswith("text_projection") else start + name: v
            for name, v in state.items()
            if not name.endswith("position_ids")
        }
        # Where there is none, ComfyUI would project by memory that nothing was written to.
        state.setdefault("text_projection.weight", torch.eye(config["hidden_size"]))
        second = len(folders) == 2 and folder == folders[1]
        kind = "clip_g" if second else "clip_h" if len(folders) == 1 and _layers(state) >= 23 else "clip_l"
        # SD 2.x takes the last layer but one, and its folder ends there.
        more = kind == "clip_h"
        options[f"{kind}_model_config"] = convert.text_encoder(config, int(more))
        states.append((kind, {**state, **(_silent_layer(state) if more else {})}))
    # By name, and not by ComfyUI's guess: that one gives both of SDXL's encoders one config.
    tokenizer, model = _CLIPS[tuple(kind for kind, _ in states)]
    clip = comfy.sd.CLIP(
        comfy.supported_models_base.ClipTarget(tokenizer, model),
        embedding_directory=embeddings,
        parameters=sum(v.numel() for _, state in states for v in state.values()),
        model_options=options,
    )
    for _, state in states:
        clip.load_sd(dict(state))
    for kind, state in states:
        _filled(getattr(clip.cond_stage_model, kind).transformer, state, f"text encoder {kind}")
    for (kind, _), folder in zip(states, folders, strict=True):
        words = folder.replace("text_encoder", "tokenizer")
        if getattr(clip.tokenizer, kind).tokenizer.get_vocab() != artifact.json(f"{words}/vocab.json"):
            raise ArtifactError(f"the artifact's {words} has another vocabulary than CLIP's, which is the one that ComfyUI has")
    for tensor in clip.encode_from_tokens(clip.tokenize(""), return_pooled=True):
        if tensor is not None and not bool(tensor.isfinite().all()):
            raise ArtifactError(
                f"the text encoder of '{artifact.root}' gives no numbers in this ComfyUI; it reads that folder otherwise than it is meant"
            )
    return clip


def load_vae(artifact: Artifact) -> Any:
    """The autoencoder.

    Raises:
        ArtifactError: weights that ComfyUI's autoencoder doesn't take.
    """
    config, state = convert.vae(artifact.json("vae/config.json")), artifact.tensors("vae")
    vae = comfy.sd.VAE(sd=dict(state), config=config)
    _filled(vae.first_stage_model, comfy.diffusers_convert.convert_vae_state_dict(dict(state)), "autoencoder")
    return vae


def _layers(state: Weights) -> int:
    return len({name.split(".")[3] for name in state if name.startswith("text_model.encoder.layers.")})


def _place(hookpoint: str, names: dict[str, str]) -> str:
    """ComfyUI's name of a block."""
    end = ".norm.weight"
    if f"{hookpoint}{end}" not in names:
        raise ArtifactError(f"the edit's hookpoint {hookpoint} is no transformer of a UNet that ComfyUI knows")
    return names[f"{hookpoint}{end}"].removesuffix(end)


def _silent_layer(state: Weights) -> Weights:
    """A layer of zeros after the last: ComfyUI runs one that it then passes over, and would run it on memory that nothing was written to."""
    last, count = f"text_model.encoder.layers.{_layers(state) - 1}.", _layers(state)
    return {
        name.replace(last, f"text_model.encoder.layers.{count}."): torch.zeros_like(v) for name, v in state.items() if name.startswith(last)
    }


def _fill(network: torch.nn.Module, state: Weights, what: str) -> None:
    """Load weights that must fit exactly: ComfyUI itself only logs what is missing or left over."""
    held = network.state_dict()
    _agree(set(held) - set(state), {n for n, v in state.items() if n not in held or held[n].shape != v.shape}, what)
    network.load_state_dict(state)


def _filled(network: torch.nn.Module, state: Weights, what: str) -> None:
    """Raise unless ComfyUI's own functions put every weight where it belongs."""
    held = network.state_dict()
    _agree(
        set(held) - set(state), {n for n, v in state.items() if n not in held or not torch.equal(held[n].cpu(), v.to(held[n].dtype))}, what
    )


def _agree(missing: set[str], surplus: set[str], what: str) -> None:
    for names, said in ((missing, "lacks what ComfyUI's takes"), (surplus, "has what ComfyUI's doesn't take, or takes in another shape")):
        if names:
            raise ArtifactError(f"the artifact's {what} {said}: {', '.join(sorted(names)[:4])}")
