"""The training loop on a tiny real pipeline: it learns, goes on where it was killed, and says how well it did."""

import dataclasses

import pytest
import torch
from tests.conftest import HOOKPOINT

from saeuron.editor.common.declared import words_of
from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.denoisers.pipelines import load_pipeline
from saeuron.editor.denoisers.sampling_settings import Sampling
from saeuron.editor.sae.sae import SparseAutoencoder
from saeuron.editor.sae.stream import ActivationStream, Buffer, Share
from saeuron.editor.sae.train_settings import TrainSettings
from saeuron.editor.sae.training import Trainer, quality
from saeuron.export.plan.settings import Settings

PROMPTS = ["An image of House.", "An image of Car in Neon style.", "A boat."]
SAMPLING = Sampling(4, 3.0, seed=5, batch_size=2)
SETTINGS = TrainSettings(
    expansion=4,
    k=6,
    tokens=64 * 40,
    batch=64,
    micro_batches=2,
    rate=3e-3,
    pictures=4,
    passes=2,
    held_out=4,
    checkpoint_every=7,
    dead_after=1000,
)


@pytest.fixture(scope="module")
def pipeline(tiny):
    return load_pipeline(str(tiny["model"]))


def train(pipeline, output, settings=SETTINGS, progress=lambda event: None, **rest):
    return Trainer(pipeline, [HOOKPOINT], PROMPTS, settings, SAMPLING, output, **rest).train(progress)


@pytest.fixture(scope="module")
def trained(pipeline, tmp_path_factory):
    output = tmp_path_factory.mktemp("trained")
    events = []
    return output, train(pipeline, output, progress=events.append), events


def test_it_learns_and_reports_by_timestep(pipeline, trained):
    output, report, events = trained
    losses = [e.loss for e in events]
    assert len(losses) == 40 and sum(losses[-5:]) < 0.8 * sum(losses[:5])
    found = report["saes"][HOOKPOINT]
    assert 0 < found["fvu"] < 1 and found["l0"] <= 6 and len(found["by_timestep"]) == 4
    assert [row["timestep"] for row in found["by_timestep"]] == sorted((row["timestep"] for row in found["by_timestep"]), reverse=True)
    sae = SparseAutoencoder.load(output, HOOKPOINT)
    assert sae.sha256() == found["sha256"] and (output / f"unet.{HOOKPOINT}" / "cfg.json").is_file()
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(len(sae.W_dec)), atol=1e-5)
    assert not (output / "training-state").exists()


def test_quality_is_what_its_words_say(pipeline, trained):
    output, report, _ = trained
    sae = SparseAutoencoder.load(output, HOOKPOINT)
    held = ActivationStream(pipeline, {HOOKPOINT: "output"}, PROMPTS, SAMPLING, 4).buffer(-1)
    x = held.tokens[HOOKPOINT].float()
    found = quality(sae, held.tokens[HOOKPOINT], held, batch=50)
    error = x - sae(x)
    assert found["fvu"] == pytest.approx(float(error.square().sum() / (x - x.mean(0)).square().sum()), rel=1e-4)
    assert found["explained_variance"] == pytest.approx(float((1 - error.var(0) / x.var(0)).mean()), rel=1e-3)
    assert found["l0"] == pytest.approx(float((sae.encode(x) > 0).sum(1).float().mean()))
    assert found["dead"] == pytest.approx(1 - float((sae.encode(x) > 0).any(0).float().mean()))
    one = x[held.steps == 2]
    rest = one - sae(one)
    assert found["by_timestep"][2]["fvu"] == pytest.approx(float(rest.square().sum() / (one - one.mean(0)).square().sum()), rel=1e-4)
    assert report["saes"][HOOKPOINT]["fvu"] == pytest.approx(found["fvu"], rel=1e-5)


class Killed(Exception):
    pass


@pytest.mark.parametrize("at", [5, 7, 23])
def test_a_killed_training_ends_as_if_it_had_not_been(pipeline, trained, tmp_path, at):
    def stop(event):
        if event.step == at:
            raise Killed

    with pytest.raises(Killed):
        train(pipeline, tmp_path, progress=stop)
    steps = []
    report = train(pipeline, tmp_path, progress=lambda e: steps.append(e.step))
    assert steps[0] == (at - 1) // 7 * 7 + 1, "it starts after the last checkpoint"
    assert report["saes"][HOOKPOINT]["sha256"] == trained[1]["saes"][HOOKPOINT]["sha256"]


def test_going_on_with_other_settings_is_refused(pipeline, tmp_path):
    def stop(event):
        if event.step == 8:
            raise Killed

    with pytest.raises(Killed):
        train(pipeline, tmp_path, progress=stop)
    with pytest.raises(SaeuronError, match=r"other settings \(rate: 0.003 there, 0.001 here\)"):
        train(pipeline, tmp_path, dataclasses.replace(SETTINGS, rate=1e-3))


