"""Attacks on SD3 and FLUX.1 through all of their text encoders, on tiny random pipelines; the judge is a stub."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.conftest import edit_of, make_sae
from tests.transformer_pipelines import HOOKPOINTS, make_flux, make_sd3

from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.denoisers.denoiser import Text
from saeuron.editor.denoisers.families import family_of, network_of, rebuilt
from saeuron.editor.denoisers.pipelines import load_pipeline
from saeuron.editor.denoisers.sampling import denoise, initial_latents
from saeuron.editor.edit.bake import bake
from saeuron.editor.edit.edit import Suppression, make_edit
from saeuron.editor.edit.project import token_parts
from saeuron.editor.features.collect import Sampling, collect
from saeuron.editor.features.rule import Rule
from saeuron.validation.attack import prompts, search
from saeuron.validation.attack.attack import Attacker, attack
from saeuron.validation.attack.cases import AttackCase
from saeuron.validation.attack.harden import harden
from saeuron.validation.attack.protocols import registry
from saeuron.validation.attack.settings import AttackSettings, HardenSettings
from saeuron.validation.attack.victims import Baked, Hooked, bare
from saeuron.validation.judges.judge import Sightings

KINDS = ("sd3", "flux", "schnell")
PROMPTS = {"cat": ["a cat", "a picture of cat"], "dog": ["a dog", "an image of dog"]}
CASE = AttackCase("cat", "object", ["a cat"], ["a picture of cat in style"])
TINY = AttackSettings(
    steps=2, guidance=3.0, tokens=2, iterations=3, embedding_iterations=4, restarts=1, batch=2, tune_seeds=(1,), report_seeds=(2,), search_seeds=2
)  # fmt: skip


class Bright:
    """Sees its concept where a picture is brighter than grey."""

    name, sha256, concepts = "bright", "0" * 64, ("cat",)

    def see(self, pictures):
        found = np.array([[np.asarray(p, np.float32).mean() / 255] for p in pictures])
        return Sightings(found > 0.45, found)


class Always(Bright):
    """Sees its concept everywhere."""

    def see(self, pictures):
        return Sightings(np.ones((len(pictures), 1), bool), np.ones((len(pictures), 1)))


@pytest.fixture(scope="module", params=KINDS)
def attacked(request, tmp_path_factory):
    """The pipeline, in 32 × 32 pixels, and it with an edit: of the hook, and baked."""
    folder, place = tmp_path_factory.mktemp(request.param), HOOKPOINTS["sd3" if request.param == "sd3" else "flux"]
    model = make_sd3(folder) if request.param == "sd3" else make_flux(folder, request.param == "flux")
    pipeline, sae = load_pipeline(str(model)), make_sae()
    held = collect(pipeline, {place: sae}, PROMPTS, Sampling(steps=2, guidance=3.0, height=32, width=32, seed=1))[place]
    edit = edit_of(held, ("cat", "count:8", -3.0), hookpoint=place)
    pipeline = bare(pipeline)
    baked = bake(network_of(pipeline), edit, {place: sae})
    return request.param, pipeline, Hooked(pipeline, edit, {place: sae}), Baked(rebuilt(pipeline, transformer=baked), edit)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Pictures of 32 × 32 pixels: the model of a FLUX says no size of its own."""
    monkeypatch.setattr(prompts, "initial_latents", lambda pipeline, seeds: initial_latents(pipeline, seeds, 32, 32))


def encoded(pipeline, texts):
    """What the pipeline itself makes of prompts."""
    if type(pipeline).__name__ == "FluxPipeline":
        return pipeline.encode_prompt(texts, None, "cpu")[:2]
    found = pipeline.encode_prompt(texts, None, None, "cpu", do_classifier_free_guidance=False)
    return found[0], found[2]


