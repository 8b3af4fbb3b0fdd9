"""Folders whose weights are right and whose other files aren't: refused in one line before any weight is read."""

import json
import shutil

import pytest
from tests.conftest import guard

from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.denoisers.pipelines import open_folder, scheduler_in
from saeuron.editor.denoisers.schedulers import check_loop


@pytest.fixture
def folder(request, tmp_path):
    """A copy of a tiny pipeline: of `tiny`, or of the fixture that the test names."""
    return shutil.copytree(request.getfixturevalue(getattr(request, "param", "tiny"))["model"], tmp_path / "model")


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refused(folder, words):
    with pytest.raises(SaeuronError, match=words) as error:
        open_folder(str(folder))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model_max_length": "24"}, "'model_max_length' is '24'"),
        ({"model_max_length": 2}, "'model_max_length' is 2"),
        ({"pad_token": None}, "can't encode a prompt: .* padding token"),
    ],
)
def test_a_tokenizer_that_can_pad_no_prompt(folder, values, words):
    change(folder / "tokenizer" / "tokenizer_config.json", **values)
    refused(folder, words)


def test_a_tokenizer_without_files(folder):
    for path in (folder / "tokenizer").iterdir():
        path.unlink()
    refused(folder, "'tokenizer' holds neither tokenizer.json nor vocab.json")


@pytest.mark.parametrize(
    ("values", "words"),
    [({"layer_norm_eps": None}, "can't encode a prompt"), ({"use_attention_mask": True}, "exported graphs take no mask")],
)
def test_a_text_encoder_that_cannot_run_so(folder, values, words):
    change(folder / "text_encoder" / "config.json", **values)
    refused(folder, words)


@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_library_that_diffusers_does_not_load_from(folder, name):
    entry = json.loads((folder / "model_index.json").read_text())[name]
    change(folder / "model_index.json", **{name: ["somewhere", entry[1]]})
    refused(folder, "somewhere")


def test_a_feature_extractor_of_another_model(folder):
    guard(folder, folder)
    open_folder(str(folder))
    for entry in ([], ["transformers"], "x", ["transformers", None], ["transformers", "Nonsense"]):
        change(folder / "model_index.json", feature_extractor=entry)
        refused(folder, "feature_extractor|Nonsense")
    change(folder / "model_index.json", feature_extractor=["transformers", "CLIPImageProcessor"])
    change(folder / "feature_extractor" / "preprocessor_config.json", crop_size=64, size=64)
    refused(folder, "gives pictures of 64x64, but its safety_checker takes 32x32")
    (folder / "feature_extractor" / "preprocessor_config.json").write_text("{")
    refused(folder, "JSON")


@pytest.mark.parametrize("folder", ["tiny_xl"], indirect=True)
@pytest.mark.parametrize("values", [([0.0] * 3, [1.0] * 3), ("x", "y"), ([0.0] * 4, [None] * 4)])
def test_statistics_of_latents_that_do_not_fit(folder, values):
    change(folder / "vae" / "config.json", latents_mean=values[0], latents_std=values[1])
    refused(folder, "'latents_(mean|std)' in vae/config.json must be a list of 4 numbers")


@pytest.mark.parametrize("beta_end", [float("nan"), 5.0])
def test_a_noise_schedule_that_gives_no_numbers(folder, beta_end):
    change(folder / "scheduler" / "scheduler_config.json", beta_end=beta_end)
    with pytest.raises(SaeuronError, match="infinite or NaN"):
        check_loop(scheduler_in(folder), 4)
