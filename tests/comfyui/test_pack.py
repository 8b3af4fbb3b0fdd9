"""What of the node pack needs no ComfyUI: its copy of the edit's module, the checks of an artifact, and configs."""

from __future__ import annotations

import ast
import importlib.util
import json
import shutil
import sys
import tomllib

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tests.comfyui.generated import COPY, ROOT, module
from tests.conftest import edit_of, make_activations, make_sae, make_unet
from tests.made_up import rewrite

from saeuron.editor.edit.bake import bake
from saeuron.export.plan.settings import Settings
from saeuron.export.ship.stages import export_artifact
from saeuron.validation.artifact import manifest as manifests

PACK = ROOT / "comfyui"


@pytest.fixture(scope="module")
def pack():
    """The folder under another name, as ComfyUI imports it; what needs ComfyUI stays out."""
    spec = importlib.util.spec_from_file_location("saeuron_pack", PACK / "__init__.py", submodule_search_locations=[str(PACK)])
    assert spec and spec.loader
    sys.modules["saeuron_pack"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["saeuron_pack"])
    from saeuron_pack import artifact, convert, edit_module, fired

    yield type("Pack", (), {"artifact": artifact, "convert": convert, "edit_module": edit_module, "fired": fired})
    for name in [n for n in sys.modules if n.startswith("saeuron_pack")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def right(tiny, tmp_path_factory):
    wanted = Settings(
        ("A",), tmp_path_factory.mktemp("comfyui") / "artifact", formats=("checkpoint",), model=str(tiny["model"]), sae=(str(tiny["sae"]),), activations=(str(tiny["activations"]),),
        hookpoint="up_blocks.0.attentions.1", select="count:20", multiplier=-3.0, steps=3, validate=False,
    )  # fmt: skip
    return export_artifact(wanted).path


@pytest.fixture
def copy(right, tmp_path):
    return shutil.copytree(right, tmp_path / "copy")


def test_its_copy_of_the_edit_is_the_editors_source():
    assert COPY.read_bytes() == module(), "the editor's source was changed: python -m tests.comfyui.generated"


def test_it_runs_no_code_of_an_artifact_and_imports_nothing_of_ours():
    for file in PACK.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            assert not {n.split(".")[0] for n in names} & {"saeuron", "diffusers", "transformers", "runpy", "importlib", "pickle"}, (
                file.name
            )
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and file != COPY:
                assert node.func.id not in ("exec", "eval", "compile", "__import__"), file.name


def test_its_own_project_file_and_the_wheel_without_it():
    own = tomllib.loads((PACK / "pyproject.toml").read_text())
    assert own["tool"]["comfy"]["DisplayName"] and (PACK / own["project"]["license"]["file"]).read_text() == (ROOT / "LICENSE").read_text()
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert not any("comfyui" in name for name in (*listed["packages"], *listed["package-dir"].values()))
    for file in PACK.glob("*.py"):
        assert file == COPY or file.read_text().count("\n") <= 400, file.name


def test_an_artifact_is_read(pack, right):
    """Weights and edit are those that diffusers' class would have."""
    opened = pack.artifact.Artifact(right)
    state, blocks = opened.unet()
    stored = load_file(right / "unet" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(state["conv_in.weight"], stored["edited_conv_in.weight"]) and state["conv_in.bias"].shape == (16,)
    assert not any(name.startswith(("ablations", "edited_")) for name in state)
    (block,) = blocks.values()
    assert (
        torch.equal(block.gains, stored["ablations.up_blocks-0-attentions-1.gains"])
        and opened.unet_config["mid_block_type"] == "UNetMidBlock2DCrossAttn"
    )
    assert set(opened.chosen()["up_blocks.0.attentions.1"]) == {"A"} and opened.dtype == torch.float32


def test_its_edit_is_the_shipped_one(pack):
    """The same tokens, timesteps and tables: the same numbers, to the last bit."""
    unet, sae = make_unet(), make_sae()
    baked = bake(unet, edit_of(make_activations(), ("A", "count:20", -3.0)), {"up_blocks.0.attentions.1": sae})
    theirs = baked.ablations["up_blocks-0-attentions-1"]
    shape = baked.config["ablation"]["hookpoints"]["up_blocks.0.attentions.1"]
    ours = pack.edit_module.FeatureAblation(**shape, residual="keep", gate="exact")
    ours.load_state_dict(theirs.state_dict())
    tokens, times = torch.randn(2, 9, 32), torch.tensor([700.0, 3.0])
    assert torch.equal(ours(tokens, times), theirs(tokens, times)) and not torch.equal(ours(tokens, times), tokens)


FILES = (
    "saeuron.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json", "text_encoder/model.safetensors",
    "vae/diffusion_pytorch_model.safetensors", "edit/edit.safetensors",
)  # fmt: skip


def everything(pack, folder):
    opened = pack.artifact.Artifact(folder)
    opened.unet(), opened.chosen(), opened.json("scheduler/scheduler_config.json"), opened.tensors("text_encoder"), opened.tensors("vae")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0.1, 0.5, 0.99])
