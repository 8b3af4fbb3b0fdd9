"""SD3, FLUX.1, Sana and PixArt: hook and baked network agree, nothing opens the edited one as if it weren't, what can't be edited is refused."""

import pytest
import torch
from diffusers.configuration_utils import FrozenDict
from tests.conftest import edit_of, make_sae
from tests.transformer_pipelines import HOOKPOINTS, MAKERS, make_flux, make_pixart, make_sana

from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.common.names import SENTINEL, normalise, stream_of
from saeuron.editor.denoisers.families import FAMILIES, denoiser_of, network_of, rebuilt, sizes_in, sizes_of
from saeuron.editor.denoisers.pipelines import load_pipeline, open_folder
from saeuron.editor.denoisers.sampling import denoise, initial_latents
from saeuron.editor.denoisers.schedulers import timesteps
from saeuron.editor.edit.bake import KINDS, bake
from saeuron.editor.edit.feature_ablation import AblationIntegrityError
from saeuron.editor.edit.hook import AblationHook
from saeuron.editor.features.collect import Sampling, collect

PROMPTS = {"cat": ["a cat", "a picture of cat"], "dog": ["a dog", "an image of dog"]}
PLACES = {
    "sd3": ("transformer_blocks.1", "transformer_blocks.0:text", "transformer_blocks.2"),
    "flux": ("transformer_blocks.0", "transformer_blocks.1:text", "single_transformer_blocks.1"),
    "sana": ("transformer_blocks.0", "transformer_blocks.1", "transformer_blocks.2"),
    "pixart": ("transformer_blocks.0", "transformer_blocks.1", "transformer_blocks.2"),
}
BAD_SCHEDULER = {
    "sd3": ({"stochastic_sampling": True}, "'stochastic_sampling' on"),
    "flux": ({"stochastic_sampling": True}, "'stochastic_sampling' on"),
    "sana": ({"algorithm_type": "sde-dpmsolver++"}, "draws noise at each step"),
    "pixart": ({"use_flow_sigmas": True}, "'use_flow_sigmas' on, but PixArt predicts noise"),
}


@pytest.fixture(scope="module", params=list(PLACES))
def made(request, tmp_path_factory):
    return request.param, MAKERS[request.param](tmp_path_factory.mktemp(request.param))


def parts(model, place, steps=3):
    pipeline, sae = load_pipeline(str(model)), make_sae()
    sampling = Sampling(steps=steps, guidance=3.0, height=32, width=wide(pipeline), seed=1)
    held = collect(pipeline, {place: sae}, PROMPTS, sampling)[place]
    return pipeline, edit_of(held, ("cat", "count:8", -3.0), hookpoint=place), {place: sae}


def wide(pipeline):
    """A width that isn't the model's own."""
    return 32 + max(16, sizes_of(pipeline).multiple)


def drawn(pipeline, height=32, width=None, steps=3):
    width = wide(pipeline) if width is None else width
    return denoise(pipeline, ["a cat", "a dog"], initial_latents(pipeline, [1, 2], height, width), [1, 2], steps, 3.0)


@pytest.mark.parametrize("number", range(3))
def test_the_baked_network_is_the_hooked_one(made, number):
    kind, model = made
    pipeline, edit, saes = parts(model, PLACES[kind][number])
    network = network_of(pipeline)
    baked = rebuilt(pipeline, transformer=bake(network, edit, saes))
    # Other sizes and step counts have other noise levels under dynamic shifting.
    for height, width, steps in ((32, wide(pipeline), 3), (32, 32, 5), (wide(pipeline), 64, 2)):
        plain = drawn(pipeline, height, width, steps)
        with AblationHook(network, edit, saes):
            hooked = drawn(pipeline, height, width, steps)
        effect = (hooked - plain).norm()
        assert effect > 0.05 * plain.norm()
        assert (drawn(baked, height, width, steps) - hooked).norm() < 1e-4 * effect


def test_the_hook_by_hand(made):
    """The edited stream's tokens by METHOD's formula, the other stream and the order of the rows untouched."""
    kind, model = made
    place = HOOKPOINTS[kind]
    pipeline, edit, saes = parts(model, place)
    network, part, sae = network_of(pipeline), edit.hookpoints[place], saes[place]
    seen = {}
    block = network.get_submodule(place)
    handle = block.register_forward_hook(lambda m, a, o: seen.setdefault("before", []).append(o))
    with AblationHook(network, edit, saes) as hook:
        after = block.register_forward_hook(lambda m, a, o: seen.setdefault("after", []).append((hook.timestep.clone(), o)))
        drawn(pipeline)
        after.remove()
    handle.remove()
    for before, (level, after) in zip(seen["before"], seen["after"], strict=True):
        image, image_after = before, after
        if isinstance(before, tuple):
            (text, image), (text_after, image_after) = before, after
            assert torch.equal(text, text_after)
        row = int((part.timesteps - level[0]).abs().argmin())
        z = torch.relu((image - sae.b_dec) @ sae.W_enc.T + sae.b_enc)
        kth = z.sort(-1, descending=True).values[..., sae.config.k - 1 : sae.config.k]
        wanted = image.clone()
        for u, feature in enumerate(part.features.tolist()):
            fires = (z[..., feature : feature + 1] >= kth) & (z[..., feature : feature + 1] > part.thresholds[row, u])
            wanted += fires * (part.gains[row, u] - 1) * z[..., feature : feature + 1] * sae.W_dec[feature]
        assert torch.allclose(image_after, wanted, atol=1e-4)


