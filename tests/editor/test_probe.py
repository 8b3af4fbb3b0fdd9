"""Intervention `probe` against its formula, token by token, and what it is made of against plain averages."""

from dataclasses import replace

import pytest
import torch
from tests.conftest import HOOKPOINT, WIDTH, block_output, inputs

from saeuron.editor import demo
from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.denoisers.pipelines import load_pipeline
from saeuron.editor.denoisers.sampling import capture, generate
from saeuron.editor.denoisers.sampling_settings import Sampling
from saeuron.editor.edit.added_rows import with_more
from saeuron.editor.edit.bake import bake
from saeuron.editor.edit.edit import Edit, Suppression, make_edit
from saeuron.editor.edit.hook import AblationHook
from saeuron.editor.edit.probe import BAR, mean_tokens, probe_rows
from saeuron.editor.edit.project import token_parts
from saeuron.editor.features.activations import ConceptActivations
from saeuron.editor.features.collect import collect
from saeuron.editor.features.rule import Rule

SEED = int(torch.randint(1 << 30, ()))
PROMPTS = {
    "Star": ["An image of Star.", "A drawing of Star in Neon style.", "A photo of Star."],
    "Car": ["An image of Car."],
    "Boat": ["A photo of Boat."] * 2,
}
STEPS = 5


@pytest.fixture(autouse=True)
def seed():
    print("seed", SEED)
    torch.manual_seed(SEED)


def collected(tokens, within, concepts=("A", "b", "c"), prompts=(2, 1, 3)):
    """Activations as they are collected of mean tokens `[C, T, d]` and covariances `[S, d, d]`."""
    means = torch.cat([tokens.clamp(min=0), (-tokens).clamp(min=0)], -1)
    return ConceptActivations(list(concepts), list(prompts), means, torch.arange(STEPS - 1, -1, -1) * 200 + 1, within=within)


@pytest.fixture
def held():
    half = torch.randn(2, WIDTH, 3 * WIDTH)
    return collected(torch.randn(3, STEPS, WIDTH), half @ half.mT / WIDTH)


def edit_by(held, multiplier=-2.0, **more):
    return make_edit([Suppression("A", HOOKPOINT, Rule.parse("count:1"), multiplier, "probe")], {("A", HOOKPOINT): held}, **more)


def discriminant(held, row, x):
    """Score of tokens `x` for the first concept at a row of the tables, and what the concept adds, in numpy."""
    tokens, counts = mean_tokens(held)[:, row].double().numpy(), held.prompts
    middle = sum(n * t for n, t in zip(counts[1:], tokens[1:], strict=True)) / sum(counts[1:])
    added = tokens[0] - middle
    part = row * len(held.within) // STEPS
    sigma = held.within[part].double().numpy()
    for n, t in zip(counts[1:], tokens[1:], strict=True):
        sigma = sigma + n / sum(counts[1:]) * (t - middle)[:, None] * (t - middle)[None] / 2
    sigma = torch.tensor(sigma + 1e-3 * sigma.trace() / len(sigma) * torch.eye(len(sigma)).double().numpy())
    w = torch.linalg.inv(sigma) @ torch.tensor(added)
    return (x.double() - torch.tensor(middle)) @ w / (w @ torch.tensor(added)), torch.tensor(added)


@pytest.mark.parametrize("baked", [False, True])
def test_it_is_the_formula(unet, held, baked):
    edit, (x, c) = edit_by(held, -3.0), inputs(2)

    def forward(network, t):
        return block_output(network, x, t, c).flatten(2).transpose(1, 2)

    moved = 0
    for t in (801, 390.0, 120, 2):
        plain = forward(unet, t)
        score, added = discriminant(held, int((held.timesteps - t).abs().argmin()), plain)
        right = plain.double() + (-3.0 - 1) * (score - BAR).clamp(min=0)[..., None] * added
        moved += int((score > BAR).sum())
        if baked:
            found = forward(bake(unet, edit, {}), t)
        else:
            with AblationHook(unet, edit, {}):
                found = forward(unet, t)
        assert torch.allclose(found.double(), right, atol=1e-4 * float(right.abs().max())), t
    assert moved, "no token was beyond the bar, so nothing was compared"


def test_the_others_score_nothing_and_the_concept_one(held):
    encoder, bias, decoder = probe_rows(held, "A")
    tokens = mean_tokens(held)
    middle = (tokens[1] + 3 * tokens[2]) / 4
    for at, right in ((middle, 0.0), (tokens[0], 1.0)):
        assert torch.allclose((at * encoder).sum(-1) + bias + BAR, torch.full((STEPS,), right), atol=1e-4)
    assert torch.allclose(decoder, tokens[0] - middle, atol=1e-6)