def test_one_bit_is_found(pack, copy, name, place):
    everything(pack, copy)
    content = bytearray((copy / name).read_bytes())
    content[int(len(content) * place)] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(pack.artifact.ArtifactError):
        everything(pack, copy)


def spoil(copy, change):
    path = copy / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    rewrite(copy)


KEY = "ablations.up_blocks-0-attentions-1"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t[f"{KEY}.gains"].add_(0.1), "don't match their recorded hash"),
        (lambda t: t.pop(f"{KEY}.thresholds"), "don't match their recorded hash"),
        (lambda t: [t.pop(n) for n in list(t) if n.startswith("ablations.")], "don't match their recorded hash"),
        (lambda t: t.update({"ablations.other.gains": torch.zeros(1)}), "don't match their recorded hash"),
        (lambda t: t.update({"conv_in.weight": t.pop("edited_conv_in.weight")}), "aren't those of an edited UNet"),
        (lambda t: t.update({"conv_in.bias": torch.zeros(16)}), "aren't those of an edited UNet"),
    ],
)
def test_an_edit_that_was_changed_with_its_file_hashes(pack, copy, change, said):
    """Someone who makes the manifest's hashes anew still meets the edit's own."""
    spoil(copy, change)
    with pytest.raises(pack.artifact.ArtifactError, match=said):
        everything(pack, copy)


def config(copy, **changes):
    path = copy / "unet" / "config.json"
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in content.items() if value != "gone"}))
    rewrite(copy)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ablation": "gone"}, "has no edit, and the manifest names one"),
        ({"ablation": "gone", "mid_block_type": "UNetMidBlock2DCrossAttn"}, "has no edit, and the manifest names one"),
        ({"mid_block_type": "UNetMidBlock2DCrossAttn"}, "was altered"),
    ],
)
def test_a_config_without_its_edit(pack, copy, changes, said):
    config(copy, **changes)
    with pytest.raises(pack.artifact.ArtifactError, match=said):
        everything(pack, copy)


