"""Pictures without torch and diffusers: equal to diffusers' from the same noise or seed, and what can't be is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler
from msgspec.structs import replace
from tests.validation.test_schedulers import with_scheduler
from transformers import AutoTokenizer, CLIPTokenizer

from saeuron.editor import demo
from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.denoisers.families import family_of
from saeuron.editor.denoisers.sampling import decode, denoise, initial_latents
from saeuron.validation.artifact import manifest
from saeuron.validation.backends.choose import Way, choose_networks, open_networks
from saeuron.validation.backends.lean import ClipTokenizer, LeanPipeline
from saeuron.validation.backends.lean.noise import torch_randn
from saeuron.validation.backends.load import load
from saeuron.validation.backends.onnx_runner import OnnxRunner
from saeuron.validation.backends.torch_runner import TorchRunner
from saeuron.validation.proof.parity import psnr

pytestmark = pytest.mark.slow

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
DEMO_SETTINGS = {**SD, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
TEXTS = ["An image of Car in Sunset style.", "An image of House."]


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def inversion(folder):
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<cat>", "<cat>_1"])
    tokenizer.save_pretrained(folder)


# --- noise

SHAPES = [(1,), (3,), (2, 4), (15,), (16,), (17,), (31,), (1, 1, 4, 4), (4, 8, 8), (4, 9, 7), (8, 8, 8), (4, 64, 64)]


@pytest.mark.parametrize("seed", [0, 1, 42, 2**31 - 1, 2**31, 2**32 - 1])
@pytest.mark.parametrize("shape", SHAPES)
def test_noise_is_that_of_torch(seed, shape):
    theirs = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).numpy()
    ours = torch_randn(seed, shape)
    assert ours.dtype == np.float32 and ours.shape == shape
    np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=2e-6)


def test_noise_of_many_seeds():
    for seed in np.random.default_rng(0).integers(0, 2**32, 200):
        theirs = torch.randn(4, 6, 6, generator=torch.Generator().manual_seed(int(seed))).numpy()
        assert np.abs(torch_randn(int(seed), (4, 6, 6)) - theirs).max() < 2e-6
    for seed in (-1, 2**32):
        with pytest.raises(SaeuronError, match="a seed lies between"):
            torch_randn(seed, (4,))


# --- tokenizer

ODD = [
    "", "a", "An image of House in Neon style.", "Héllo  wörld\n\t ñ", "日本語 テスト", "🙂👍🏽 emoji! 👨‍👩‍👧", "it's we'll I'd THEY'RE don't", "a" * 500, "word " * 200,
    "<|startoftext|> x <|endoftext|> y", "!hello! !!", "\u200bzero\u00a0width", "é vs é", "123 4567 ½ ٣", "a\x00b", "“quoted”", "ｆｕｌｌ", "ﬁ İstanbul ß",
]  # fmt: skip


@pytest.fixture(scope="module", params=["<|endoftext|>", "!"])
def tokenizer_folder(request, tmp_path_factory):
    """The demo's tokenizer as an artifact holds it; SDXL's second one pads with an exclamation mark."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(demo.PIPELINE / "tokenizer", pad_token=request.param)
    tokenizer.save_pretrained(folder)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return folder


@pytest.mark.parametrize("lists", [False, True])
def test_ids_are_those_of_transformers(tokenizer_folder, tmp_path, lists):
    folder = shutil.copytree(tokenizer_folder, tmp_path / "tokenizer")
    if lists:
        (folder / "tokenizer.json").unlink()
    theirs, ours = AutoTokenizer.from_pretrained(folder), ClipTokenizer(folder)
    expected = theirs(ODD, padding="max_length", max_length=theirs.model_max_length, truncation=True, return_tensors="np").input_ids
    found = ours(ODD)
    assert found.dtype == np.int64 and (found == expected).all()
    assert [ours.tokens(t) for t in ODD] == [len(theirs(t).input_ids) for t in ODD]
    assert (ours(ODD) == expected).all(), "counting tokens changes nothing"


def panicking(folder):
    """A prefix longer than the tokens, at which the library gives up with a panic, no exception."""
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["continuing_subword_prefix"] = "null"
    (folder / "tokenizer.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: [f.joinpath(n).unlink() for n in ("tokenizer.json", "merges.txt")], "neither tokenizer.json nor merges.txt"),
        (lambda f: f.joinpath("tokenizer.json").write_text("{}"), "no tokenizer that can be read"),
        (panicking, "no tokenizer that can be read: .*out of range"),
        (lambda f: change(f / "tokenizer_config.json", tokenizer_class="T5Tokenizer"), "holds a T5Tokenizer"),
        (lambda f: change(f / "tokenizer_config.json", model_max_length=10**30), "no number of tokens"),
        (lambda f: change(f / "tokenizer_config.json", pad_token="<nothing>"), "is not in the vocabulary"),
        (lambda f: change(f / "tokenizer_config.json", split_special_tokens=True), "split_special_tokens"),
        (inversion, "a textual inversion"),
    ],
)
def test_tokenizers_that_are_refused(tokenizer_folder, tmp_path, spoil, message):
    folder = shutil.copytree(tokenizer_folder, tmp_path / "tokenizer")
    spoil(folder)
    with pytest.raises(SaeuronError, match=message):
        ClipTokenizer(folder)


