"""Evaluations and attacks of pipelines that are no artifact, and of weights over a base: counts, what is on record, refusals."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conftest import refused, run

from saeuron.editor import demo
from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.denoisers.pipelines import load_network
from saeuron.editor.denoisers.weights_file import put_over

MODEL = Path(demo.resolve("demo"))
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
FEW = ["--steps", 2, "--objects", "House,Car", "--styles", "Neon,plain", "--seeds", "188"]
KEY, OTHER = (f"up_blocks.1.attentions.{n}.transformer_blocks.0.attn2.to_k.weight" for n in (0, 1))


@pytest.fixture(scope="module")
def weights():
    return load_file(MODEL / WEIGHTS)


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """The demo's folder under another name."""
    return shutil.copytree(MODEL, tmp_path_factory.mktemp("stock") / "stock")


@pytest.fixture
def file(tmp_path):
    """Writes a file of weights."""

    def write(tensors, name="x.safetensors"):
        save_file(tensors, tmp_path / name)
        return tmp_path / name

    return write


def evaluated(folder, *options, code=0):
    return json.loads(run("evaluate", *options, *FEW, "--concepts", "Neon", "--json", "-o", folder, code=code).stdout)


def test_a_stock_pipeline_has_the_counts_and_pictures_of_the_unedited_model(stock, tmp_path):
    found = evaluated(tmp_path / "e", "--pipeline", stock)
    one, other = (found["backends"][name] for name in ("unedited", "pipeline"))
    assert one["concepts"] == other["concepts"] and one["concepts"]["Neon"]["ua"]["trials"] == 2
    for path in (tmp_path / "e" / "pictures" / "pipeline").iterdir():
        assert path.read_bytes() == (tmp_path / "e" / "pictures" / "unedited" / path.name).read_bytes()
    settings = found["settings"]
    assert settings["artifact"] == "stock" and settings["pipeline"]["original"] == "demo" and "edit_sha256" not in settings
    assert settings["pipeline"]["sha256"] == settings["pipeline"]["original_sha256"] and str(stock.parent) not in json.dumps(settings)
    assert settings["guidance"] == 3.0, "the preset's"


def test_another_pipeline_is_another_evaluation(stock, tmp_path, weights):
    other = shutil.copytree(stock, tmp_path / "stock")
    options = ["--no-before"]
    evaluated(tmp_path / "e", "--pipeline", other, *options)
    save_file({**weights, KEY: weights[OTHER].clone()}, other / WEIGHTS)
    refused("pipeline was", "evaluate", "--pipeline", other, *FEW, *options, "--concepts", "Neon", "-o", tmp_path / "e")


def test_weights_that_are_moved_change_pictures_and_digests(tmp_path, weights, file):
    """The mutant of an eraser's partial file: the weights of two layers in each other's place."""
    network = load_network(MODEL)
    edited = put_over(load_network(MODEL), file({KEY: weights[KEY] * 2, OTHER: weights[OTHER] * 2}, "edited.safetensors"), "demo")
    mutant = put_over(network, file({KEY: weights[OTHER] * 2, OTHER: weights[KEY] * 2}, "mutant.safetensors"), "demo")
    assert (edited.tensors, edited.changed) == (mutant.tensors, mutant.changed) == (2, 2)
    assert edited.before_sha256 == mutant.before_sha256 and edited.after_sha256 != mutant.after_sha256 and edited.sha256 != mutant.sha256
    assert torch.equal(network.state_dict()[KEY], weights[OTHER] * 2)
    assert all(torch.equal(v, weights[k]) for k, v in network.state_dict().items() if k not in (KEY, OTHER))
    found = evaluated(tmp_path / "e", "--unet", tmp_path / "mutant.safetensors", "--model", "demo")
    assert found["settings"]["pipeline"]["unet"]["after_sha256"] == mutant.after_sha256
    pictures = tmp_path / "e" / "pictures"
    assert any(p.read_bytes() != (pictures / "unedited" / p.name).read_bytes() for p in (pictures / "pipeline").iterdir())
    refused(
        "holds another evaluation", "evaluate", "--unet", tmp_path / "edited.safetensors", "--model", "demo", *FEW, "--concepts", "Neon",
        "-o", tmp_path / "e",
    )  # fmt: skip


def test_half_precision_and_torch_files_are_read(tmp_path, weights, file):
    half = {KEY: (weights[KEY] * 2).half(), OTHER: weights[OTHER]}
    torch.save(half, tmp_path / "x.pt")
    by_torch, by_safetensors = (put_over(load_network(MODEL), path, "demo") for path in (tmp_path / "x.pt", file(half)))
    assert by_torch.changed == 1 and by_torch.tensors == 2
    assert (by_torch.before_sha256, by_torch.after_sha256) == (by_safetensors.before_sha256, by_safetensors.after_sha256)


class Hostile:
    def __reduce__(self):
        return print, ("run",)


