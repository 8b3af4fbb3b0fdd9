"""SAELens's form, as its versions 3 to 6 write it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...common.errors import SaeuronError
from ...common.files import read_json
from .common import check_settings, holds, positive, register, shown, tensors_of, top_k
from .config import SaeConfig, SaeFile

_ALLOWED = {
    "apply_b_dec_to_input": (True, False), "normalize_activations": ("none", "layer_norm", False, None), "reshape_activations": ("none", None),
    "finetuning_scaling_factor": (False, True, None), "rescale_acts_by_decoder_norm": (False, True, None),
    "activation_fn": ("relu", "topk", None), "activation_fn_str": ("relu", "topk", None), "hook_head_index": (None,),
    "hook_point_head_index": (None,), "hook_name_out": (None,),
    "dtype": tuple(f"{prefix}{name}" for prefix in ("", "torch.") for name in ("float32", "float64", "float16", "bfloat16")),
}  # fmt: skip
# Where the SAE was trained and how: its versions from 6 on drop all of these on reading, and none before used them at inference.
# Files may hold any of them, since the settings of the training run were written along.
_OTHERS = [
    "architecture",
    "d_in",
    "d_sae",
    "k",
    "activation_fn_kwargs",
    "metadata",
    "device",
    "hook_name",
    "hook_layer",
    "hook_point",
    "hook_point_layer",
    "hook_eval",
    "model_name",
    "model_class_name",
    "model_kwargs",
    "model_from_pretrained_kwargs",
    "context_size",
    "prepend_bos",
    "seqpos_slice",
    "dataset_path",
    "dataset_name",
    "dataset_trust_remote_code",
    "is_dataset_tokenized",
    "exclude_special_tokens",
    "neuronpedia_id",
    "sae_lens_version",
    "sae_lens_training_version",
    "act_store_device",
    "activations_mixing_fraction",
    "adam_beta1",
    "adam_beta2",
    "autocast",
    "autocast_lm",
    "aux_loss_coefficient",
    "b_dec_init_method",
    "cached_activations_path",
    "checkpoint_path",
    "compile_llm",
    "compile_sae",
    "data_dir",
    "dead_feature_threshold",
    "dead_feature_window",
    "decoder_heuristic_init",
    "decoder_heuristic_init_norm",
    "decoder_init_norm",
    "decoder_orthogonal_init",
    "disable_concat_sequences",
    "eval_batch_size_prompts",
    "eval_every_n_wandb_logs",
    "expansion_factor",
    "feature_sampling_window",
    "finetuning_method",
    "finetuning_tokens",
    "from_pretrained_path",
    "init_encoder_as_decoder_transpose",
    "jumprelu_bandwidth",
    "jumprelu_init_threshold",
    "jumprelu_sparsity_loss_mode",
    "jumprelu_ste_to_input",
    "jumprelu_tanh_scale",
    "l0_coefficient",
    "l0_warm_up_steps",
    "l1_coefficient",
    "l1_warm_up_steps",
    "llm_compilation_mode",
    "log_activations_store_to_wandb",
    "log_optimizer_state_to_wandb",
    "log_to_wandb",
    "log_weights_to_wandb",
    "logger",
    "lp_norm",
    "lr",
    "lr_decay_steps",
    "lr_end",
    "lr_scheduler_name",
    "lr_warm_up_steps",
    "mse_loss_normalization",
    "n_batches_in_buffer",
    "n_checkpoints",
    "n_eval_batches",
    "n_restart_cycles",
    "noise_scale",
    "normalize_sae_decoder",
    "output_path",
    "pre_act_loss_coefficient",
    "resume",
    "run_name",
    "sae_compilation_mode",
    "save_final_checkpoint",
    "scale_sparsity_penalty_by_decoder_norm",
    "seed",
    "sequence_separator_token",
    "store_batch_size_prompts",
    "streaming",
    "target_l0",
    "tokens_per_buffer",
    "topk_threshold_lr",
    "total_training_steps",
    "total_training_tokens",
    "train_batch_size",
    "train_batch_size_tokens",
    "training_tokens",
    "use_cached_activations",
    "use_ghost_grads",
    "use_sparse_activations",
    "verbose",
    "wandb_entity",
    "wandb_id",
    "wandb_log_frequency",
    "wandb_project",
]


@register("SAELens (cfg.json, sae_weights.safetensors)", holds("cfg.json", "sae_weights.safetensors"))
def read_saelens(folder: Path) -> SaeFile:
    """SAELens's form: `cfg.json` and `sae_weights.safetensors`, architectures topk, jumprelu and standard.

    Its BatchTopK SAEs are saved as jumprelu. `layer_norm` is `input_unit_norm`, but for its way back, which multiplies by the
    standard deviation without the 1e-5 that it divided by. Source: https://github.com/decoderesearch/SAELens, `sae_lens/saes`.
    """
    where = folder / "cfg.json"
    settings = read_json(where)
    kind, k_of = _kind(settings, where)
    check_settings(settings, where, _ALLOWED, _OTHERS)
    metadata = settings.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise SaeuronError(f"{where}: 'metadata' is {shown(metadata)}, expected an object")
    check_settings({k: metadata[k] for k in ("hook_head_index", "hook_name_out") if k in metadata}, where, _ALLOWED, ())
    name = settings.get("hook_name") or settings.get("hook_point") or ""
    if "reshape_activations" not in settings and isinstance(name, str) and (name.endswith("_z") or "hook_z" in name):
        raise SaeuronError(
            f"{where}: hook_name '{name[:80]}': it reads the heads of an attention layer side by side, which is not supported"
        )

    width, latents = positive(settings, "d_in", where), positive(settings, "d_sae", where)
    k = top_k(k_of, latents, where) if kind == "topk" else None
    shapes: dict[str, tuple[int, ...]] = {"W_enc": (width, latents), "W_dec": (latents, width), "b_enc": (latents,), "b_dec": (width,)}
    if kind == "jumprelu":
        shapes["threshold"] = (latents,)
    path = folder / "sae_weights.safetensors"
    scales = ("scaling_factor", "finetuning_scaling_factor")
    tensors = tensors_of(path, shapes, scales)
    tensors["W_enc"] = tensors["W_enc"].T.contiguous()
    _fold_scale(tensors, [tensors.pop(n) for n in scales if n in tensors], settings.get("finetuning_scaling_factor") is True, path)
    if settings.get("rescale_acts_by_decoder_norm") is True:
        if kind != "topk":
            raise SaeuronError(f"{where}: 'rescale_acts_by_decoder_norm' belongs to architecture topk, not to '{kind}'")
        # Latents are ranked as if every decoder row had unit norm: moved into the weights, nothing else has to know.
        norm = tensors["W_dec"].float().norm(dim=1)
        tensors["W_enc"], tensors["b_enc"] = tensors["W_enc"].float() * norm[:, None], tensors["b_enc"].float() * norm
        # One without a decoder row is ranked at 0, so it never fires.
        tensors["W_dec"] = tensors["W_dec"].float() / norm.masked_fill(norm == 0, 1)[:, None]
    if kind == "standard":
        tensors["threshold"] = torch.zeros(latents)
    config = SaeConfig(
        width, latents, k, settings.get("normalize_activations") == "layer_norm", "topk" if kind == "topk" else "jumprelu",
        settings.get("apply_b_dec_to_input", True),
    )  # fmt: skip
    return SaeFile(config, tensors, str(folder))


def _kind(settings: Mapping[str, Any], where: Path) -> tuple[str, Mapping[str, Any]]:
    """topk, jumprelu or standard, and where its `k` stands.

    Before version 6 the activation function was a setting of its own, and top-k SAEs were written as `standard`, or without architecture.
    """
    kind = settings.get("architecture", "standard")
    if kind not in ("topk", "jumprelu", "standard"):
        raise SaeuronError(f"{where}: architecture {shown(kind)} is not supported; supported are topk, jumprelu, standard")
    said = {key: settings[key] for key in ("activation_fn_str", "activation_fn") if settings.get(key) is not None}
    more = settings.get("activation_fn_kwargs") or {}
    if not isinstance(more, dict) or set(more) - {"k"}:
        raise SaeuronError(f"{where}: 'activation_fn_kwargs' is {shown(more)}; only k can be read there")
    if "topk" in said.values() and kind == "standard":
        metadata = settings.get("metadata")
        version = str(settings.get("sae_lens_version") or (metadata.get("sae_lens_version") if isinstance(metadata, dict) else None) or "0")
        if version.partition(".")[0] not in ("0", "1", "2", "3", "4", "5"):
            raise SaeuronError(
                f"{where}: SAELens {version[:20]} reads this file as a plain ReLU SAE, but its activation function is topk; which one holds?"
            )
        kind = "topk"
    expected = "topk" if kind == "topk" else "relu"
    for key, value in said.items():
        if value != expected:
            raise SaeuronError(f"{where}: '{key}' = {shown(value)} doesn't go with architecture {kind}, which takes '{expected}'")
    if kind != "topk":
        if "k" in more:
            raise SaeuronError(
                f"{where}: 'activation_fn_kwargs' names k = {shown(more['k'])}, but nothing says topk; is 'activation_fn_str' missing?"
            )
        return kind, settings
    if "k" in more and settings.get("k", more["k"]) != more["k"]:
        raise SaeuronError(f"{where}: 'k' is {shown(settings['k'])}, but {shown(more['k'])} in 'activation_fn_kwargs'")
    return kind, more if "k" in more else settings


def _fold_scale(tensors: dict[str, torch.Tensor], scales: list[torch.Tensor], meant: bool, path: Path) -> None:
    """A finetuned SAE multiplies each latent on its way out; older files hold that factor unused, as ones."""
    if len(scales) > 1 or (meant and not scales):
        raise SaeuronError(f"{path}: 'finetuning_scaling_factor' is set, but {len(scales)} factors are in the file, expected 1")
    for scale in scales:
        if scale.shape != tensors["b_enc"].shape:
            raise SaeuronError(f"{path}: its scaling factor has shape {list(scale.shape)}, expected {list(tensors['b_enc'].shape)}")
        if meant:
            tensors["W_dec"] = tensors["W_dec"].float() * scale.float()[:, None]
        elif not bool(torch.allclose(scale.float(), torch.ones(()))):
            raise SaeuronError(
                f"{path}: it holds a scaling factor, but its config doesn't say 'finetuning_scaling_factor'; which one holds?"
            )
