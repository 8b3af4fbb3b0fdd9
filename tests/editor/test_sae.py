import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conftest import make_sae

from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.sae.formats.config import SaeConfig
from saeuron.editor.sae.sae import SparseAutoencoder, check_width


def naive(sae, x):
    """METHOD's formulas, token by token."""
    rows = []
    for token in x:
        centred, mean, scale = token, 0.0, 1.0
        if sae.config.input_unit_norm:
            mean, scale = token.mean(), token.std() + 1e-5
            centred = (token - mean) / scale
        z = torch.relu(sae.W_enc @ (centred - sae.b_dec) + sae.b_enc)
        keep = z.argsort(descending=True)[: sae.config.k]
        rows.append((sum(z[i] * sae.W_dec[i] for i in keep) + sae.b_dec) * scale + mean)
    return torch.stack(rows)


@pytest.mark.parametrize("unit_norm", [False, True])
def test_reconstruction_equals_the_formulas(unit_norm):
    sae = make_sae(unit_norm=unit_norm)
    x = torch.randn(17, 32)
    assert torch.allclose(sae(x), naive(sae, x), atol=1e-5)


def test_saved_sae_reads_back_equal(tmp_path):
    sae = make_sae(unit_norm=True)
    sae.save(tmp_path / "unet.some.block")
    for source, hookpoint in ((tmp_path, "some.block"), (tmp_path, "unet.some.block"), (tmp_path / "unet.some.block", None)):
        again = SparseAutoencoder.load(source, hookpoint)
        assert again.sha256() == sae.sha256()
    x = torch.randn(5, 32)
    assert torch.equal(again(x), sae(x))


@pytest.fixture
def folder(tmp_path):
    make_sae().save(tmp_path)
    return tmp_path


def rewrite(folder, **changes):
    settings = json.loads((folder / "cfg.json").read_text()) | changes
    (folder / "cfg.json").write_text(json.dumps({k: v for k, v in settings.items() if v is not ...}))


def test_num_latents_zero_means_expansion(folder):
    rewrite(folder, num_latents=0)
    assert SparseAutoencoder.load(folder).config.num_latents == 256


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_latents": 10**12}, "1000000000000"),
        ({"k": 0}, "'k' is 0"),
        ({"k": 300}, "larger than the number of latents"),
        ({"k": ...}, "'k' is missing"),
        ({"d_in": "32"}, "'d_in'"),
        ({"activation": "groupmax"}, "not supported"),
        ({"transcode": True}, "not supported"),
        ({"skip_connection": True}, "not supported"),
    ],
)
def test_bad_settings_are_refused(folder, changes, message):
    rewrite(folder, **changes)
    with pytest.raises(SaeuronError, match=message):
        SparseAutoencoder.load(folder)


def test_truncated_weights_are_refused(folder):
    path = folder / "sae.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SaeuronError, match="truncated"):
        SparseAutoencoder.load(folder)


def test_nan_weights_are_refused(folder):
    tensors = load_file(folder / "sae.safetensors")
    tensors["encoder.bias"][3] = float("nan")
    save_file(tensors, folder / "sae.safetensors")
    with pytest.raises(SaeuronError, match="NaN"):
        SparseAutoencoder.load(folder)


def test_missing_tensor_is_named(folder):
    tensors = load_file(folder / "sae.safetensors")
    del tensors["W_dec"]
    save_file(tensors, folder / "sae.safetensors")
    with pytest.raises(SaeuronError, match="W_dec"):
        SparseAutoencoder.load(folder)


def test_nothing_there_names_the_place(tmp_path):
    with pytest.raises(SaeuronError, match=r"no SAE in .*up_blocks"):
        SparseAutoencoder.load(tmp_path, "up_blocks.1.attentions.1")
    with pytest.raises(SaeuronError, match="no Hub id"):
        SparseAutoencoder.load("/nowhere/at/all")


def test_width_must_fit():
    with pytest.raises(SaeuronError, match="reads 32 channels.*has 64"):
        check_width(make_sae(), 64, "x")
    assert SaeConfig(1, 2, 1).input_unit_norm is False


def test_forms_that_saeuron_cannot_say_are_not_saved(tmp_path):
    for sae in (make_sae(activation="jumprelu"), make_sae(reads="delta"), make_sae(subtract_bias=False)):
        with pytest.raises(SaeuronError, match="top-k SAEs of a block's output only"):
            sae.save(tmp_path / "x")
    assert not (tmp_path / "x").exists()


# Readers of other families: each against its family's formula written out here, never against our own loader.

D, N, K = 12, 40, 5


@pytest.fixture
def lens(tmp_path):
    """Writes a SAELens folder: returns a function (settings, tensors) → folder."""

    def write(settings, **tensors):
        generator = torch.Generator().manual_seed(3)
        made = {
            "W_enc": torch.randn(D, N, generator=generator), "W_dec": torch.randn(N, D, generator=generator),
            "b_enc": torch.randn(N, generator=generator), "b_dec": torch.randn(D, generator=generator), **tensors,
        }  # fmt: skip
        base = {"d_in": D, "d_sae": N, "dtype": "float32", "apply_b_dec_to_input": True, "normalize_activations": "none"}
        (tmp_path / "cfg.json").write_text(json.dumps({**base, **settings}))
        save_file(made, tmp_path / "sae_weights.safetensors")
        return tmp_path, made

    return write