def test_files_that_do_not_fit_are_refused(tmp_path, weights, file):
    def fails(message, path):
        with pytest.raises(SaeuronError, match=message):
            put_over(load_network(MODEL), path, "demo")

    fails("changes nothing: all its 1 weights", file({KEY: weights[KEY]}))
    fails("holds nonsense.weight, for which the UNet of 'demo' has no place", file({"nonsense.weight": weights[KEY]}))
    fails(r"holds an adapter \(LoRA\), x.lora_A.weight", file({"x.lora_A.weight": weights[KEY], KEY: weights[KEY] * 2}))
    fails("has shape", file({KEY: weights[KEY][:3].clone()}))
    fails("is int32", file({KEY: weights[KEY].int()}))
    fails("not finite", file({KEY: weights[KEY] * float("nan")}))
    fails("no whole safetensors file", _written(tmp_path / "cut.safetensors", file({KEY: weights[KEY]}).read_bytes()[:-5]))
    fails("tensors alone", _written(tmp_path / "hostile.pt", pickle.dumps(Hostile())))
    torch.save({"state_dict": {KEY: weights[KEY]}}, tmp_path / "wrapped.pt")
    fails("'state_dict' is no tensor", tmp_path / "wrapped.pt")
    fails("is no file", tmp_path)


def _written(path, content):
    path.write_bytes(content)
    return path


def test_refusals(stock, tmp_path, demo_artifact, tiny):
    def no(message, *options, command="evaluate"):
        refused(message, command, *options)

    concepts = ["--concepts", "Neon"]
    no("no model is named", "--concepts", "Neon")
    no("several models are named", demo_artifact.path, "--pipeline", stock)
    no("name it: --concepts", "--pipeline", stock)
    no("did you mean Neon?", "--pipeline", stock, "--concepts", "Neo")
    no("is an artifact", "--pipeline", demo_artifact.path, *concepts)
    edited = shutil.copytree(demo_artifact.path, tmp_path / "edited")
    (edited / "saeuron.json").unlink()
    no("carries an edit of saeuron-export", "--pipeline", edited, *concepts)
    (tmp_path / "empty").mkdir()
    no("is no diffusers pipeline", "--pipeline", tmp_path / "empty", *concepts)
    no("no folder", "--pipeline", tmp_path / "nowhere", *concepts)
    no("was not made from 'demo'", "--pipeline", tiny["model"], *concepts)
    no("--unet needs the base", "--unet", stock / WEIGHTS, *concepts)
    no("changes nothing", "--unet", stock / WEIGHTS, "--model", "demo", *concepts)
    no("take an artifact's edit apart", "--pipeline", stock, *concepts, "--sequential")
    no("known: pipeline, unedited", "--pipeline", stock, *concepts, "--backend", "onnx")
    no("--provider is for artifacts", "--pipeline", stock, *concepts, "--provider", "cpu")
    no("--concepts goes with --pipeline", demo_artifact.path, *concepts)
    no("--kind goes with --pipeline", demo_artifact.path, "--kind", "object")
    no("'Neon' has a preset", "--pipeline", stock, *concepts, "--kind", "style")
    no("give --model", "--pipeline", stock, "--concepts", "Grumpy Cat", "--kind", "object")
    no("lies inside the model's folder", "--pipeline", stock, *concepts, "-o", stock / "e")
    no("--through and --sae are for artifacts", "--pipeline", stock, *concepts, "--through", "hook", command="attack")
    no("did you mean", "--pipeline", stock, "--concepts", "Neo", command="attack")


def test_an_attack_on_a_pipeline(stock, tmp_path):
    quick = ["--steps", 2, "--attacks", "seeds", "--search-seeds", 1, "--tune-seeds", 1, "--report-seeds", 2]
    options = ["attack", "--pipeline", stock, "--concepts", "Neon", *quick]
    found = json.loads(run(*options, "--json", "-o", tmp_path / "a.json").stdout)
    assert found["through"] == "pipeline" and found["pipeline"]["original"] == "demo" and found["edit_sha256"] == ""
    rows = {row["attack"]: row for row in found["concepts"]["Neon"]["rows"]}
    assert rows["unedited"]["each"] == rows["edited"]["each"], "nothing was edited"


@pytest.mark.slow
def test_an_artifacts_own_weights_draw_its_pictures(tmp_path, weights):
    """An edit of the weights alone is a UNet that fits over the base: by `--unet` it is the checkpoint, picture by picture."""
    from saeuron.export.plan.settings import Settings
    from saeuron.export.ship.stages import export_artifact

    wanted = Settings(("Neon",), tmp_path / "a", intervention="weights", formats=("checkpoint",), proof="short")
    root = export_artifact(wanted).path
    changed = json.loads((root / "saeuron.json").read_text())["edit"]["weights"]
    said = json.loads(run("evaluate", root, *FEW, "--no-before", "--json", "-o", tmp_path / "own").stdout)
    found = evaluated(tmp_path / "e", "--unet", root / WEIGHTS, "--model", "demo")
    put = found["settings"]["pipeline"]["unet"]
    assert (put["tensors"], put["changed"]) == (len(weights), len(changed))
    assert found["backends"]["pipeline"]["concepts"] == said["backends"]["checkpoint"]["concepts"]
    for path in (tmp_path / "own" / "pictures" / "checkpoint").iterdir():
        assert path.read_bytes() == (tmp_path / "e" / "pictures" / "pipeline" / path.name).read_bytes()
