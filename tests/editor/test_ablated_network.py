"""The static module against the dynamic hook, and its failing closed."""

import copy
import json
import pickle
import threading

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests.conftest import HOOKPOINT, edit_of, inputs, make_activations, make_sae, make_unet

from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.edit.ablated_kinds import AblatedUNet2DConditionModel
from saeuron.editor.edit.ablated_network import SENTINEL
from saeuron.editor.edit.bake import bake
from saeuron.editor.edit.edit import Suppression, make_edit
from saeuron.editor.edit.feature_ablation import AblationIntegrityError
from saeuron.editor.edit.hook import AblationHook
from saeuron.editor.features.rule import Rule

KEY = HOOKPOINT.replace(".", "-")
BARS = {torch.float32: 0.01, torch.float16: 0.1, torch.bfloat16: 0.1}


def compare(unet, edited, edit, saes, x, t, c, gate="exact"):
    """Share of the effect by which baked and hooked outputs differ; the share of decisions that fired."""
    plain = unet(x, t, c).sample.float()
    with AblationHook(unet, edit, saes, gate, record=True) as hook:
        hooked = unet(x, t, c).sample.float()
    effect = (hooked - plain).norm()
    assert effect > 0, "the edit never fired"
    return float((edited(x, t, c).sample.float() - hooked).norm() / effect), hook.decisions


@pytest.mark.parametrize("residual", ["keep", "upstream", "drop"])
@pytest.mark.parametrize("unit_norm", [False, True])
@pytest.mark.parametrize("shape", [(1, 8, 8), (4, 8, 8), (2, 8, 12), (2, 16, 4)])
def test_equals_the_hook(unet, residual, unit_norm, shape):
    sae = make_sae(unit_norm=unit_norm)
    edit = edit_of(make_activations(), ("A", "count:20", -3.0), ("B", "percentile:90", -2.0), residual=residual)
    edited = bake(unet, edit, {HOOKPOINT: sae})
    for seed, t in enumerate((901, 501.0, torch.tensor(333.3), 451)):
        x, c = inputs(*shape, seed=seed)
        assert compare(unet, edited, edit, {HOOKPOINT: sae}, x, t, c)[0] < 1e-3


KINDS = [
    {"activation": "jumprelu"},
    {"reads": "delta"},
    {"subtract_bias": False},
    {"activation": "jumprelu", "reads": "delta", "unit_norm": True},
]


