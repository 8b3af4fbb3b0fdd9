"""Intervention `replace` against its formula, token by token, in the hook, the baked module and its graph."""

import copy
import json

import numpy as np
import pytest
import torch
from tests.conftest import HOOKPOINT, block_output, inputs, make_activations, make_sae, with_open_gates

from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.edit.bake import bake
from saeuron.editor.edit.edit import Edit, Suppression, make_edit
from saeuron.editor.edit.hook import AblationHook
from saeuron.editor.edit.how import How
from saeuron.editor.edit.replace import replaced
from saeuron.editor.features.rule import Rule
from saeuron.export.formats.onnx import denoiser_component, write

SEED = int(torch.randint(1 << 30, ()))
WAYS = [How(by, spread) for by in ("nearest", "mean") for spread in (0, 1)]


@pytest.fixture(autouse=True)
def seed():
    print("seed", SEED)
    torch.manual_seed(SEED)


def edit_by(how=WAYS[0], concepts=("A",), rule="count:20", **more):
    """Twenty features, of which one or another fires at about half of the tokens."""
    held = make_activations()
    made = [Suppression(c, HOOKPOINT, Rule.parse(rule), -1.0, "replace", how) for c in concepts]
    return make_edit(made, {(c, HOOKPOINT): held for c in concepts}, **more)


def by_hand(plain, flags, how):
    """Place by place, with loops: the definition."""
    _, height, width = plain.shape
    places = [(i, j) for i in range(height) for j in range(width)]
    taken = {(i, j) for i, j in places if any(bool(flags[a, b]) and max(abs(a - i), abs(b - j)) <= how.spread for a, b in places)}
    free = [place for place in places if place not in taken]
    right = plain.clone()
    for i, j in taken if free else ():
        if how.replace_by == "mean":
            right[:, i, j] = torch.stack([plain[:, a, b] for a, b in free]).mean(0)
        else:
            a, b = min(free, key=lambda place: (place[0] - i) ** 2 + (place[1] - j) ** 2)  # min takes the first of equals
            right[:, i, j] = plain[:, a, b]
    return right, len(taken), len(free)


@pytest.mark.parametrize("how", WAYS, ids=str)
def test_it_is_the_definition_in_hook_and_module(unet, how):
    edit, saes, moved = edit_by(how), {HOOKPOINT: make_sae()}, 0
    baked = bake(unet, edit, saes)
    for (height, width), t in (((8, 8), 801), ((4, 10), 390.0), ((12, 6), 120)):
        x, c = inputs(3, height, width, seed=SEED)
        plain = block_output(unet, x, t, c)
        with AblationHook(unet, edit, saes, record=True) as hook:
            found = block_output(unet, x, t, c)
        fires = hook.decisions[HOOKPOINT][0].fires.any(-1).unflatten(1, plain.shape[-2:])
        for one, flags, hooked, shipped in zip(plain, fires, found, block_output(baked, x, t, c), strict=True):
            right, taken, free = by_hand(one, flags, how)
            assert torch.allclose(hooked, right, atol=1e-5) and torch.allclose(shipped, right, atol=1e-5)
            moved += bool(taken and free)
    assert moved > 1


