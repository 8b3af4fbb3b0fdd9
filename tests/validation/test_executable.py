"""Whatever a loader would run or fetch is refused, on record or not."""

# ruff: noqa: F811 - fixtures

import json

import pytest
from safetensors.torch import load_file
from tests.validation.test_verify import change, copy, failures, files_of, rewrite, whole  # noqa: F401


@pytest.mark.parametrize("name", [".hidden.py", ".cache/other", ".vscode/tasks.json"])
def test_hidden_files_are_refused(copy, name):
    (copy / name).parent.mkdir(exist_ok=True)
    (copy / name).write_text("x")
    assert any(name in line for line in failures(copy))


def test_what_git_and_a_download_leave_is_passed_over(copy):
    for name in (".gitattributes", ".git/HEAD", ".cache/huggingface/download/a.metadata"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text("x")
    assert failures(copy) == []


@pytest.mark.parametrize(
    "name", ["unet/pipeline.py", "unet/saeuron_edit_0123456789ab.py", "vae/diffusion_pytorch_model.bin", "text_encoder/x.pt", "scheduler/a.so", "a.ckpt", "unet/x.pkl"]
)  # fmt: skip
def test_code_is_refused_even_on_record(copy, name):
    (copy / name).write_bytes(b"x")
    rewrite(copy)
    assert any(name.rpartition("/")[2] in line for line in failures(copy))


def test_an_adapter_is_refused_even_on_record(copy):
    (copy / "text_encoder" / "adapter_config.json").write_text("{}")
    rewrite(copy)
    assert any("adapter" in line for line in failures(copy))


@pytest.mark.parametrize(
    "file, edit, said",
    [
        ("model_index.json", lambda c: c.update(_class_name=["pipeline", "Mine"]), "the pipeline is"),
        ("model_index.json", lambda c: c.update(_class_name="KolorsPipeline"), "the pipeline is 'KolorsPipeline'"),
        ("model_index.json", lambda c: c.update(scheduler=["my_scheduler", "Mine"]), "'scheduler' is opened by"),
        ("model_index.json", lambda c: c.update(safety_checker=["stable_diffusion", "Mine"]), "'safety_checker' is opened by"),
        (
            "model_index.json",
            lambda c: c.update(scheduler=["stable_diffusion", "StableDiffusionSafetyChecker"]),
            "'scheduler' is opened by",
        ),
        ("model_index.json", lambda c: c.update(unet=["diffusers", "UNet2DConditionModel"]), "opens the UNet as"),
        ("model_index.json", lambda c: c.update(unet=["other_unet", "Mine"]), "'unet' is opened by"),
        ("unet/config.json", lambda c: c.update(auto_map={"AutoModel": "evil.Mine"}), "'auto_map' takes AutoModel from 'evil.Mine'"),
        ("text_encoder/config.json", lambda c: c.update(inner={"auto_map": {"AutoModel": "you/repo--evil.Mine"}}), "you/repo--evil.Mine"),
        ("tokenizer/tokenizer_config.json", lambda c: c.update(auto_map={"AutoTokenizer": ["a.Slow", None]}), "a.Slow"),
        ("vae/config.json", lambda c: c.update(_class_name=["m", "C"]), "names a module of its own"),
    ],
)
def test_configs_that_name_other_code(copy, file, edit, said):
    change(copy / file, edit)
    rewrite(copy)
    assert any(said in line for line in failures(copy)), failures(copy)


def test_a_checkpoint_that_the_manifest_denies(copy):
    """Else any code could lie under the class's name, and nothing would look at it."""
    path = next((copy / "unet").glob("*.py"))
    path.write_text("print('not ours')")
    rewrite(copy, formats=["onnx"])
    found = failures(copy)
    assert any(path.name in line and "belongs to a checkpoint" in line for line in found)
    assert any("vae/diffusion_pytorch_model.safetensors" in line for line in found)


@pytest.mark.parametrize("file", ["../../elsewhere.safetensors", "..\\x.safetensors", "not-there.safetensors"])
def test_an_index_of_shards_that_reaches_elsewhere(copy, file):
    weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
    (copy.parent / "elsewhere.safetensors").write_bytes(weights.read_bytes())
    names = list(load_file(weights))
    weights.rename(weights.with_name("part.safetensors"))
    index = weights.with_name("diffusion_pytorch_model.safetensors.index.json")
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, "part.safetensors")}))
    rewrite(copy)
    assert failures(copy) == []
    index.write_text(json.dumps({"metadata": {}, "weight_map": {**dict.fromkeys(names, "part.safetensors"), names[0]: file}}))
    rewrite(copy)
    assert any(f"it names '{file}'" in line for line in failures(copy))


@pytest.mark.parametrize(
    ("index", "part"),
    [
        ("pytorch_model.bin.index.json", "w.txt"),
        ("diffusion_pytorch_model.safetensors.index.json", "w.txt"),
        ("diffusion_pytorch_model.bin.index.fp16.json", "w.txt"),
        ("diffusion_pytorch_model.safetensors.index.fp16.json", "../w.safetensors"),
    ],
)
def test_an_index_of_pickles(copy, index, part):
    (copy / "unet" / part).write_bytes(b"x")
    (copy / "unet" / index).write_text(json.dumps({"weight_map": {"a": part}}))
    rewrite(copy)
    assert any(index in line for line in failures(copy))


@pytest.mark.parametrize("name", ["modular_model_index.json", "unet/modular_model_index.json", "scheduler/model_index.json"])
def test_a_second_pipeline(copy, name):
    (copy / name).write_text("{}")
    rewrite(copy)
    assert any("a pipeline of its own" in line for line in failures(copy))


def test_a_kernel_from_the_hub(copy):
    change(copy / "text_encoder" / "config.json", lambda c: c.update(attn_implementation="you/kernel:attend"))
    rewrite(copy)
    assert any("you/kernel:attend" in line for line in failures(copy))


def test_an_auto_map_to_the_shipped_class_is_fine(copy):
    name = next((copy / "unet").glob("*.py")).stem
    change(copy / "unet" / "config.json", lambda c: c.update(auto_map={"AutoModel": f"{name}.AblatedUNet2DConditionModel"}))
    rewrite(copy)
    assert failures(copy) == []


def test_another_class_of_the_same_name(copy):
    path = next((copy / "unet").glob("*.py"))
    path.write_text(path.read_text() + "\nimport os\n")
    rewrite(copy)
    assert any("its text differs" in line for line in failures(copy))