@pytest.mark.parametrize("residual", ["keep", "upstream", "drop"])
@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_of_sae_equal_the_hook(unet, residual, kind):
    sae = make_sae(**kind)
    edit = edit_of(make_activations(scale=0.1), ("A", "count:20", -3.0), ("B", "percentile:90", -2.0), residual=residual)
    edited = bake(unet, edit, {HOOKPOINT: sae})
    whole = residual != "keep" or sae.config.activation == "topk"
    assert len(edited.ablations[KEY].encoder_weight) == (sae.config.num_latents if whole else len(edit.hookpoints[HOOKPOINT].features))
    for seed, t in enumerate((901, 333.3)):
        x, c = inputs(2, 8, 12, seed=seed)
        assert compare(unet, edited, edit, {HOOKPOINT: sae}, x, t, c)[0] < 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("residual", "how"),
    [("keep", "multiply"), ("upstream", "multiply"), ("drop", "multiply"), ("keep", "zero"), ("keep", "clamp"), ("drop", "clamp")],
)
def test_the_hook_is_the_formula(unet, kind, residual, how):
    """Method, sections 4 and 5b, token by token: what the SAE reads, what fires, what becomes of it and of the error."""
    sae = make_sae(**kind)
    activations = make_activations(scale=0.1)
    wish = Suppression("A", HOOKPOINT, Rule.parse("count:20"), -3.0, how)
    edit = make_edit([wish], {("A", HOOKPOINT): activations}, residual)
    strength = activations.means[activations.concepts.index("A")]
    part = edit.hookpoints[HOOKPOINT]
    x, c = inputs(1)
    block, seen = unet.get_submodule(HOOKPOINT), {}
    handle = block.register_forward_hook(
        lambda m, a, k, o: seen.update(before=a[0], after=o[0] if isinstance(o, tuple) else o), with_kwargs=True
    )
    unet(x, 501, c)
    handle.remove()
    with AblationHook(unet, edit, {HOOKPOINT: sae}):
        handle = block.register_forward_hook(lambda m, a, o: seen.update(edited=o[0] if isinstance(o, tuple) else o))
        unet(x, 501, c)
        handle.remove()
    before, after, edited = (seen[n][0].flatten(1).T for n in ("before", "after", "edited"))
    row = int((part.timesteps - 501).abs().argmin())
    for token, plain, result in zip(before, after, edited, strict=True):
        base = token if sae.config.reads == "delta" else torch.zeros_like(token)
        read = plain - base
        mean, scale = (read.mean(), read.std() + 1e-5) if sae.config.input_unit_norm else (0.0, 1.0)
        z = torch.relu(sae.W_enc @ ((read - mean) / scale - (sae.b_dec if sae.config.subtract_bias else 0)) + sae.b_enc)
        member = z > sae.threshold if sae.config.activation == "jumprelu" else z >= z.sort(descending=True).values[sae.config.k - 1]
        z = z * member
        changed = z.clone()
        for j, feature in enumerate(part.features.tolist()):
            if z[feature] > part.thresholds[row, j]:
                bar = part.thresholds[row, j]
                changed[feature] = {"multiply": -3 * strength[row, feature] * z[feature], "zero": 0.0, "clamp": min(z[feature], bar)}[how]
        made, was = ((v @ sae.W_dec + sae.b_dec) * scale + mean for v in (changed, z))
        expected = {"keep": made + (read - was), "upstream": made + (was - read), "drop": made}[residual] + base
        assert torch.allclose(result, expected, atol=2e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_equals_the_hook_in_16_bits(dtype, sae):
    unet = make_unet().to(dtype)
    # A strong edit, so that its effect stands out of a random network's rounding.
    edit = edit_of(make_activations(), ("A", "count:60", -12.0))
    edited = bake(unet, edit, {HOOKPOINT: sae})
    x, c = inputs(4, dtype=dtype)
    assert compare(unet, edited, edit, {HOOKPOINT: sae}, x, 501, c)[0] < BARS[dtype]
    assert edited.ablations[KEY].gains.dtype == torch.float32 and edited.ablations[KEY].encoder_weight.dtype == dtype


def test_threshold_gate_equals_its_hook(unet, sae, edit):
    edited = bake(unet, edit, {HOOKPOINT: sae}, gate="threshold")
    assert edited.ablations[KEY].encoder_weight.shape[0] == len(edit.hookpoints[HOOKPOINT].features)
    x, c = inputs(4)
    assert compare(unet, edited, edit, {HOOKPOINT: sae}, x, 501, c, "threshold")[0] < 1e-3


def test_one_timestep_a_row_equals_single_forwards(unet, sae, edit):
    edited = bake(unet, edit, {HOOKPOINT: sae})
    x, c = inputs(3)
    t = torch.tensor([901.0, 401.0, 12.5])
    rows = edited(x, t, c).sample
    for i in range(3):
        assert torch.allclose(rows[i : i + 1], edited(x[i : i + 1], t[i], c[i : i + 1]).sample, atol=1e-5)
    assert compare(unet, edited, edit, {HOOKPOINT: sae}, x, t, c)[0] < 1e-3


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 999), min_size=1, max_size=12, unique=True), st.floats(0, 1000, width=32))
def test_nearest_timestep_and_halfway_takes_the_larger(stored, t):
    stored = sorted(stored, reverse=True)
    module = bake_rows(stored)
    expected = min(stored, key=lambda s: (abs(s - t), -s))
    assert stored[int(module.rows(torch.tensor([t])))] == expected
    for a, b in zip(stored, stored[1:], strict=False):
        assert stored[int(module.rows(torch.tensor([(a + b) / 2])))] == a


def bake_rows(timesteps):
    from saeuron.editor.edit.feature_ablation import FeatureAblation

    module = FeatureAblation(4, 8, 2, 1, len(timesteps))
    module.timesteps.copy_(torch.tensor(timesteps))
    return module