def test_other_folders_are_refused(pack, copy, tmp_path):
    error = pack.artifact.ArtifactError
    with pytest.raises(error, match=r"has no saeuron.json"):
        pack.artifact.Artifact(tmp_path)
    (copy / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(error, match="is missing"):
        everything(pack, copy)
    record = manifests.read(copy, formats=False)
    rewrite(copy, formats=["onnx"], files={})
    with pytest.raises(error, match="holds no checkpoint, only onnx"):
        pack.artifact.Artifact(copy)
    rewrite(copy, formats=record.formats, model={"source": "x", "pipeline": "FluxPipeline", "network_sha256": "0", "safety_checker": False})
    with pytest.raises(error, match="is a FluxPipeline"):
        pack.artifact.Artifact(copy)


def test_a_link_that_leaves_the_folder(pack, copy, tmp_path):
    path = copy / "unet" / "config.json"
    path.rename(tmp_path / "elsewhere.json")
    path.symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(pack.artifact.ArtifactError, match="outside the artifact"):
        everything(pack, copy)


SD15 = {
    "block_out_channels": (320, 640, 1280, 1280), "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3, "cross_attention_dim": 768, "attention_head_dim": 8,
}  # fmt: skip
SD21 = {**SD15, "cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}
SDXL = {
    "block_out_channels": (320, 640, 1280), "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "cross_attention_dim": 2048, "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10), "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip


def full(**changes):
    """A config with every entry that diffusers writes."""
    with torch.device("meta"):
        return dict(UNet2DConditionModel(**changes).config)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (SD15, {"model_channels": 320, "channel_mult": [1, 2, 4, 4], "num_res_blocks": [2, 2, 2, 2], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
                "transformer_depth_output": [1] * 9 + [0] * 3, "transformer_depth_middle": 1, "num_heads": 8, "num_head_channels": -1, "context_dim": 768,
                "use_linear_in_transformer": False, "adm_in_channels": None}),
        (SD21, {"num_heads": -1, "num_head_channels": 64, "context_dim": 1024, "use_linear_in_transformer": True, "transformer_depth": [1] * 6 + [0, 0]}),
        (SDXL, {"channel_mult": [1, 2, 4], "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
                "transformer_depth_middle": 10, "num_head_channels": 64, "adm_in_channels": 2816, "num_classes": "sequential", "context_dim": 2048}),
    ],
)  # fmt: skip
def test_shapes_of_the_models_that_people_run(pack, given, wanted):
    made = pack.convert.unet(full(**given))
    assert {name: made.get(name) for name in wanted} == wanted


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"norm_num_groups": 16}, "norm_num_groups is 16"),
        ({"block_out_channels": (320, 480, 640, 640)}, "whole multiples"),
        ({"act_fn": "gelu"}, "act_fn is 'gelu'"),
        ({"in_channels": 9}, "in_channels is 9"),
        ({"attention_head_dim": (5, 8, 20, 20)}, "neither number nor width of heads"),
        ({"class_embed_type": "timestep"}, "class_embed_type is 'timestep'"),
        ({"time_cond_proj_dim": 256}, "time_cond_proj_dim is 256"),
    ],
)
def test_what_comfyui_would_run_otherwise_is_refused(pack, changes, said):
    with pytest.raises(pack.artifact.ArtifactError, match=said):
        pack.convert.unet(full(**{**SD15, **changes}))


def test_an_entry_that_is_not_known_is_refused(pack):
    with pytest.raises(pack.artifact.ArtifactError, match="new_entry is 3"):
        pack.convert.unet({**full(**SD15), "new_entry": 3})


@pytest.mark.parametrize(
    ("given", "kind", "schedule", "zsnr"),
    [
        ({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}, "eps", "linear", False),
        ({"beta_schedule": "linear", "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}, "v", "sqrt_linear", True),
    ],
)
def test_noise_levels(pack, given, kind, schedule, zsnr):
    found, settings = pack.convert.sampling({"_class_name": "DDIMScheduler", **given})
    assert (found, settings["beta_schedule"], settings["zsnr"]) == (kind, schedule, zsnr)


@pytest.mark.parametrize("given", [{"_class_name": "FlowMatchEulerDiscreteScheduler"}, {"_class_name": "EDMEulerScheduler"}, {"timestep_type": "continuous"},
                                   {"prediction_type": "sample"}, {"num_train_timesteps": 500}, {"trained_betas": [0.1]}])  # fmt: skip
def test_other_noise_is_refused(pack, given):
    with pytest.raises(pack.artifact.ArtifactError, match="scheduler"):
        pack.convert.sampling({"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", **given})


def test_what_fired_is_counted_by_concept(pack):
    """Two pictures under two conditionings at once, then one at a time; a concept's features change with the timestep."""
    chosen = {"p": {"A": [[3], [3, 9]], "B": [[5], [5]]}}
    counted = pack.fired.Fired(chosen, {"p": torch.tensor([3, 5, 9])})
    fires = torch.zeros(4, 6, 3, dtype=torch.bool)
    fires[0, 2, 0] = fires[2, 2, 0] = fires[1, 4, 1] = fires[3, 5, 2] = True
    counted.add("p", fires, torch.tensor([0]), (2, 3), {"cond_or_uncond": [1, 0]})
    shares = counted.shares()["p"]
    assert counted.concepts == ["A", "B"] and shares.shape == (2, 2, 2, 3)
    # Feature 9 isn't A's at that timestep.
    assert (
        shares[0, 0].flatten().tolist() == [0, 0, 1, 0, 0, 0]
        and shares[1, 1].flatten().tolist() == [0, 0, 0, 0, 0.5, 0]
        and shares.sum() == 1.5
    )
    counted.add("p", fires[2:], torch.tensor([1, 1]), (2, 3), {"cond_or_uncond": [0]})
    assert counted.shares()["p"][1, 0].flatten().tolist() == pytest.approx([0, 0, 0, 0, 0, 1 / 3])
    counted.clear()
    assert not counted.shares()
