"""An edit by hand does what a naive hook does, in its range and nowhere else."""

import pytest
import torch
from tests.conftest import HOOKPOINT, inputs, make_sae, make_unet

import saeuron
from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.denoisers.sampling import capture
from saeuron.editor.edit.bake import bake
from saeuron.editor.edit.edit import Edit
from saeuron.editor.edit.hook import AblationHook
from saeuron.editor.edit.steering import steer, steering_edit

KINDS = {
    "topk": {}, "jumprelu": {"activation": "jumprelu"}, "unit_norm": {"unit_norm": True}, "plain": {"subtract_bias": False}, "delta": {"reads": "delta"},
}  # fmt: skip


def to_tokens(feature_map):
    return feature_map.flatten(2).transpose(1, 2)


def forward(unet, timestep, **kind):
    sample, context = inputs(seed=11, **kind)
    with torch.no_grad():
        return unet(sample, timestep, context).sample


def naive(unet, sae, gains, residual):
    """The output of a forward in which z_i is multiplied, written without any of the edit's code."""

    def hook(module, args, kwargs, output):
        out = output[0] if isinstance(output, tuple) else output.sample
        x = to_tokens(out - args[0] if sae.config.reads == "delta" else out)
        z = sae.encode(x)
        edited = z.clone()
        for feature, gain in gains.items():
            edited[..., feature] = gain * z[..., feature]
        y = {"keep": x - sae.decode(z, x) + sae.decode(edited, x), "drop": sae.decode(edited, x),
             "upstream": sae.decode(edited, x) + sae.decode(z, x) - x}[residual]  # fmt: skip
        y = to_tokens(out) - x + y
        edited = y.transpose(1, 2).unflatten(-1, out.shape[-2:])
        return (edited, *output[1:]) if isinstance(output, tuple) else type(output)(sample=edited)

    return unet.get_submodule(HOOKPOINT).register_forward_hook(hook, with_kwargs=True)


def often_active(unet, sae, timestep=601, count=4):
    block_in = []
    handle = unet.get_submodule(HOOKPOINT).register_forward_pre_hook(
        lambda m, a, k: block_in.append(a[0] if a else k["hidden_states"]), with_kwargs=True
    )
    with capture(unet, [HOOKPOINT]) as seen:
        forward(unet, timestep)
    handle.remove()
    out = seen[0].outputs[HOOKPOINT]
    z = sae.encode(out - to_tokens(block_in[0]) if sae.config.reads == "delta" else out)
    return (z > 0).float().mean((0, 1)).topk(count).indices.tolist()


@pytest.mark.parametrize("residual", ["keep", "upstream", "drop"])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_a_hook_that_multiplies(kind, residual):
    unet, sae = make_unet(), make_sae(**KINDS[kind])
    gains = dict(zip(often_active(unet, sae), (-4.0, 0.0, 0.5, 3.0), strict=True))
    edit = steer(gains, sae, f"unet.{HOOKPOINT}", residual=residual, allow_amplify=True)
    unedited = forward(unet, 601)
    handle = naive(unet, sae, gains, residual)
    expected = forward(unet, 601)
    handle.remove()
    with AblationHook(unet, edit, {HOOKPOINT: sae}) as hook:
        hooked = forward(unet, 601)
    effect = (expected - unedited).norm()
    assert effect > 1e-3 * unedited.norm() and hook.tokens.edit.concepts == sorted(f"feature {i}" for i in gains)
    assert (hooked - expected).norm() < 1e-4 * effect
    assert (forward(bake(unet, edit, {HOOKPOINT: sae}), 601) - expected).norm() < 1e-4 * effect


