"""The interface to a denoiser: what the UNet's file gives, and that a second kind of network needs its file and an entry in `FAMILIES` alone."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from tests.conftest import HOOKPOINT, edit_of, inputs, make_activations, make_sae, make_unet
from torch import nn

from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.denoisers import families
from saeuron.editor.denoisers.denoiser import Denoiser
from saeuron.editor.denoisers.families import FAMILIES, Family, denoiser_of, network_of
from saeuron.editor.denoisers.sampling import observe
from saeuron.editor.denoisers.sizes import Sizes, grid
from saeuron.editor.denoisers.unet import UNet
from saeuron.editor.edit.hook import AblationHook

PLACE, WIDTH, TEXT, LEVELS = "blocks.1", 32, 5, (901.0, 501.0, 101.0)


class Block(nn.Module):
    """Mixes text and image; returns `(text, image)`, as FLUX's and SD3's blocks do."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(WIDTH, WIDTH)

    def forward(self, text, image):
        both = torch.tanh(self.mix(torch.cat([text, image], 1))) + torch.cat([text, image], 1)
        return both[:, : text.shape[1]], both[:, text.shape[1] :]


class MadeUp(nn.Module):
    """Tokens instead of maps, the noise as σ from 0 to 1, the text by another name and in another place."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks, self.inward, self.outward = nn.ModuleList([Block(), Block(), Block()]), nn.Linear(4, WIDTH), nn.Linear(WIDTH, 4)

    def forward(self, latents, text, *, sigma):
        image = self.inward(latents) * (1 + sigma.reshape(-1, 1, 1))
        for block in self.blocks:
            text, image = block(text, image)
        return (self.outward(image),)


@dataclass(frozen=True)
class OfMadeUp(Denoiser):
    """Its guidance calls the network twice: with the prompts, then with the negative ones."""

    component, cls, noun, blocks, float32 = "transformer", "MadeUp", "transformer", r"blocks\.\d+", ("sigma",)
    network_class = MadeUp

    def tokens(self, name, output):
        return output[1]

    def with_tokens(self, name, output, tokens):
        return output[0], tokens

    def input_tokens(self, name, args, kwargs):
        return args[1]

    def inputs(self, args, kwargs):
        return {name: self.bound(args, kwargs)[name] for name in ("latents", "text", "sigma")}

    def call(self, network, inputs):
        return network(inputs["latents"], inputs["text"], sigma=inputs["sigma"])[0]

    def noise_level(self, inputs):
        return 1000 * inputs["sigma"].reshape(-1)

    def at_level(self, level, rows):
        raise NotImplementedError

    def rows(self, guided):
        return 1

    def prompted(self, call, pictures, guided):
        return None if guided and call % 2 else slice(None)

    axes = unit = sizes = unscaled = check_fit = calibrating = at_level


@pytest.fixture
def made_up(monkeypatch):
    """The network, where its kind is known."""
    monkeypatch.setattr(families, "FAMILIES", (*FAMILIES, Family("MadeUpPipeline", OfMadeUp(), (), (), ())))
    return MadeUp().eval().requires_grad_(False)


def given(seed=0, rows=2, sigma=(0.501,)):
    generator = torch.Generator().manual_seed(seed)
    latents, text = torch.randn(rows, 12, 4, generator=generator), torch.randn(rows, TEXT, WIDTH, generator=generator)
    return {"latents": latents, "text": text, "sigma": torch.tensor(sigma)}


def by_hand(network, sae, edit, x):
    """The output with METHOD's formulas in the middle, written without the hook, the interface or a table look-up."""
    part = edit.hookpoints[PLACE]
    image = network.inward(x["latents"]) * (1 + x["sigma"].reshape(-1, 1, 1))
    text, image = network.blocks[0](x["text"], image)
    before, (text, image) = image, network.blocks[1](text, image)
    read = image - before if sae.config.reads == "delta" else image
    z = torch.relu((read - sae.b_dec) @ sae.W_enc.T + sae.b_enc)
    kth = z.sort(-1, descending=True).values[..., sae.config.k - 1 : sae.config.k]
    edited = []
    for b in range(len(image)):
        level = 1000 * float(x["sigma"].expand(len(image))[b])
        row = min(range(len(part.timesteps)), key=lambda i: abs(float(part.timesteps[i]) - level))
        new = image[b]
        for u, feature in enumerate(part.features.tolist()):
            fires = (z[b, :, feature] >= kth[b, :, 0]) & (z[b, :, feature] > part.thresholds[row, u])
            new = new + (fires * (part.gains[row, u] - 1) * z[b, :, feature])[:, None] * sae.W_dec[feature]
        edited.append(new)
    return network.outward(network.blocks[2](text, torch.stack(edited))[1])