def test_a_learned_place_without_change_is_the_prompt(attacked):
    """Templates put tokens where the tokenizers would: each encoder's own embeddings of the name give the pipeline's own text."""
    _, pipeline, _, _ = attacked
    every = prompts.readers(pipeline)
    for text in ("a picture of cat", "cat in style", "a cat in a style"):
        states, pooled = encoded(pipeline, [text])
        made = prompts.context(pipeline, [prompts.with_prefix(pipeline, text, 0)], None)
        assert torch.equal(made.states, states) and torch.equal(made.pooled, pooled)
        slots = max(len(reader.words("cat")) for reader in every)
        template = prompts.with_name_learned(pipeline, text, "cat", slots)
        assert len(template.others) == len(every) - 1
        # As many places as each encoder has tokens of the name.
        own = [len(reader.words("cat")) for reader in every]
        whole = [prompts.with_name_learned(pipeline, text, "cat", n) for n in own]
        parts = [t if i == 0 else t.others[i - 1] for i, t in enumerate(whole)]
        joined = prompts.Template(parts[0].ids, parts[0].slots, tuple(parts[1:]))
        vectors = [reader.table[reader.words("cat")] for reader in every]
        made = prompts.context(pipeline, [joined], vectors)
        assert torch.allclose(made.states, states, atol=1e-5) and torch.allclose(made.pooled, pooled, atol=1e-5)
        # In the place of the name each encoder matters by itself.
        for i in range(len(every)):
            other = [3 * v.flip(-1) if i == j else v for j, v in enumerate(vectors)]
            moved = prompts.context(pipeline, [joined], other)
            assert not torch.allclose(moved.states, states, atol=1e-3) or not torch.allclose(moved.pooled, pooled, atol=1e-3)


def test_what_is_too_long(attacked):
    """CLIPs read what they can of a long prompt, as in the pipeline; a T5 has to read the whole, and learned tokens have to fit everywhere."""
    _, pipeline, _, _ = attacked
    long = "a cat in a style of a dog " * 4
    states, pooled = encoded(pipeline, [long])
    made = prompts.context(pipeline, [prompts.with_prefix(pipeline, long, 0)], None)
    assert torch.equal(made.states, states) and torch.equal(made.pooled, pooled)
    cut = prompts.with_name_learned(pipeline, "a cat " + long, "cat", 3)
    assert all(len(t.slots) == 3 and len(t.ids) == r.room for t, r in zip((cut, *cut.others), prompts.readers(pipeline), strict=True))
    with pytest.raises(SaeuronError, match="the text encoder reads (256|512); shorten it"):
        prompts.with_prefix(pipeline, "a cat " * 600, 0)
    with pytest.raises(SaeuronError, match="take fewer --tokens"):
        prompts.with_prefix(pipeline, "a cat", 40)


def test_the_loss_is_on_the_velocity_and_the_network_is_called_as_in_its_pipeline(attacked):
    kind, pipeline, _, _ = attacked
    denoiser, network, calls = family_of(pipeline).denoiser, network_of(pipeline), []
    start = initial_latents(pipeline, [1, 2], 32, 48)
    handle = network.register_forward_hook(lambda m, a, k, o: calls.append((denoiser.inputs(a, k), o[0])), with_kwargs=True)
    denoise(pipeline, ["a cat", "a dog"], start, [1, 2], 3, 2.5)
    handle.remove()
    inputs, out = calls[0]
    rows = slice(-2, None)
    text = prompts.context(pipeline, [prompts.with_prefix(pipeline, t, 0) for t in ("a cat", "a dog")], None)
    steps = torch.full((2,), 1000.0)  # at the first step there is nothing but noise
    assert float(denoiser.noise_level(inputs)[0]) == 1000.0
    fed = denoiser.fed(network.config, start, steps, text, 2.5)
    assert list(fed) == list(inputs)
    for name, value in fed.items():
        own = inputs[name] if name.endswith("_ids") else inputs[name][rows]
        assert torch.equal(value, own), name
    clean = torch.randn(start.shape, generator=torch.Generator().manual_seed(3))
    found, wanted = denoiser.learning(network, pipeline.scheduler, clean, start, steps, text, 2.5)
    assert torch.allclose(found, out[rows], atol=1e-4) and torch.equal(
        denoiser.unpacked(wanted, (16, 24)) if kind != "sd3" else wanted, start - clean
    )
    # Halfway the network sees half of each.
    seen = {}
    kept = denoiser.call
    try:
        type(denoiser).call = lambda self, n, given: seen.update(given) or kept(n, given)
        denoiser.learning(network, pipeline.scheduler, clean, start, torch.full((2,), 500.0), text, 2.5)
    finally:
        type(denoiser).call = kept.__func__
    assert torch.allclose(seen["hidden_states"], denoiser.packed((clean + start) / 2)) and float(denoiser.noise_level(seen)[0]) == 500.0


