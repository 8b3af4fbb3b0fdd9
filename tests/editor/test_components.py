"""Weights that are missing, surplus or of another shape; files in every form that diffusers and transformers read."""

import json
import os
import shutil

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from tests.conftest import guard

from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.denoisers.pipelines import load_pipeline, open_folder

pytestmark = pytest.mark.slow

FILES = {
    "unet": "diffusion_pytorch_model.safetensors", "vae": "diffusion_pytorch_model.safetensors", "text_encoder": "model.safetensors",
    "text_encoder_2": "model.safetensors",
}  # fmt: skip
ADAPTERS = ("{}.lora_A.default.weight", "{}.base_layer.weight", "{}.processor.to_q_lora.up.weight")


@pytest.fixture
def folder(request, tmp_path):
    """A copy of a tiny pipeline: of `tiny`, or of the fixture that the test names."""
    return shutil.copytree(request.getfixturevalue(getattr(request, "param", "tiny"))["model"], tmp_path / "model")


def change(path, edit):
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def refused(folder, *words, **options):
    """Early, without reading a value, and when it is loaded."""
    for go in (open_folder, load_pipeline):
        with pytest.raises(SaeuronError) as error:
            go(str(folder), **options)
        assert all(word in str(error.value) for word in words), error.value
        assert "\n" not in str(error.value) and "\x1b" not in str(error.value)


@pytest.mark.parametrize(
    ("folder", "name"), [*(("tiny", n) for n in ("unet", "vae", "text_encoder")), ("tiny_xl", "text_encoder_2")], indirect=["folder"]
)
def test_odd_weights_of_any_component_are_named(folder, name):
    path = folder / name / FILES[name]
    whole = load_file(path)
    key = next(k for k in whole if k.endswith("weight") and whole[k].ndim == 2)
    change(path, lambda t: t.pop(key))
    refused(folder, name, "lack", key.removeprefix("text_model."))
    save_file({**whole, key: whole[key][:1].contiguous()}, path, metadata={"format": "pt"})
    refused(folder, name, "other shapes", key.removeprefix("text_model."))
    save_file({**whole, "something.else": torch.zeros(1)}, path, metadata={"format": "pt"})
    refused(folder, name, "something.else", "no place")
    for adapter in ADAPTERS:
        save_file({**whole, adapter.format(key.removesuffix(".weight")): torch.zeros(1)}, path, metadata={"format": "pt"})
        refused(folder, name, "fuse it first")


def test_names_that_libraries_read_are_no_fault(folder):
    before = load_pipeline(str(folder))
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(tensors):
        for key in [k for k in tensors if "mid_block.attentions" in k]:
            name = key
            for new, before in old.items():
                name = name.replace(f".{new}.", f".{before}.")
            tensors[name] = tensors.pop(key)

    change(folder / "vae" / FILES["vae"], rename)
    change(
        folder / "text_encoder" / FILES["text_encoder"], lambda t: t.update({"text_model.embeddings.position_ids": torch.arange(24)[None]})
    )
    open_folder(str(folder))
    after = load_pipeline(str(folder))
    for name in ("vae", "text_encoder"):
        for key, value in getattr(before, name).state_dict().items():
            assert torch.equal(value, getattr(after, name).state_dict()[key]), key


@pytest.mark.parametrize("safe", [True, False])
def test_shards(folder, safe):
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    shutil.rmtree(folder)
    pipeline.save_pretrained(folder, max_shard_size="20KB", safe_serialization=safe)
    open_folder(str(folder))
    load_pipeline(str(folder))
    shard = next((folder / "unet").glob("*-00001-of-*"))
    tensors = load_file(shard) if safe else torch.load(shard)
    lost = next(iter(tensors))
    tensors.pop(lost)
    save_file(tensors, shard, metadata={"format": "pt"}) if safe else torch.save(tensors, shard)
    with pytest.raises(SaeuronError, match=lost):
        load_pipeline(str(folder))
    shard.unlink()
    refused(folder, "incomplete" if safe else "unet")


def test_pickled_weights(folder):
    for name in ("unet", "vae", "text_encoder"):
        path = folder / name / FILES[name]
        torch.save(load_file(path), path.with_name("pytorch_model.bin" if name == "text_encoder" else "diffusion_pytorch_model.bin"))
        path.unlink()
    open_folder(str(folder))
    load_pipeline(str(folder))
    path = folder / "text_encoder" / "pytorch_model.bin"
    tensors = torch.load(path)
    lost = next(iter(tensors))
    torch.save({k: v for k, v in tensors.items() if k != lost}, path)
    refused(folder, "text_encoder", lost.removeprefix("text_model."))


