"""Artifacts without an SAE whose record was made to fit: hashes are recomputed, and something still gives them away."""

import json
import shutil

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tests.conftest import made_once, refused, run

from saeuron.editor.common.files import file_sha256
from saeuron.editor.common.typed import read_as
from saeuron.export.plan.resolve import resolve
from saeuron.export.plan.settings import Settings
from saeuron.export.ship.artifact import make_artifact
from saeuron.validation.artifact import manifest
from saeuron.validation.artifact.weights import unordered
from saeuron.validation.proof.validate import validate
from saeuron.validation.trust import tables
from saeuron.validation.trust.verify import EDIT, GOLDEN, verify

pytestmark = pytest.mark.slow
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def right(tmp_path_factory):
    settings = {"concepts": ("Star",), "intervention": "weights+project", "proof": "short", "steps": 4}
    return made_once(tmp_path_factory, "forged", lambda path: make_artifact(resolve(Settings(output=path, **settings)))).path


@pytest.fixture
def copy(right, tmp_path):
    return shutil.copytree(right, tmp_path / "copy")


def forged(root, change=lambda content: None):
    """Write the manifest anew, after a change and with the hashes of the files that are there."""
    content = json.loads((root / manifest.NAME).read_text())
    change(content)
    content["edit"]["sha256"] = tables.read_edit(root / EDIT).sha256()
    content["files"] = {
        name: {**entry, "bytes": (root / name).stat().st_size, "sha256": file_sha256(root / name)}
        for name, entry in content["files"].items()
        if (root / name).exists()
    }
    (root / manifest.NAME).write_bytes(manifest.encode(read_as(manifest.Manifest, content, "made up")))


def other_edit(root, header=lambda held: None, tensors=lambda held: None):
    """Write the edit's file anew."""
    with safe_open(root / EDIT, "np") as file:
        said = dict(file.metadata())
    held = load_file(root / EDIT)
    header(said)
    tensors(held)
    save_file(held, root / EDIT, metadata=said)


def failures(root):
    return "\n".join(verify(root)["failures"])


def test_a_record_made_anew_is_right(copy):
    forged(copy)
    assert verify(copy)["verified"]


@pytest.mark.parametrize("key", ["encoder_weight", "decoder_weight", "encoder_bias", "pre_bias", "latent_thresholds"])
def test_directions_of_the_checkpoint_are_the_edits_without_golden_vectors_too(copy, key):
    tensors, config = load_file(copy / WEIGHTS), json.loads((copy / "unet" / "config.json").read_text())
    name = next(n for n in tensors if n.startswith("ablations.") and n.endswith(key))
    tensors[name] = tensors[name] * 0 + np.float32(0.5)
    save_file(tensors, copy / WEIGHTS, metadata={"format": "pt"})
    config["ablation"]["sha256"] = tables.ablation_sha256(config["ablation"], tables.edit_tensors(copy / "unet"))
    (copy / "unet" / "config.json").write_text(json.dumps(config))
    (copy / GOLDEN).unlink()
    forged(copy, lambda content: content["edit"].update(tensors_sha256=config["ablation"]["sha256"]))
    assert failures(copy) == f"checkpoint: the table '{key}' of '{name.split('.')[1].replace('-', '.')}' is not the edit's"


def test_directions_of_the_graph_are_the_edits(copy):
    path = copy / "unet" / "model.onnx"
    rows = tables.read_edit(copy / EDIT).directions("up_blocks.1.attentions.0", "fp32")["decoder_weight"]
    graph, changed = onnx.load(path), 0
    for tensor in graph.graph.initializer:
        held = numpy_helper.to_array(tensor)
        if held.size == rows.size and unordered(held) == unordered(rows):
            tensor.CopyFrom(numpy_helper.from_array(np.zeros_like(held), tensor.name))
            changed += 1
    onnx.save(graph, path)
    (copy / GOLDEN).unlink()
    forged(copy)
    assert changed and failures(copy).startswith("onnx: the directions of 'up_blocks.1.attentions.0' are not in the graph")


def says(held, **words):
    held["weights"] = json.dumps(json.loads(held["weights"]) | words)


@pytest.mark.parametrize(
    ("header", "tensors", "message"),
    [
        (lambda h: says(h, becomes={"Star": "Boat"}), lambda t: None, "disagree on what the concepts' words become"),
        (lambda h: None, lambda t: [t.pop(n) for n in list(t) if n.startswith("directions/")], "disagree on where directions stand"),
        (lambda h: None, lambda t: [t.update({n: v[::-1].copy()}) for n, v in list(t.items()) if n.startswith("directions/")], "'decoder_weight' of"),
    ],
)  # fmt: skip
def test_an_edit_that_says_otherwise_than_the_rest(copy, header, tensors, message):
    other_edit(copy, header, tensors)
    forged(copy)
    assert message in failures(copy)
    assert message in "\n".join(validate(copy).failures)


def test_a_concept_that_only_the_record_removes(copy):
    other_edit(copy, lambda held: says(held, becomes=json.loads(held["weights"])["becomes"] | {"Heart": "House"}))
    forged(copy, lambda content: content.update(concepts=["Star", "Heart"]))
    assert "disagree on what the concepts' words become" in failures(copy)


@pytest.mark.parametrize("matrix", [np.full((128, 128), np.nan), np.zeros((0, 0)), np.zeros((3, 4)), np.zeros(4)])
def test_a_matrix_that_is_none(copy, matrix):
    path = copy / EDIT
    other_edit(copy, tensors=lambda held: held.update({"weights/map": matrix.astype("<f4")}))
    with pytest.raises(Exception, match="damaged edit"):
        tables.read_edit(path)


def test_what_the_weights_were_is_compared_with_the_original(copy):
    def other(content):
        next(iter(content["edit"]["weights"].values())).update(before="0" * 32)

    forged(copy, other)
    refused("gives another digest for", "validate", copy, "--model", "demo")


def test_an_edit_of_directions_is_exported_again(copy, tmp_path):
    out = tmp_path / "again"
    run("export", "--edit", copy / EDIT, "--format", "checkpoint", "--proof", "short", "--steps", 4, "-o", out)
    assert verify(out)["verified"] and manifest.read(out).saes == manifest.read(copy).saes
    refused("needs no SAE", "export", "--edit", copy / EDIT, "--sae", tmp_path, "-o", tmp_path / "none", "--dry-run")
    other_edit(copy, tensors=lambda held: [value.fill(3) for name, value in held.items() if name.endswith("/gains")])
    refused("strengthens features", "export", "--edit", copy / EDIT, "-o", tmp_path / "none")
