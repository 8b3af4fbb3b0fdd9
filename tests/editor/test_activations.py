import io
import os
import pickle

import pytest
import torch
from tests.conftest import make_activations

from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.features.activations import ConceptActivations, ddim_timesteps

TIMESTEPS = lambda steps: torch.arange(steps - 1, -1, -1) * 10 + 1  # noqa: E731


def released(path, concepts=("A", "B"), prompts=3, steps=4, n=16):
    """A pickle as SAeUron released them: dict of fp16 [P, T, n]."""
    content = {c: torch.rand(prompts + i, steps, n).half() for i, c in enumerate(concepts)}
    with path.open("wb") as handle:
        pickle.dump(content, handle)
    return content


def test_own_file_round_trip(tmp_path):
    made = make_activations()
    made.provenance = {"domain": "style"}
    made.save(tmp_path / "a.safetensors")
    again = ConceptActivations.load(tmp_path / "a.safetensors")
    assert torch.equal(again.means, made.means) and torch.equal(again.kth, made.kth) and again.prompts == made.prompts
    assert again.provenance["domain"] == "style" and len(again.provenance["file_sha256"]) == 64


def test_released_pickle_averages_in_float32(tmp_path):
    content = released(tmp_path / "a.pkl")
    again = ConceptActivations.load(tmp_path / "a.pkl", TIMESTEPS)
    assert again.concepts == ["A", "B"] and again.prompts == [3, 4]
    for i, name in enumerate(again.concepts):
        assert torch.allclose(again.means[i], content[name].float().mean(0), atol=1e-7)


def test_torch_saved_dict_opens_too(tmp_path):
    content = {"A": torch.rand(2, 3, 8).half(), "B": torch.rand(2, 3, 8).half()}
    torch.save(content, tmp_path / "a.pt")
    assert ConceptActivations.load(tmp_path / "a.pt", TIMESTEPS).latents == 8


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (self.marker,)


class NestedEvil:
    """Hides code in the bytes that `_load_from_bytes` would hand to an unrestricted torch.load."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        buffer = io.BytesIO()
        torch.save(Evil(self.marker), buffer)
        return torch.storage._load_from_bytes, (buffer.getvalue(),)


@pytest.mark.parametrize("kind", [Evil, NestedEvil])
def test_a_pickle_cannot_run_code(tmp_path, kind):
    marker = tmp_path / "ran"
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"A": kind(str(marker))}))
    with pytest.raises(SaeuronError):
        ConceptActivations.load(tmp_path / "a.pkl", TIMESTEPS)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["builtins.eval", "torch.load", "os.system", "torch._utils._rebuild_tensor_v3"])
def test_other_names_are_refused_before_lookup(tmp_path, name):
    module, _, attribute = name.rpartition(".")
    (tmp_path / "a.pkl").write_bytes(b"c" + f"{module}\n{attribute}\n".encode() + b".")
    with pytest.raises(SaeuronError, match="could run code"):
        ConceptActivations.load(tmp_path / "a.pkl", TIMESTEPS)


@pytest.mark.parametrize("data", [b"", b"\x80\x04", b"not a pickle", b"\x80\x04K\x01."])
def test_broken_pickles_are_one_line(tmp_path, data):
    (tmp_path / "a.pkl").write_bytes(data)
    with pytest.raises(SaeuronError) as error:
        ConceptActivations.load(tmp_path / "a.pkl", TIMESTEPS)
    assert "\n" not in str(error.value)


def test_bad_contents_are_refused(tmp_path):
    with pytest.raises(SaeuronError, match="one concept only"):
        make_activations(concepts=("A",))
    made = make_activations()
    made.means[1, 2, 3] = float("nan")
    with pytest.raises(SaeuronError, match="NaN.*B"):
        ConceptActivations(made.concepts, made.prompts, made.means, made.timesteps)
    released(tmp_path / "one.pkl", concepts=("A",))
    with pytest.raises(SaeuronError, match="one concept only"):
        ConceptActivations.load(tmp_path / "one.pkl", TIMESTEPS)
    with pytest.raises(SaeuronError, match="does not exist"):
        ConceptActivations.load(tmp_path / "none.pkl")
    with pytest.raises(SaeuronError, match="carries no timesteps"):
        released(tmp_path / "two.pkl")
        ConceptActivations.load(tmp_path / "two.pkl")


def test_no_concept_at_all_is_refused():
    with pytest.raises(SaeuronError, match="holds no concept"):
        ConceptActivations([], [], torch.zeros(0, 2, 4), torch.tensor([9, 1]))


@pytest.mark.parametrize("name", ["a.pkl", "a.pt", "a.safetensors"])
def test_lfs_pointers_are_called_that(tmp_path, name):
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(SaeuronError, match="Git LFS pointer"):
        ConceptActivations.load(tmp_path / name, TIMESTEPS)


def test_truncated_safetensors_is_refused(tmp_path):
    make_activations().save(tmp_path / "a.safetensors")
    data = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(SaeuronError, match="truncated"):
        ConceptActivations.load(tmp_path / "a.safetensors")


def test_ddim_timesteps_come_from_the_models_scheduler():
    leading = {"num_train_timesteps": 1000, "timestep_spacing": "leading", "steps_offset": 1}
    assert ddim_timesteps(leading, 100)[:2].tolist() == [991, 981]
    trailing = {"num_train_timesteps": 1000, "timestep_spacing": "trailing"}
    assert ddim_timesteps(trailing, 20)[:2].tolist() == [999, 949]
    with pytest.raises(SaeuronError, match="trained on 1000"):
        ddim_timesteps(leading, 2000)


def test_a_cut_zip_is_called_that(tmp_path):
    values = {name: torch.rand(2, 3, 4) for name in ("A", "B")}
    torch.save(values, tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SaeuronError, match="cut.pt is truncated or damaged"):
        ConceptActivations.load(tmp_path / "cut.pt", lambda steps: torch.arange(steps, 0, -1))
    assert ConceptActivations.load(tmp_path / "whole.pt", lambda steps: torch.arange(steps, 0, -1)).concepts == ["A", "B"]
