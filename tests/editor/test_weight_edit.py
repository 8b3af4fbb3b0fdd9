"""Intervention `weights` against its definition, solved and applied in the plainest way."""

import numpy as np
import pytest
import torch
from tests.conftest import edit_of, inputs, make_activations, make_sae, make_unet

from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.denoisers.pipelines import load_texts, locate
from saeuron.editor.edit.ablated_kinds import AblatedUNet2DConditionModel
from saeuron.editor.edit.bake import bake
from saeuron.editor.edit.edit import Edit, make_edit
from saeuron.editor.edit.hook import AblationHook
from saeuron.editor.edit.weights import PRESERVE, RIDGE, WeightEdit, _aligned, make_weights, nearest, product, text_weights

SEED = int(torch.randint(1 << 30, ()))


@pytest.fixture(autouse=True)
def seed():
    print("seed", SEED)
    torch.manual_seed(SEED)


@pytest.fixture(scope="module")
def texts():
    return load_texts(locate("demo"))


def some(width=24):
    return WeightEdit(torch.eye(width) + 0.3 * torch.randn(width, width), {"A": "B"}, ("C",))


def test_the_product_is_that_of_float64_and_the_same_in_any_order():
    for rows, width, columns in ((3, 1, 2), (40, 333, 20), (7, 2048, 5)):
        a, b = torch.randn(rows, width) * torch.logspace(-4, 4, rows)[:, None], torch.randn(width, columns)
        a[0] = 0
        right, found = a.double() @ b.double(), product(a, b)
        scale = a.double().abs().amax(1, keepdim=True) * b.double().abs().amax(0, keepdim=True)
        assert float(((found - right).abs() - 1e-11 * width * scale).max()) <= 0
        order = torch.randperm(width)
        assert torch.equal(product(a[:, order], b[order]), found)
    # A plain product isn't: that is what the slices are for.
    assert not torch.equal(a[:, order].double() @ b[order].double(), right)
    half = torch.randn(5, 64).half()
    assert torch.equal(product(half, torch.eye(64)).half(), half)


def test_positions_take_each_others_place():
    # Same length: from where they differ to the end.
    assert _aligned([0, 5, 7, 9, 1], [0, 5, 8, 9, 1], 8) == ([2, 3, 4, 5, 6, 7], [2, 3, 4, 5, 6, 7])
    # Two words become one; what follows, end and padding keep their pairs.
    assert _aligned([0, 6, 7, 9, 1], [0, 8, 9, 1], 7) == ([1, 2, 3, 4, 5, 6], [1, 1, 2, 3, 4, 5])
    # One becomes two; the last position stands in for what would lie beyond.
    assert _aligned([0, 6, 9, 1], [0, 7, 8, 9, 1], 6) == ([1, 2, 3, 4, 5], [1, 3, 4, 5, 5])
    # Words that go without another: what follows them.
    assert _aligned([0, 5, 6, 9, 1], [0, 5, 9, 1], 6) == ([2, 3, 4, 5], [2, 2, 3, 4])
    assert _aligned([0, 5, 6, 1], [0, 1], 5) == ([1, 2, 3, 4], [1, 1, 1, 2])


def test_the_matrix_is_the_minimum(texts):
    pairs = [
        (f"A {what} of Star in {s} style.", f"A {what} of Heart in {s} style.")
        for what in ("picture", "drawing")
        for s in ("Neon", "Tiles")
    ]
    kept = {"Car": ("A picture of Car.", "A drawing of Car in Neon style."), "Boat": ("A picture of Boat.",)}
    found = make_weights(texts, {"Star": pairs}, {"Star": "Heart"}, kept, batch_size=3)
    assert found.becomes == {"Star": "Heart"} and found.preserved == ("Car", "Boat") and found.map.dtype == torch.float32

    def states(prompts):
        ids = texts.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=texts.tokenizer.model_max_length, return_tensors="pt"
        ).input_ids
        with torch.no_grad():
            return ids, texts.text_encoder(ids).last_hidden_state.double()

    (ids, c), (_, to) = states([a for a, _ in pairs]), states([b for _, b in pairs])
    first = (
        int((ids[0] == texts.tokenizer.convert_tokens_to_ids("star</w>")).nonzero()[0]) if "star</w>" in texts.tokenizer.get_vocab() else 4
    )
    c, to = c[:, first:].reshape(-1, c.shape[-1]), to[:, first:].reshape(-1, c.shape[-1])
    p = states(["", *(b for _, b in pairs), *kept["Car"], *kept["Boat"]])[1].reshape(-1, c.shape[-1])
    weight = torch.randn(6, c.shape[-1], dtype=torch.float64)
    moved = (weight @ found.map.double()).requires_grad_()
    loss = (
        (moved @ c.T - weight @ to.T).square().sum()
        + PRESERVE * (moved @ p.T - weight @ p.T).square().sum()
        + RIDGE * (moved - weight).square().sum()
    )
    (slope,) = torch.autograd.grad(loss, moved)
    scale = 2 * (weight @ to.T @ c).norm()
    assert float(slope.norm() / scale) < 1e-5, "not where the sum is flat"


def test_what_it_becomes_is_found(texts):
    choices = {n: [("A picture of Star.", f"A picture of {n}.")] for n in ("Heart", "Car")}
    same = {**choices, "Star again": [("A picture of Star.", "A picture of Star .")]}
    assert nearest(texts, same) == "Star again" and nearest(texts, choices) in choices
    with pytest.raises(SaeuronError, match=r"'A picture of Star\.' is the same"):
        make_weights(texts, {"Star": [("A picture of Star.",) * 2]}, {"Star": "Heart"}, {})