def test_other_settings_are_refused_before_anything_is_generated(pipeline, tmp_path, monkeypatch):
    def stop(event):
        if event.step == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(pipeline, tmp_path, progress=stop)
    monkeypatch.setattr(ActivationStream, "_fill", lambda *_: pytest.fail("generated"))
    with pytest.raises(SaeuronError, match="unfinished training with other settings"):
        train(pipeline, tmp_path, dataclasses.replace(SETTINGS, rate=1e-3))


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"step": "x"}', ""])
def test_a_damaged_checkpoint_is_one_line(pipeline, tmp_path, content):
    def stop(event):
        if event.step == 8:
            raise Killed

    with pytest.raises(Killed):
        train(pipeline, tmp_path, progress=stop)
    trainer = Trainer(pipeline, [HOOKPOINT], PROMPTS, SETTINGS, SAMPLING, tmp_path)
    state = trainer.state / "state.json"
    before = state.read_text()
    state.write_text(content)
    with pytest.raises(SaeuronError, match="state.json"):
        train(pipeline, tmp_path)
    state.write_text(before)
    path = trainer.state / f"{HOOKPOINT}.pt"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(SaeuronError, match="can't be read as a checkpoint of this training"):
        train(pipeline, tmp_path)


def test_filling_buffers_is_heard(pipeline, tmp_path):
    trainer = Trainer(pipeline, [HOOKPOINT], PROMPTS, SETTINGS, SAMPLING, tmp_path)
    heard, steps = [], []
    trainer.filling = lambda what, done, total: heard.append((what, done, total))
    trainer.train(steps.append)
    assert heard[:4] == [("held-out pictures", 0, 4), ("held-out pictures", 2, 4), ("buffer 1", 0, 4), ("buffer 1", 2, 4)]
    buffers = {what for what, _, _ in heard} - {"held-out pictures"}
    assert len(buffers) == -(-len(steps) // steps[0].per_buffer)


def test_cached_buffers_are_the_same_and_refuse_other_work(pipeline, tmp_path):
    plain = ActivationStream(pipeline, {HOOKPOINT: "output"}, PROMPTS, SAMPLING, 4)
    cached = ActivationStream(pipeline, {HOOKPOINT: "output"}, PROMPTS, SAMPLING, 4, cache=tmp_path)
    first, again = cached.buffer(3), cached.buffer(3)
    for made in (first, again):
        assert torch.equal(made.tokens[HOOKPOINT], plain.buffer(3).tokens[HOOKPOINT])
    assert not torch.equal(first.tokens[HOOKPOINT], cached.buffer(3, shuffle=1).tokens[HOOKPOINT])
    other = ActivationStream(pipeline, {HOOKPOINT: "output"}, PROMPTS[:2], SAMPLING, 4, cache=tmp_path)
    with pytest.raises(SaeuronError, match="other settings"):
        other.buffer(3)


def test_a_shared_buffer_is_put_together_in_the_order_of_one_process(pipeline):
    whole = ActivationStream(pipeline, {HOOKPOINT: "output"}, PROMPTS, SAMPLING, 8).buffer(0)
    parts = []
    for rank in range(2):
        stream = ActivationStream(
            pipeline,
            {HOOKPOINT: "output"},
            PROMPTS,
            SAMPLING,
            8,
            share=Share(rank, 2, lambda t: parts.append(t) or t.repeat(2, *[1] * (t.ndim - 1))),
        )
        stream.buffer(0)
    joined = torch.cat(parts)
    stream = ActivationStream(pipeline, {HOOKPOINT: "output"}, PROMPTS, SAMPLING, 8, share=Share(0, 2, lambda t: joined))
    made: Buffer = stream.buffer(0)
    assert torch.equal(made.tokens[HOOKPOINT], whole.tokens[HOOKPOINT]) and torch.equal(made.steps, whole.steps)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k is 0"),
        ({"batch": 63}, "micro-batches"),
        ({"rate": 2.0}, "rate"),
        ({"precision": "fp8"}, "fp8"),
        ({"k": 1000}, "larger than the 128 latents"),
        ({"pictures": 3}, "multiple of 2"),
        ({"batch": 100_000}, "fewer than one batch"),
    ],
)
def test_bad_settings_are_refused(pipeline, tmp_path, change, message):
    with pytest.raises(SaeuronError, match=message):
        train(pipeline, tmp_path / "x", dataclasses.replace(SETTINGS, **change))
    assert not (tmp_path / "x").exists()


def test_every_setting_has_words_for_the_help():
    assert all(words_of(TrainSettings).values()) and all(words_of(Settings).values())  # a field without a docstring raises


def test_a_buffer_is_made_once_for_all_its_passes(pipeline, tmp_path, monkeypatch):
    made = []
    real = ActivationStream._fill
    monkeypatch.setattr(ActivationStream, "_fill", lambda self, number, progress: made.append(number) or real(self, number, progress))
    report = train(pipeline, tmp_path, dataclasses.replace(SETTINGS, tokens=64 * 16))
    # 4 pictures of 4 steps and 16 tokens are 4 batches of 64; two passes of them are 8 steps.
    assert report["steps"] == 16 and made == [-1, 0, 1]
