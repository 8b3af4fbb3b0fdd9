"""Collecting against a naive loop, on real pipelines; interrupted; nothing kept that grows."""

import json

import pytest
import torch
from tests.conftest import HOOKPOINT, WIDTH, make_sae

from saeuron.editor import demo
from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.denoisers.pipelines import load_pipeline
from saeuron.editor.denoisers.sampling import capture, generate
from saeuron.editor.denoisers.sampling_settings import Sampling
from saeuron.editor.edit.project import token_parts
from saeuron.editor.features.activations import ConceptActivations, ddim_timesteps
from saeuron.editor.features.collect import Process, collect
from saeuron.editor.sae.sae import SparseAutoencoder

PROMPTS = {
    "a": ["An image of House.", "An image of Car.", "An image of Star."],
    "b": ["An image of Heart."],
    "rest": ["A boat.", "A cactus."],
}
SHORT = Sampling(3, 3.0, seed=9, batch_size=2)


@pytest.fixture(scope="module")
def pipeline(tiny):
    return load_pipeline(str(tiny["model"]))


def naive(pipeline, sae, hookpoint, texts, steps, guidance, seed):
    found = []
    for j, text in enumerate(texts):
        with capture(pipeline.unet, [hookpoint]) as seen:
            generate(pipeline, [text], [seed + j], steps, guidance, output_type="latent")
        found.append(torch.stack([sae.encode(s.outputs[hookpoint][-1]).mean(0) for s in seen]))
    return torch.stack(found).mean(0)


def test_equals_the_plain_average_on_the_demo():
    pipeline = load_pipeline("demo")
    hookpoint = sorted(p.name for p in demo.SAES.iterdir())[0]
    sae = SparseAutoencoder.load(demo.SAES, hookpoint)
    found = collect(pipeline, {hookpoint: sae}, PROMPTS, SHORT)[hookpoint]
    for c, texts in enumerate(PROMPTS.values()):
        assert torch.allclose(found.means[c], naive(pipeline, sae, hookpoint, texts, 3, 3.0, 9), atol=2e-4)
    assert found.timesteps.tolist() == ddim_timesteps(pipeline.scheduler.config, 3).tolist() and found.prompts == [3, 1, 2]
    assert found.kth is not None and found.provenance["prompts"]["a"] == PROMPTS["a"]


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_several_hookpoints_and_kinds_in_one_pass(pipeline, guidance):
    other = "up_blocks.1.attentions.0"
    saes = {HOOKPOINT: make_sae(), f"unet.{other}": make_sae(16, activation="jumprelu", reads="delta")}
    both = collect(pipeline, saes, PROMPTS, Sampling(2, guidance, batch_size=2))
    assert set(both) == {HOOKPOINT, other} and both[other].kth is None
    for name, sae in saes.items():
        alone = collect(pipeline, {name: sae}, PROMPTS, Sampling(2, guidance, batch_size=2))
        assert torch.equal(next(iter(alone.values())).means, both[name.removeprefix("unet.")].means)


def test_goes_on_after_a_kill_without_running_a_finished_prompt_again(pipeline, tmp_path, monkeypatch):
    import saeuron.editor.features.collect as module

    ran, stop_after = [], 2
    real = module._run_unit

    def counted(pipe, saes, unit, *rest):
        if len(ran) == stop_after:
            raise KeyboardInterrupt
        ran.append(unit.number)
        return real(pipe, saes, unit, *rest)

    monkeypatch.setattr(module, "_run_unit", counted)
    saes, state = {HOOKPOINT: make_sae()}, tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        collect(pipeline, saes, PROMPTS, SHORT, state=state)
    stop_after = 100
    heard = []
    resumed = collect(pipeline, saes, PROMPTS, SHORT, state=state, progress=lambda done, total, concept: heard.append((done, total)))[
        HOOKPOINT
    ]
    assert heard == [(3, 6), (4, 6), (6, 6)], "what was finished before counts as done"
    assert sorted(ran) == [0, 1, 2, 3]
    again = collect(pipeline, saes, PROMPTS, SHORT, state=state)[HOOKPOINT]
    assert len(ran) == 4 and torch.equal(again.means, resumed.means), "a kill before the result is written costs nothing"
    whole = collect(pipeline, saes, PROMPTS, SHORT)[HOOKPOINT]
    assert torch.equal(whole.means, resumed.means) and torch.equal(whole.kth, resumed.kth)


