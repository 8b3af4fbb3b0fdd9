"""The checkpoint in diffusers' other pipelines, opened as a user opens it: every forward of a call is the hook's on the original's UNet, in the same call.

The UNet's class is that of the artifact's own file. LoRA: `test_fail_closed.py`; what raises: `tests/clients/loaders.py`.
"""

import diffusers
import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from tests.conftest import XL_HOOKPOINT
from tests.export.test_fail_closed import artifact, loaders, parts  # noqa: F401
from tests.validation.test_lean_pictures import mask_of, picture
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from saeuron.editor.edit.edit import Edit
from saeuron.editor.edit.hook import AblationHook
from saeuron.editor.sae.sae import SparseAutoencoder

pytestmark = pytest.mark.slow
BAR = 1e-4
"""of the edit's effect"""
SIZE = (16, 16)


def controlnet(unet):
    """A random ControlNet of the original's UNet, whose last layers, zero at first, say something."""
    torch.manual_seed(4)
    made = ControlNetModel.from_unet(unet, conditioning_channels=3)
    made.controlnet_cond_embedding = type(made.controlnet_cond_embedding)(unet.config.block_out_channels[0], 3, (4, 8))
    for layer in (*made.controlnet_down_blocks, made.controlnet_mid_block, made.controlnet_cond_embedding.conv_out):
        torch.nn.init.normal_(layer.weight, std=0.2)
    return made.eval()


def ip_adapter(unet):
    """Random weights of an IP-Adapter, in its files' form."""
    generator, width, found = torch.Generator().manual_seed(6), unet.config.cross_attention_dim, {}
    crossing = [n for n in unet.attn_processors if n.endswith("attn2.processor")]
    for i, name in enumerate(crossing):
        rows = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
        found |= {f"{2 * i + 1}.to_{part}_ip.weight": torch.randn(rows, width, generator=generator) / 4 for part in "kv"}
    proj = {"proj.weight": torch.randn(4 * width, 8, generator=generator), "proj.bias": torch.zeros(4 * width), "norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}  # fmt: skip
    return {"image_proj": proj, "ip_adapter": found}


def image_encoder():
    torch.manual_seed(7)
    config = CLIPVisionConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16, projection_dim=8)  # fmt: skip
    return CLIPVisionModelWithProjection(config).eval(), CLIPImageProcessor(crop_size=32, size=32)


def with_ip_adapter(pipeline):
    pipeline.load_ip_adapter(ip_adapter(pipeline.unet), subfolder="", weight_name="", image_encoder_folder=None)
    encoder, processor = image_encoder()
    pipeline.register_modules(image_encoder=encoder, feature_extractor=processor)


def with_lora(pipeline):
    pytest.importorskip("peft")
    pipeline.load_lora_weights(loaders.lora(pipeline.unet, scale=0.3))


START, AT = {"image": picture(*SIZE), "strength": 0.7}, {"height": SIZE[1], "width": SIZE[0]}
# pipeline → its class behind the family's name, what it is opened with, what is loaded into it, what it is called with
CALLS = {
    "img2img": ("Img2Img", False, None, START),
    "inpaint": ("Inpaint", False, None, {**START, **AT, "mask_image": mask_of(*SIZE)}),
    "controlnet": ("ControlNet", True, None, {**AT, "image": picture(*SIZE)}),
    "controlnet img2img": ("ControlNetImg2Img", True, None, {**START, **AT, "control_image": picture(*SIZE)}),
    "ip-adapter": ("", False, with_ip_adapter, {**AT, "ip_adapter_image": picture(32, 32)}),
    "lora, img2img": ("Img2Img", False, with_lora, START),
}


def record(pipeline, call):
    """Final latents of a call, and every forward's arguments and output."""
    seen = []
    handle = pipeline.unet.register_forward_hook(
        lambda m, args, kwargs, out: seen.append((args, dict(kwargs), out[0].clone())), with_kwargs=True
    )
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    made = pipeline("a cat", num_inference_steps=4, guidance_scale=3.0, generator=generator, output_type="latent", **call).images
    handle.remove()
    return made, seen


def in_one_call(name, root, model, edit, saes, hookpoint):
    kind, controlled, prepare, call = CALLS[name]
    stock = UNet2DConditionModel.from_pretrained(model, subfolder="unet").eval()
    family = "StableDiffusionXL" if stock.config.addition_embed_type else "StableDiffusion"
    cls = getattr(diffusers, f"{family}{kind}Pipeline")
    more = {"controlnet": controlnet(stock)} if controlled else {}
    opened = cls.from_pretrained(root, trust_remote_code=True, **more)
    original = cls.from_pretrained(model, **more)
    assert "saeuron_edit_" in type(opened.unet).__module__ and type(original.unet) is UNet2DConditionModel
    if prepare:
        prepare(opened)
        prepare(original)
    plain, _ = record(original, call)
    with AblationHook(original.unet, edit, saes, record=True) as hook:
        wanted, forwards = record(original, call)
    assert any(d.fires.any() for d in hook.decisions[hookpoint])
    found, ours = record(opened, call)
    assert len(forwards) == len(ours) > 1
    worst = effects = 0.0
    with torch.no_grad():
        for args, kwargs, output in forwards:
            effect = (output - original.unet(*args, **kwargs)[0]).norm()
            effects = max(effects, float(effect / output.norm()))
            worst = max(worst, float((opened.unet(*args, **kwargs)[0] - output).norm() / effect))
    loop = (found - wanted).norm() / (plain - wanted).norm()
    print(
        f"{family} {name}: {len(forwards)} forwards, worst {worst:.1e} of the effect (up to {effects:.1%} of the output); latents {loop:.1e}"
    )
    assert worst <= BAR and effects > 0.01 and loop <= BAR
    return forwards


@pytest.mark.parametrize("name", CALLS)
def test_every_forward_is_the_hooks(tiny, artifact, name):  # noqa: F811
    _, edit, saes = parts(tiny, artifact)
    forwards = in_one_call(name, artifact, tiny["model"], edit, saes, next(iter(saes)))
    _, kwargs, _ = forwards[-1]
    said = bool(kwargs.get("down_block_additional_residuals")), bool((kwargs.get("added_cond_kwargs") or {}).get("image_embeds"))
    assert said == ("controlnet" in name, name == "ip-adapter")


@pytest.mark.parametrize("name", ["img2img", "inpaint", "controlnet"])
def test_every_forward_is_the_hooks_in_sdxl(tiny_xl, xl_artifact, name):
    edit = Edit.load(xl_artifact.path / "edit" / "edit.safetensors")
    in_one_call(name, xl_artifact.path, tiny_xl["model"], edit, {XL_HOOKPOINT: SparseAutoencoder.load(tiny_xl["sae"])}, XL_HOOKPOINT)