def test_bit_identical_where_nothing_fires(unet, sae, edit):
    for part in edit.hookpoints.values():
        part.thresholds[:] = 1e6
    edited = bake(unet, edit, {HOOKPOINT: sae})
    x, c = inputs(2, 8, 12)
    assert torch.equal(edited(x, 501, c).sample, unet(x, 501, c).sample)


def test_several_hookpoints_at_once(unet):
    other = "up_blocks.1.attentions.1"
    a, b = make_sae(), make_sae(width=16, latents=96, seed=5)
    one = edit_of(make_activations(), ("A", "count:20", -3.0))
    two = edit_of(make_activations(latents=96, seed=2), ("C", "count:10", -3.0), hookpoint=other)
    one.hookpoints |= two.hookpoints
    saes = {HOOKPOINT: a, other: b}
    x, c = inputs(2)
    share, decisions = compare(unet, bake(unet, one, saes), one, saes, x, 501, c)
    assert share < 1e-3 and all(d[0].fires.any() for d in decisions.values())


def test_two_threads_keep_their_timesteps(unet, sae, edit):
    edited = bake(unet, edit, {HOOKPOINT: sae})
    x, c = inputs(1)
    times = (951.0, 51.0)
    expected = {t: edited(x, t, c).sample for t in times}
    wrong = []

    def work(t):
        for _ in range(20):
            if not torch.equal(edited(x, t, c).sample, expected[t]):
                wrong.append(t)

    threads = [threading.Thread(target=work, args=(t,)) for t in times * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_traces_with_torch_export(unet, sae, edit):
    edited = bake(unet, edit, {HOOKPOINT: sae})
    x, c = inputs(2)
    program = torch.export.export(edited, (x, torch.tensor(501.0), c), {"return_dict": False})
    for t in (901.0, 77.7):
        assert torch.allclose(program.module()(x, torch.tensor(t), c, return_dict=False)[0], edited(x, t, c).sample, atol=1e-5)


def test_copies_carry_their_own_edit(unet, sae, edit):
    edited = bake(unet, edit, {HOOKPOINT: sae})
    x, c = inputs(2)
    expected = edited(x, 501, c).sample
    for clone in (copy.deepcopy(edited), pickle.loads(pickle.dumps(edited))):
        assert torch.equal(clone(x, 501, c).sample, expected)
        clone.ablations[KEY].gains.fill_(1.0)
        assert torch.equal(clone(x, 501, c).sample, unet(x, 501, c).sample)
    assert torch.equal(edited(x, 501, c).sample, expected)


def test_keeps_the_hookpoints_parameter_names(unet, sae, edit):
    stock = {k.replace("conv_in.", "edited_conv_in.", 1) if k.startswith("conv_in.") else k for k in unet.state_dict()}
    edited = bake(unet, edit, {HOOKPOINT: sae}).state_dict()
    assert {k for k in edited if not k.startswith("ablations.")} == stock | {"conv_in.bias"}


def test_gradients_reach_the_input(unet, sae, edit):
    edited = bake(unet, edit, {HOOKPOINT: sae})
    x, c = inputs(1)
    grads = []
    for model, context in ((edited, None), (unet, AblationHook(unet, edit, {HOOKPOINT: sae}))):
        leaf = c.clone().requires_grad_(True)
        if context is None:
            model(x, 501, leaf).sample.sum().backward()
        else:
            with context:
                model(x, 501, leaf).sample.sum().backward()
        grads.append(leaf.grad)
    assert grads[0].abs().sum() > 0 and torch.allclose(grads[0], grads[1], atol=1e-4)


# --- refusing --------------------------------------------------------------------------------------------------------


def test_baking_an_edited_or_hooked_unet_is_refused(unet, sae, edit):
    edited = bake(unet, edit, {HOOKPOINT: sae})
    with pytest.raises(SaeuronError, match="already carries an edit"):
        bake(edited, edit, {HOOKPOINT: sae})
    with AblationHook(unet, edit, {HOOKPOINT: sae}), pytest.raises(SaeuronError, match="forward hooks"):
        bake(unet, edit, {HOOKPOINT: sae})
    bake(unet, edit, {HOOKPOINT: sae})


def test_bad_combinations_are_refused(unet, sae, edit):
    edit.residual = "upstream"
    with pytest.raises(SaeuronError, match="residual 'keep'"):
        bake(unet, edit, {HOOKPOINT: sae}, gate="threshold")
    with pytest.raises(SaeuronError, match="gate 'fast'"):
        bake(unet, edit, {HOOKPOINT: sae}, gate="fast")
    with pytest.raises(SaeuronError, match="latents"):
        bake(unet, edit, {HOOKPOINT: make_sae(latents=128)})


# --- failing closed --------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(unet, sae, edit, tmp_path):
    edited = bake(unet, edit, {HOOKPOINT: sae})
    edited.save_pretrained(tmp_path / "unet")
    return tmp_path / "unet", edited


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_loads_with_tables_in_float32(saved, dtype):
    folder, edited = saved
    loaded = AblatedUNet2DConditionModel.from_pretrained(folder, torch_dtype=dtype)
    for name in ("thresholds", "gains", "offsets"):
        assert torch.equal(getattr(loaded.ablations[KEY], name), getattr(edited.ablations[KEY], name))
    assert loaded.ablations[KEY].encoder_weight.dtype == dtype
    loaded.save_pretrained(folder / "again")
    AblatedUNet2DConditionModel.from_pretrained(folder / "again")


def test_casts_keep_the_tables(unet, sae, edit):
    edited = bake(unet, edit, {HOOKPOINT: sae})
    gains = edited.ablations[KEY].gains.clone()
    for cast in (lambda m: m.half(), lambda m: m.to(torch.bfloat16), lambda m: m.float()):
        edited = cast(edited)
        assert torch.equal(edited.ablations[KEY].gains, gains)


def test_the_plain_class_raises(saved):
    folder, _ = saved
    with pytest.raises(ValueError, match=SENTINEL):
        UNet2DConditionModel.from_pretrained(folder)


def test_a_stock_weight_is_missing_under_its_stock_name(saved):
    keys = load_file(saved[0] / "diffusion_pytorch_model.safetensors")
    assert "conv_in.weight" not in keys and "edited_conv_in.weight" in keys


TENSORS = ["encoder_weight", "encoder_bias", "pre_bias", "decoder_weight", "features", "timesteps", "thresholds", "gains", "offsets"]


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("change", ["removed", "zeroed", "truncated", "one bit"])
def test_any_change_of_an_edit_tensor_raises(saved, name, change):
    folder, _ = saved
    path = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    key = f"ablations.{KEY}.{name}"
    if change == "removed":
        del tensors[key]
    elif change == "zeroed":
        tensors[key] = torch.full_like(tensors[key], float(name == "offsets"))  # which are zero
    elif change == "truncated":
        tensors[key] = tensors[key][:-1].clone()
    else:
        raw = tensors[key].clone().view(torch.uint8)
        raw.view(-1)[0] ^= 1
        tensors[key] = raw.view(tensors[key].dtype)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises((AblationIntegrityError, ValueError)):
        AblatedUNet2DConditionModel.from_pretrained(folder)


@pytest.mark.parametrize("change", [{"ablation": ...}, {"mid_block_type": "UNetMidBlock2DCrossAttn"}, {"ablation": {"hookpoints": {}}}])
def test_a_changed_config_raises(saved, change):
    folder, _ = saved
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))
    with pytest.raises(AblationIntegrityError):
        AblatedUNet2DConditionModel.from_pretrained(folder)


