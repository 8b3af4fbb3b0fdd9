"""Gains by token (of `multiply`) and norms that are kept (of `project`) against their formulas, token by token, in the hook, the baked module and its graph."""

import copy
import json

import numpy as np
import pytest
import torch
from tests.conftest import HOOKPOINT, WIDTH, block_output, inputs, make_activations, make_sae, with_open_gates

from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.common.files import read_header
from saeuron.editor.edit.bake import bake
from saeuron.editor.edit.edit import Edit, Suppression, make_edit
from saeuron.editor.edit.feature_ablation import FeatureAblation
from saeuron.editor.edit.hook import AblationHook
from saeuron.editor.edit.how import How
from saeuron.editor.features.activations import ConceptActivations
from saeuron.editor.features.rule import Rule
from saeuron.export.formats.onnx import denoiser_component, write

SEED = int(torch.randint(1 << 30, ()))
TOKEN, KEPT = How(gain="token"), How(norm="kept")


@pytest.fixture(autouse=True)
def seed():
    print("seed", SEED)
    torch.manual_seed(SEED)


def uneven(**kind):
    """An SAE whose decoder rows differ in length, as none that was trained here does."""
    sae = make_sae(**kind)
    sae.W_dec.data *= torch.linspace(0.5, 2.0, len(sae.W_dec))[:, None]
    return sae


def by_token(*wishes, residual="keep", kind="multiply", how=TOKEN, **more):
    held = make_activations()
    made = [Suppression(c, HOOKPOINT, Rule.parse("count:20"), m, kind, how) for c, m in wishes or (("A", -0.7),)]
    return make_edit(made, {(c, HOOKPOINT): held for c, _ in wishes or (("A", 0),)}, residual, **more)


def kept(*wishes, how=KEPT, kind="project"):
    held = {}
    for c, _ in wishes or (("A", 0),):
        tokens = torch.randn(2, 5, WIDTH)
        means = torch.cat([tokens.clamp(min=0), (-tokens).clamp(min=0)], -1)
        held[c, HOOKPOINT] = ConceptActivations([c, "other"], [2, 2], means, torch.arange(4, -1, -1) * 200 + 1)
    made = [Suppression(c, HOOKPOINT, Rule.parse("count:1"), m, kind, how) for c, m in wishes or (("A", -3.0),)]
    return make_edit(made, held)


def tokens_of(network, *given):
    return block_output(network, *given).flatten(2).transpose(1, 2)


