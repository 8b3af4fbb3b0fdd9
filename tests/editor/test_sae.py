import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conftest import make_sae

from saeuron.editor.errors import SaeuronError
from saeuron.editor.sae import SaeConfig, SparseAutoencoder
from saeuron.editor.sae_formats import check_width


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
        ({"k": 300}, "larger than num_latents"),
        ({"k": ...}, "'k' is null"),
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
