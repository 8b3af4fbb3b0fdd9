"""Every reader against its family's formula, written out here in a few lines; and no setting that it doesn't know."""

import json

import pytest
import torch
from safetensors.torch import save_file
from tests.conftest import make_sae

from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.sae.formats.config import SaeFile
from saeuron.editor.sae.sae import SparseAutoencoder

D, N, K = 12, 40, 5


def weights(seed=3):
    g = torch.Generator().manual_seed(seed)
    return {
        "e": torch.randn(N, D, generator=g),
        "d": torch.randn(N, D, generator=g),
        "be": torch.randn(N, generator=g),
        "bd": torch.randn(D, generator=g),
    }


def expected(w, x, k=None, threshold=0.0, subtract=True, out=1.0):
    """Latent by latent: those above the threshold, of them the k largest, times their decoder row and `out`."""
    rows = []
    for token in x:
        z = [float(e @ (token - w["bd"] * subtract) + b) for e, b in zip(w["e"], w["be"], strict=True)]
        best = sorted(range(N), key=lambda i: -z[i])[: k or N]
        factor = torch.as_tensor(out).expand(N)
        rows.append(sum((z[i] * factor[i] * w["d"][i] for i in best if z[i] > max(threshold, 0.0)), torch.zeros(D)) + w["bd"])
    return torch.stack(rows)


def lens(folder, cfg, w, drop=(), **more):
    base = {"d_in": D, "d_sae": N, "dtype": "float32", "device": "cpu", "apply_b_dec_to_input": True, "normalize_activations": "none"}
    (folder / "cfg.json").write_text(json.dumps({k: v for k, v in {**base, **cfg}.items() if k not in drop}))
    save_file(
        {"W_enc": w["e"].T.contiguous(), "W_dec": w["d"], "b_enc": w["be"], "b_dec": w["bd"], **more}, folder / "sae_weights.safetensors"
    )
    return folder


# As version 4.4 and 5.10 write every file.
OLD = {
    "model_name": "m", "hook_name": "blocks.1.hook_resid_pre", "hook_layer": 1, "hook_head_index": None, "activation_fn_str": "relu", "activation_fn_kwargs": {},
    "finetuning_scaling_factor": False, "sae_lens_training_version": "5.10.7", "prepend_bos": True, "dataset_path": "d", "dataset_trust_remote_code": True,
    "context_size": 128, "neuronpedia_id": None, "model_from_pretrained_kwargs": {}, "seqpos_slice": [None],
}  # fmt: skip
NEW = {
    "reshape_activations": "none",
    "metadata": {"sae_lens_version": "6.54.12", "sae_lens_training_version": "6.54.12", "hook_name": "x", "hook_head_index": None},
}
TOPK = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}


@pytest.mark.parametrize(
    ("cfg", "k"),
    [
        (OLD | {"architecture": "standard"} | TOPK, K),
        (OLD | {"architecture": "topk"} | TOPK, K),
        (OLD | TOPK, K),
        ({"activation_fn": "topk", "activation_fn_kwargs": {"k": K}}, K),
        ({"architecture": "topk", "activation_fn_kwargs": {"k": K}}, K),
        (
            {
                "architecture": "topk",
                "k": K,
                "activation_fn": "topk",
                "activation_fn_kwargs": {"k": K},
                "lr": 1e-3,
                "use_ghost_grads": False,
            },
            K,
        ),
        (NEW | {"architecture": "topk", "k": K, "rescale_acts_by_decoder_norm": False}, K),
        (OLD | {"architecture": "standard"}, None),
        (OLD, None),
        (NEW | {"architecture": "standard"}, None),
        ({"normalize_activations": False, "hook_point": "h"}, None),
    ],
)
def test_saelens_of_every_version(tmp_path, cfg, k):
    w, x = weights(), torch.randn(20, D, generator=torch.Generator().manual_seed(1))
    sae = SparseAutoencoder.load(lens(tmp_path, cfg, w))
    assert torch.allclose(sae(x), expected(w, x, k), atol=1e-4)
    assert (sae.encode(x) > 0).sum(-1).max() <= (k or N)