@pytest.mark.parametrize("name", [n for n in TENSORS if n not in ("features", "timesteps")])
def test_an_unloaded_tensor_shows_as_nan(unet, sae, edit, name):
    """A loader that fills only what it knows gets NaN, never the unedited model."""
    edited = bake(unet, edit, {HOOKPOINT: sae})
    x, c = inputs(1)
    getattr(edited.ablations[KEY], name).fill_(float("nan"))
    assert not torch.equal(edited(x, 501, c).sample, unet(x, 501, c).sample)
    if name != "thresholds":
        assert edited(x, 501, c).sample.isnan().any()


def test_a_block_run_outside_its_unet_raises(unet, sae, edit):
    edited = bake(unet, edit, {HOOKPOINT: sae})
    with pytest.raises(AblationIntegrityError, match="without their edit; call the network"):
        edited.get_submodule(HOOKPOINT)(torch.randn(1, 32, 4, 4), torch.randn(1, 6, 24))


def test_the_hook_ignores_how_often_it_was_called(unet, sae, edit):
    """The released hook counts calls; ours looks the timestep up, so a second pipeline run is the same."""
    x, c = inputs(1)
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(4)
    with AblationHook(unet, edit, {HOOKPOINT: sae}):
        first = [unet(x, t, c).sample for t in scheduler.timesteps]
        second = [unet(x, t, c).sample for t in scheduler.timesteps.flip(0)]
    assert all(torch.equal(a, b) for a, b in zip(first, second[::-1], strict=True))


