"""SD3, FLUX.1, Sana and PixArt without torch and diffusers: pictures equal to diffusers', mutants that this comparison catches, and what is refused."""

import dataclasses
import functools
import inspect
import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import FlowMatchHeunDiscreteScheduler, SanaPipeline
from tests.transformer_pipelines import make_flux, make_pixart, make_sana, make_sd3
from tests.validation.test_lean import ODD, change
from transformers import AutoTokenizer

from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.denoisers.families import sizes_of
from saeuron.editor.denoisers.pipelines import load_pipeline
from saeuron.editor.denoisers.sampling import decode, denoise, initial_latents
from saeuron.editor.denoisers.sana import INSTRUCTION
from saeuron.validation.backends.lean import ClipTokenizer, GemmaTokenizer, LeanPipeline, T5Tokenizer
from saeuron.validation.backends.lean.pipeline import scheduler_of
from saeuron.validation.backends.torch_runner import TorchRunner
from saeuron.validation.proof.parity import psnr

MODELS = {
    "sd3": make_sd3,
    "sd35": lambda folder: make_sd3(folder, use_dynamic_shifting=True, shift_terminal=0.02),
    "flux": make_flux,
    "schnell": lambda folder: make_flux(folder, guided=False),
    "sana": make_sana,
    "sana flow": lambda folder: make_sana(folder, flow=True),
    "pixart": make_pixart,
    "pixart alpha": lambda folder: make_pixart(folder, alpha=True),
}
SD3, FLUX, SANA, PIXART = ("sd3", "sd35"), ("flux", "schnell"), ("sana", "sana flow"), ("pixart",)
DPM = ("sana", "pixart", "pixart alpha")
TEXTS = ["a cat", "an image of dog in style"]
SIZES = [(32, 32), (24, 40), (48, 16)]
BAR = 60
"""dB: both sides run the same networks, so the loop's own rounding is all that may differ"""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Kind → folder, diffusers' pipeline."""

    @functools.cache
    def made(kind):
        folder = MODELS[kind](tmp_path_factory.mktemp(kind))
        return folder, load_pipeline(str(folder))

    return made


@pytest.fixture(params=MODELS)
def opened(request, models):
    """Kind, folder, diffusers' pipeline."""
    return request.param, *models(request.param)


@pytest.fixture(params=[*SD3, *FLUX])
def joint(request, models):
    """The same of those that attend to text and picture together."""
    return request.param, *models(request.param)


class Networks(TorchRunner):
    """The pipeline's networks, of whose calls some are altered."""

    def __init__(self, pipeline, before=lambda inputs: inputs, after=lambda output: output):
        super().__init__(pipeline)
        self.before, self.after = before, after

    def denoise(self, inputs):
        return self.after(super().denoise(self.before(dict(inputs))))