def test_the_hook_changes_these_weights_alone_and_puts_them_back(unet):
    weights, before = some(), {n: p.clone() for n, p in unet.named_parameters()}
    names = text_weights(unet)
    assert names and all(".attn2.to_" in n and n.endswith((".to_k.weight", ".to_v.weight")) for n in names)
    sample, context = inputs()
    plain = unet(sample, 321, context).sample
    with AblationHook(unet, Edit({}, weights=weights), {}):
        for name, p in unet.named_parameters():
            right = (before[name].double() @ weights.map.double()).float() if name in names else before[name]
            assert torch.allclose(p, right, atol=1e-6) and (name in names or torch.equal(p, right))
        # Text states moved by the matrix are the same as weights moved by it.
        changed = unet(sample, 321, context).sample
    assert all(torch.equal(p, before[n]) for n, p in unet.named_parameters())
    moved = unet(sample, 321, context @ weights.map.T).sample
    assert torch.allclose(changed, moved, atol=1e-5) and not torch.allclose(changed, plain, atol=1e-3)
    with pytest.raises(KeyError), AblationHook(unet, Edit({}, weights=weights), {}):
        raise KeyError
    assert all(torch.equal(p, before[n]) for n, p in unet.named_parameters())


@pytest.mark.parametrize("by_sae", [False, True])
def test_baked_it_is_the_hook_to_the_last_bit_of_its_weights(unet, by_sae):
    weights, saes = some(), {"up_blocks.0.attentions.1": make_sae()}
    edit = edit_of(make_activations(), ("A", "count:3", -2.0)) if by_sae else Edit({})
    edit.weights = weights
    baked = bake(unet, edit, saes if by_sae else {})
    assert isinstance(baked, AblatedUNet2DConditionModel) == by_sae and type(baked).__name__.endswith("UNet2DConditionModel")
    new, own = weights.changed(unet), dict(unet.named_parameters())
    for name, value in baked.named_parameters():
        if name.startswith("ablations"):
            continue
        stock = name.replace("edited_conv_in", "conv_in")
        assert torch.equal(value, new.get(stock, own[stock])), name
    sample, context = inputs()
    with AblationHook(unet, edit, saes if by_sae else {}):
        hooked = unet(sample, 321, context).sample
    assert torch.allclose(baked(sample, 321, context).sample, hooked, atol=2e-6)
    assert bool((own[text_weights(unet)[0]] != new[text_weights(unet)[0]]).any())


def test_its_file_says_all_of_it(tmp_path):
    edit = edit_of(make_activations(), ("A", "count:3", -2.0))
    bare = edit.sha256()
    edit.weights = some()
    assert edit.sha256() != bare and edit.concepts == ["A"]
    edit.save(tmp_path / "e.safetensors")
    held = Edit.load(tmp_path / "e.safetensors")
    assert held.sha256() == edit.sha256() and torch.equal(held.weights.map, edit.weights.map)
    assert held.weights.becomes == {"A": "B"} and held.weights.preserved == ("C",)
    alone = Edit({}, weights=some())
    alone.save(tmp_path / "w.safetensors")
    assert Edit.load(tmp_path / "w.safetensors").sha256() == alone.sha256() != Edit({}, weights=some()).sha256()
    with pytest.raises(SaeuronError, match="solved for all of its concepts at once"):
        Edit({}, weights=WeightEdit(torch.eye(3), {"A": "B", "C": "B"}, ())).only(["A"])
    assert alone.only(["A"]).weights is alone.weights and edit.neutral().weights is None


@pytest.mark.parametrize("spoil", ["a number that isn't finite", "no square", "another type", "no concept"])
def test_a_damaged_matrix_is_refused(tmp_path, spoil):
    weights = some()
    wrong = {
        "a number that isn't finite": WeightEdit(weights.map.clone().index_put((torch.tensor(2), torch.tensor(3)), torch.tensor(np.nan)), {"A": "B"}, ()),
        "no square": WeightEdit(weights.map[:5], {"A": "B"}, ()), "another type": WeightEdit(weights.map.double(), {"A": "B"}, ()),
        "no concept": WeightEdit(weights.map, {}, ()),
    }[spoil]  # fmt: skip
    Edit({}, weights=wrong).save(tmp_path / "e.safetensors")
    with pytest.raises(SaeuronError, match="damaged edit"):
        Edit.load(tmp_path / "e.safetensors")


def test_what_does_not_fit_is_one_line(unet):
    with pytest.raises(SaeuronError, match="text states of width 25, .* reads 24"):
        some(25).changed(unet)
    with pytest.raises(SaeuronError, match="no concept to suppress"):
        make_edit([], {})


def test_a_cast_network_gets_weights_of_its_own(unet):
    weights = some()
    first = text_weights(unet)[0]
    exact = weights.changed(unet)[first]
    half = make_unet().half()
    found = weights.changed(half)[first]
    assert found.dtype == torch.float16 and not torch.equal(found.float(), exact)
    assert torch.equal(found, product(half.get_parameter(first), weights.map).half())
    half.float()
    assert weights.changed(half)[first].dtype == torch.float32


def test_weights_that_were_loaded_since_give_others(unet):
    weights, first = some(), text_weights(unet)[0]
    before = weights.changed(unet)[first]
    unet.load_state_dict(make_unet(seed=5).state_dict())
    after = weights.changed(unet)[first]
    assert not torch.equal(before, after) and torch.equal(after, product(unet.get_parameter(first), weights.map).float())
    assert weights.changed(unet)[first] is after, "and are kept as long as they stay"
