"""What clients do with an edited UNet besides calling it: other processes, the Hub, LoRA, other default dtypes, accelerators."""

import copy
import os
import pickle
import subprocess
import sys

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models import modeling_utils
from tests.conftest import HOOKPOINT, edit_of, inputs, make_activations, make_sae, make_unet

from saeuron.editor.edit import feature_ablation
from saeuron.editor.edit.ablated_kinds import AblatedUNet2DConditionModel
from saeuron.editor.edit.bake import bake
from saeuron.editor.edit.feature_ablation import AblationIntegrityError
from saeuron.editor.edit.shipped import SHIPPED

CHILD = """
import sys, torch
sys.modules["saeuron"] = None  # as where it isn't installed
torch.set_num_threads(int(sys.argv[4]))  # the test's number: other numbers of threads differ in the last place
unet, x, c, y = torch.load(sys.argv[1], weights_only=False)
with torch.no_grad():
    assert torch.equal(unet(x, 501.0, c).sample, y)
unet.check_edit()
unet.save_pretrained(sys.argv[2])
assert torch.load(sys.argv[3], weights_only=False)[0].__class__ is unet.mid_block.__class__ and type(unet).__name__ == "AblatedUNet2DConditionModel"
print(type(unet).__module__)
"""


@pytest.fixture
def edited():
    return bake(make_unet(), edit_of(make_activations(), ("A", "count:20", -3.0)), {HOOKPOINT: make_sae()})


