"""The gate `screened` decides and computes as `exact`, whatever the input; and it does leave the encoder out.

Bit by bit where sums are exact. Elsewhere a library may round a product of fewer rows otherwise, which may show in the last bits of
what is added, never in a decision.
"""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests.conftest import HOOKPOINT, edit_of, inputs, make_activations, make_sae, refused, run

from saeuron.editor.ablated_unet import AblatedUNet2DConditionModel, AblationIntegrityError, FeatureAblation
from saeuron.editor.bake import bake
from saeuron.editor.edit import Edit
from saeuron.editor.errors import SaeuronError
from saeuron.editor.steering import steer

KEY = HOOKPOINT.replace(".", "-")
ODD = [float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 1e-40, 6e4, 3e38]


def modules(weight, bias, features, often, thresholds, k, dtype):
    """The same edit behind both gates; its encoder is `weight [n, d]`, `bias [n]`."""
    made = []
    for gate in ("exact", "screened"):
        n, d = weight.shape
        m = FeatureAblation(d, n, k, len(features), len(thresholds), gate=gate, screen=len(often) if gate == "screened" else 0)
        values = {
            "encoder_weight": weight, "encoder_bias": bias, "pre_bias": torch.zeros(d), "decoder_weight": weight.flip(0)[features], "features": features,
            "timesteps": torch.arange(len(thresholds) - 1, -1, -1) * 100, "thresholds": thresholds, "gains": -thresholds.nan_to_num(posinf=-1.0) - 2,
        }  # fmt: skip
        if gate == "screened":
            rows = torch.cat([features, often])
            values |= {"screen_weight": weight[rows], "screen_bias": bias[rows]}
        m.load_state_dict(values)
        made.append(m.to(dtype))
    return made


def outcome(module, hidden, timestep):
    seen = []
    handle = module.gate.register_forward_hook(lambda m, args, fires: seen.append(fires))
    result = module(hidden, torch.tensor([timestep]))
    handle.remove()
    return result, seen[0]


def assert_same(a, b, *args):
    (one, fires), (other, screened) = outcome(a, *args), outcome(b, *args)
    assert torch.equal(fires, screened)
    assert one.dtype == other.dtype and torch.equal(one.isnan(), other.isnan())
    # With the signs of zeros.
    bits = torch.int32 if one.dtype == torch.float32 else torch.int16
    assert torch.equal(one.nan_to_num(0.5).view(bits), other.nan_to_num(0.5).view(bits))


@st.composite
def cases(draw):
    d, n, k = draw(st.integers(1, 24)), draw(st.integers(2, 48)), draw(st.integers(1, 6))
    k = min(k, n)
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    scale = 2.0 ** draw(st.sampled_from([0, 0, 0, -3, 5, 12, -14, -60, 60]))

    def values(*shape):
        return torch.randint(-2, 3, shape, generator=g).float()  # sums that no order can round

    # Few different rows make many ties, at the k-th place too.
    weight = values(draw(st.integers(1, n)), d)
    weight = weight[torch.randint(len(weight), (n,), generator=g)]
    bias = values(n) * draw(st.sampled_from([0.0, 0.5, 1.0]))
    order = torch.randperm(n, generator=g)
    features = order[: draw(st.integers(1, min(6, n)))].sort().values
    # With or without the chosen ones, all or just k.
    often = torch.randperm(n, generator=g)[: draw(st.integers(k, n))]
    if draw(st.booleans()):
        often = (values(1, d) @ weight.T + bias).flatten().topk(len(often)).indices
    bars = torch.tensor(
        draw(st.lists(st.sampled_from([-1.0, 0.0, 0.1, 1.0, 3.0, float("inf")]), min_size=2 * len(features), max_size=2 * len(features)))
    )
    hidden = values(draw(st.integers(1, 2)), d, draw(st.integers(1, 3)), draw(st.integers(1, 3))) * scale
    for _ in range(draw(st.integers(0, 2))):
        at = torch.randint(hidden.numel(), (1,), generator=g)
        hidden.view(-1)[at] = draw(st.sampled_from(ODD))
    if draw(st.booleans()):
        hidden[..., :1] = 0
    dtype = draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
    tables = bars.view(2, -1) * draw(st.sampled_from([1.0, scale]))
    return modules(weight, bias, features, often, tables, k, dtype), hidden.to(dtype), draw(st.sampled_from([0.0, 50.0, 100.0]))


@settings(max_examples=600, deadline=None)
@given(cases())
def test_equals_exact_on_any_input(case):
    (exact, screened), hidden, timestep = case
    assert_same(exact, screened, hidden, timestep)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("seed", range(4))
