"""The page's script beside the runner without torch: tokens, noise, and a scheduler's steps as numbers. What a page can't do is refused."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from saeuron.editor import demo
from saeuron.editor.common.errors import SaeuronError
from saeuron.validation import web
from saeuron.validation.backends.lean import ClipTokenizer, make_scheduler
from saeuron.validation.backends.lean.dpm import DpmSolver
from saeuron.validation.backends.lean.noise import torch_randn
from saeuron.validation.web.numbers import steps_of, tokenizer_of

NODE = shutil.which("node")
WEB = Path(web.__file__).parent
ODD = [
    "", "a", "An image of House in Neon style.", "Héllo  wörld\n\t ñ", "日本語 テスト", "🙂👍🏽 emoji! 👨‍👩‍👧", "it's we'll I'd THEY'RE don't ''s !'s", "a" * 500, "word " * 200,
    "<|startoftext|> x <|endoftext|> y", "<|STARTOFTEXT|>x<|EndOfText|>", "<|endoftext|><|endoftext|>", "!hello! !!", "\u200bzero\u00a0width\u0085next\ufeffmark\u180e",
    "e\u0301 vs é", "123 4567 ½ ٣", "a\x00b", "“quoted”", "ｆｕｌｌ", "ﬁ İstanbul ß ΣΑΣ ΟΔΟΣ", "constructor __proto__", "ǅ Ⅷ ⓐ",
]  # fmt: skip
ASK = """
import { noise } from "./noise.js";
import { Tokenizer } from "./text.js";
const { made, texts, seeds } = JSON.parse(await new Promise((done) => { let all = ""; process.stdin.on("data", (d) => (all += d)).on("end", () => done(all)); }));
const tokenizer = new Tokenizer(made);
console.log(JSON.stringify([texts.map((t) => tokenizer.row(t)), texts.map((t) => tokenizer.truncated(t)), seeds.map(([seed, size]) => [...noise(seed, size)])]));
"""


def answers(folder, made, texts, seeds=()):
    for name in ("noise.js", "text.js"):
        shutil.copy(WEB / name, folder / name)
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "ask.js").write_text(ASK)
    asked = json.dumps({"made": made, "texts": texts, "seeds": seeds})
    return json.loads(subprocess.run([NODE, str(folder / "ask.js")], input=asked, capture_output=True, text=True, check=True).stdout)


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(demo.PIPELINE / "tokenizer", tmp_path / "tokenizer"))


def change(folder, how, name="tokenizer.json"):
    content = json.loads((folder / name).read_text())
    how(content)
    (folder / name).write_text(json.dumps(content))


def made_of(folder):
    return tokenizer_of(folder, ClipTokenizer(folder))


@pytest.mark.skipif(NODE is None, reason="no node here")
@pytest.mark.parametrize("normalized", [False, True])
def test_tokens_are_those_of_the_lean_runner(folder, tmp_path, normalized):
    # SD 1.4's file has its start token found in normalised text.
    change(folder, lambda c: c["added_tokens"][0].update(normalized=normalized))
    random, letters = np.random.default_rng(5), "abeEstT' .,!?1٣é日ß<|>\n"
    texts = [*ODD, *("".join(random.choice(list(letters), random.integers(1, 40))) for _ in range(300))]
    lean = ClipTokenizer(folder)
    rows, truncated, _ = answers(tmp_path, tokenizer_of(folder, lean), texts)
    wrong = [text for text, row, own in zip(texts, rows, lean(texts).tolist(), strict=True) if row != own]
    assert not wrong
    assert truncated == [max(0, lean.tokens(text) - lean.length) for text in texts] and max(truncated) > 100


@pytest.mark.skipif(NODE is None, reason="no node here")
def test_the_first_merge_wins(folder, tmp_path):
    def two(content):
        content["model"]["merges"] += [["x", "q"], ["q", "z</w>"]]
        content["model"]["vocab"] |= {"xq": 615, "qz</w>": 616}

    change(folder, two)
    lean = ClipTokenizer(folder)
    made, texts = tokenizer_of(folder, lean), ["xqz", "xqxqz qz"]
    own = lean(texts).tolist()
    assert answers(tmp_path, made, texts)[0] == own and 615 in own[0] and 616 in own[1]
    assert answers(tmp_path, {**made, "merges": made["merges"][::-1]}, texts)[0] != own


@pytest.mark.skipif(NODE is None, reason="no node here")
def test_noise_is_that_of_the_lean_runner(folder, tmp_path):
    seeds = [(seed, size) for seed in (0, 42, 2**31, 2**32 - 1) for size in (16, 17, 31, 512, 1300)]
    for (seed, size), found in zip(seeds, answers(tmp_path, made_of(folder), [], seeds)[2], strict=True):
        np.testing.assert_allclose(found, torch_randn(seed, (size,)), rtol=2e-6, atol=2e-6)


SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
DEMO = {**SD, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("ddim", DEMO), ("ddim", SD), ("ddim", {**SD, "prediction_type": "sample", "steps_offset": 1}), ("euler", SD), ("euler", DEMO),
        ("euler", {**SD, "use_karras_sigmas": True, "timestep_spacing": "leading"}),
    ],
)  # fmt: skip
def test_steps_as_numbers_are_the_schedulers(kind, config):
    scheduler, random = make_scheduler(config, kind), np.random.default_rng(3)
    steps = steps_of(scheduler, 12, (4, 6))
    sample = random.standard_normal((1, 8, 4, 6)).astype(np.float32) * np.float32(scheduler.init_noise_sigma)
    for i, step in enumerate(steps):
        output = random.standard_normal(sample.shape).astype(np.float32)
        assert step["timestep"] == scheduler.timesteps[i]
        np.testing.assert_allclose(step["scale"] * sample, scheduler.scale_model_input(sample, i), rtol=1e-6)
        following = scheduler.step(output, i, sample)

        def apart(numbers, before=sample, output=output, following=following):
            parts = numbers["sample"] * before, numbers["output"] * output
            # Float32 rounds at the size of the largest value that is in the sum.
            return np.abs(sum(parts) - following).max() / max(np.abs(value).max() for value in (before, *parts))

        assert apart(step) <= 1e-6 < apart({name: 1.001 * step[name] for name in ("sample", "output")}), i
        sample = following


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (lambda: make_scheduler({**SD, "clip_sample": True}, "ddim"), "step 1 of the scheduler is no weighted sum"),
        (lambda: make_scheduler({**SD, "thresholding": True}, "ddim"), "step 1 of the scheduler is no weighted sum"),
        (lambda: make_scheduler({**DEMO, "prediction_type": "epsilon"}, "ddim"), "divides by zero"),
        (lambda: DpmSolver(SD | {"clip_sample": False}), "draws by DDIM or Euler, the artifact's scheduler is of kind dpm"),
    ],
)  # fmt: skip
def test_other_steps_are_refused(scheduler, message):
    with pytest.raises(SaeuronError, match=message):
        steps_of(scheduler(), 5, (4, 4))


@pytest.mark.parametrize(
    ("how", "name", "message"),
    [
        (lambda c: c["normalizer"]["normalizers"].pop(), "tokenizer.json", "its normalizer"),
        (lambda c: c["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex=r"\S+"), "tokenizer.json", "how it finds words"),
        (lambda c: c["model"].update(ignore_merges=True), "tokenizer.json", "its model"),
        (lambda c: c["model"]["vocab"].pop("a"), "tokenizer.json", "its model|no tokenizer that can be read"),
        (lambda c: c["added_tokens"][1].update(lstrip=True), "tokenizer.json", "a special token"),
        (lambda c: c.update(post_processor=None), "tokenizer.json", "its start and end token"),
        (lambda c: c.update(padding_side="left"), "tokenizer_config.json", "the side of padding"),
        (lambda c: c.update(truncation_side="left"), "tokenizer_config.json", "the side of padding"),
    ],
)  # fmt: skip
def test_other_tokenizers_are_refused(folder, how, name, message):
    assert made_of(folder)["length"] == 24
    change(folder, how, name)
    with pytest.raises(SaeuronError, match=message):
        made_of(folder)
