"""What only a GPU shows: the edit by torch on CUDA, in CUDA graphs and compiled, and the commands with `--device cuda`.

Skipped without one. ONNX Runtime's CUDA provider needs onnxruntime-gpu; its tests are skipped where that is missing.
"""

import copy
import json

import numpy as np
import onnxruntime
import pytest
import torch
from tests.conftest import HOOKPOINT, edit_of, inputs, make_activations, make_sae, make_unet, run

from saeuron.editor.edit.bake import bake
from saeuron.editor.edit.hook import AblationHook

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
needs_provider = pytest.mark.skipif("CUDAExecutionProvider" not in onnxruntime.get_available_providers(), reason="no CUDA provider")
BARS = {torch.float32: 0.01, torch.float16: 0.1, torch.bfloat16: 0.1}
GATES = ("exact", "threshold")


@pytest.fixture(scope="module")
def parts():
    """UNet on the GPU, edit, SAEs."""
    edit = edit_of(make_activations(), ("A", "count:20", -3.0), ("B", "percentile:90", -2.0))
    return make_unet().cuda(), edit, {HOOKPOINT: make_sae()}


def there(*values):
    return tuple(v.cuda() for v in values)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("dtype", list(BARS))
@torch.no_grad()
def test_equals_the_hook(parts, gate, dtype):
    unet, edit, saes = parts
    unet = copy.deepcopy(unet).to(dtype)
    edited = bake(unet, edit, saes, gate)
    assert next(edited.parameters()).is_cuda and all(t.is_cuda for t in edited.ablations.state_dict().values())
    for seed, t in enumerate((901, 501.0, torch.tensor(333.3, device="cuda"))):
        x, c = there(*inputs(3, 8, 12, seed=seed, dtype=dtype))
        plain = unet(x, t, c).sample.float()
        with AblationHook(unet, edit, saes, "threshold" if gate == "threshold" else "exact") as hook:
            hooked = unet(x, t, c).sample.float()
        del hook
        effect = (hooked - plain).norm()
        assert effect > 0
        assert float((edited(x, t, c).sample.float() - hooked).norm() / effect) < BARS[dtype]


@torch.no_grad()
def test_equals_the_cpu(parts):
    """Two devices round otherwise; the convolutions of both at float32, not at TensorFloat-32."""
    unet, edit, saes = parts
    edited = bake(unet, edit, saes)
    x, c = inputs(2, 8, 8)
    with torch.backends.cudnn.flags(allow_tf32=False):
        here = edited(*there(x), 501, *there(c)).sample.cpu()
        plain = unet(*there(x), 501, *there(c)).sample.cpu()
    other = copy.deepcopy(edited).cpu()(x, 501, c).sample
    assert (here - other).norm() < 1e-3 * (other - plain).norm()


