import os

import pytest
import torch
from tests.conftest import make_sae

from saeuron.editor.common.errors import SaeuronError, first_line
from saeuron.editor.features.activations import ConceptActivations
from saeuron.editor.sae.sae import SparseAutoencoder


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("Found no NVIDIA driver on your system. Please check that you have one.", "Found no NVIDIA driver on your system."),
        (
            "Cannot load X because keys are missing: a.b. Please make sure to pass `low_cpu_mem_usage=False`.",
            "Cannot load X because keys are missing: a.b.",
        ),
        ("\x1b[1;31mbad graph\x1b[0m\nmore", "bad graph"),
        ("\n\n  second line", "second line"),
        ("no snapshot on the local disk. To enable downloads, pass 'local_files_only=False' as input.", "no snapshot on the local disk."),
        ("Cannot load file containing pickled data when allow_pickle=False", "Cannot load file containing pickled data"),
        ("No such file: '/data/mmap/try/please.json'", "No such file: '/data/mmap/try/please.json'"),
        ("", "RuntimeError"),
        ("Please re-run with mmap=False.", "RuntimeError"),
    ],
)
def test_reasons_without_advice_and_escape_codes(said, shown):
    assert first_line(RuntimeError(said)) == shown


class _Hostile:
    def __reduce__(self):
        return (os.system, ("true",))


def _refused(read):
    with pytest.raises(SaeuronError) as caught:
        read()
    text = str(caught.value)
    assert not [word for word in ("weights_only", "Weights only", "torch.load", "mmap", "\x1b", "\n") if word in text]
    return text


def test_torch_files_that_hold_more_than_tensors(tmp_path):
    torch.save({"a": _Hostile()}, tmp_path / "a.pkl")
    assert "posix.system" in _refused(lambda: ConceptActivations.load(tmp_path / "a.pkl"))
    (tmp_path / "config.json").write_text('{"n_dirs_local": 256, "d_model": 32, "k": 8, "auxk": 1, "dead_steps_threshold": 1}')
    path = tmp_path / "state_dict.pth"
    torch.save({"state_dict": _Hostile()}, path)
    assert "posix.system" in _refused(lambda: SparseAutoencoder.load(tmp_path))
    path.write_bytes(b"junk" * 100)
    assert str(path) in _refused(lambda: SparseAutoencoder.load(tmp_path))
    made = make_sae()
    torch.save(
        {"encoder.weight": made.W_enc.data, "decoder.weight": made.W_dec.data.T, "latent_bias": made.b_enc.data, "pre_bias": made.b_dec.data}, path,
        _use_new_zipfile_serialization=False,
    )  # fmt: skip
    assert torch.equal(SparseAutoencoder.load(tmp_path).W_dec, made.W_dec)  # torch's older form, which can't be mapped