def test_noise_levels_are_those_of_the_loop(attacked):
    """Also under dynamic shifting, where they move with the picture's size."""
    kind, pipeline, _, victim = attacked
    latents = torch.randn(1, 4, 16, 24)
    loss = search.DiffusionLoss(victim.pipeline, search.Targets(latents, [prompts.with_prefix(pipeline, "a cat", 2)]), 4, 0, 3.0)
    denoise(pipeline, ["a cat"], initial_latents(pipeline, [1], 32, 48), [1], 4, 3.0)
    assert torch.equal(loss.scheduler.timesteps, pipeline.scheduler.timesteps)
    plain = [1000 * i / 4 for i in (4, 3, 2, 1)]
    assert (kind == "schnell") == torch.allclose(loss.scheduler.timesteps, torch.tensor(plain))


def test_hook_and_checkpoint_have_the_same_gradients(attacked):
    _, pipeline, hooked, baked = attacked
    every = prompts.readers(pipeline)
    template = prompts.with_prefix(pipeline, "a cat", 2)
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    found = {}
    for straight in (False, True):
        for name, victim in (("hook", hooked), ("checkpoint", baked), ("none", Baked(pipeline))):
            vectors = [r.table[:2].detach().clone().requires_grad_(True) for r in every]
            with victim.edited(straight=straight) as edited, torch.enable_grad():
                loss = search.DiffusionLoss(edited, search.Targets(latents, [template] * 2), 4, 0, 3.0)
                value = torch.nn.functional.mse_loss(*loss.predicted(vectors, *loss._fixed))
                moved = torch.autograd.grad(value, vectors)
            assert all(float(g.abs().max()) > 0 for g in moved), "every encoder has a part in it"
            found[straight, name] = torch.cat([g.flatten() for g in moved]), float(value.detach())
    for straight in (False, True):
        (one, a), (other, b) = found[straight, "hook"], found[straight, "checkpoint"]
        assert abs(a - b) < 1e-5 * abs(a) and (one - other).norm() < 1e-3 * one.norm()
    assert found[True, "checkpoint"][1] == found[False, "checkpoint"][1], "straight-through changes no value"
    assert not torch.allclose(found[True, "checkpoint"][0], found[False, "checkpoint"][0], rtol=1e-3)
    assert not torch.allclose(found[False, "none"][0], found[False, "checkpoint"][0], rtol=1e-2)


def test_searches_are_in_every_encoder_at_once(attacked):
    _, pipeline, _, victim = attacked
    every = prompts.readers(pipeline)
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    loss = search.DiffusionLoss(victim.pipeline, search.Targets(latents, [prompts.with_prefix(pipeline, "a cat", 2)]), 4, 0, 3.0)
    found = search.learn_prefix(loss, 2, 3, 2, 5.0, 0)
    assert len(found.ids) == len(found.vectors) == len(every)
    for reader, ids, vectors in zip(every, found.ids, found.vectors, strict=True):
        assert torch.equal(vectors, reader.table[ids]) and set(ids) <= set(reader.vocabulary().tolist())
        assert not set(reader.tokenizer.all_special_ids) & set(reader.vocabulary().tolist())
    start = search.starts(pipeline, "cat", 2, 0, 0)
    for reader, own in zip(every, start, strict=True):
        words = reader.words("cat")
        assert torch.equal(own, reader.table[[words[i % len(words)] for i in range(2)]])
    free = search.learn_embedding(loss, start, 12, 2, 1.0)
    assert free.loss < loss.fixed(start) and all(not torch.equal(a, b) for a, b in zip(free.vectors, start, strict=True))
    again = search.learn_embedding(loss_again(loss, victim, latents, pipeline), start, 12, 2, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(free.vectors, again.vectors, strict=True))