@pytest.mark.parametrize("gate", ["exact", "threshold"])
@torch.no_grad()
def test_a_cuda_graph_holds_the_edit(parts, gate):
    """One recording serves all timesteps, since they are looked up on the device."""
    unet, edit, saes = parts
    edited = bake(unet, edit, saes, gate)
    x, c = there(*inputs(2, 8, 8))
    t = torch.tensor([901.0], device="cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            edited(x, t, c)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = edited(x, t, c).sample
    for seed, timestep in enumerate((901.0, 333.0, 1.0)):
        other, context = there(*inputs(2, 8, 8, seed=seed + 5))
        x.copy_(other), c.copy_(context), t.fill_(timestep)
        graph.replay()
        wanted, plain = edited(other, t, context).sample, unet(other, t, context).sample
        assert (result - wanted).norm() <= 1e-3 * (wanted - plain).norm()


@pytest.mark.parametrize("gate", GATES)
@torch.no_grad()
def test_compiled_the_edit_stays(parts, gate):
    unet, edit, saes = parts
    edited = bake(unet, edit, saes, gate)
    compiled = torch.compile(edited)
    for seed in range(2):
        x, c = there(*inputs(2, 8, 8, seed=seed))
        t = torch.tensor(901.0 - 400 * seed, device="cuda")
        wanted, plain = edited(x, t, c).sample, unet(x, t, c).sample
        effect = (wanted - plain).norm()
        assert effect > 0 and (compiled(x, t, c).sample - wanted).norm() < 1e-2 * effect


def export(root, concepts, *options):
    """The demo without these, made on the GPU."""
    run("export", "--concepts", concepts, "--intervention", "multiply", "--device", "cuda", "--output", root, *options)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    """The demo, exported and proven on the GPU."""
    root = tmp_path_factory.mktemp("gpu") / "artifact"
    formats = "checkpoint,onnx" if "CUDAExecutionProvider" in onnxruntime.get_available_providers() else "checkpoint"
    export(root, "Neon,House", "--format", formats, "--proof", "short")
    return root


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_sixteen_bits_are_proven_on_the_gpu(tmp_path, precision):
    root = tmp_path / "artifact"
    export(root, "Neon", "--precision", precision, "--format", "checkpoint")
    report = json.loads((root / "validation" / "report.json").read_text())
    assert report["passed"] and report["control"]["passed"], report


def test_the_checkpoint_is_proven_on_the_gpu(artifact):
    assert json.loads(run("validate", artifact, "--backend", "checkpoint", "--device", "cuda", "--json").stdout)["passed"]


@needs_provider
def test_the_graphs_are_proven_by_the_cuda_provider(artifact):
    found = json.loads(run("validate", artifact, "--backend", "onnx", "--provider", "cuda", "--json").stdout)
    assert found["passed"] and found["backends"]["onnx"]["provider"] == "CUDAExecutionProvider"


@needs_provider
def test_half_precision_graphs_are_proven_by_the_cuda_provider(tmp_path):
    root = tmp_path / "artifact"
    export(root, "Neon", "--precision", "fp16", "--format", "onnx", "--proof", "short")
    assert json.loads(run("validate", root, "--backend", "onnx", "--provider", "cuda", "--json").stdout)["passed"]


@needs_provider
def test_generated_pictures_equal_the_cpus(artifact, tmp_path):
    from PIL import Image

    pictures = []
    for provider in ("cpu", "cuda"):
        file = tmp_path / f"{provider}.png"
        run("generate", artifact, "--backend", "onnx", "--provider", provider, "--prompt", "An image of Boat in Sepia style.", "-o", file)
        pictures.append(np.asarray(Image.open(file)).astype(float))
    error = ((pictures[0] - pictures[1]) ** 2).mean()
    assert 10 * np.log10(255**2 / max(error, 1e-9)) > 40


@pytest.mark.parametrize("offload", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
@torch.no_grad()
def test_offloading_keeps_the_edit(artifact, offload):
    import saeuron

    def picture(pipeline):
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(3)
        return pipeline("An image of House in Neon style.", num_inference_steps=5, generator=generator, output_type="np").images[0]

    whole = picture(saeuron.load(artifact).to("cuda"))
    offloaded = saeuron.load(artifact)
    getattr(offloaded, offload)()
    assert np.abs(picture(offloaded) - whole).max() < 0.02


def test_evaluate_and_attack(artifact, tmp_path):
    quick = ("--steps", 2, "--tokens", 2, "--iterations", 1, "--embedding-iterations", 1, "--restarts", 1, "--tune-seeds", 1, "--report-seeds", 2, "--search-seeds", 1)  # fmt: skip
    run("attack", artifact, "--concepts", "Neon", "--device", "cuda", *quick, "-o", tmp_path / "attack.json")
    assert json.loads((tmp_path / "attack.json").read_text())["device"] == "cuda"
    few = ("--objects", "Star", "--styles", "Neon,Sepia", "--seeds", 188)
    run("evaluate", artifact, "--backend", "hook,checkpoint", "--compare", "--device", "cuda", *few, "--output", tmp_path / "evaluation")


def test_train_and_collect(tmp_path):
    """Sums of activations are equal but for rounding; a trained SAE explains as much as the CPU's."""
    from saeuron.editor.features.activations import ConceptActivations

    (tmp_path / "p.toml").write_text('[prompts]\nNeon = ["An image of Star in Neon style."]\nplain = ["An image of Star."]\n')
    means, unexplained = [], []
    for device in ("cpu", "cuda"):
        sae, file = tmp_path / f"sae-{device}", tmp_path / f"{device}.safetensors"
        run("train", "--model", "demo", "--hookpoint", "up_blocks.1.attentions.1", "--prompts", "demo:prompts.txt", "--sampling-steps", 4, "--guidance", 3,
            "--tokens", 20000, "--batch", 512, "--held-out", 8, "--device", device, "--output", sae)  # fmt: skip
        unexplained.append(json.loads((sae / "training.json").read_text())["saes"]["up_blocks.1.attentions.1"]["fvu"])
        run("collect", "--model", "demo", "--sae", "demo:saes", "--hookpoint", "up_blocks.1.attentions.1", "--prompts", tmp_path / "p.toml", "--steps", 4,
            "--guidance", 3, "--device", device, "--output", file)  # fmt: skip
        means.append(ConceptActivations.load(file).means)
    assert float((means[0] - means[1]).norm() / means[0].norm()) < 0.02
    assert unexplained[0] == pytest.approx(unexplained[1], rel=0.1)