@pytest.mark.parametrize("bounds", [(999, 500), (499, 0), (700, 300), (601, 601), (999, 0), (0, 0), (999, 999), None])
def test_the_range_is_kept_at_every_timestep(bounds):
    part = steer({3: -2.0}, make_sae(), HOOKPOINT, timesteps=bounds).hookpoints[HOOKPOINT]
    high, low = bounds or (999, 0)
    times = torch.arange(1000)
    acts = part.thresholds[part.rows(times.float()), 0].isfinite()
    assert torch.equal(acts, (times >= low) & (times <= high))
    assert torch.equal(part.gains[:, 0] == -2, part.thresholds[:, 0] == 0) and part.chosen["feature 3"] == [
        [3] if on else [] for on in part.thresholds[:, 0].isfinite().tolist()
    ]


def test_outside_the_range_nothing_changes():
    unet, sae = make_unet(), make_sae()
    gains = dict.fromkeys(often_active(unet, sae), -5.0)
    edited = bake(unet, steer(gains, sae, HOOKPOINT, timesteps=(999, 500)), {HOOKPOINT: sae})
    for timestep in (0, 261.5, 499):
        assert torch.equal(forward(edited, timestep), forward(unet, timestep))
    for timestep in (500, 500.25, 731, 999):
        assert not torch.equal(forward(edited, timestep), forward(unet, timestep))


def test_one_name_and_several_hookpoints(tmp_path):
    other = "up_blocks.1.attentions.1"
    saes = {HOOKPOINT: make_sae(), other: make_sae(width=16, latents=96)}
    edit = steering_edit({HOOKPOINT: {7: 0.0, 2: -1.0}, other: {5: 0.5}}, saes, name="mine")
    edit.save(tmp_path / "e.safetensors")
    held = Edit.load(tmp_path / "e.safetensors")
    assert held.sha256() == edit.sha256() and held.concepts == ["mine"]
    assert held.hookpoints[HOOKPOINT].features.tolist() == [2, 7] and held.hookpoints[HOOKPOINT].gains[0].tolist() == [-1, 0]
    assert [c.multiplier for c in held.provenance.concepts] == [-1.0, 0.0, 0.5]
    assert steering_edit({HOOKPOINT: {7: 0.0}, other: {7: 0.5}}, saes).concepts == [f"feature 7 of {h}" for h in (HOOKPOINT, other)]
    assert saeuron.steer is steer


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("--allow-amplify", {"features": {3: 1.5}}),
        ("changes nothing", {"features": {3: 1.0}}),
        ("no finite number", {"features": {3: float("nan")}}),
        ("features 0 to 255", {"features": {256: 0.0}}),
        ("features 0 to 255", {"features": {-1: 0.0}}),
        ("no feature", {"features": {}}),
        ("larger one first", {"timesteps": (100, 200)}),
        ("larger one first", {"timesteps": (1000, 200)}),
        ("residual", {"residual": "kept"}),
        ("no folder", {"sae": "/nowhere"}),
    ],
)
def test_refuses_what_cannot_be_meant(message, options):
    with pytest.raises(SaeuronError, match=message):
        steer(**({"features": {3: 0.0}, "sae": make_sae(), "hookpoint": HOOKPOINT} | options))


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("another type", {"gains": torch.zeros(2, 1, dtype=torch.float64)}),
        ("differ in shape", {"gains": torch.zeros(3, 1)}),
        ("no ascending latents", {"features": torch.tensor([256])}),
        ("not descending", {"timesteps": torch.tensor([0.0, 999.0])}),
        ("not finite", {"gains": torch.full((2, 1), float("inf"))}),
        ("another number of steps", {"chosen": {"feature 3": [[3]]}}),
    ],
)
def test_a_file_whose_tables_do_not_fit_is_refused(message, change, tmp_path):
    edit = steer({3: 0.0}, make_sae(), HOOKPOINT)
    for key, value in change.items():
        setattr(edit.hookpoints[HOOKPOINT], key, value)
    edit.save(tmp_path / "e.safetensors")
    with pytest.raises(SaeuronError, match=message):
        Edit.load(tmp_path / "e.safetensors")