@pytest.mark.slow
@torch.no_grad()
def test_a_pickle_opens_in_a_process_without_saeuron(edited, tmp_path, monkeypatch):
    x, c = inputs()
    y = edited(x, 501.0, c).sample
    torch.save((edited, x, c, y), tmp_path / "unet.pt")
    torch.save([edited.mid_block, edited.up_blocks[0].attentions[1]], tmp_path / "blocks.pt")  # its hook is a method of the edit
    monkeypatch.delenv("PYTHONPATH", raising=False)
    arguments = [tmp_path / "unet.pt", tmp_path / "saved", tmp_path / "blocks.pt", str(torch.get_num_threads())]
    command = [sys.executable, "-W", "ignore", "-c", CHILD, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    module = done.stdout.strip().splitlines()[-1]
    assert module == AblatedUNet2DConditionModel.__module__
    assert (tmp_path / "saved" / f"{module}.py").read_bytes() == SHIPPED
    assert torch.equal(AblatedUNet2DConditionModel.from_pretrained(tmp_path / "saved")(x, 501.0, c).sample, y)


@torch.no_grad()
def test_pickles_and_copies_here_are_of_the_same_class(edited):
    x, c = inputs()
    for other in (pickle.loads(pickle.dumps(edited)), copy.deepcopy(edited)):
        assert type(other) is AblatedUNet2DConditionModel and torch.equal(other(x, 501.0, c).sample, edited(x, 501.0, c).sample)
        assert other.up_blocks[0].attentions[1]._forward_hooks.popitem()[1].__self__ is other.ablations[HOOKPOINT.replace(".", "-")]


def test_a_second_copy_of_the_file_has_the_same_classes(tmp_path):
    """diffusers opens the artifact's own file beside an installed saeuron."""
    import importlib.util

    path = tmp_path / "another.py"
    path.write_bytes(SHIPPED)
    spec = importlib.util.spec_from_file_location("another", path)
    sys.modules["another"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    del sys.modules["another"]
    assert module.AblatedUNet2DConditionModel is AblatedUNet2DConditionModel and module.FeatureAblation is feature_ablation.FeatureAblation


def test_the_class_is_uploaded_with_the_weights(edited, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(modeling_utils, "create_repo", lambda *args, **kwargs: type("Repo", (), {"repo_id": "me/x"}))
    monkeypatch.setattr(AblatedUNet2DConditionModel, "_upload_folder", lambda self, folder, *a, **k: seen.extend(os.listdir(folder)))
    monkeypatch.setattr(
        modeling_utils, "load_or_create_model_card", lambda *args, **kwargs: type("Card", (), {"save": lambda self, path: None})()
    )
    monkeypatch.setattr(modeling_utils, "populate_model_card", lambda card: card)
    edited.save_pretrained(str(tmp_path / "x"), push_to_hub=True, repo_id="me/x", token="t")
    assert f"{AblatedUNet2DConditionModel.__module__}.py" in seen and "config.json" in seen


@pytest.mark.parametrize("prefix", ["unet", None])
@torch.no_grad()
def test_lora_on_the_input_convolution(edited, prefix):
    """As the stock UNet takes it."""
    pytest.importorskip("peft")
    stock, (x, c) = make_unet(), inputs()
    generator, start = torch.Generator().manual_seed(3), f"{prefix}." if prefix else ""
    down, up = torch.randn(2, 4, 3, 3, generator=generator), torch.randn(16, 2, 1, 1, generator=generator)
    weights = {f"{start}conv_in.lora_A.weight": down, f"{start}conv_in.lora_B.weight": up}
    before = edited(x, 501.0, c).sample
    for unet in (stock, edited):
        unet.load_lora_adapter(dict(weights), prefix=prefix, **({"network_alphas": {"unet.conv_in.alpha": 1.0}} if prefix else {}))
    assert torch.equal(edited.edited_conv_in(x), stock.conv_in(x)) and not torch.allclose(edited(x, 501.0, c).sample, before, atol=1e-3)
    edited.check_edit()


def test_an_adapter_that_names_the_stock_convolution_is_told_where_it_is(edited):
    peft = pytest.importorskip("peft")
    with pytest.raises(ValueError, match="'conv_in' is stored as 'edited_conv_in'"):
        edited.add_adapter(peft.LoraConfig(target_modules=["conv_in"]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@torch.no_grad()
def test_another_default_dtype(edited, tmp_path, dtype):
    edited.save_pretrained(tmp_path)
    x, c = inputs()
    torch.set_default_dtype(dtype)
    try:
        loaded = AblatedUNet2DConditionModel.from_pretrained(tmp_path)
        found = loaded(x.to(loaded.dtype), 333.3, c.to(loaded.dtype)).sample
    finally:
        torch.set_default_dtype(torch.float32)
    module = loaded.ablations[HOOKPOINT.replace(".", "-")]
    assert module.gains.dtype == module.thresholds.dtype == torch.float32 and found.dtype == loaded.dtype
    wanted = copy.deepcopy(edited).to(loaded.dtype)(x.to(loaded.dtype), 333.3, c.to(loaded.dtype)).sample
    assert torch.allclose(found.float(), wanted.float(), atol=1e-5 if dtype == torch.float64 else 0.05)


def test_a_replaced_forward_is_named(edited):
    edited.forward = UNet2DConditionModel.forward.__get__(edited)
    with pytest.raises(AblationIntegrityError, match="'forward' was replaced"):
        edited(*inputs()[:1], 501, inputs()[1])


@pytest.mark.parametrize("how", ["replaced", "hooks removed", "twice"])
@torch.no_grad()
def test_an_edit_that_does_not_run_once_is_an_error(edited, how):
    """Never the unedited model in silence."""
    block, (x, c) = edited.up_blocks[0].attentions[1], inputs()
    edited(x, 501.0, c)
    if how == "replaced":
        edited.up_blocks[0].attentions[1] = make_unet().up_blocks[0].attentions[1]
    elif how == "hooks removed":
        block._forward_hooks.clear()
    else:
        block.register_forward_hook(edited.ablations[HOOKPOINT.replace(".", "-")].on_output, with_kwargs=True)
    with pytest.raises(AblationIntegrityError, match="an edited block was replaced"):
        edited(x, 501.0, c)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("how", ["compile", "trace", "parallel"])
@torch.no_grad()
def test_the_edit_is_there_however_it_is_run(edited, how):
    x, c = inputs()
    t = torch.tensor(301.0)
    other = {
        "compile": lambda: torch.compile(edited, backend="eager", fullgraph=True),
        "trace": lambda: torch.jit.trace(lambda *a: edited(*a).sample, (x, torch.tensor(501.0), c), check_trace=False),
        "parallel": lambda: torch.nn.DataParallel(edited),
    }[how]()
    found = other(x, t, c)
    assert torch.allclose(found if how == "trace" else found.sample, edited(x, t, c).sample, atol=1e-6)