def test_covariance_within_a_concept_is_the_plain_one_on_the_demo():
    """Beside tokens that were kept whole; in one go, one prompt at a time, and gone on with: the same bits."""
    pipeline = load_pipeline("demo")
    hookpoint = sorted(p.name for p in demo.SAES.iterdir())[0]
    with capture(pipeline.unet, [hookpoint]) as seen:
        generate(pipeline, ["An image of Car."], [9], STEPS, 3.0, output_type="latent")
    width = seen[0].outputs[hookpoint].shape[-1]
    sampling = Sampling(STEPS, 3.0, seed=9, batch_size=1)
    found = collect(pipeline, {hookpoint: token_parts(width)}, PROMPTS, sampling, within=True)[hookpoint]
    tokens = {}
    for name, texts in PROMPTS.items():
        for j, text in enumerate(texts):
            with capture(pipeline.unet, [hookpoint]) as seen:
                generate(pipeline, [text], [9 + j], STEPS, 3.0, output_type="latent")
            tokens.setdefault(name, []).append(torch.stack([s.outputs[hookpoint][-1] for s in seen]).double())
    right = torch.zeros(STEPS, width, width, dtype=torch.float64)
    number = sum(len(held) * held[0].shape[1] for held in tokens.values())
    for held in tokens.values():
        apart = torch.cat(held, 1)
        apart = apart - apart.mean(1, keepdim=True)
        right += apart.mT @ apart / number
    assert found.within.shape == right.shape
    assert torch.allclose(found.within.double(), right, atol=2e-3 * float(right.abs().max()))


def test_its_file_holds_what_is_read_and_written_and_needs_no_sae(tmp_path, unet, held):
    edit = edit_by(held)
    edit.save(tmp_path / "e.safetensors")
    opened = Edit.load(tmp_path / "e.safetensors")
    assert opened.sha256() == edit.sha256()
    x, c = inputs(2)
    assert torch.equal(bake(unet, opened, {})(x, 333, c).sample, bake(unet, edit, {})(x, 333, c).sample)
    for part in ("W_enc", "b_enc", "W_dec"):
        other = Edit.load(tmp_path / "e.safetensors")
        with torch.no_grad():
            getattr(other.directions[HOOKPOINT], part).mul_(1.01)
        assert other.sha256() != edit.sha256(), part


def test_what_it_can_not_be_made_of(held):
    tokens = mean_tokens(held)
    with pytest.raises(SaeuronError, match="needs the covariance of tokens"):
        edit_by(collected(tokens, None))
    with pytest.raises(SaeuronError, match="nothing tells it apart"):
        edit_by(collected(tokens[:1].repeat(3, 1, 1), held.within))
    with pytest.raises(SaeuronError, match="needs residual 'keep'"):
        edit_by(held, residual="drop")
    with pytest.raises(SaeuronError, match="strengthens the concept"):
        edit_by(held, 1.5)
    for wrong in (held.within[0], held.within[:, :-1], torch.full_like(held.within, torch.nan), held.within.repeat(3, 1, 1)):
        with pytest.raises(SaeuronError, match="'within' has shape"):
            collected(tokens, wrong)


def test_more_rows_of_what_an_attack_brought_back(unet, held):
    """One more a timestep, of other mean tokens; what was there stays, and acts as before."""
    edit, shown = edit_by(held, -3.0), torch.randn(STEPS, WIDTH)
    rows = probe_rows(held, "A", shown)
    tokens = mean_tokens(held)
    middle = (tokens[1] + 3 * tokens[2]) / 4
    assert torch.allclose((shown * rows.encoder).sum(-1) + rows.bias + BAR, torch.ones(STEPS), atol=1e-4)
    assert torch.allclose(rows.decoder, shown - middle, atol=1e-6)
    part, sae = with_more(edit.hookpoints[HOOKPOINT], edit.directions[HOOKPOINT], "A", rows)
    part.check("grown")
    grown = replace(edit, hookpoints={HOOKPOINT: part}, directions={HOOKPOINT: sae})
    assert part.latents == 2 * STEPS and [len(row) for row in part.chosen["A"]] == [2] * STEPS
    old = edit.hookpoints[HOOKPOINT]
    assert torch.equal(part.gains[:, :STEPS], old.gains) and torch.equal(part.thresholds[:, :STEPS], old.thresholds)
    x, c = inputs(2)
    for t in (801, 390.0, 2):
        row = int((held.timesteps - t).abs().argmin())
        with AblationHook(unet, edit, {}, record_tokens=True) as hook:
            unet(x, t, c)
        plain = hook.seen[0][HOOKPOINT].output
        both = AblationHook(unet, grown, {})
        hook.timestep = both.timestep = torch.tensor([float(t)])
        change = (-3.0 - 1) * ((plain @ rows.encoder[row]) + rows.bias[row]).clamp(min=0)[..., None] * rows.decoder[row]
        right = hook.edit_tokens(HOOKPOINT, plain, plain) + change
        assert torch.allclose(both.edit_tokens(HOOKPOINT, plain, plain), right, atol=1e-4 * float(right.abs().max()))
    sleeping = make_edit(
        [Suppression("A", HOOKPOINT, Rule.parse("count:1"), -3.0, "probe", start=500)], {("A", HOOKPOINT): held}
    ).hookpoints[HOOKPOINT]  # fmt: skip
    part, _ = with_more(sleeping, edit.directions[HOOKPOINT], "A", rows)
    assert [len(row) for row in part.chosen["A"]] == [0 if t > 500 else 2 for t in held.timesteps.tolist()]
    assert torch.equal(part.thresholds.isfinite().sum(1), torch.tensor([0 if t > 500 else 2 for t in held.timesteps.tolist()]))