def test_an_index_and_its_files(folder):
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.unet.save_pretrained(folder / "unet", max_shard_size="20KB")
    (folder / "unet" / FILES["unet"]).unlink(missing_ok=True)
    one, other = sorted((folder / "unet").glob("*-of-*"))[:2]
    key, value = next(iter(load_file(one).items()))
    change(other, lambda t: t.update({key: value + 1}))
    refused(folder, f"the weight {key} is in '{other.name}' and in '{one.name}'")
    change(other, lambda t: t.pop(key))
    open_folder(str(folder))
    next((folder / "unet").glob("*.index.json")).unlink()
    refused(folder, "unet", "the index", "missing")


@pytest.mark.parametrize("kind", ["folder", "pipe", "loop", "gone"])
def test_weights_that_are_no_file(folder, kind):
    path = folder / "unet" / FILES["unet"]
    path.unlink()
    {
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "loop": lambda: path.symlink_to(path.name),
        "gone": lambda: path.symlink_to("x"),
    }[kind]()
    refused(folder, path.name, "no file that can be read")


@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder"])
def test_weights_that_are_no_numbers(folder, name):
    path = folder / name / FILES[name]
    whole = load_file(path)
    key = next(k for k in whole if k.endswith("weight") and whole[k].ndim == 2)
    save_file({**whole, key: (whole[key] * 100).to(torch.int8)}, path, metadata={"format": "pt"})
    refused(folder, key, "I8", "quantised")
    save_file({**whole, key: whole[key] / 0}, path, metadata={"format": "pt"})
    with pytest.raises(SaeuronError, match=f"{name}: the weight .* not finite in float32"):
        load_pipeline(str(folder))
    save_file({**whole, key: whole[key] + 1e6}, path, metadata={"format": "pt"})
    with pytest.raises(SaeuronError, match="not finite in float16"):
        load_pipeline(str(folder), torch.float16)


def test_cut_pickles_are_called_that(folder):
    for name, file in (("unet", "diffusion_pytorch_model.bin"), ("text_encoder", "pytorch_model.bin")):
        path = folder / name / FILES[name]
        torch.save(load_file(path), path.with_name(file))
        path.unlink()
        whole = path.with_name(file).read_bytes()
        path.with_name(file).write_bytes(whole[: len(whole) // 2])
        refused(folder, file, "truncated")
        path.with_name(file).write_bytes(whole)
    open_folder(str(folder))


@pytest.mark.parametrize("size", ["1GB", "20KB"])
def test_variants(folder, size):
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    shutil.rmtree(folder)
    pipeline.save_pretrained(folder, variant="fp16", max_shard_size=size)
    refused(folder, "give --variant fp16")
    refused(folder, "give --variant fp16", variant="bf16")
    open_folder(str(folder), variant="fp16")
    load_pipeline(str(folder), variant="fp16")


def test_a_plain_component_beside_a_variant_and_an_unknown_one(folder):
    path = folder / "unet" / FILES["unet"]
    half = path.with_name("diffusion_pytorch_model.fp16.safetensors")
    shutil.copyfile(path, half)
    change(half, lambda t: t.update({"conv_in.bias": torch.full_like(t["conv_in.bias"], 7)}))
    assert load_pipeline(str(folder), variant="fp16").unet.conv_in.bias[0] == 7
    assert load_pipeline(str(folder)).unet.conv_in.bias[0] != 7
    refused(folder, "--variant bf16", variant="bf16")
    half.write_text("version https://git-lfs.github.com/spec/v1\nsize 3\n")
    open_folder(str(folder))  # not used, so not looked at
    refused(folder, "Git LFS pointer", variant="fp16")


@pytest.mark.parametrize(
    "name", ["unet/diffusion_pytorch_model.safetensors", "unet/config.json", "tokenizer/tokenizer.json", "model_index.json"]
)
def test_git_lfs_pointers_are_called_that(folder, name):
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n")
    refused(folder, "Git LFS pointer", name)


def test_a_safety_checker_that_lacks_a_weight(folder):
    guard(folder, folder)
    path = folder / "safety_checker" / "model.safetensors"
    change(path, lambda t: t.update({"vision_model.vision_model.embeddings.position_ids": torch.arange(5)[None]}))  # of old files
    open_folder(str(folder))
    load_pipeline(str(folder))
    change(path, lambda t: t.pop("concept_embeds"))
    refused(folder, "safety_checker", "concept_embeds")
    shutil.rmtree(folder / "feature_extractor")
    refused(folder, "feature_extractor")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"safety_checker": [None, None]}))
    refused(folder, "feature_extractor", "[null, null]")
    (folder / "model_index.json").write_text(json.dumps(index | {"safety_checker": [None, None], "feature_extractor": [None, None]}))
    open_folder(str(folder))