@pytest.mark.parametrize("how", WAYS, ids=str)
def test_of_equals_the_first_is_taken_and_all_or_none_stay(unet, how):
    module = bake(unet, edit_by(how), {HOOKPOINT: make_sae()}).ablations[HOOKPOINT.replace(".", "-")]
    places = np.indices((5, 7)).reshape(2, -1).T
    x = torch.randn(1, 35, 32)
    for flags in (torch.zeros(35), torch.ones(35), torch.eye(35)[17], 1 - torch.eye(35)[17], (torch.rand(35) < 0.5).float()):
        mine = module.replaced(x, flags[None], torch.from_numpy(places[None]).float())[0]
        right, taken, free = by_hand(x[0].T.unflatten(-1, (5, 7)), flags.reshape(5, 7), how)
        right = right.flatten(1).T
        assert torch.allclose(mine, right, atol=1e-6) and torch.allclose(replaced(x[0], flags, places, how), right, atol=1e-6)
        assert np.allclose(replaced(x[0].numpy(), flags.numpy(), places, how), right, atol=1e-6)
        if not (taken and free):
            assert torch.equal(mine, x[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_sixteen_bits_it_is_the_same(unet, dtype):
    network = copy.deepcopy(unet).to(dtype)
    edit, saes = edit_by(), {HOOKPOINT: make_sae()}
    x, c = inputs(2, dtype=dtype)
    baked = bake(network, edit, saes)
    with AblationHook(network, edit, saes):
        found = block_output(network, x, 500, c)
    assert torch.equal(found, block_output(baked, x, 500, c)) and not torch.equal(found, block_output(network, x, 500, c))


def test_a_nan_is_seen(unet):
    edit, saes = edit_by(), {HOOKPOINT: make_sae()}
    module = bake(unet, edit, saes).ablations[HOOKPOINT.replace(".", "-")]
    places = torch.from_numpy(np.indices((4, 4)).reshape(2, -1).T[None]).float()
    x = torch.randn(1, 16, 32)
    x[0, 5] = torch.nan
    assert bool(module(x, torch.tensor([500.0]), places=places)[0, 5].isnan().all())
    module.gains.fill_(torch.nan)
    assert bool(module(torch.randn(1, 16, 32), torch.tensor([500.0]), places=places).isnan().any())


@pytest.mark.parametrize("kind", ["jumprelu", "delta", "unit_norm", "threshold"])
def test_every_kind_of_sae_and_gate(unet, kind):
    sae = make_sae(**{"jumprelu": {"activation": "jumprelu"}, "delta": {"reads": "delta"}, "unit_norm": {"unit_norm": True}}.get(kind, {}))
    edit, gate = edit_by(rule="count:20"), "threshold" if kind == "threshold" else "exact"
    x, c = inputs(2)
    with AblationHook(unet, edit, {HOOKPOINT: sae}, gate) as hook:
        found = block_output(unet, x, 500, c)
    baked = bake(unet, edit, {HOOKPOINT: sae}, gate)
    assert torch.allclose(found, block_output(baked, x, 500, c), atol=1e-5)
    held = baked.ablations[HOOKPOINT.replace(".", "-")].state_dict()
    assert "decoder_weight" not in held and "offsets" not in held and hook.tokens.edit is edit


def test_two_concepts_join_and_only_one_is_a_part(unet):
    saes, (x, c) = {HOOKPOINT: make_sae()}, inputs(2)
    both = edit_by(concepts=("A", "B"))
    part = both.only(["B"])
    with AblationHook(unet, part, saes):
        found = block_output(unet, x, 500, c)
    with AblationHook(unet, edit_by(concepts=("B",)), saes):
        assert torch.equal(found, block_output(unet, x, 500, c))
    with AblationHook(unet, both, saes):
        assert not torch.equal(found, block_output(unet, x, 500, c))
    with AblationHook(unet, both.neutral(), saes):
        assert torch.equal(block_output(unet, x, 500, c), block_output(unet, x, 500, c))


@pytest.mark.parametrize(("how", "sides"), [(WAYS[1], None), (WAYS[2], (8, 12))], ids=str)
@pytest.mark.slow
def test_its_graph_runs_at_sizes_it_was_not_traced_at(unet, how, sides, tmp_path):
    import onnxruntime

    baked = bake(unet, edit_by(how), {HOOKPOINT: make_sae()})
    part = denoiser_component(baked, 6, sides)
    write(part, tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "unet" / "model.onnx")
    for batch, height, width in ((2, 8, 8), (1, 12, 4), (3, 4, 10)):
        x, c = inputs(batch, height, width)
        given = {"sample": x.numpy(), "timestep": np.array(333.0, np.float32), "encoder_hidden_states": c.numpy()}
        assert np.allclose(session.run(None, given)[0], baked(x, 333.0, c).sample.numpy(), atol=2e-4)


@pytest.mark.parametrize("how", [WAYS[0], WAYS[2]], ids=str)
def test_gradients_pass_where_attacks_open_the_gates(unet, how):
    edit, saes = edit_by(how), {HOOKPOINT: make_sae()}
    x, c = inputs(1)
    baked, context = bake(unet, edit, saes), c.clone().requires_grad_()
    hooked, shipped, by_hook, by_module = with_open_gates(unet, baked, edit, saes, x, c)
    plain = torch.autograd.grad(baked(x, 500, context).sample.square().sum(), context)[0]
    assert torch.allclose(hooked, shipped, atol=1e-5) and not torch.allclose(by_hook, plain, atol=1e-6)
    assert torch.allclose(by_hook, by_module, rtol=1e-3, atol=1e-4)


def test_its_file_says_how(tmp_path, unet):
    edits = [edit_by(how) for how in WAYS]
    assert len({edit.sha256() for edit in edits}) == len(WAYS)
    for number, edit in enumerate(edits):
        path = tmp_path / f"{number}.safetensors"
        edit.save(path)
        held = Edit.load(path)
        assert held.sha256() == edit.sha256() and held.hookpoints[HOOKPOINT].how == WAYS[number]


def test_what_can_not_be_meant(tmp_path):
    from safetensors.torch import load_file, save_file

    from saeuron.editor.common.files import read_header

    with pytest.raises(SaeuronError, match="needs residual 'keep'"):
        edit_by(residual="drop")
    held = {(c, HOOKPOINT): make_activations() for c in "AB"}
    one = Suppression("A", HOOKPOINT, Rule.parse("count:3"), -1.0, "replace", WAYS[0])
    for other, message in (
        (("replace", WAYS[1]), "edited by nearest and by nearest, spread 1"),
        (("multiply", How()), "an SAE's gains and replace can't act at one block"),
        (("project", How()), "directions and replace can't act at one block"),
    ):
        with pytest.raises(SaeuronError, match=message):
            make_edit([one, Suppression("B", HOOKPOINT, Rule.parse("count:3"), -1.0, *other)], held)
    path = tmp_path / "e.safetensors"
    edit_by().save(path)
    header, tensors = dict(read_header(path)[0]), load_file(path)
    for changes, said in (
        ({}, {"how": '{"up": {"replace_by": "nearest", "spread": 0}}'}), ({}, {"how": json.dumps({HOOKPOINT: {"replace_by": "best"}})}),
        ({}, {"how": json.dumps({HOOKPOINT: {"replace_by": "mean", "spread": -1}})}), ({}, {"residual": "drop"}),
        ({"gains": 0.5}, {}), ({"offsets": 1.0}, {}),
    ):  # fmt: skip
        other = {k: torch.full_like(v, changes[k.rpartition("/")[2]]) if k.rpartition("/")[2] in changes else v for k, v in tensors.items()}
        save_file(other, path, metadata={**header, **said})
        with pytest.raises(SaeuronError, match=r"damaged edit|how"):
            Edit.load(path)


@pytest.mark.parametrize("kind", ["multiply", "multiply by token", "zero", "clamp", "replace"])
def test_every_intervention_at_blocks_starts_where_it_is_told(unet, kind):
    held, saes, (x, c) = {("A", HOOKPOINT): make_activations()}, {HOOKPOINT: make_sae()}, inputs(2)
    kind, *told = kind.split()
    how = How(gain="token") if told else WAYS[0] if kind == "replace" else How()
    late, whole = (make_edit([Suppression("A", HOOKPOINT, Rule.parse("count:20"), -3.0, kind, how, start)], held) for start in (500, 1000))
    baked = bake(unet, late, saes)
    for t, edit in ((901, None), (601, None), (401, whole), (1, whole)):
        right = unet(x, t, c).sample if edit is None else bake(unet, edit, saes)(x, t, c).sample
        with AblationHook(unet, late, saes):
            assert torch.allclose(unet(x, t, c).sample, right, atol=1e-5)
        assert torch.allclose(baked(x, t, c).sample, right, atol=1e-5)
    assert late.sha256() != whole.sha256() and any(late.hookpoints[HOOKPOINT].chosen["A"])
