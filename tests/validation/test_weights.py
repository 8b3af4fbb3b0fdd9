"""Digests of weights against naive ones; artifacts with wrong weights, graphs, classes or manifests, which forwards may not notice."""

import json
import shutil

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file
from tests.conftest import XL_HOOKPOINT as HOOKPOINT

from saeuron.editor.common.files import read_json
from saeuron.editor.denoisers.families import family_of
from saeuron.editor.edit.edit import Edit
from saeuron.validation.artifact import graphs, manifest, weights
from saeuron.validation.artifact.golden import Golden
from saeuron.validation.proof.validate import GOLDEN
from saeuron.validation.trust.record import check_record


@pytest.fixture
def copy(xl_artifact, tmp_path):
    shutil.copytree(xl_artifact.path, tmp_path / "copy")
    return tmp_path / "copy"


def failures(root):
    """What the record says, as if the manifest's hashes had been made anew."""
    return check_record(root, manifest.read(root), Golden.load(root / GOLDEN))


def naive(values):
    """The unordered digest by plain integers."""
    total = 0
    for bits in values.astype(np.float32).reshape(-1).view(np.uint32).tolist():
        z = (bits + 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        total += z ^ (z >> 31)
    return f"{values.size}:{total % 2**64:016x}"


def test_digests(monkeypatch):
    monkeypatch.setattr(weights, "_PART", 7)
    values = np.random.default_rng().normal(size=(6, 5)).astype(np.float32)
    found = weights.digest(values)
    assert found.unordered == naive(values) == weights.digest(values.T).unordered
    assert found.exact != weights.digest(values.T).exact
    half = values.astype(np.float16)
    assert weights.digest(half) == weights.digest(half.astype(np.float32)) and weights.digest(half).unordered != found.unordered
    moved = values.copy()
    moved[3, 2] = np.nextafter(moved[3, 2], np.float32(9))
    assert weights.digest(moved).unordered != found.unordered


def test_a_right_artifact_passes(copy):
    assert failures(copy) == []


@pytest.mark.parametrize("name", ["decoder_weight", "encoder_bias", "pre_bias"])
def test_one_element_of_the_checkpoints_edit(copy, name):
    path = copy / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    key = f"ablations.{HOOKPOINT.replace('.', '-')}.{name}"
    tensors[key].reshape(-1)[-1] += 1e-3
    save_file(tensors, path, metadata={"format": "pt"})
    assert any("weights of unet are not the original's" in line and name in line for line in failures(copy))


@pytest.mark.parametrize("component", ["unet", "text_encoder", "vae"])
def test_rounded_checkpoint_weights(copy, component):
    (path,) = (copy / component).glob("*.safetensors")
    rounded = {
        k: v.astype(np.float16).astype(v.dtype) if v.dtype == np.float32 and "ablations" not in k else v for k, v in load_file(path).items()
    }
    save_file(rounded, path, metadata={"format": "pt"})
    assert any("checkpoint: " in line and f"weights of {component} are not the original's" in line for line in failures(copy))


@pytest.mark.parametrize("graph", ["unet", "text_encoder", "vae_decoder"])
def test_rounded_graph_weights(copy, graph):
    path = copy / graph / "model.onnx"
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.ndim > 1 and values.size > 200:
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16).astype(np.float32), tensor.name))
    onnx.save(model, path)
    assert any("onnx: " in line and "not the original's" in line for line in failures(copy))


def test_a_table_that_nothing_reads(copy):
    path = copy / "unet" / "model.onnx"
    table = Edit.load(copy / "edit" / "edit.safetensors").hookpoints[HOOKPOINT].gains.numpy()
    model = onnx.load(path)
    (own,) = (t for t in model.graph.initializer if numpy_helper.to_array(t).tobytes() == table.tobytes())
    model.graph.initializer.append(numpy_helper.from_array(table, "unused"))
    own.CopyFrom(numpy_helper.from_array(np.ones_like(table), own.name))
    onnx.save(model, path)
    assert any("the table 'gains'" in line for line in failures(copy))