def block_input(network, *given):
    seen = []
    block = network.get_submodule(HOOKPOINT)
    handle = block.register_forward_hook(
        lambda m, args, kwargs, o: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    network(*given)
    handle.remove()
    return seen[0].flatten(2).transpose(1, 2)


def found_by(unet, edit, saes, x, t, c):
    """What hook and baked module give."""
    with AblationHook(unet, edit, saes):
        hooked = tokens_of(unet, x, t, c)
    return hooked, tokens_of(bake(unet, edit, saes), x, t, c)


@pytest.mark.parametrize("residual", ["keep", "upstream", "drop"])
@pytest.mark.parametrize("kind", [{}, {"unit_norm": True}, {"reads": "delta"}], ids=str)
def test_a_gain_by_token_is_the_formula(unet, kind, residual):
    sae, (x, c), fired = uneven(**kind), inputs(2, seed=SEED), 0
    edit, held = by_token(("A", -0.7), ("B", -0.2), residual=residual), make_activations()
    part, rows = edit.hookpoints[HOOKPOINT], sae.W_dec
    for t in (801, 390.0, 120):
        plain = tokens_of(unet, x, t, c)
        before = block_input(unet, x, t, c) if kind.get("reads") else None
        read = plain if before is None else plain - before
        row = int((held.timesteps - t).abs().argmin())
        z = sae.encode(read)  # the k largest, zero elsewhere
        after = z.clone()
        for b, token in np.ndindex(*z.shape[:2]):
            length = z[b, token].square().sum().sqrt()
            for column, i in enumerate(part.features.tolist()):
                m = part.gains[row, column]
                if z[b, token, i] > part.thresholds[row, column] and z[b, token, i] > 0:
                    after[b, token, i] = z[b, token, i] * m * length / (rows[i].norm() + 1e-8)
                    fired += 1
        assert set(part.gains[row][part.thresholds[row].isfinite()].tolist()) <= {np.float32(-0.7), np.float32(-0.2)}
        decoded, edited = sae.decode(z, read), sae.decode(after, read)
        rest = plain - read
        right = plain + edited - decoded if residual == "keep" else rest + edited + (decoded - read if residual == "upstream" else 0)
        for found in found_by(unet, edit, {HOOKPOINT: sae}, x, t, c):
            assert torch.allclose(found, right, atol=2e-4, rtol=1e-4)
    assert fired > 20


def test_a_kept_norm_is_the_formula(unet):
    edit, (x, c) = kept(("A", -3.0), ("B", 0.0)), inputs(8, seed=SEED)
    stayed = 0
    sae, part = edit.directions[HOOKPOINT], edit.hookpoints[HOOKPOINT]
    for t in (801, 390.0, 120):
        plain = tokens_of(unet, x, t, c)
        row = int((part.timesteps - t).abs().argmin())
        right, still = plain.clone(), []
        for b, token in np.ndindex(*plain.shape[:2]):
            one = plain[b, token]
            changed = one.clone()
            for i in range(part.latents):
                if part.thresholds[row, i] == 0:
                    v = sae.W_enc[i]
                    changed += (part.gains[row, i] - 1) * (one @ v).clamp(min=0) * v
            right[b, token] = changed * one.norm() / changed.norm()
            still.append(torch.equal(changed, one))
        assert sum(still) < len(still)
        stayed += sum(still)
        for found in found_by(unet, edit, {}, x, t, c):
            assert torch.allclose(found, right, atol=1e-5) and torch.allclose(found.norm(dim=-1), plain.norm(dim=-1), rtol=1e-5)
            same = (found == plain).all(-1).flatten()
            assert same.tolist() == still, "what nothing fires at stays, to the last bit"
    assert stayed


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("made", [by_token, kept])
def test_in_sixteen_bits_they_are_the_same(unet, made, dtype):
    network, edit, saes = copy.deepcopy(unet).to(dtype), made(), {HOOKPOINT: uneven()}
    x, c = inputs(2, dtype=dtype)
    with AblationHook(network, edit, saes) as hook:
        hooked = tokens_of(network, x, 500, c)
    baked, plain = tokens_of(bake(network, edit, saes), x, 500, c), tokens_of(network, x, 500, c)
    unit = torch.finfo(dtype).eps
    assert (
        torch.allclose(hooked.float(), baked.float(), rtol=2 * unit, atol=2 * unit * float(plain.abs().max()))
        and hook.tokens.dtype == dtype
    )
    assert not torch.equal(hooked, plain)


def test_tokens_of_zeros_and_nan():
    edit = kept()
    module = bake_alone(edit)
    x = torch.zeros(1, 3, WIDTH)
    x[0, 1], x[0, 2] = torch.nan, torch.randn(WIDTH)
    out = module(x, torch.tensor([500.0]))
    assert torch.equal(out[0, 0], x[0, 0]) and bool(out[0, 1].isnan().all()) and bool(out[0, 2].isfinite().all())
    # A token that is nothing but the direction, taken out: zeros have no norm to be brought back to.
    edit = kept(("A", 0.0))
    part, rows = edit.hookpoints[HOOKPOINT], edit.directions[HOOKPOINT].W_enc
    along = torch.zeros(WIDTH)
    along[0] = 2.0
    rows.data[int(part.rows(torch.tensor([500.0])))] = along / 2
    edit.directions[HOOKPOINT].W_dec.data.copy_(rows)
    assert torch.equal(bake_alone(edit)(along[None, None], torch.tensor([500.0]))[0, 0], torch.zeros(WIDTH))


def bake_alone(edit):
    from tests.conftest import make_unet

    return bake(make_unet(), edit, {HOOKPOINT: make_sae()}).ablations[HOOKPOINT.replace(".", "-")]


@pytest.mark.parametrize("made", [by_token, kept])
def test_gradients_pass_where_attacks_open_the_gates(unet, made):
    edit, saes = made(), {HOOKPOINT: uneven()}
    x, c = inputs(1)
    hooked, shipped, by_hook, by_module = with_open_gates(unet, bake(unet, edit, saes), edit, saes, x, c)
    assert torch.allclose(hooked, shipped, atol=1e-4) and bool(by_hook.isfinite().all())
    assert torch.allclose(by_hook, by_module, rtol=1e-2, atol=1e-3 * float(by_hook.abs().max()))


@pytest.mark.parametrize("made", [by_token, kept])
@pytest.mark.slow
def test_their_graphs_run_at_sizes_they_were_not_traced_at(unet, made, tmp_path):
    import onnxruntime

    baked = bake(unet, made(), {HOOKPOINT: uneven()})
    write(denoiser_component(baked, 6), tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "unet" / "model.onnx")
    for batch, height, width in ((2, 8, 8), (1, 12, 4), (3, 4, 10)):
        x, c = inputs(batch, height, width)
        given = {"sample": x.numpy(), "timestep": np.array(333.0, np.float32), "encoder_hidden_states": c.numpy()}
        assert np.allclose(session.run(None, given)[0], baked(x, 333.0, c).sample.numpy(), atol=2e-4)


@pytest.mark.parametrize("made", [by_token, kept])
def test_their_files_say_how_and_neutral_is_neither(tmp_path, unet, made):
    edit, usual = made(), made(how=How())
    assert edit.hookpoints[HOOKPOINT].how != How() and edit.sha256() != usual.sha256()
    edit.save(tmp_path / "e.safetensors")
    held = Edit.load(tmp_path / "e.safetensors")
    assert held.sha256() == edit.sha256() and held.hookpoints[HOOKPOINT].how == edit.hookpoints[HOOKPOINT].how
    saes, (x, c) = {HOOKPOINT: uneven()}, inputs(2)
    for found in found_by(unet, edit.neutral(), saes, x, 500, c):
        assert torch.equal(found, tokens_of(unet, x, 500, c))
    assert not torch.allclose(tokens_of(bake(unet, edit, saes), x, 500, c), tokens_of(bake(unet, usual, saes), x, 500, c), atol=1e-3)


def test_a_part_of_an_edit_is_done_alike(unet):
    saes, (x, c) = {HOOKPOINT: uneven()}, inputs(2)
    part = by_token(("A", -0.7), ("B", -0.2)).only(["B"])
    with AblationHook(unet, part, saes):
        found = block_output(unet, x, 500, c)
    with AblationHook(unet, by_token(("B", -0.2)), saes):
        assert torch.equal(found, block_output(unet, x, 500, c))


def test_what_can_not_be_meant(tmp_path, unet):
    edit = by_token()
    with pytest.raises(SaeuronError, match="take --gate exact"):
        bake(unet, edit, {HOOKPOINT: make_sae()}, "threshold")
    with pytest.raises(SaeuronError, match="has no k; take --gain mean"):
        AblationHook(unet, edit, {HOOKPOINT: make_sae(activation="jumprelu")})
    held = {(c, HOOKPOINT): make_activations() for c in "AB"}
    one = Suppression("A", HOOKPOINT, Rule.parse("count:3"), -1.0, "multiply", TOKEN)
    with pytest.raises(SaeuronError, match="edited as ever and gain by token; one block has one way"):
        make_edit([one, Suppression("B", HOOKPOINT, Rule.parse("count:3"), -1.0)], held)
    for made, header in (
        (by_token, {"how": json.dumps({HOOKPOINT: {"norm": "kept"}})}), (kept, {"how": json.dumps({HOOKPOINT: {"gain": "token"}})}),
        (by_token, {"how": json.dumps({HOOKPOINT: {"gain": "token", "replace_by": "mean"}})}), (kept, {"residual": "drop"}),
        (by_token, {"how": json.dumps({HOOKPOINT: {"gain": "best"}})}), (by_token, {"how": json.dumps({HOOKPOINT: {"spread": 2}})}),
    ):  # fmt: skip
        from safetensors.torch import load_file, save_file

        path = tmp_path / "e.safetensors"
        made().save(path)
        save_file(load_file(path), path, metadata={**read_header(path)[0], **header})
        with pytest.raises(SaeuronError, match=r"damaged edit|how"):
            Edit.load(path)
    for wrong in ({"gain": "best"}, {"norm": "best"}, {"gain": "token", "gate": "threshold"}, {"gain": "token", "k": None, "activation": "jumprelu"},
                  {"norm": "kept", "residual": "drop"}, {"norm": "kept", "replace_by": "mean"}):  # fmt: skip
        with pytest.raises(ValueError, match="go together|unknown"):
            FeatureAblation(**{"width": 4, "latents": 8, "k": 2, "features": 1, "timesteps": 1, **wrong})