def test_equals_exact_at_length(dtype, seed):
    """Long sums, where two ways to add up differ; every latent twice, so that pairs tie; thresholds in the midst of them."""
    g = torch.Generator().manual_seed(seed)
    d, n, k = 320, 1024, 16
    weight, bias = torch.nn.functional.normalize(torch.randn(n, d, generator=g), dim=1), 0.1 * torch.randn(n, generator=g)
    weight[n // 2 :] = weight[: n // 2]
    bias[n // 2 :] = bias[: n // 2]
    hidden = torch.randn(2, d, 4, 4, generator=g).to(dtype)
    z = hidden.flatten(2).transpose(1, 2).float() @ weight.T + bias
    often, features = z.mean((0, 1)).topk(32 * k).indices, torch.arange(0, n, 100)
    for bar in (0.0, float(z.topk(k).values[0, 0, -1]), 4.0):
        made = modules(weight, bias, features, often, torch.full((1, len(features)), bar), k, dtype)
        (one, fires), (other, screened) = (outcome(m, hidden, 0.0) for m in made)
        assert torch.equal(fires, screened) and torch.allclose(one, other, rtol=1e-5 if dtype == torch.float32 else 0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("seed", range(4))
def test_decides_as_exact_however_a_library_rounds(dtype, seed):
    """The encoder of gathered tokens is off by as much as another order of summation allows; pairs tie, thresholds lie among the latents."""
    g = torch.Generator().manual_seed(torch.seed() % 2**32 if seed == 3 else seed)
    d, n, k = 40, 96, 8
    weight, bias = torch.nn.functional.normalize(torch.randn(n, d, generator=g), dim=1), 0.01 * torch.randn(n, generator=g)
    weight[n // 2 :], bias[n // 2 :] = weight[: n // 2], bias[: n // 2]
    features = torch.arange(0, n, 5)
    gathered = 0
    for loud in [1, 2, 4] * 20:
        hidden = torch.randn(1, d, 1, 16, generator=g)
        hidden[..., loud:] *= 0.01  # nothing fires there: the others are few enough to be gathered
        hidden = hidden.to(dtype)
        z = (hidden.flatten(2).transpose(1, 2).float() @ weight.T + bias)[0]
        often = z.mean(0).topk(4 * k).indices
        bars = torch.where(torch.rand(1, len(features), generator=g) < 0.3, z[0, features].clamp_min(0.1)[None], 0.1)
        exact, screened = modules(weight, bias, features, often, bars, k, dtype)

        def rounded_otherwise(x, plain=screened.latents, module=screened):
            z = plain(x)
            error = (d + 2) * 2.0**-24 * module.reach(x.float().norm(dim=-1, keepdim=True), module.encoder_weight, module.encoder_bias)
            moved = z.float() + error * torch.randint(-1, 2, z.shape, generator=g)
            return torch.relu(moved.to(z.dtype))

        whole = []
        screened.latents = rounded_otherwise
        screened.whole = lambda x, plain=screened.whole, whole=whole: (whole.append(1), plain(x))[1]
        (one, fires), (other, decided) = (outcome(m, hidden, 0.0) for m in (exact, screened))
        assert torch.equal(fires, decided)
        assert torch.allclose(one, other, rtol=1e-3 if dtype == torch.float32 else 0.05, atol=1e-2)
        gathered += not whole
    assert gathered or dtype != torch.float32, "some maps must have been decided by the gathered tokens, or this shows nothing"


@pytest.mark.parametrize("odd", [3e38, 1e20, float("inf"), float("nan")])
def test_a_map_with_a_token_that_may_overflow_goes_through_the_encoder_as_a_whole(odd):
    (exact, screened), hidden = counted(4)
    hidden = hidden.repeat(1, 1, 1, 5)
    hidden[0, 1, 0, 2] = odd
    assert_same(exact, screened, hidden, 0.0)
    screened.latents = lambda x: x.new_zeros(*x.shape[:2], 20)  # what the gathered tokens say doesn't matter
    assert_same(exact, screened, hidden, 0.0)


def counted(above, k=4):
    """One chosen latent of 1; of 8 latents to compare with, `above` are 2 and the others 0.5."""
    weight = torch.zeros(20, 2)
    weight[0, 0] = 1.0
    weight[10:18, 0] = torch.tensor([2.0] * above + [0.5] * (8 - above))
    weight[5:10, 1] = 1.0
    made = modules(weight, torch.zeros(20), torch.tensor([0]), torch.arange(10, 18), torch.zeros(1, 1), k, torch.float32)
    return made, torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)


def same(a, b):
    """Equal up to a rounding unit or two of some latents."""
    return torch.allclose(a.float(), b.float(), atol=16 * torch.finfo(a.dtype).eps)


def without_encoder(module):
    def raising(tokens):
        raise AssertionError("the whole encoder was run")

    module.latents = module.whole = raising
    return module


def test_k_latents_above_spare_the_encoder_and_one_less_does_not():
    (exact, screened), hidden = counted(4)
    assert not outcome(exact, hidden, 0.0)[1].any()
    assert_same(exact, without_encoder(screened), hidden, 0.0)
    (exact, screened), hidden = counted(3)
    assert outcome(exact, hidden, 0.0)[1].all()
    assert_same(exact, screened, hidden, 0.0)
    with pytest.raises(AssertionError, match="encoder was run"):
        outcome(without_encoder(screened), hidden, 0.0)


def test_what_equals_the_kth_within_rounding_is_not_ruled_out():
    (exact, screened), hidden = counted(4)
    for m in (exact, screened):
        m.encoder_weight[10:14, 0] = 1.0
    screened.screen_weight[1:5, 0] = 1.0 + 2**-20  # as another order of summation would round it
    assert outcome(exact, hidden, 0.0)[1].all()
    assert_same(exact, screened, hidden, 0.0)


def test_a_latent_below_its_threshold_spares_the_encoder():
    (exact, screened), hidden = counted(0)
    for m in (exact, screened):
        m.thresholds.fill_(1.5)
    assert_same(exact, without_encoder(screened), hidden, 0.0)


def test_an_overflow_elsewhere_is_seen():
    """Where a chosen latent is infinite, the output is NaN even if it doesn't fire."""
    (exact, screened), hidden = counted(4)
    for m in (exact, screened):
        m.half().thresholds.fill_(float("inf"))
    result, _ = outcome(exact, hidden.half() * 6e4 * 1.09, 0.0)
    assert_same(exact, screened, hidden.half() * 6e4 * 1.09, 0.0)
    for m in (exact, screened):
        m.encoder_weight[0, 0] = 2.0
    screened.screen_weight[0, 0] = 2.0
    result, _ = outcome(exact, hidden.half() * 6e4, 0.0)
    assert result.isnan().any()
    assert_same(exact, screened, hidden.half() * 6e4, 0.0)


def test_under_autocast_the_encoder_is_run():
    (_, screened), hidden = counted(4)
    outcome(without_encoder(screened), hidden, 0.0)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(AssertionError, match="encoder was run"):
        outcome(without_encoder(screened), hidden, 0.0)


@pytest.mark.parametrize("kind", [{}, {"unit_norm": True}, {"reads": "delta"}, {"subtract_bias": False}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_unet_equals_the_exact_one(unet, kind, dtype):
    unet, saes = copy.deepcopy(unet).to(dtype), {HOOKPOINT: make_sae(**kind)}
    edit = edit_of(make_activations(scale=0.1), ("A", "count:20", -3.0), ("B", "percentile:90", -2.0))
    exact, screened = bake(unet, edit, saes), bake(unet, edit, saes, "screened")
    for seed, t in enumerate((901, 333.3, torch.tensor([501.0, 12.0]))):
        x, c = inputs(2, 8, 12, seed=seed, dtype=dtype)
        assert same(exact(x, t, c).sample, screened(x, t, c).sample)
    part = edit.hookpoints[HOOKPOINT]
    part.thresholds[:] = 1e3
    absent = bake(unet, edit, saes, "screened")
    without_encoder(absent.ablations[KEY])
    assert torch.equal(absent(x, 501, c).sample, unet(x, 501, c).sample)


def test_gradients_are_those_of_exact(unet, sae, edit):
    x, c = inputs(1)
    grads = []
    for gate in ("exact", "screened"):
        leaf = c.clone().requires_grad_(True)
        bake(unet, edit, {HOOKPOINT: sae}, gate)(x, 501, leaf).sample.sum().backward()
        grads.append(leaf.grad)
    assert torch.allclose(*grads, atol=1e-5)


# --- as a graph ------------------------------------------------------------------------------------------------------


def test_traces(unet, sae, edit):
    part = edit.hookpoints[HOOKPOINT]
    part.thresholds[0] = 1e3
    edited = bake(unet, edit, {HOOKPOINT: sae}, "screened")
    x, c = inputs(2)
    program = torch.export.export(edited, (x, torch.tensor(501.0), c), {"return_dict": False})
    for t in (float(part.timesteps[0]), 501.0):
        assert torch.allclose(program.module()(x, torch.tensor(t), c, return_dict=False)[0], edited(x, t, c).sample, atol=1e-5)


def test_onnx_decides_as_exact_and_skips_the_encoder(unet, sae, edit, tmp_path):
    import onnx

    from saeuron.export import onnx as writer
    from saeuron.validation.runners import _with_outputs, open_session, run_session

    part = edit.hookpoints[HOOKPOINT]
    part.thresholds[0] = 1e3
    first = float(part.timesteps[0])
    sessions = {}
    for name in ("exact", "screened"):
        edited = bake(unet, edit, {HOOKPOINT: sae}, name)
        gates = writer.write(writer.unet_component(edited, 6), tmp_path / name)
        model = onnx.load(str(tmp_path / name / "unet" / "model.onnx"))
        graph = model.graph
        assert [n.op_type for n in graph.node].count("NonZero") == (name != "exact")
        assert gates[HOOKPOINT] in {o for n in graph.node for o in n.output}, "decisions are to be seen at the top level"
        sessions[name] = _with_outputs(tmp_path / name / "unet" / "model.onnx", [gates[HOOKPOINT]], "CPUExecutionProvider")
    # The same graph with an encoder of NaN shows by its output whether a token went through it.
    blinded = 0
    for tensor in graph.initializer:
        value = onnx.numpy_helper.to_array(tensor)
        if value.size == sae.W_enc.numel() and any(np.array_equal(value, w) for w in (sae.W_enc.numpy(), sae.W_enc.numpy().T)):
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.full_like(value, np.nan), tensor.name))
            blinded += 1
    assert blinded == 1
    onnx.save(model, str(tmp_path / "blind.onnx"))
    sessions["blind"] = open_session(tmp_path / "blind.onnx")
    for shape in ((2, 8, 8), (1, 8, 12), (3, 4, 4)):
        x, c = inputs(*shape, seed=shape[0])
        for t in (first, 501.0, 77.7):
            feed = {"sample": x.numpy(), "timestep": t, "encoder_hidden_states": c.numpy()}
            exact, screened, blind = (run_session(s, feed) for s in sessions.values())
            assert (exact[gates[HOOKPOINT]] == screened[gates[HOOKPOINT]]).all() and exact[gates[HOOKPOINT]].any() == (t != first)
            assert same(*(torch.from_numpy(found["out_sample"]) for found in (exact, screened)))
            if t == first:
                assert (blind["out_sample"] == exact["out_sample"]).all()
            else:
                assert (blind["out_sample"] != blind["out_sample"]).any()


def test_an_artifact_is_proven(tiny, tmp_path):
    from saeuron.export.artifact import export_artifact
    from saeuron.export.settings import Settings

    result = export_artifact(
        Settings(
            ("A",), tmp_path / "out", ("checkpoint",), model=str(tiny["model"]), sae=(str(tiny["sae"]),), hookpoint=HOOKPOINT, activations=(str(tiny["activations"]),),
            select="count:20", multiplier=-3.0, gate="screened", steps=2, proof="short",
        )
    )  # fmt: skip
    assert result.proven, result.report["failures"]
    assert result.manifest["gate"] == "screened" and result.report["backends"]["checkpoint"]["gates"]["fired"] > 0
    assert "often" in " ".join(load_file(tmp_path / "out" / "edit" / "edit.safetensors"))
    # The edit is enough to do it again.
    again = tmp_path / "again"
    run("export", "--edit", tmp_path / "out" / "edit" / "edit.safetensors", "--model", tiny["model"], "--sae", tiny["sae"], "--gate", "screened", "--steps", 2,
        "--proof", "short", "--format", "checkpoint", "--output", again)  # fmt: skip
    records = [json.loads((root / "saeuron.json").read_text()) for root in (tmp_path / "out", again)]
    assert records[0]["edit"] == records[1]["edit"]


# --- what the edit says ----------------------------------------------------------------------------------------------


def test_often_active_latents_are_those_of_the_largest_means(activations, tmp_path):
    edit = edit_of(activations, ("A", "count:3", -1.0))
    part = edit.hookpoints[HOOKPOINT]
    assert (
        part.often is not None
        and part.often.tolist() == activations.means.double().mean((0, 1)).argsort(descending=True, stable=True).tolist()
    )
    other = edit_of(activations, ("B", "count:3", -1.0), ("A", "count:3", -1.0)).hookpoints[HOOKPOINT]
    assert torch.equal(part.often, other.often), "which concepts are suppressed doesn't matter"
    edit.save(tmp_path / "e.safetensors")
    loaded = Edit.load(tmp_path / "e.safetensors")
    assert torch.equal(loaded.hookpoints[HOOKPOINT].often, part.often) and loaded.sha256() == edit.sha256()
    moved = Edit({HOOKPOINT: replace(part, often=part.often.flip(0))}, edit.residual)
    assert moved.sha256() != edit.sha256()


@pytest.mark.parametrize(
    "often", [torch.tensor([1, 1]), torch.tensor([0, 256]), torch.tensor([-1]), torch.tensor([0.0]), torch.zeros(0, dtype=torch.int64)]
)
def test_a_damaged_list_is_refused(edit, tmp_path, often):
    edit.save(tmp_path / "e.safetensors")
    from safetensors import safe_open

    with safe_open(tmp_path / "e.safetensors", "pt") as handle:
        header = handle.metadata()
    save_file({**load_file(tmp_path / "e.safetensors"), f"{HOOKPOINT}/often": often}, tmp_path / "e.safetensors", metadata=header)
    with pytest.raises(SaeuronError, match="damaged edit"):
        Edit.load(tmp_path / "e.safetensors")


# --- refusing and failing closed -------------------------------------------------------------------------------------


def test_what_cannot_be_screened_is_refused(unet, sae, edit):
    for residual in ("upstream", "drop"):
        with pytest.raises(SaeuronError, match="'screened' needs residual 'keep'"):
            bake(unet, Edit(edit.hookpoints, residual), {HOOKPOINT: sae}, "screened")
    with pytest.raises(SaeuronError, match="JumpReLU"):
        bake(unet, edit, {HOOKPOINT: make_sae(activation="jumprelu")}, "screened")
    with pytest.raises(SaeuronError, match="often active"):
        bake(unet, steer({3: 0.0}, sae, HOOKPOINT), {HOOKPOINT: sae}, "screened")
    part = edit.hookpoints[HOOKPOINT]
    with pytest.raises(SaeuronError, match="often active"):
        bake(unet, Edit({HOOKPOINT: replace(part, often=part.often[: sae.config.k - 1])}), {HOOKPOINT: sae}, "screened")
    large = make_sae()
    large.b_enc[7] = 1e20
    with pytest.raises(SaeuronError, match="norm"):
        bake(unet, edit, {HOOKPOINT: large}, "screened")
    for bad in (
        {"k": 4, "screen": 3},
        {"k": None, "activation": "jumprelu", "screen": 4},
        {"k": 4},
        {"k": 4, "screen": 4, "residual": "drop"},
    ):
        with pytest.raises(ValueError, match="screened"):
            FeatureAblation(**{"width": 4, "latents": 8, "features": 1, "timesteps": 1, "gate": "screened"} | bad)


def test_the_command_refuses_in_one_line(tiny, tmp_path, sae):
    steer({3: 0.0}, sae, HOOKPOINT).save(tmp_path / "e.safetensors")
    options = ["export", "--model", tiny["model"], "--sae", tiny["sae"], "--gate", "screened", "--output", tmp_path / "out"]
    refused("often active", *options, "--edit", tmp_path / "e.safetensors", "--proof-prompt", "a house")
    refused("--residual keep only", *options, "--concepts", "Neon", "--residual", "drop")
    steer({3: 0.0}, sae, HOOKPOINT, residual="drop").save(tmp_path / "d.safetensors")
    refused("residual keep only", *options, "--edit", tmp_path / "d.safetensors", "--proof-prompt", "a house")


@pytest.mark.parametrize("name", ["screen_weight", "screen_bias"])
def test_its_tensors_fail_closed(unet, sae, edit, tmp_path, name):
    edited = bake(unet, edit, {HOOKPOINT: sae}, "screened")
    edited.save_pretrained(tmp_path / "unet")
    path = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    for changed in (
        {k: v for k, v in tensors.items() if not k.endswith(name)},
        {k: v + k.endswith(name) if v.is_floating_point() else v for k, v in tensors.items()},
    ):
        save_file(changed, path, metadata={"format": "pt"})
        with pytest.raises(AblationIntegrityError):
            AblatedUNet2DConditionModel.from_pretrained(tmp_path / "unet")
    getattr(edited.ablations[KEY], name).fill_(float("nan"))
    x, c = inputs(1)
    assert same(edited(x, 501, c).sample, bake(unet, edit, {HOOKPOINT: sae})(x, 501, c).sample), "unloaded, it rules out nothing"