def test_loaders_give_the_edited_network_or_an_error(made, tmp_path):
    kind, model = made
    pipeline, edit, saes = parts(model, HOOKPOINTS[kind])
    network = network_of(pipeline)
    edited = bake(network, edit, saes)
    edited.save_pretrained(tmp_path)
    assert torch.equal(
        drawn(rebuilt(pipeline, transformer=type(edited).from_pretrained(tmp_path))), drawn(rebuilt(pipeline, transformer=edited))
    )
    with pytest.raises((ValueError, TypeError, NotImplementedError)):
        type(network).from_pretrained(tmp_path)
    with pytest.raises((RuntimeError, AblationIntegrityError)):
        network.load_state_dict(edited.state_dict(), strict=False)
    config = {k: v for k, v in edited.config.items() if not k.startswith("_")}
    mended = type(network).from_config({**config, denoiser_of(network).sentinel: config["ablation"]["stock"]})
    with pytest.raises(RuntimeError):
        mended.load_state_dict(edited.state_dict(), strict=False)


def test_what_passes_blocks_by_is_an_error(made):
    kind, model = made
    pipeline, edit, saes = parts(model, HOOKPOINTS[kind])
    baked = rebuilt(pipeline, transformer=bake(network_of(pipeline), edit, saes))
    with pytest.raises(AblationIntegrityError, match="cache"):
        baked.transformer.enable_cache(None)
    if kind == "sd3":
        latents = initial_latents(baked, [1], 32, 32)
        with pytest.raises(AblationIntegrityError, match="passed by"):
            denoise(
                baked,
                ["a cat"],
                latents,
                [1],
                4,
                3.0,
                skip_guidance_layers=[1],
                skip_layer_guidance_start=0.0,
                skip_layer_guidance_stop=1.0,
            )
    elif kind == "flux":
        from diffusers import FirstBlockCacheConfig
        from diffusers.hooks import apply_first_block_cache

        apply_first_block_cache(baked.transformer, FirstBlockCacheConfig(threshold=0.2))
        with pytest.raises(AblationIntegrityError, match="cache"):
            drawn(baked)
    else:
        baked.transformer.get_submodule(HOOKPOINTS[kind])._forward_hooks.clear()
        with pytest.raises(AblationIntegrityError, match="hooks removed"):
            drawn(baked)


def test_names_of_streams():
    assert normalise("transformer.transformer_blocks.18-1") == normalise("transformer_blocks.18:image") == "transformer_blocks.18"
    assert normalise("transformer_blocks.18-0") == "transformer_blocks.18:text"
    assert stream_of("transformer_blocks.18:text") == "text" and not stream_of("transformer_blocks.18")


def test_streams_that_are_not_there_are_refused(made):
    kind, model = made
    pipeline = load_pipeline(str(model))
    denoiser, network = denoiser_of(network_of(pipeline)), network_of(pipeline)
    with pytest.raises(SaeuronError, match="is not in this transformer; its transformer blocks are: transformer_blocks.0"):
        denoiser.find_hookpoint(network, "transformer_blocks.9")
    with pytest.raises(SaeuronError, match="has no stream 'noise'"):
        denoiser.find_hookpoint(network, "transformer_blocks.0:noise")
    if kind in ("sana", "pixart"):  # text goes into a block, and none comes out
        with pytest.raises(SaeuronError, match="has no stream 'text'; name the block alone"):
            denoiser.find_hookpoint(network, "transformer_blocks.0-0")
    if kind == "sd3":  # the last block gives no text
        with pytest.raises(SaeuronError, match="gives no tokens"):
            parts(model, "transformer_blocks.2:text")


def test_parts_that_do_not_fit_are_refused(made, tmp_path):
    import json
    import shutil

    kind, model = made
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    index = json.loads((copy / "model_index.json").read_text())
    t5 = {"sd3": "text_encoder_3", "flux": "text_encoder_2"}.get(kind, "text_encoder")
    (copy / "model_index.json").write_text(json.dumps({**index, t5: [None, None]}))
    with pytest.raises(SaeuronError, match=f"has no {t5}; only whole base models"):
        open_folder(str(copy))
    (copy / "model_index.json").write_text(json.dumps(index))
    path = copy / "scheduler" / "scheduler_config.json"
    scheduler = json.loads(path.read_text())
    changed, said = BAD_SCHEDULER[kind]
    path.write_text(json.dumps({**scheduler, **changed}))
    with pytest.raises(SaeuronError, match=said):
        open_folder(str(copy))
    path.write_text(json.dumps(scheduler))
    with pytest.raises(SaeuronError, match="multiples of"):
        sizes_in(copy).check_side(33, "height")
    if kind == "sd3":
        with pytest.raises(SaeuronError, match="at most 96 pixels"):
            sizes_in(copy).check_side(128, "height")