def test_bars_between_timesteps(copy):
    path = copy / "unet" / "model.onnx"
    steps = load_file(copy / "edit" / "edit.safetensors")
    model = onnx.load(path)
    (own,) = (
        t for t in model.graph.initializer
        if any(n.endswith("/timesteps") and len(v) > 1 and numpy_helper.to_array(t).reshape(-1).tolist() == ((v[:-1] + v[1:]) / 2).tolist() for n, v in steps.items())
    )  # fmt: skip
    values = numpy_helper.to_array(own).copy()
    values.reshape(-1)[-1] -= 5
    own.CopyFrom(numpy_helper.from_array(values, own.name))
    onnx.save(model, path)
    assert any("bars between timesteps" in line for line in failures(copy))


def test_graph_contract(copy):
    family = family_of(read_json(copy / "model_index.json"))
    assert graphs.check(copy, family, "fp32") == []
    assert any("FLOAT16" in line for line in graphs.check(copy, family, "fp16"))
    model = onnx.load(copy / "unet" / "model.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 8
    model.graph.input[1].type.tensor_type.elem_type = onnx.TensorProto.INT64
    onnx.save(model, copy / "unet" / "model.onnx")
    model = onnx.load(copy / "text_encoder" / "model.onnx")
    outputs = list(model.graph.output)[::-1]
    del model.graph.output[:]
    model.graph.output.extend(outputs)
    onnx.save(model, copy / "text_encoder" / "model.onnx")
    found = "\n".join(graphs.check(copy, family, "fp32"))
    assert "axis 3 (latent_width) is fixed to 8" in found and "'timestep' of unet is INT64, not FLOAT" in found and "in this order" in found


def test_the_shipped_class(copy):
    (code,) = (copy / "unet").glob("*.py")
    text = code.read_text()
    code.write_text(text + "\n# changed\n")
    assert any("is not the class that was proven" in line for line in failures(copy))
    code.write_text(text)
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps({**index, "unet": ["diffusers", "UNet2DConditionModel"]}))
    assert any("model_index.json opens the UNet as" in line for line in failures(copy))


def test_a_manifest_that_tells_otherwise(copy):
    path = copy / manifest.NAME
    record = json.loads(path.read_text())
    record["settings"][0]["multiplier"] = -99.0
    record["saes"] = {}
    record["model"]["safety_checker"] = True
    path.write_text(json.dumps(record))
    found = "\n".join(failures(copy))
    assert "manifest's settings" in found and "manifest's saes" in found and "safety checker" in found


def test_golden_vectors_that_hold_too_little(copy):
    golden = Golden.load(copy / GOLDEN)
    golden.weights.pop("vae")
    golden.save(copy / GOLDEN)
    assert any("no digests" in line and "vae" in line for line in failures(copy))


def test_files_that_only_some_clients_read(copy):
    merges = (copy / "tokenizer" / "merges.txt").read_text()
    for text in ("#version: 0.2\n", merges.partition("\n")[2]):
        (copy / "tokenizer" / "merges.txt").write_text(text)
        assert any("merges.txt holds other merges" in line for line in failures(copy))
    (copy / "tokenizer" / "merges.txt").write_text(merges)
    path = copy / "vae_decoder" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "scaling_factor": 0.9}))
    found = "\n".join(failures(copy))
    assert "vae_decoder/config.json: 'scaling_factor' is 0.9" in found and "merges" not in found
    (copy / "vae_decoder" / "config.json").unlink()
    (copy / "tokenizer" / "vocab.json").unlink()
    found = "\n".join(failures(copy))
    assert "vae_decoder/config.json is missing" in found and "tokenizer/vocab.json is missing" in found


@pytest.mark.parametrize(
    ("file", "key", "value"), [("unet/config.json", "sample_size", 64), ("scheduler/scheduler_config.json", "rescale_betas_zero_snr", None)]
)
def test_a_config_that_no_forward_reads(copy, file, key, value):
    held = json.loads((copy / file).read_text())
    assert key in held
    (copy / file).write_text(json.dumps({**held, key: not held[key] if value is None else value}))
    assert any(line.startswith(f"{file}: '{key}'") for line in failures(copy))