def loss_again(loss, victim, latents, pipeline):
    """As `loss` was before anything was drawn of it, and after the prefix was."""
    made = search.DiffusionLoss(victim.pipeline, search.Targets(latents, [prompts.with_prefix(pipeline, "a cat", 2)]), 4, 0, 3.0)
    search.learn_prefix(made, 2, 3, 2, 5.0, 0)
    return made


@pytest.mark.slow
def test_the_whole_attack_through_hook_and_checkpoint(attacked):
    kind, pipeline, hooked, baked = attacked
    attacks = ("prefix", "embedding", "straight-through", "seeds", "paraphrases")
    rows = {}
    for name, victim in (("hook", hooked), ("checkpoint", baked)):
        rows[name], shown = attack(victim, pipeline, CASE, Bright(), TINY, attacks, ["an image of {name}"])
        assert {one.row for one in shown} == {row.attack for row in rows[name]}
    encoders = [t.name for t in family_of(pipeline).text_encoders]
    for one, other in zip(rows["hook"], rows["checkpoint"], strict=True):
        assert (one.attack, one.each, one.budget) == (other.attack, other.each, other.budget)
        learned = one.found.encoders
        assert list(learned) == (encoders if one.attack in ("prefix", "embedding", "straight-through") else [])
        for name, held in learned.items():
            assert held.ids == other.found.encoders[name].ids and (held.text is None) == (one.attack != "prefix")
        # FLUX is told the guidance, and runs no second half.
        assert (
            one.budget["forwards"]
            == (one.budget["pictures"] + one.budget.get("tuning_pictures", 0)) * 2 * (2 if kind == "sd3" else 1) + one.budget["gradients"]
        )
    assert not network_of(pipeline)._forward_hooks


@pytest.mark.slow
def test_what_came_back_is_added(attacked):
    kind, pipeline, hooked, _ = attacked
    place = next(iter(hooked.edit.hookpoints))
    held = collect(pipeline, {place: token_parts(32)}, PROMPTS, Sampling(steps=2, guidance=3.0, height=32, width=32, seed=1), within=True)
    edit = make_edit([Suppression("cat", place, Rule.parse("count:1"), -2.0, "probe")], {("cat", place): held[place]})
    settings = HardenSettings(rounds=2, tokens=2, embedding_iterations=2, restarts=1, tune_seeds=(5,))
    case = CASE._replace(tuning=["a cat", "a cat in style"], reporting=["a picture of cat", "an image of cat"])
    grown, rounds = harden(pipeline, edit, held, case, Always(), settings, (2, 3.0))
    assert [(r.number, r.shown, r.pictures) for r in rounds] == [(1, 4, 4), (2, 4, 4)]
    steps = len(edit.hookpoints[place].timesteps)
    assert grown.hookpoints[place].latents == 3 * steps
    baked = rebuilt(pipeline, transformer=bake(network_of(pipeline), grown, {}))
    start = initial_latents(pipeline, [1], 32, 32)
    with Hooked(pipeline, grown, {}).edited() as edited:
        wanted = denoise(edited, ["a cat"], start, [1], 2, 3.0)
    plain, made = (denoise(p, ["a cat"], start, [1], 2, 3.0) for p in (pipeline, baked))
    assert (made - wanted).norm() < 1e-4 * (wanted - plain).norm()


def test_published_protocols_and_other_pipelines_are_refused_by_name(attacked):
    _, pipeline, hooked, _ = attacked
    for name in ("unlearndiffatk", "leak"):
        _, protocols = registry.chosen([name])
        with pytest.raises(
            SaeuronError, match=f"--protocol {name} is for StableDiffusionPipeline, not for {type(pipeline).__name__}; take ours"
        ):
            attack(hooked, pipeline, CASE, Bright(), TINY, (), protocols=protocols)
    with pytest.raises(SaeuronError, match="shorten it"):
        Attacker(hooked, pipeline, CASE, Bright(), replace(TINY, tokens=2), print).check((), ["a cat " * 600])
    assert Text(torch.zeros(3, 2, 2)).of(slice(1)).states.shape == (1, 2, 2)