@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize("cfg", [OLD | {"architecture": "jumprelu"}, NEW | {"architecture": "jumprelu"}])
def test_saelens_jumprelu(tmp_path, cfg, subtract):
    w, x = weights(), torch.randn(20, D, generator=torch.Generator().manual_seed(1))
    lens(tmp_path, cfg | {"apply_b_dec_to_input": subtract}, w, threshold=torch.full((N,), 0.8))
    assert torch.allclose(SparseAutoencoder.load(tmp_path)(x), expected(w, x, None, 0.8, subtract), atol=1e-4)


@pytest.mark.parametrize("name", ["scaling_factor", "finetuning_scaling_factor"])
def test_saelens_finetuned(tmp_path, name):
    """The factor scales what a latent gives back, not the latent."""
    w, x, factor = weights(), torch.randn(20, D, generator=torch.Generator().manual_seed(1)), torch.linspace(0.5, 2, N)
    lens(tmp_path, OLD | TOPK | {"finetuning_scaling_factor": True}, w, **{name: factor})
    assert torch.allclose(SparseAutoencoder.load(tmp_path)(x), expected(w, x, K, out=factor), atol=1e-4)
    lens(tmp_path, OLD | TOPK, w, **{name: torch.ones(N)})  # versions up to 3 wrote ones always
    assert torch.allclose(SparseAutoencoder.load(tmp_path)(x), expected(w, x, K), atol=1e-4)
    for cfg, more in ((OLD, {name: factor}), (OLD | {"finetuning_scaling_factor": True}, {})):
        with pytest.raises(SaeuronError, match="finetuning_scaling_factor"):
            SparseAutoencoder.load(lens(tmp_path, cfg, w, **more))