@pytest.mark.parametrize("reads", ["output", "delta"])
@pytest.mark.parametrize("sigma", [(0.501,), (0.9, 0.12)])
def test_the_hook_edits_another_kind_of_network(made_up, reads, sigma):
    sae = make_sae(reads=reads)
    edit = edit_of(make_activations(), ("A", "count:20", -3.0), hookpoint=PLACE)
    x = given(sigma=sigma)
    call = denoiser_of(made_up).call
    unedited = call(made_up, x)
    with AblationHook(made_up, edit, {PLACE: sae}, record=True, record_tokens=True) as hook:
        hooked = call(made_up, x)
    (decision,), (seen,) = hook.decisions[PLACE], hook.seen
    assert 0 < decision.fires.float().mean() < 1 and decision.fires.shape[:2] == (2, 12), "image tokens alone"
    assert seen[PLACE].output.shape == (2, 12, WIDTH) and (seen[PLACE].before is None) == (reads == "output")
    wanted = by_hand(made_up, sae, edit, x)
    assert (wanted - unedited).norm() > 0.05 * unedited.norm() and torch.allclose(hooked, wanted, atol=1e-5)
    assert torch.equal(call(made_up, x), unedited), "the hook is gone"


@pytest.mark.parametrize("reads", ["output", "delta"])
def test_the_prompted_rows_of_guidance_in_two_calls(made_up, reads):
    seen, denoiser = [], denoiser_of(made_up)
    calls = [given(seed, 3, (s,)) for seed, s in enumerate((0.9, 0.9, 0.5, 0.5))]
    with observe(made_up, {PLACE: reads}, lambda level, tokens: seen.append((level, tokens[PLACE])), 3, guided=True):
        for x in calls:
            denoiser.call(made_up, x)
    assert [round(level) for level, _ in seen] == [900, 500]
    for (_, tokens), x in zip(seen, calls[::2], strict=True):
        text, before = made_up.blocks[0](x["text"], made_up.inward(x["latents"]) * (1 + x["sigma"].reshape(-1, 1, 1)))
        image = made_up.blocks[1](text, before)[1]
        assert torch.equal(tokens, image - before if reads == "delta" else image)


def test_a_block_that_is_not_there_is_named_with_the_kinds_own_blocks(made_up):
    edit = edit_of(make_activations(), ("A", "count:20", -3.0), hookpoint="blocks.9")
    with pytest.raises(
        SaeuronError, match=r"'blocks.9' is not in this transformer; its transformer blocks are: blocks.0, blocks.1, blocks.2"
    ):
        AblationHook(made_up, edit, {"blocks.9": make_sae()})
    assert network_of(type("MadeUpPipeline", (), {"transformer": made_up})()) is made_up


def test_a_network_of_no_known_kind_is_refused():
    with pytest.raises(
        SaeuronError,
        match="Linear can't be edited; only UNet2DConditionModel, SD3Transformer2DModel, FluxTransformer2DModel, SanaTransformer2DModel and PixArtTransformer2DModel can",
    ):
        denoiser_of(nn.Linear(1, 1))


def test_prompted_rows_of_a_unet_are_the_last():
    unet, (x, c), whole, some = make_unet(), inputs(4), [], []
    for guided in (False, True):
        with observe(unet, {HOOKPOINT: "output"}, lambda level, tokens: whole.append(tokens[HOOKPOINT])):
            unet(x, 501, c)
        with observe(unet, {HOOKPOINT: "output"}, lambda level, tokens: some.append(tokens[HOOKPOINT]), 2 if guided else 4, guided):
            unet(x, timestep=501, encoder_hidden_states=c)
    assert torch.equal(some[0], whole[0]) and torch.equal(some[1], whole[1][2:])


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: (m, "more"), lambda m: SimpleNamespace(sample=m)])
def test_a_unets_maps_as_tokens_and_back(wrap):
    denoiser, feature_map = UNet(), torch.randn(2, 3, 4, 5)
    tokens = denoiser.tokens("up", wrap(feature_map))
    assert tokens.shape == (2, 20, 3) and torch.equal(tokens[1, 7], feature_map[1, :, 1, 2])
    output = denoiser.with_tokens("up", wrap(feature_map), tokens + 1)
    found = output if torch.is_tensor(output) else output[0] if isinstance(output, tuple) else output.sample
    assert torch.equal(found, feature_map + 1) and (not isinstance(output, tuple) or output[1] == "more")
    assert torch.equal(denoiser.input_tokens("up", (), {"hidden_states": feature_map}), tokens)
    with pytest.raises(SaeuronError, match="does not give a feature map"):
        denoiser.tokens("up", wrap(torch.randn(2, 20, 3)))