def fitting(size, multiple):
    """The next size that a model takes."""
    return tuple(-(-side // multiple) * multiple for side in size)


def drawn(lean, size=(24, 40), steps=4, guidance=3.0, negatives=None):
    size = fitting(size, lean._sizes.multiple)
    return lean.decode(lean.denoise(TEXTS, lean.initial_latents([5, 6], *size), steps, guidance, negatives))


def expected(pipeline, size=(24, 40), steps=4, guidance=3.0, **options):
    size = fitting(size, sizes_of(pipeline).multiple)
    with torch.no_grad():
        return decode(pipeline, denoise(pipeline, TEXTS, initial_latents(pipeline, [5, 6], *size), [], steps, guidance, **options))


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("steps", [2, 5])
@pytest.mark.parametrize("size", SIZES)
def test_pictures_are_those_of_diffusers(opened, size, steps, guidance):
    kind, folder, pipeline = opened
    lean = LeanPipeline(folder, TorchRunner(pipeline))
    size = fitting(size, lean._sizes.multiple)
    ours, theirs = drawn(lean, size, steps, guidance), expected(pipeline, size, steps, guidance)
    print(f"PSNR {kind} {size} {steps} steps, guidance {guidance}: {psnr(ours, theirs):.1f} dB")
    assert ours.shape == (2, *size, 3) and psnr(ours, theirs) >= BAR and lean.scheduler.kind == ("dpm" if kind in DPM else "flow")
    assert ours.std() > 10, "pictures of one colour would be equal whatever was done"


def test_negative_prompts(opened):
    """Of FLUX diffusers leaves them out as well, unless it is called with `true_cfg_scale`."""
    kind, folder, pipeline = opened
    lean, negatives = LeanPipeline(folder, TorchRunner(pipeline)), ["a dog", "a picture of cat"]
    ours, plain = drawn(lean, negatives=negatives), drawn(lean)
    assert psnr(ours, expected(pipeline, negative_prompt=list(negatives))) >= BAR
    assert lean.guided(3.0) == (kind not in FLUX) == (not np.array_equal(ours, plain)) and not lean.guided(1.0)


def test_one_at_a_time_and_a_batch_are_alike(opened):
    _, folder, pipeline = opened
    lean = LeanPipeline(folder, TorchRunner(pipeline))
    size = fitting((24, 40), lean._sizes.multiple)
    together = lean(TEXTS, [5, 6], 3, 3.0, None, *size)
    alone = np.concatenate([lean([text], [seed], 3, 3.0, None, *size) for text, seed in zip(TEXTS, [5, 6], strict=True)])
    assert psnr(together, alone) >= BAR


# --- mutants: what is told wrongly shows in the pictures


def told(name, change):
    return lambda lean: setattr(lean.networks, "before", lambda inputs: inputs | {name: change(inputs[name])})


def halves(values, axis):
    return np.concatenate(np.split(values, 2, axis)[::-1], axis)


def shifted(lean):
    lean.scheduler._c.update(shift=2.0, base_shift=0.9, max_shift=1.9, flow_shift=2.0)


def size_forgotten(lean):
    own = lean.scheduler.set_timesteps
    lean.scheduler.set_timesteps = lambda steps, sides: own(steps, (128, 128))


def layer_off(lean):
    for name in lean._conditions._layers:
        lean._conditions._layers[name] += 1


def short_t5(lean):
    for tokenizer in lean._conditions.tokenizers.values():
        if isinstance(tokenizer, T5Tokenizer):
            tokenizer.length = tokenizer._cut["max_length"] = 77


def without_instruction(lean):
    lean._conditions._family = dataclasses.replace(lean._conditions._family, instruction="")


def unmasked(lean):
    """T5 attends to padding. (A Gemma's tokens don't see what follows them.)"""
    run = lean._conditions._run
    lean._conditions._run = lambda name, inputs: run(name, inputs | {"attention_mask": np.ones_like(inputs["attention_mask"])})


MUTANTS = {
    "shift": ((*SD3, "flux", "schnell", *SANA), shifted),
    "size of the shift": (("sd35", "flux"), size_forgotten),
    "mask of text": ((*SANA, *PIXART), told("encoder_attention_mask", np.ones_like)),
    "mask of T5": (PIXART, unmasked),
    "no instruction": (SANA, without_instruction),
    "instruction before negative prompts": (SANA, lambda lean: setattr(lean._conditions, "negative", lean._conditions.texts)),
    "first order": (DPM[:2], lambda lean: lean.scheduler._c.update(solver_order=1)),
    "spread for noise": (PIXART, lambda lean: setattr(lean.networks, "after", lambda output: output[:, 4:])),
    "vae unscaled": ((*SANA, *PIXART), lambda lean: lean._vae.update(scaling_factor=1.0)),
    "guidance rows": ((*SD3, *SANA, *PIXART), lambda lean: setattr(lean.networks, "after", lambda output: halves(output, 0))),
    "empty text as zeros": (SD3, lambda lean: setattr(lean._conditions, "nothing", lambda texts: {k: np.zeros_like(v) for k, v in texts.items()})),
    "pooled text swapped": (SD3, told("pooled_projections", lambda v: np.roll(v, 12, -1))),
    "last layer of CLIP": (SD3, layer_off),
    "fewer tokens of T5": ((*SD3, *FLUX), short_t5),
    "rows and columns swapped": (FLUX, told("img_ids", lambda v: v[:, [0, 2, 1]])),
    "places of text": (FLUX, told("txt_ids", lambda v: v + np.arange(len(v))[:, None].astype(np.float32))),
    "guidance": (("flux",), told("guidance", lambda v: v + 1)),
    "noise level": ((*SD3, *FLUX, *SANA, *PIXART), told("timestep", lambda v: v * np.float32(0.9))),
    "vae without shift": ((*SD3, *FLUX), lambda lean: lean._vae.update(shift_factor=0.0)),
    "vae shift first": ((*SD3, *FLUX), lambda lean: lean._vae.update(shift_factor=lean._vae["shift_factor"] / lean._vae["scaling_factor"])),
}  # fmt: skip


@pytest.mark.parametrize(("mutant", "kind"), [(name, kind) for name, (kinds, _) in MUTANTS.items() for kind in kinds])
def test_mutants_are_caught(models, mutant, kind):
    (folder, pipeline), (_, spoil) = models(kind), MUTANTS[mutant]
    theirs = expected(pipeline)
    lean = LeanPipeline(folder, Networks(pipeline))
    assert psnr(drawn(lean), theirs) >= BAR
    spoil(lean)
    found = psnr(drawn(lean), theirs)
    print(f"PSNR {kind} with '{mutant}' wrong: {found:.1f} dB")
    assert found < BAR


# --- tokenizers


def test_ids_of_t5_are_those_of_transformers(joint):
    _, folder, _ = joint
    where = folder / ("tokenizer_3" if (folder / "tokenizer_3").exists() else "tokenizer_2")
    theirs, texts = AutoTokenizer.from_pretrained(where), [*ODD, "<extra_id_0> a cat", "a </s> dog <pad>", " cat ", "cat " * 600]
    for length in (256, 512):
        ours = T5Tokenizer(where, length)
        wanted = theirs(texts, padding="max_length", max_length=length, truncation=True, return_tensors="np").input_ids
        assert (ours(texts) == wanted).all() and ours(texts).dtype == np.int64
        assert [ours.tokens(t) for t in texts] == [len(theirs(t).input_ids) for t in texts]


def test_ids_of_gemma_are_those_of_transformers(models):
    """With and without Sana's instruction, and their masks; its tokenizer pads on the left, Sana's pipeline on the right."""
    folder, _ = models("sana")
    theirs, texts = AutoTokenizer.from_pretrained(folder / "tokenizer"), [*ODD, "<bos> a cat", " cat ", "cat " * 60]
    ours = GemmaTokenizer(folder / "tokenizer", 24, "right")
    assert "\n".join(inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default) == INSTRUCTION
    for length, rows in ((24, texts), (ours.tokens(INSTRUCTION) + 22, [INSTRUCTION + text for text in texts])):
        wanted = theirs(rows, padding="max_length", max_length=length, truncation=True, return_tensors="np", padding_side="right")
        ids, mask = ours.rows(rows, length)
        assert (ids == wanted.input_ids).all() and (mask == wanted.attention_mask).all() and ids.dtype == mask.dtype == np.int64
    assert [ours.tokens(t) for t in texts] == [len(theirs(t).input_ids) for t in texts]


def test_prompts_in_capitals_are_read_in_lower_case(models):
    for kind in ("sana", "pixart"):
        folder, pipeline = models(kind)
        lean = LeanPipeline(folder, TorchRunner(pipeline))
        found, wanted = lean.encode(["  A CAT "]), lean.encode(["a cat"])
        assert all(np.array_equal(found[name], wanted[name]) for name in wanted)


def test_what_no_text_encoder_sees(joint):
    """CLIP may cut a prompt that T5 reads whole."""
    kind, folder, pipeline = joint
    lean, most = LeanPipeline(folder, TorchRunner(pipeline)), 256 if kind.startswith("sd3") else 512
    assert lean.truncated("cat " * 60) == lean.truncated("cat " * (most - 1)) == 0 and lean.truncated("cat " * (most + 2)) == 3


# --- what is refused


def copied(opened, tmp_path):
    kind, folder, pipeline = opened
    copy = shutil.copytree(folder, tmp_path / "copy")
    return kind, copy, TorchRunner(pipeline)


def other_scheduler(folder):
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"][1] = "FlowMatchHeunDiscreteScheduler"
    (folder / "model_index.json").write_text(json.dumps(index))
    FlowMatchHeunDiscreteScheduler().save_pretrained(folder / "scheduler")


def t5_of(folder):
    return folder / ("tokenizer_3" if (folder / "tokenizer_3").exists() else "tokenizer_2")


SPOILT = {
    "no tokenizer.json": (lambda f: (t5_of(f) / "tokenizer.json").unlink(), "holds no tokenizer.json; open it with transformers once"),
    "another tokenizer": (lambda f: change(t5_of(f) / "tokenizer_config.json", tokenizer_class="LlamaTokenizer"), "holds a LlamaTokenizer; .* only T5's"),
    "no T5": (lambda f: shutil.rmtree(t5_of(f)), "tokenizer_config.json"),
    "beta": (lambda f: change(f / "scheduler" / "scheduler_config.json", use_beta_sigmas=True), "'use_beta_sigmas' is True"),
    "noise": (lambda f: change(f / "scheduler" / "scheduler_config.json", stochastic_sampling=True), "'stochastic_sampling' is True"),
    "scheduler": (other_scheduler, "FlowMatchHeunDiscreteScheduler; a transformer of this kind is run by FlowMatchEulerDiscreteScheduler alone"),
    "vae": (lambda f: change(f / "vae" / "config.json", shift_factor=None), "no number as 'shift_factor'"),
    "mask": (lambda f: change(f / "text_encoder" / "config.json", use_attention_mask=True), "use_attention_mask"),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILT)
def test_what_is_refused(joint, tmp_path, name):
    _, folder, runner = copied(joint, tmp_path)
    spoil, message = SPOILT[name]
    spoil(folder)
    with pytest.raises(SaeuronError, match=message) as caught:
        LeanPipeline(folder, runner)
    assert "\n" not in str(caught.value)


def test_schedulers_of_others_are_refused(models, tmp_path):
    """Of Sana all but two; PixArt has those of UNets too."""
    _, folder, runner = copied(("sana", *models("sana")), tmp_path)
    other_scheduler(folder)
    with pytest.raises(SaeuronError, match="is run by FlowMatchEulerDiscreteScheduler or DPMSolverMultistepScheduler alone"):
        LeanPipeline(folder, runner)
    with pytest.raises(SaeuronError, match="scheduler 'ddim' is for UNets"):
        scheduler_of(models("sana")[0], "ddim")
    assert scheduler_of(models("pixart")[0], "ddim").kind == "ddim"


def test_schedulers_of_unets_are_refused(joint):
    _, folder, _ = joint
    for kind in ("ddim", "euler", "heun"):
        with pytest.raises(SaeuronError, match=f"scheduler '{kind}' is for UNets"):
            scheduler_of(folder, kind)


def test_two_lengths_of_clip_are_refused(models, tmp_path):
    _, folder, runner = copied(("sd3", *models("sd3")), tmp_path)
    change(folder / "tokenizer_2" / "tokenizer_config.json", model_max_length=20)
    with pytest.raises(SaeuronError, match="tokenizer has rows of 24 tokens, tokenizer_2 of 20"):
        LeanPipeline(folder, runner)


def test_sizes_and_widths(joint, tmp_path):
    kind, folder, runner = copied(joint, tmp_path)
    lean = LeanPipeline(folder, runner)
    with pytest.raises(SaeuronError, match="height 36: .* multiples of 8"):
        lean.initial_latents([1], 36, 32)
    if kind.startswith("sd3"):
        with pytest.raises(SaeuronError, match="at most"):
            lean.initial_latents([1], 8192, 32)
    change(folder / "transformer" / "config.json", joint_attention_dim=48)
    with pytest.raises(SaeuronError, match="the transformer takes 'encoder_hidden_states' of width 48, its pipeline gives 40"):
        LeanPipeline(folder, runner).denoise(TEXTS[:1], lean.initial_latents([1], 24, 40), 2, 1.0)


def test_a_tokenizer_of_another_kind(joint):
    _, folder, _ = joint
    with pytest.raises(SaeuronError, match="holds a T5Tokenizer; without transformers only CLIP's"):
        ClipTokenizer(t5_of(folder), 77)


def test_a_config_of_other_layers(models, tmp_path):
    _, folder, runner = copied(("sd3", *models("sd3")), tmp_path)
    change(folder / "text_encoder" / "config.json", num_hidden_layers=5)
    lean = LeanPipeline(folder, runner)
    with pytest.raises(SaeuronError, match=r"text_encoder gives no 'hidden_states\.4'"):
        lean.encode(TEXTS)