@pytest.mark.parametrize("dead", [0, 3])
def test_saelens_ranks_by_the_rows_of_the_decoder(tmp_path, dead):
    """A dead latent may have a row of zeros: it gives nothing back, and never fires."""
    w, x = weights(), torch.randn(20, D, generator=torch.Generator().manual_seed(1))
    w["d"][:dead] = 0
    sae = SparseAutoencoder.load(lens(tmp_path, NEW | {"architecture": "topk", "k": K, "rescale_acts_by_decoder_norm": True}, w))
    norm = w["d"].norm(dim=1)
    scaled = {**w, "e": w["e"] * norm[:, None], "be": w["be"] * norm, "d": w["d"] / norm.clamp(min=1e-20)[:, None]}
    assert torch.allclose(sae(x), expected(scaled, x, K), atol=1e-4)
    assert not sae.encode(x)[:, :dead].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_saelens_in_other_types(tmp_path, dtype):
    w = {k: v.to(dtype) for k, v in weights().items()}
    sae = SparseAutoencoder.load(lens(tmp_path, NEW | {"architecture": "topk", "k": K, "dtype": str(dtype)}, w))
    x = torch.randn(20, D, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(sae(x), expected({k: v.float() for k, v in w.items()}, x, K), atol=1e-4)


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        *(({"architecture": kind, "k": K}, f"'?\"?{kind}") for kind in (
            "gated", "transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder", "matryoshka_batchtopk", "batchtopk", "temporal",
            "matching_pursuit", "abstopk",
        )),
        ({"architecture": ["topk"]}, "architecture"),
        ({"architecture": None}, "architecture"),
        (OLD | {"activation_fn_str": "tanh-relu"}, "tanh-relu"),
        (OLD | {"activation_fn_str": "topk"}, "'k' is missing"),
        (OLD | {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 0}}, "'k' is 0"),
        (OLD | {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": True}}, "'k' is true"),
        (OLD | {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": N + 1}}, "larger"),
        (OLD | {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K, "postact_fn": "identity"}}, "only k"),
        (OLD | {"activation_fn_str": "topk", "activation_fn_kwargs": [5]}, "activation_fn_kwargs"),
        (OLD | {"activation_fn_kwargs": {"k": K}}, "nothing says topk|doesn't say|names k"),
        (OLD | {"architecture": "jumprelu"} | TOPK, "doesn't go with architecture jumprelu"),
        (OLD | {"architecture": "topk", "k": K}, "doesn't go with architecture topk"),
        (OLD | TOPK | {"activation_fn": "relu"}, "doesn't go with"),
        ({"architecture": "topk", "k": K, "activation_fn_kwargs": {"k": K + 1}}, "'k' is 5, but 6"),
        (NEW | {"architecture": "standard"} | TOPK, "SAELens 6.54.12 reads this file as a plain ReLU"),
        *((OLD | {"normalize_activations": way}, way if way is not True else "true") for way in (
            "constant_norm_rescale", "expected_average_only_in", "covariance_whitening", "constant_scalar_rescale", True,
        )),
        (OLD | {"reshape_activations": "hook_z"}, "hook_z"),
        (OLD | {"hook_name": "blocks.1.attn.hook_z"}, "hook_z"),
        (OLD | {"hook_head_index": 3}, "hook_head_index"),
        (NEW | {"architecture": "standard", "metadata": {"hook_name_out": "y"}}, "hook_name_out"),
        (NEW | {"architecture": "standard", "metadata": [1]}, "metadata"),
        (OLD | {"apply_b_dec_to_input": 1}, "apply_b_dec_to_input"),
        (OLD | {"apply_b_dec_to_input": "false"}, "apply_b_dec_to_input"),
        (OLD | {"rescale_acts_by_decoder_norm": True}, "belongs to architecture topk"),
        (OLD | {"dtype": "float8_e4m3fn"}, "float8"),
        (OLD | {"tied_weights": True}, "'tied_weights'"),
        (OLD | {"W_skip": None}, "'W_skip'"),
    ],
)  # fmt: skip
def test_saelens_that_is_not_ours_is_refused_by_name(tmp_path, cfg, message):
    with pytest.raises(SaeuronError, match=message):
        SparseAutoencoder.load(lens(tmp_path, cfg, weights()))


@pytest.mark.parametrize(("name", "shape"), [("threshold", (N,)), ("b_gate", (N,)), ("W_skip", (D, D)), ("log_threshold", (N,))])
def test_tensors_that_would_be_left_out_are_named(tmp_path, name, shape):
    with pytest.raises(SaeuronError, match=f"'{name}' too"):
        SparseAutoencoder.load(lens(tmp_path, OLD, weights(), **{name: torch.ones(shape)}))
    made = make_sae()
    made.save(tmp_path / "s")
    save_file(
        {"encoder.weight": made.W_enc, "encoder.bias": made.b_enc, "W_dec": made.W_dec, "b_dec": made.b_dec, name: torch.ones(shape)},
        tmp_path / "s" / "sae.safetensors",
    )
    with pytest.raises(SaeuronError, match=f"'{name}' too"):
        SparseAutoencoder.load(tmp_path / "s")


def test_integers_are_no_weights(tmp_path):
    w = weights()
    w["d"] = (w["d"] * 20).to(torch.int8)
    with pytest.raises(SaeuronError, match="W_dec is stored as int8"):
        SparseAutoencoder.load(lens(tmp_path, OLD, w))


def sparsify(folder, w, **changes):
    cfg = {"d_in": D, "num_latents": N, "k": K, "expansion_factor": 32, "normalize_decoder": True, "multi_topk": False, **changes}
    (folder / "cfg.json").write_text(json.dumps(cfg))
    save_file({"encoder.weight": w["e"], "encoder.bias": w["be"], "W_dec": w["d"], "b_dec": w["bd"]}, folder / "sae.safetensors")
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {"activation": "topk", "skip_connection": False, "transcode": False},
        {"signed": False},
        {"batch_topk": True, "sample_topk": False, "input_unit_norm": False, "normalize_decoder": False, "multi_topk": True},
    ],
)
def test_sparsify(tmp_path, changes):
    """Neither project normalises a trained decoder, whatever `normalize_decoder` says; the rows here are far from unit norm."""
    w, x = weights(), torch.randn(20, D, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(SparseAutoencoder.load(sparsify(tmp_path, w, **changes))(x), expected(w, x, K), atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"signed": True}, "'signed' = true"),
        ({"sample_topk": True}, "whole picture"),
        ({"activation": "groupmax"}, "groupmax"),
        ({"activation": "jumprelu"}, "jumprelu"),
        ({"transcode": True}, "transcode"),
        ({"skip_connection": True}, "skip_connection"),
        ({"input_unit_norm": "false"}, "input_unit_norm"),
        ({"matryoshka": True}, "'matryoshka'"),
        ({"encoder_pkm": True}, "'encoder_pkm'"),
        ({"k": 2.5}, "'k' is 2.5"),
    ],
)
def test_sparsify_that_is_not_ours_is_refused_by_name(tmp_path, changes, message):
    with pytest.raises(SaeuronError, match=message):
        SparseAutoencoder.load(sparsify(tmp_path, weights(), **changes))


