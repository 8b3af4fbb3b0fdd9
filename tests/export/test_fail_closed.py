"""Every way of loading a checkpoint gives the edited model or an error, never the unedited one.

The ways themselves are in `tests/clients/loaders.py`, which `run.sh` starts with other versions too. Here it runs once on a tiny
artifact, in a process of its own: where saeuron is imported, its class is at hand even if the artifact's code file isn't.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from safetensors import SafetensorError
from tests.conftest import HOOKPOINT, inputs, made_once

import saeuron
from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.edit.ablated_kinds import AblatedUNet2DConditionModel
from saeuron.editor.edit.edit import Edit
from saeuron.editor.edit.feature_ablation import AblationIntegrityError
from saeuron.editor.edit.hook import AblationHook
from saeuron.editor.sae.sae import SparseAutoencoder
from saeuron.export.plan.settings import Settings
from saeuron.export.ship.stages import export_artifact

pytestmark = pytest.mark.slow

CLIENTS = Path(__file__).parents[1] / "clients"
sys.path.insert(0, str(CLIENTS))
try:
    import loaders
finally:
    sys.path.remove(str(CLIENTS))

NAMES = [name for name in loaders.ATTEMPTS if name not in loaders.SLOW]


@pytest.fixture(scope="session")
def artifact(tiny, tmp_path_factory):
    """A checkpoint of the tiny pipeline, proven by single forwards."""
    wanted = {
        "concepts": ("A",), "formats": ("checkpoint",), "model": str(tiny["model"]), "sae": (str(tiny["sae"]),), "hookpoint": HOOKPOINT,
        "activations": (str(tiny["activations"]),), "select": "count:20", "multiplier": -3.0, "steps": 2, "proof": "short",
    }  # fmt: skip
    return made_once(tmp_path_factory, "loaders", lambda path: export_artifact(Settings(output=path, **wanted))).path


@pytest.fixture(scope="session")
def answers(artifact, tmp_path_factory):
    """How every attempt ended, by name."""
    found = tmp_path_factory.mktemp("answers") / "answers.json"
    environment = {**os.environ, "PYTHONPATH": "", "HF_HOME": str(found.parent / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", str(CLIENTS / "loaders.py"), str(artifact), "--quick", "--json", str(found)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert found.exists(), done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(found.read_text())


def test_the_unedited_model_fails_the_measurement(answers):
    assert answers[loaders.CONTROL]["ok"], answers[loaders.CONTROL]["said"]


@pytest.mark.parametrize("name", NAMES)
def test_loads_edited_or_refuses(answers, name):
    assert answers[name]["ok"], answers[name]["said"]


# --- with saeuron in the process -------------------------------------------------------------------------------------


@pytest.fixture
def copied(artifact, tmp_path):
    return shutil.copytree(artifact, tmp_path / "artifact")


def parts(tiny, artifact):
    """Original UNet, edit and SAEs of the tiny artifact."""
    unet = UNet2DConditionModel.from_pretrained(tiny["model"], subfolder="unet").eval().requires_grad_(False)
    sae = SparseAutoencoder.load(tiny["sae"] / f"unet.{HOOKPOINT}")
    return unet, Edit.load(artifact / "edit" / "edit.safetensors"), {HOOKPOINT: sae}


def equal_to_the_hook(found, unet, edit, saes, bar):
    """The edit fires, the hook's output is met, and the unedited model is far from it."""
    sample, context = inputs(4, dtype=unet.dtype)
    plain = unet(sample, 501, context).sample.float()
    with AblationHook(unet, edit, saes, record=True) as hook:
        wanted = unet(sample, 501, context).sample.float()
    assert hook.decisions[HOOKPOINT][0].fires.any()
    effect = (wanted - plain).norm()
    assert effect > 0
    assert (found(sample, 501, context).sample.float() - wanted).norm() <= bar * effect


@pytest.mark.parametrize(("dtype", "bar"), [(torch.float32, 1e-3), (torch.float16, 0.1), (torch.bfloat16, 0.1)])
def test_both_of_our_ways_equal_the_hook_of_the_same_precision(tiny, artifact, dtype, bar):
    unet, edit, saes = parts(tiny, artifact)
    unet = unet.to(dtype)
    for opened in (
        saeuron.load(artifact, dtype=dtype),
        DiffusionPipeline.from_pretrained(artifact, trust_remote_code=True, torch_dtype=dtype),
    ):
        assert opened.unet.dtype == dtype
        equal_to_the_hook(opened.unet, unet, edit, saes, bar)


def test_our_loader_runs_no_code_of_the_artifact(copied):
    """Even with the file hashes unchecked."""
    (code,) = (copied / "unet").glob("*.py")
    code.write_text("raise SystemExit('run')\n")
    with pytest.raises(SaeuronError, match=code.name):
        saeuron.load(copied)
    assert isinstance(saeuron.load(copied, check_files=False).unet, AblatedUNet2DConditionModel)


def test_saeuron_imported_does_not_stand_in_for_trust(artifact):
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        DiffusionPipeline.from_pretrained(artifact)


@pytest.mark.parametrize("name", [n for n in NAMES if loaders.ATTEMPTS[n].changes])
def test_our_loader_refuses_every_changed_file(copied, name):
    loaders.ATTEMPTS[name].changes(copied)
    with pytest.raises(SaeuronError):
        saeuron.load(copied)
    # Past the hashes: what it opens by itself (index and code file) can't mislead it, the rest is refused.
    try:
        opened = saeuron.load(copied, check_files=False)
    except (AblationIntegrityError, SaeuronError, ValueError, OSError, SafetensorError):
        return
    assert loaders.share(loaders.read_golden(copied), opened.unet) <= loaders.BARS["fp32"]


def test_freeu_scales_the_edited_blocks_too(tiny, artifact):
    unet, edit, saes = parts(tiny, artifact)
    opened = DiffusionPipeline.from_pretrained(artifact, trust_remote_code=True)
    for model in (unet, opened.unet):
        model.enable_freeu(0.9, 0.2, 1.2, 1.4)
    equal_to_the_hook(opened.unet, unet, edit, saes, 1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("way", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offloading_to_a_gpu_keeps_the_edit(artifact, way):
    opened = DiffusionPipeline.from_pretrained(artifact, trust_remote_code=True)
    getattr(opened, way)()
    golden = loaders.read_golden(artifact)
    assert loaders.share(golden, opened.unet) <= loaders.BARS[golden.precision]


@pytest.mark.parametrize("fused", [False, True])
def test_a_lora_is_added_to_the_edit(tiny, artifact, fused):
    """Against the hook on an original model into whose weights the same LoRA was added by hand."""
    pytest.importorskip("peft")
    unet, edit, saes = parts(tiny, artifact)
    opened = DiffusionPipeline.from_pretrained(artifact, trust_remote_code=True)
    adapter = loaders.lora(opened.unet, scale=0.3)
    before = opened.unet(*inputs(4)[:1], 501, inputs(4)[1]).sample
    opened.load_lora_weights(adapter)
    if fused:
        opened.fuse_lora()
        opened.unload_lora_weights()
    assert (opened.unet(*inputs(4)[:1], 501, inputs(4)[1]).sample - before).norm() > 0.01 * before.norm()
    for key in (k for k in adapter if k.endswith("lora_A.weight")):
        name = key.removeprefix("unet.").removesuffix(".lora_A.weight")
        unet.get_submodule(name).weight += adapter[key.replace("lora_A", "lora_B")] @ adapter[key]
    equal_to_the_hook(opened.unet, unet, edit, saes, 1e-3)