# --- the loop

KINDS = {
    "own": None,
    "ddim": DDIMScheduler(**DEMO_SETTINGS, clip_sample=False),
    "euler": EulerDiscreteScheduler(**DEMO_SETTINGS),
    "karras": EulerDiscreteScheduler(**{**DEMO_SETTINGS, "rescale_betas_zero_snr": False}, use_karras_sigmas=True),
}


def both(root, scheduler, tmp_path, texts, steps, guidance, negatives=None, size=None):
    """Final latents and pictures: ours in numpy around ONNX Runtime, diffusers' in torch on the checkpoint."""
    folder = root if scheduler is None else with_scheduler(root, tmp_path / "artifact", scheduler)
    reference = load(folder, check_files=False)
    lean = LeanPipeline(folder, OnnxRunner(folder))
    seeds = [5 + i for i in range(len(texts))]
    noise = lean.initial_latents(seeds, *(size or ()))
    theirs = initial_latents(reference, seeds, *(size or ()))
    np.testing.assert_allclose(noise, theirs.numpy(), rtol=2e-6, atol=2e-6)
    told = []
    found = lean.denoise(texts, noise, steps, guidance, negatives, lambda done, total: told.append((done, total)))
    assert told == [(i + 1, steps) for i in range(steps)]
    options = {} if negatives is None else {"negative_prompt": list(negatives)}
    expected = denoise(reference, texts, theirs, [], steps, guidance, **options)
    return lean.decode(found), decode(reference, expected), found, expected.numpy()


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("kind", KINDS)
def test_pictures_of_the_demo(demo_artifact, tmp_path, kind, guidance):
    ours, theirs, found, expected = both(demo_artifact.path, KINDS[kind], tmp_path, TEXTS, 8, guidance)
    assert ours.shape == (2, 32, 32, 3) and ours.dtype == np.uint8
    print(
        f"PSNR {kind} guidance {guidance}: {psnr(ours, theirs):.1f} dB, latents {np.linalg.norm(found - expected) / np.linalg.norm(expected):.1e}"
    )
    assert psnr(ours, theirs) >= 50
    assert np.linalg.norm(found - expected) <= 1e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("scheduler", [None, DDIMScheduler(**SD, clip_sample=False)], ids=["euler", "ddim"])
def test_pictures_of_sdxl(xl_artifact, tmp_path, scheduler, guidance):
    """Pooled text and picture sizes; a picture that is not square shows which of the two numbers is which."""
    ours, theirs, found, expected = both(xl_artifact.path, scheduler, tmp_path, TEXTS, 4, guidance, size=(16, 32))
    print(
        f"PSNR XL guidance {guidance}: {psnr(ours, theirs):.1f} dB, latents {np.linalg.norm(found - expected) / np.linalg.norm(expected):.1e}"
    )
    assert ours.shape == (2, 16, 32, 3) and psnr(ours, theirs) >= 50


@pytest.mark.parametrize("artifact", ["demo_artifact", "xl_artifact"])
def test_negative_prompts(request, tmp_path, artifact):
    root = request.getfixturevalue(artifact).path
    negatives = ["Neon", ""]
    ours, theirs, *_ = both(root, None, tmp_path, TEXTS, 4, 3.0, negatives)
    assert psnr(ours, theirs) >= 50
    plain, *_ = both(root, None, tmp_path, TEXTS, 4, 3.0)
    assert not np.array_equal(plain[0], ours[0])


def test_sdxl_without_zeros_for_the_empty_prompt(xl_artifact, tmp_path):
    folder = shutil.copytree(xl_artifact.path, tmp_path / "copy")
    change(folder / "model_index.json", force_zeros_for_empty_prompt=False)
    ours, theirs, found, _ = both(folder, None, tmp_path, TEXTS, 4, 4.0)
    assert psnr(ours, theirs) >= 50
    *_, zeros, _ = both(xl_artifact.path, None, tmp_path, TEXTS, 4, 4.0)
    assert not np.allclose(zeros, found, rtol=1e-3)


def test_latents_with_mean_and_deviation(xl_artifact, tmp_path):
    folder = shutil.copytree(xl_artifact.path, tmp_path / "copy")
    change(folder / "vae" / "config.json", latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[0.5, 1.5, 2.0, 1.0])
    ours, theirs, *_ = both(folder, None, tmp_path, TEXTS, 2, 1.0)
    assert psnr(ours, theirs) >= 50
    plain, *_ = both(xl_artifact.path, None, tmp_path, TEXTS, 2, 1.0)
    assert psnr(plain, ours) < 40