def test_saelens_topk(lens):
    folder, w = lens({"architecture": "topk", "k": K})
    x = torch.randn(30, D)
    pre = (x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    z = torch.zeros_like(pre)
    for row, best in enumerate(pre.argsort(1, descending=True)[:, :K]):
        z[row, best] = pre[row, best].clamp_min(0)
    assert torch.allclose(SparseAutoencoder.load(folder)(x), z @ w["W_dec"] + w["b_dec"], atol=1e-5)


@pytest.mark.parametrize("subtract", [True, False])
def test_saelens_jumprelu(lens, subtract):
    threshold = torch.rand(N) * 4
    folder, w = lens({"architecture": "jumprelu", "apply_b_dec_to_input": subtract}, threshold=threshold)
    x = torch.randn(30, D)
    pre = (x - w["b_dec"] * subtract) @ w["W_enc"] + w["b_enc"]
    z = torch.where((pre > threshold) & (pre > 0), pre, 0.0)
    assert torch.allclose(SparseAutoencoder.load(folder)(x), z @ w["W_dec"] + w["b_dec"], atol=1e-5)


def test_saelens_standard_is_a_plain_relu(lens):
    folder, w = lens({"architecture": "standard"})
    x = torch.randn(30, D)
    expected = ((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).clamp_min(0) @ w["W_dec"] + w["b_dec"]
    assert torch.allclose(SparseAutoencoder.load(folder)(x), expected, atol=1e-4)


def test_saelens_layer_norm(lens):
    folder, w = lens({"architecture": "topk", "k": K, "normalize_activations": "layer_norm"})
    x = 3 * torch.randn(30, D) + 1
    centred = x - x.mean(1, keepdim=True)
    std = centred.std(1, keepdim=True)
    pre = (centred / (std + 1e-5) - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    bar = pre.sort(1, descending=True).values[:, K - 1 : K]
    expected = (torch.where(pre >= bar, pre, 0.0).clamp_min(0) @ w["W_dec"] + w["b_dec"]) * std + x.mean(1, keepdim=True)
    assert torch.allclose(SparseAutoencoder.load(folder)(x), expected, atol=1e-3)


def test_saelens_rescaled_by_decoder_norm(lens):
    folder, w = lens({"architecture": "topk", "k": K, "rescale_acts_by_decoder_norm": True})
    x = torch.randn(30, D)
    norm = w["W_dec"].norm(dim=1)
    pre = ((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]) * norm
    bar = pre.sort(1, descending=True).values[:, K - 1 : K]
    expected = torch.where(pre >= bar, pre, 0.0).clamp_min(0) / norm @ w["W_dec"] + w["b_dec"]
    assert torch.allclose(SparseAutoencoder.load(folder)(x), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "gated"}, "gated"),
        ({"architecture": "topk", "k": K, "normalize_activations": "constant_norm_rescale"}, "constant_norm_rescale"),
        ({"architecture": "topk", "k": K, "normalize_activations": "expected_average_only_in"}, "expected_average_only_in"),
        ({"architecture": "topk", "k": K, "reshape_activations": "hook_z"}, "hook_z"),
        ({"architecture": "topk"}, "'k' is missing"),
        ({"architecture": "topk", "k": N + 1}, "larger"),
        ({"architecture": "jumprelu"}, "threshold"),
        ({"architecture": "topk", "k": K, "d_sae": 10**12}, "1000000000000"),
    ],
)
def test_saelens_forms_that_we_do_not_implement_are_refused(lens, settings, message):
    folder, _ = lens(settings)
    with pytest.raises(SaeuronError, match=message):
        SparseAutoencoder.load(folder)


@pytest.fixture
def unbox(tmp_path):
    folder = tmp_path / "unet.up_blocks.0.attentions.1_k5_hidden40_auxk256_bs4096_lr0.0001" / "final"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"n_dirs_local": N, "d_model": D, "k": K, "auxk": 256, "dead_steps_threshold": 2441}))
    weights = {
        "encoder.weight": torch.randn(N, D), "decoder.weight": torch.randn(D, N), "pre_bias": torch.randn(D), "latent_bias": torch.randn(N),
        "stats_last_nonzero": torch.zeros(N, dtype=torch.long),
    }  # fmt: skip
    torch.save({"state_dict": weights}, folder / "state_dict.pth")
    return tmp_path, folder, weights


def test_sdxl_unbox(unbox):
    root, folder, w = unbox
    x = torch.randn(30, D)
    pre = (x - w["pre_bias"]) @ w["encoder.weight"].T + w["latent_bias"]
    values, indices = pre.topk(K, dim=1)
    z = torch.zeros_like(pre).scatter(1, indices, values.clamp_min(0))
    for sae in (SparseAutoencoder.load(folder), SparseAutoencoder.load(root, "up_blocks.0.attentions.1")):
        assert sae.config.reads == "delta"
        assert torch.allclose(sae(x), z @ w["decoder.weight"].T + w["pre_bias"], atol=1e-5)


def test_sdxl_unbox_files_are_opened_without_running_code(unbox, tmp_path):
    _, folder, _ = unbox

    class Hostile:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"state_dict": Hostile()}, folder / "state_dict.pth")
    with pytest.raises(SaeuronError, match="tensors alone"):
        SparseAutoencoder.load(folder)
    assert not (tmp_path / "ran").exists()
    torch.save({"state_dict": {"encoder.weight": torch.zeros(2, 2)}}, folder / "state_dict.pth")
    with pytest.raises(SaeuronError, match=r"encoder.weight' is \[2, 2\]"):
        SparseAutoencoder.load(folder)


def test_two_saes_of_one_hookpoint_must_be_told_apart(unbox):
    root, folder, _ = unbox
    other = root / "unet.up_blocks.0.attentions.1_k9_hidden40" / "final"
    other.mkdir(parents=True)
    with pytest.raises(SaeuronError, match="name one folder"):
        SparseAutoencoder.load(root, "up_blocks.0.attentions.1")
