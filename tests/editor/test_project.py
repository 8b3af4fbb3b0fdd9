"""Intervention `project` against its formula, token by token; no SAE anywhere."""

import pytest
import torch
from tests.conftest import HOOKPOINT, WIDTH, block_output, inputs, make_activations, make_sae

from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.edit.bake import bake
from saeuron.editor.edit.edit import Edit, Suppression, make_edit
from saeuron.editor.edit.hook import AblationHook
from saeuron.editor.edit.probe import mean_tokens
from saeuron.editor.edit.project import token_parts
from saeuron.editor.features.activations import ConceptActivations
from saeuron.editor.features.rule import Rule

SEED = int(torch.randint(1 << 30, ()))
ANY = Rule.parse("count:1")


@pytest.fixture(autouse=True)
def seed():
    print("seed", SEED)
    torch.manual_seed(SEED)


def collected(tokens, concepts=("A", "other"), steps=5):
    """Activations as `token_parts` collects them of these mean tokens `[C, T, d]`."""
    means = torch.cat([tokens.clamp(min=0), (-tokens).clamp(min=0)], -1)
    return ConceptActivations(list(concepts), [2] * len(concepts), means, torch.arange(steps - 1, -1, -1) * 200 + 1)


def edit_by(*wishes, held=None, **more):
    held = held or {c: collected(torch.randn(2, 5, WIDTH), (c, "other")) for c, _ in wishes}
    made = [Suppression(c, HOOKPOINT, ANY, m, "project") for c, m in wishes]
    return make_edit(made, {(c, HOOKPOINT): a for c, a in held.items()}, **more), held


def test_mean_tokens_are_what_the_parts_average_to():
    sae, x = token_parts(7), torch.randn(3, 11, 7)
    latents = sae.encode(x)
    assert bool((latents >= 0).all()) and torch.allclose(latents[..., :7] - latents[..., 7:], x)
    means = latents.mean((0, 1))
    tokens = mean_tokens(ConceptActivations(["A", "B"], [1, 1], torch.stack([means, means])[:, None], torch.tensor([1])))
    assert torch.allclose(tokens[0, 0], x.mean((0, 1)), atol=1e-6)


@pytest.mark.parametrize("baked", [False, True])
def test_it_is_the_formula(unet, baked):
    edit, held = edit_by(("A", -2.0), ("B", 0.0))
    x, c = inputs(2)

    def forward(network, t):
        return block_output(network, x, t, c).flatten(2).transpose(1, 2)

    for t in (801, 390.0, 120):
        plain = forward(unet, t)
        row = int((held["A"].timesteps - t).abs().argmin())
        right = plain.clone()
        for concept, multiplier in (("A", -2.0), ("B", 0.0)):
            tokens = mean_tokens(held[concept])[:, row]
            v = (tokens[0] - tokens[1]) / (tokens[0] - tokens[1]).norm()
            right += (multiplier - 1) * (plain @ v).clamp(min=0)[..., None] * v
        if baked:
            found = forward(bake(unet, edit, {}), t)
        else:
            with AblationHook(unet, edit, {}):
                found = forward(unet, t)
        assert torch.allclose(found, right, atol=1e-4) and not torch.allclose(plain, right, atol=1e-2)


def test_its_file_holds_the_directions_and_needs_no_sae(tmp_path, unet):
    edit, _ = edit_by(("A", -1.0))
    edit.save(tmp_path / "e.safetensors")
    held = Edit.load(tmp_path / "e.safetensors")
    assert held.sha256() == edit.sha256() and torch.equal(held.directions[HOOKPOINT].W_enc, edit.directions[HOOKPOINT].W_enc)
    other, _ = edit_by(("A", -1.0))
    assert other.sha256() != edit.sha256(), "the same tables, other directions"
    x, c = inputs(2)
    assert torch.equal(bake(unet, held, {})(x, 333, c).sample, bake(unet, edit, {})(x, 333, c).sample)


def test_what_it_can_not_be_made_of():
    with pytest.raises(SaeuronError, match="needs mean tokens of it and of one thing"):
        edit_by(("A", -1.0), held={"A": collected(torch.randn(3, 5, WIDTH), ("A", "b", "c"))})
    same = torch.randn(1, 5, WIDTH).repeat(2, 1, 1)
    with pytest.raises(SaeuronError, match="the same mean token with it and without"):
        edit_by(("A", -1.0), held={"A": collected(same)})
    with pytest.raises(SaeuronError, match="needs residual 'keep'"):
        edit_by(("A", -1.0), residual="drop")
    with pytest.raises(SaeuronError, match="different timesteps"):
        edit_by(
            ("A", -1.0),
            ("B", -1.0),
            held={"A": collected(torch.randn(2, 5, WIDTH)), "B": collected(torch.randn(2, 4, WIDTH), ("B", "o"), 4)},
        )
    wishes = [Suppression("A", HOOKPOINT, ANY, -1.0, "project"), Suppression("B", HOOKPOINT, Rule.parse("count:3"), -1.0)]
    held = {("A", HOOKPOINT): collected(torch.randn(2, 5, WIDTH)), ("B", HOOKPOINT): make_activations()}
    with pytest.raises(SaeuronError, match="can't act at one block"):
        make_edit(wishes, held)
    with pytest.raises(SaeuronError, match="strengthens the concept"):
        edit_by(("A", 1.5))


@pytest.mark.parametrize("part", ["encoder", "bias", "decoder"])
@pytest.mark.parametrize(
    "wrong", [torch.ones(4), torch.ones(5, WIDTH).double(), torch.full((5, WIDTH), torch.nan), torch.ones(3, WIDTH), None]
)
def test_damaged_directions_are_refused(tmp_path, wrong, part):
    from safetensors.torch import load_file, save_file

    from saeuron.editor.common.files import read_header

    edit, _ = edit_by(("A", -1.0))
    path = tmp_path / "e.safetensors"
    edit.save(path)
    header, tensors = read_header(path)[0], load_file(path)
    del tensors[f"directions/{HOOKPOINT}/{part}"]
    save_file(tensors | ({} if wrong is None else {f"directions/{HOOKPOINT}/{part}": wrong}), path, metadata=dict(header))
    with pytest.raises(SaeuronError, match=r"damaged edit|was made for 5 latents"):
        Edit.load(path)


def test_an_sae_that_is_given_for_its_block_changes_nothing(unet):
    edit, _ = edit_by(("A", -1.0))
    x, c = inputs(1)
    assert torch.equal(bake(unet, edit, {HOOKPOINT: make_sae()})(x, 50, c).sample, bake(unet, edit, {})(x, 50, c).sample)


def test_it_starts_where_it_is_told_and_nowhere_above():
    held = {("A", HOOKPOINT): collected(torch.randn(2, 5, WIDTH), ("A", "other"))}  # at 801, 601, 401, 201, 1
    part = make_edit([Suppression("A", HOOKPOINT, ANY, -1.0, "project", start=500)], held).hookpoints[HOOKPOINT]
    assert part.thresholds.isfinite().any(1).tolist() == [False, False, True, True, True] and [len(r) for r in part.chosen["A"]] == [
        0,
        0,
        1,
        1,
        1,
    ]
    whole = make_edit([Suppression("A", HOOKPOINT, ANY, -1.0, "project")], held).hookpoints[HOOKPOINT]
    assert torch.equal(part.gains[2:], whole.gains[2:]) and bool((part.gains[:2] == 1).all())
    with pytest.raises(SaeuronError, match="--start 0 leaves no timestep to act at; the last calibrated one is 1"):
        make_edit([Suppression("A", HOOKPOINT, ANY, -1.0, "project", start=0)], held)