def test_sdxl_unbox_settings_and_tensors(tmp_path):
    w = weights()
    held = {"encoder.weight": w["e"], "decoder.weight": w["d"].T.contiguous(), "latent_bias": w["be"], "pre_bias": w["bd"]}
    cfg = {"n_dirs_local": N, "d_model": D, "k": K, "auxk": None, "dead_steps_threshold": 2441}
    for changes, more, message in (({"activation": "relu"}, {}, "'activation'"), ({}, {"std": torch.ones(D)}, "'std' too")):
        (tmp_path / "config.json").write_text(json.dumps(cfg | changes))
        torch.save({"state_dict": held | more}, tmp_path / "state_dict.pth")
        with pytest.raises(SaeuronError, match=message):
            SparseAutoencoder.load(tmp_path)


def finebooru(folder, w, drop=(), **changes):
    cfg = {"features": D, "pages": N, "k": K, "sample": None, **changes}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in cfg.items() if k not in drop}))
    save_file(
        {"encoder.weight": w["e"], "encoder.bias": w["be"], "decoder.weight": w["d"].T.contiguous(), "bias": w["bd"]},
        folder / "model.safetensors",
    )
    return folder


def test_re_n_y(tmp_path):
    w, x = weights(), torch.randn(20, D, generator=torch.Generator().manual_seed(1))
    sae = SparseAutoencoder.load(finebooru(tmp_path, w))
    assert sae.config.reads == "output" and torch.allclose(sae(x), expected(w, x, K), atol=1e-4)
    for drop, changes, message in ((("k",), {}, "only top-k"), ((), {"bandwidth": 0.001}, "'bandwidth'"), ((), {"pages": N + 1}, "shape")):
        with pytest.raises(SaeuronError, match=message):
            SparseAutoencoder.load(finebooru(tmp_path, w, drop, **changes))


def test_a_model_of_another_kind_is_no_sae(tmp_path):
    """Many models have `config.json` and `model.safetensors`."""
    (tmp_path / "config.json").write_text('{"hidden_size": 32}')
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(SaeuronError, match="no SAE in"):
        SparseAutoencoder.load(tmp_path)


@pytest.mark.parametrize("name", ["cfg.json", "sae.safetensors"])
def test_lfs_pointers_are_called_that(tmp_path, name):
    sparsify(tmp_path, weights())
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
    with pytest.raises(SaeuronError, match="Git LFS pointer.*git lfs pull"):
        SparseAutoencoder.load(tmp_path)


@pytest.mark.parametrize("content", [{"state_dict": [1]}, {"state_dict": torch.zeros(2)}, [1]])
def test_sdxl_unbox_of_another_form(tmp_path, content):
    (tmp_path / "config.json").write_text(json.dumps({"d_model": D, "n_dirs_local": N, "k": K}))
    torch.save(content, tmp_path / "state_dict.pth")
    with pytest.raises(SaeuronError, match="'encoder.weight' is missing"):
        SparseAutoencoder.load(tmp_path)


def test_sparse_tensors_are_no_weights():
    sae = make_sae()
    with pytest.raises(SaeuronError, match="W_dec is stored as a sparse tensor"):
        SparseAutoencoder.from_file(SaeFile(sae.config, {**dict(sae.named_parameters()), "W_dec": sae.W_dec.to_sparse()}, "here"))


def test_a_later_saelens_is_not_taken_for_an_old_one(tmp_path):
    lens(tmp_path, TOPK | {"metadata": {"sae_lens_version": "10.0.1"}}, weights())
    with pytest.raises(SaeuronError, match="which one holds"):
        SparseAutoencoder.load(tmp_path)


def test_the_only_value_that_is_supported_is_named_even_if_it_is_null(tmp_path):
    lens(tmp_path, {"hook_head_index": 3}, weights())
    with pytest.raises(SaeuronError, match="only null;"):
        SparseAutoencoder.load(tmp_path)


def test_a_name_longer_than_any_file_has():
    with pytest.raises(SaeuronError, match="it is no Hub id"):
        SparseAutoencoder.load("a" * 5000)