def test_work_of_another_number_of_processes_is_taken_over(pipeline, tmp_path):
    saes, state = {HOOKPOINT: make_sae()}, tmp_path / "state"
    # The second of two processes does its share; the first never started.
    assert collect(pipeline, saes, PROMPTS, SHORT, state=state, process=Process(1, 2)) is None
    assert [json.loads(p.name.split(".")[1].lstrip("0") or "0") for p in state.iterdir()] == [1, 1]
    taken = collect(pipeline, saes, PROMPTS, SHORT, state=state)[HOOKPOINT]
    assert torch.equal(taken.means, collect(pipeline, saes, PROMPTS, SHORT)[HOOKPOINT].means)


def test_the_models_own_scheduler(pipeline):
    from diffusers import EulerDiscreteScheduler

    own, pipeline.scheduler = pipeline.scheduler, EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    try:
        found = collect(pipeline, {HOOKPOINT: make_sae()}, PROMPTS, Sampling(4, 3.0, scheduler="model"))[HOOKPOINT]
        pipeline.scheduler.set_timesteps(4)
        assert found.timesteps.tolist() == [round(float(t)) for t in pipeline.scheduler.timesteps]
    finally:
        pipeline.scheduler = own


def test_a_scheduler_with_two_calls_at_a_timestep_is_refused_before_anything_runs(pipeline, monkeypatch):
    from diffusers import HeunDiscreteScheduler

    monkeypatch.setattr(pipeline, "scheduler", HeunDiscreteScheduler.from_config(pipeline.scheduler.config))
    with (
        capture(pipeline.unet, [HOOKPOINT]) as seen,
        pytest.raises(SaeuronError, match="HeunDiscreteScheduler calls the UNet more than once"),
    ):
        collect(pipeline, {HOOKPOINT: make_sae()}, PROMPTS, Sampling(3, 3.0, scheduler="model"))
    assert not seen


def test_bad_wishes_are_refused(pipeline, tmp_path):
    saes = {HOOKPOINT: make_sae()}
    with pytest.raises(SaeuronError, match="contrast set"):
        collect(pipeline, saes, {"a": ["x"]}, SHORT)
    with pytest.raises(SaeuronError, match="'b' has no prompts"):
        collect(pipeline, saes, {"a": ["x"], "b": []}, SHORT)
    with pytest.raises(SaeuronError, match="state folder"):
        collect(pipeline, saes, PROMPTS, SHORT, process=Process(0, 2))
    with pytest.raises(SaeuronError, match="scheduler 'heun'"):
        collect(pipeline, saes, PROMPTS, Sampling(2, scheduler="heun"))


def test_non_finite_latents_are_refused_by_name(pipeline):
    sae = make_sae()
    sae.b_enc[3] = float("nan")
    with pytest.raises(SaeuronError, match=f"'a' at '{HOOKPOINT}' are not finite"):
        collect(pipeline, {HOOKPOINT: sae}, PROMPTS, SHORT)


def test_the_file_keeps_how_tokens_vary_whoever_added_it_up(pipeline, tmp_path):
    parts = {HOOKPOINT: token_parts(WIDTH)}
    sampling = Sampling(3, 3.0, batch_size=2)
    found = collect(pipeline, parts, PROMPTS, sampling, within=True)[HOOKPOINT]
    state = tmp_path / "state"
    assert collect(pipeline, parts, PROMPTS, sampling, state=state, process=Process(1, 2), within=True) is None
    shared = collect(pipeline, parts, PROMPTS, sampling, state=state, within=True)[HOOKPOINT]
    assert torch.equal(shared.within, found.within)
    found.save(tmp_path / "a.safetensors")
    assert torch.equal(ConceptActivations.load(tmp_path / "a.safetensors").within, found.within)
    assert collect(pipeline, parts, PROMPTS, sampling)[HOOKPOINT].within is None