@pytest.mark.parametrize("timestep", [501, 501.25, torch.tensor(501), torch.tensor([501.5]), torch.tensor([501, 101])])
def test_a_unets_call_by_its_inputs_is_the_call(timestep):
    """By place, by name, or mixed; what comes out is what went in."""
    unet, (x, c), denoiser = make_unet(), inputs(2), UNet()
    wanted = unet(x, timestep, c).sample
    for args, kwargs in (((x, timestep, c), {}), ((x,), {"encoder_hidden_states": c, "timestep": timestep}), ((x, timestep), {"encoder_hidden_states": c})):  # fmt: skip
        found = denoiser.inputs(args, {**kwargs, "return_dict": False})
        assert list(found) == ["sample", "timestep", "encoder_hidden_states"] and torch.equal(denoiser.call(unet, found), wanted)
        assert denoiser.noise_level(found).tolist() == torch.as_tensor(timestep).float().reshape(-1).tolist()


def test_sdxls_conditions_are_inputs():
    added = {"text_embeds": torch.ones(2, 20), "time_ids": torch.ones(2, 6)}
    found = UNet().inputs(
        (torch.ones(2, 4, 8, 8),), {"timestep": 1, "encoder_hidden_states": torch.ones(2, 6, 24), "added_cond_kwargs": added}
    )
    assert list(found) == ["sample", "timestep", "encoder_hidden_states", "text_embeds", "time_ids"]
    config = {
        "in_channels": 4, "cross_attention_dim": [24, 24], "addition_embed_type": "text_time", "projection_class_embeddings_input_dim": 68,
        "addition_time_embed_dim": 8,
    }  # fmt: skip
    shapes = UNet().shapes(config, 2, (8, 12), 6)
    assert shapes == {
        "sample": (2, 4, 8, 12),
        "timestep": (),
        "encoder_hidden_states": (2, 6, 24),
        "text_embeds": (2, 20),
        "time_ids": (2, 6),
    }
    assert UNet().axes(config)[1] == {"out_sample": ("batch_size", 4, "latent_height", "latent_width")}


def test_latents_are_unscaled_as_the_pipeline_of_the_kind_does():
    vae = {"scaling_factor": 0.5, "latents_mean": [1.0, 2.0], "latents_std": [3.0, 4.0]}
    latents = torch.ones(1, 2, 1, 1)
    assert UNet().unscaled(latents, vae).flatten().tolist() == [2.0, 2.0]
    for values in (latents, latents.numpy()):
        assert UNet(normalises_latents=True).unscaled(values, vae).flatten().tolist() == [7.0, 10.0]
    assert UNet(normalises_latents=True).unscaled(latents, {**vae, "latents_std": None}).flatten().tolist() == [2.0, 2.0]


@pytest.mark.parametrize(("tokens", "height", "width", "wanted"), [(24, 16, 24, (4, 6)), (24, 24, 16, (6, 4)), (256, 512, 512, (16, 16)), (15, 72, 136, (3, 5))])  # fmt: skip
def test_tokens_lie_in_the_pictures_shape(tokens, height, width, wanted):
    assert grid(tokens, height, width) == wanted


def test_sizes_of_a_unet():
    config = {"in_channels": 4, "sample_size": (8, 12), "block_out_channels": (16, 32, 32)}
    sizes = UNet().sizes(config, {"block_out_channels": [8, 16]})
    assert sizes == Sizes(4, (8, 12), 2, 8) and sizes.noise() == (4, 8, 12) and sizes.noise(32, 16) == (4, 16, 8)