def test_models_of_other_kinds_are_refused(tmp_path):
    """A Sprint, PixArt-Alpha's micro-conditions, schedulers that a Sana can't follow."""
    from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

    sana, pixart = (load_pipeline(str(make(tmp_path / name))) for name, make in (("s", make_sana), ("p", make_pixart)))
    for pipeline, changes, said in (
        (sana, {"timestep_scale": 1000.0}, "'timestep_scale' .* is 1000.0"),
        (sana, {"guidance_embeds": True}, "'guidance_embeds'"),
        (sana, {"in_channels": 8, "out_channels": 8}, "takes 8 channels, the autoencoder's latents have 4"),
        (sana, {"caption_channels": 48}, "takes text of width 48, but text_encoder gives 40"),
        (pixart, {"use_additional_conditions": True}, "takes the picture's size as an input"),
        (pixart, {"use_additional_conditions": None, "sample_size": 128}, "takes the picture's size as an input"),
        (pixart, {"out_channels": 12}, "must be 4, or twice as many"),
    ):
        network = network_of(pipeline)
        denoiser = denoiser_of(network)
        denoiser.check_fit(network.config, pipeline.vae.config, {"text_encoder": pipeline.text_encoder.config})
        config = FrozenDict({**network.config, **changes})
        with pytest.raises(SaeuronError, match=said):
            denoiser.check_fit(config, pipeline.vae.config, {"text_encoder": pipeline.text_encoder.config})
    denoiser = denoiser_of(network_of(sana))
    for scheduler, said in (
        (EulerDiscreteScheduler(), "is a EulerDiscreteScheduler; with Sana only"),
        (DPMSolverMultistepScheduler(), "doesn't follow a flow"),
        (FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), "'use_dynamic_shifting' on"),
    ):
        with pytest.raises(SaeuronError, match=said):
            denoiser.check_scheduler(scheduler)


def test_sana_is_collected_along_either_of_its_schedulers(tmp_path):
    found = []
    for flow in (False, True):
        pipeline = load_pipeline(str(make_sana(tmp_path / str(flow), flow)))
        sampling = Sampling(steps=3, guidance=3.0, height=32, width=32, seed=1)
        found.append(collect(pipeline, {"transformer_blocks.1": make_sae()}, PROMPTS, sampling)["transformer_blocks.1"].timesteps)
        assert torch.equal(found[-1].double(), timesteps(pipeline.scheduler, 3))
    assert not torch.equal(*found)


def test_buffers_that_no_file_holds_are_baked(tmp_path):
    """PixArt's table of positions."""
    model = make_pixart(tmp_path)
    pipeline, edit, saes = parts(model, "transformer_blocks.1")
    network = network_of(pipeline)
    assert "pos_embed.pos_embed" not in network.state_dict()
    baked = bake(network, edit, saes)
    assert torch.equal(baked.pos_embed.pos_embed, network.pos_embed.pos_embed)
    assert not any(value.is_meta for value in (*baked.buffers(), *baked.parameters()))


def test_every_kind_says_what_its_shipped_class_does():
    for family in FAMILIES:
        kind = KINDS[family.denoiser.cls]
        assert (kind.__name__, kind.KEY, kind.RENAMED) == (family.denoiser.edited_class, family.denoiser.sentinel, family.denoiser.renamed)
    from saeuron.editor.edit import ablated_network

    assert ablated_network.SENTINEL == SENTINEL


def test_a_float32_copy_is_told_what_the_network_in_16_bits_is(tmp_path):
    """In bf16 a FLUX makes 3008 of a guidance of 3: of the distance to float32 that is nearly all, and no rounding of an edit."""
    import copy

    pipeline = load_pipeline(str(make_flux(tmp_path)), torch.bfloat16)
    network, calls = network_of(pipeline), []
    denoiser = denoiser_of(network)
    handle = network.register_forward_hook(lambda m, a, k, o: calls.append((denoiser.inputs(a, k), o[0].float())), with_kwargs=True)
    drawn(pipeline)
    handle.remove()
    wide = copy.deepcopy(network).float()

    def apart():
        found = [(denoiser.call(wide, {n: v.float() for n, v in given.items()}), out) for given, out in calls]
        return max(float((one - other).norm() / one.norm()) for one, other in found)

    before = apart()
    denoiser.told_as(wide, torch.bfloat16)
    assert apart() < 0.1 * before < 0.1