def test_a_class_that_copies_blocks_raises(unet, sae, edit):
    """AnimateDiff copies the UNet block by block into a class of its own, which would leave the edit behind."""
    from diffusers import UNetMotionModel
    from diffusers.models import MotionAdapter

    edited = bake(unet, edit, {HOOKPOINT: sae})
    adapter = MotionAdapter(block_out_channels=(16, 32), motion_layers_per_block=1, motion_num_attention_heads=2, motion_norm_num_groups=8)
    with pytest.raises(AblationIntegrityError, match="would lose"):
        UNetMotionModel.from_unet2d(edited, adapter)


def test_controlnets_made_from_an_edited_unet_raise(unet, sae, edit):
    from diffusers import ControlNetModel, ControlNetXSAdapter, UNetControlNetXSModel

    edited = bake(unet, edit, {HOOKPOINT: sae})
    with pytest.raises(ValueError, match="SaeuronAblated"):
        ControlNetModel.from_unet(edited)
    adapter = ControlNetXSAdapter.from_unet(unet, size_ratio=1.0, num_attention_heads=2)
    with pytest.raises((AblationIntegrityError, ValueError), match="SaeuronAblated|would lose"):
        UNetControlNetXSModel.from_unet(edited, adapter)


def test_saving_an_edit_whose_tables_were_changed_raises(unet, sae, edit, tmp_path):
    """A cast may change the weights that were sealed; nothing may change what decides."""
    edited = bake(unet, edit, {HOOKPOINT: sae})
    edited.half().save_pretrained(tmp_path / "cast")
    AblatedUNet2DConditionModel.from_pretrained(tmp_path / "cast")
    edited.ablations[KEY].gains.fill_(1.0)
    with pytest.raises(AblationIntegrityError, match="tables were changed"):
        edited.save_pretrained(tmp_path / "weakened")
    edited.ablations[KEY].encoder_bias.fill_(float("nan"))
    with pytest.raises(AblationIntegrityError, match="not loaded"):
        edited.save_pretrained(tmp_path / "unloaded")
    assert not (tmp_path / "weakened").exists() and not (tmp_path / "unloaded").exists()


@pytest.mark.parametrize("residual", ["upstream", "drop"])
def test_a_whole_decode_in_bf16_stays_with_the_hook(activations, residual):
    """Decoded in bf16, the reconstruction's rounding alone was 4 to 5 % of a small edit's effect."""
    unet, sae = make_unet().to(torch.bfloat16), make_sae()
    edit = edit_of(activations, ("A", "count:20", -3.0), residual=residual)
    sample, context = inputs(dtype=torch.bfloat16)
    with torch.no_grad():
        with AblationHook(unet, edit, {HOOKPOINT: sae}):
            hook = unet(sample, 500, context)[0].float()
        with AblationHook(unet, edit.neutral(), {HOOKPOINT: sae}):
            neutral = unet(sample, 500, context)[0].float()
        baked = bake(unet, edit, {HOOKPOINT: sae})(sample, 500, context)[0].float()
    assert float((baked - hook).norm()) <= 0.01 * float((hook - neutral).norm())