def test_batches_and_runners_change_nothing(demo_artifact):
    """Pictures one at a time are those of a batch; any runner will do."""
    root = demo_artifact.path
    onnx = LeanPipeline(root, open_networks(root, manifest.read(root)))
    together = onnx(TEXTS, [7, 8], 6, 3.0)
    alone = np.concatenate([onnx([text], [seed], 6, 3.0) for text, seed in zip(TEXTS, [7, 8], strict=True)])
    in_torch = LeanPipeline(root, TorchRunner(load(root, check_files=False)))(TEXTS, [7, 8], 6, 3.0)
    assert psnr(together, alone) >= 50 and psnr(together, in_torch) >= 50


def test_what_diffusers_draws_from_a_seed(demo_artifact):
    root = demo_artifact.path
    pipeline = load(root, check_files=False)
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(s) for s in (3, 4)]
    theirs = pipeline(TEXTS, num_inference_steps=6, guidance_scale=3.0, generator=generators, output_type="np").images
    ours = LeanPipeline(root, OnnxRunner(root))(TEXTS, [3, 4], 6, 3.0)
    assert psnr(ours, (theirs * 255).round().astype(np.uint8)) >= 50


def test_another_scheduler_from_the_same_settings(tiny, xl_artifact, tmp_path):
    """A PNDM artifact (SD 1.4's own) by DDIM and Euler, with the settings that a pipeline would give them."""
    pndm = with_scheduler(xl_artifact.path, tmp_path / "pndm", PNDMScheduler(**SD, skip_prk_steps=True, steps_offset=1))
    with pytest.raises(SaeuronError, match="PNDMScheduler, which only diffusers runs; --scheduler ddim or --scheduler euler"):
        LeanPipeline(pndm, OnnxRunner(pndm))
    for kind, cls in (("ddim", DDIMScheduler), ("euler", EulerDiscreteScheduler)):
        reference = load(pndm, check_files=False)
        reference.scheduler = cls.from_config(reference.scheduler.config)
        if kind == "ddim":  # by itself it clips, where PNDM says nothing; a pipeline mends that
            reference.scheduler = family_of(reference).calibrating(load(pndm, check_files=False).scheduler)
        lean = LeanPipeline(pndm, OnnxRunner(pndm), kind)
        noise = lean.initial_latents([1])
        expected = denoise(reference, TEXTS[:1], torch.from_numpy(noise), [], 4, 2.0)
        assert psnr(lean.decode(lean.denoise(TEXTS[:1], noise, 4, 2.0)), decode(reference, expected)) >= 50


def test_what_a_pipeline_refuses(demo_artifact):
    lean = LeanPipeline(demo_artifact.path, OnnxRunner(demo_artifact.path))
    noise = lean.initial_latents([1])
    for call, message in (
        (lambda: lean.denoise(TEXTS, noise, 4, 1.0), "2 prompts for 1 pictures"),
        (lambda: lean.denoise(TEXTS[:1], noise, 4, 3.0, TEXTS), "2 negative prompts for 1"),
        (lambda: lean.denoise(TEXTS[:1], noise[:, :4], 4, 1.0), "this model takes"),
        (lambda: lean.denoise(TEXTS[:1], noise * np.nan, 4, 1.0), "not finite"),
        (lambda: lean.denoise(TEXTS[:1], noise, 0, 1.0), "takes 1 to 1000"),
        (lambda: lean.initial_latents([1], 40, 32), "height 40: .* multiples of 16"),
        (lambda: lean.initial_latents([2**32]), "a seed lies between"),
    ):
        with pytest.raises(SaeuronError, match=message):
            call()


def test_a_terminal_snr_of_zero_with_epsilon(demo_artifact, tmp_path):
    """diffusers gives NaN, hence a black picture."""
    root = with_scheduler(
        demo_artifact.path, tmp_path / "a", DDIMScheduler(**{**DEMO_SETTINGS, "prediction_type": "epsilon"}, clip_sample=False)
    )
    lean = LeanPipeline(root, OnnxRunner(root))
    with pytest.raises(SaeuronError, match="step 1 of 4 .*not finite"):
        lean(TEXTS[:1], [1], 4, 1.0)


def test_a_mask_is_refused(demo_artifact, tmp_path):
    root = shutil.copytree(demo_artifact.path, tmp_path / "copy")
    change(root / "text_encoder" / "config.json", use_attention_mask=True)
    with pytest.raises(SaeuronError, match="use_attention_mask"):
        LeanPipeline(root, OnnxRunner(root))


def test_which_backend_runs(demo_artifact):
    root, record = demo_artifact.path, manifest.read(demo_artifact.path)
    assert choose_networks(root, record) == choose_networks(root, record, "onnx") == Way("onnx")
    for wanted, formats, message in (
        ("checkpoint", record.formats, "needs torch and diffusers"),
        ("tpu", record.formats, "not known"),
        ("onnx", ["checkpoint"], "holds no 'onnx'"),
        (None, ["checkpoint"], "which only torch runs"),
    ):
        with pytest.raises(SaeuronError, match=message):
            choose_networks(root, replace(record, formats=formats), wanted)
