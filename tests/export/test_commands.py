"""collect, train and select as a user types them, on real pipelines."""

import json
import tomllib

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import HOOKPOINT, by_two_processes, make_sae, put, refused, run

from saeuron.editor.common.files import read_header
from saeuron.editor.features.activations import ConceptActivations
from saeuron.editor.features.concepts import presets

PROMPTS = """
[prompts]
Neon = ["An image of House in Neon style.", "An image of Car in Neon style.", "An image of Star in Neon style."]
plain = ["An image of House.", "An image of Car."]
"""


@pytest.fixture
def collecting(tiny, tmp_path):
    (tmp_path / "p.toml").write_text(PROMPTS)
    return [
        "--prompts", tmp_path / "p.toml", "--model", tiny["model"], "--sae", tiny["sae"], "--hookpoint", f"unet.{HOOKPOINT}", "--steps", 3,
        "--guidance", 3, "--batch-size", 2,
    ]  # fmt: skip


def test_collect_writes_a_file_that_export_reads(collecting, tiny, tmp_path):
    found = json.loads(run("collect", *collecting, "--output", tmp_path / "a.safetensors", "--json").stdout)
    assert found["sets"] == {"Neon": 3, "plain": 2}
    held = ConceptActivations.load(tmp_path / "a.safetensors")
    assert held.concepts == ["Neon", "plain"] and held.prompts == [3, 2] and held.provenance["sae_sha256"] == make_sae().sha256()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "p.toml"], "no unfinished work is left"
    run("export", "--concepts", "Neon", "--intervention", "multiply", "--model", tiny["model"], "--sae", tiny["sae"], "--activations", tmp_path / "a.safetensors",
        "--hookpoint", HOOKPOINT, "--select", "count:20", "--multiplier", "-3", "--steps", 2, "--proof", "short", "--format", "checkpoint",
        "--output", tmp_path / "out")  # fmt: skip


@pytest.fixture
def one_thread():
    """Torch's sums depend on its number of threads, so both sides of a comparison bit by bit need the same."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_collect_by_two_processes_writes_the_same_file(collecting, tmp_path, one_thread):
    run("collect", *collecting, "--output", tmp_path / "one.safetensors")
    done = by_two_processes("collect", *collecting, "--output", tmp_path / "two.safetensors")
    assert done.stdout.count("file ") == 1, "only one process speaks"
    assert "process 1 of 2" in done.stdout + done.stderr
    one, two = (tmp_path / f"{n}.safetensors" for n in ("one", "two"))
    # The library orders a header's entries at random; entries and tensors are equal bit by bit.
    assert read_header(one) == read_header(two)
    for name, tensor in load_file(one).items():
        assert torch.equal(tensor, load_file(two)[name])


def test_collect_refuses_what_cannot_be_meant(collecting, tiny, tmp_path):
    there = ["--output", tmp_path / "a.safetensors"]
    refused("one of the two", "collect", *there)
    refused("did you mean Neon", "collect", "--concepts", "Neom", *there)
    refused("different domains", "collect", "--concepts", "Neon,House", *there)
    refused("no output", "collect", *collecting)
    refused("can't be read as TOML", "collect", "--prompts", tiny["model"] / "model_index.json", *there)
    refused("2 hookpoints; give a folder", "collect", *put(collecting, "--hookpoint", f"{HOOKPOINT},up_blocks.1.attentions.0"), *there)
    refused("is not in this UNet", "collect", *put(collecting, "--hookpoint", "up_blocks.7.attentions.0"), *there)
    refused(
        "reads 32 channels",
        "collect",
        *put(
            collecting,
            "--hookpoint",
            "up_blocks.1.attentions.0",
            "--sae",
            f"up_blocks.1.attentions.0={tiny['sae'] / f'unet.{HOOKPOINT}'}",
        ),
        *there,
    )
    (tmp_path / "one.txt").write_text("a\n\nb\n")
    refused("contrast set", "collect", *collecting[2:], "--prompts", f"a={tmp_path / 'one.txt'}", *there)
    (tmp_path / "a.safetensors").write_text("mine")
    refused("exists", "collect", *collecting, *there)


def test_select_shows_features_and_writes_settings_that_export_reads(tmp_path):
    found = json.loads(run("select", "--concepts", "Neon,House,Boat", "--output", tmp_path / "s.toml", "--json").stdout)
    known = presets()
    places = known["Neon"].features.hookpoint.split(",")
    entries = {e["concept"]: e for e in found["concepts"]}
    assert [(e["concept"], e["hookpoint"]) for e in found["concepts"]] == [
        (c, h) for c in ("Neon", "House", "Boat") for h in known[c].features.hookpoint.split(",")
    ]
    assert len(places) == 2
    for entry in found["concepts"]:
        assert entry["per_step"] == [int(known[entry["concept"]].select.removeprefix("count:"))] * 20
    assert all(f["ranges"][0][0] <= 999 and f["ranges"][-1][1] >= 49 for f in entries["Neon"]["features"])
    assert len(entries["House"]["compared_with"]) == 7 and "House" not in entries["House"]["compared_with"]
    tables = {t["name"]: t for t in tomllib.loads((tmp_path / "s.toml").read_text())["concepts"]}
    assert tables["Neon"]["select"] == known["Neon"].select and tables["House"]["status"] == "tuned"
    assert (
        tables["Neon"]["hookpoint"] == known["Neon"].features.hookpoint
        and tables["Neon"]["activations"] == "demo:style-{hookpoint}.safetensors"
    )
    plans = [
        json.loads(run("export", *options, "--output", tmp_path / "x", "--dry-run", "--json").stdout)
        for options in (["--concepts", "Neon,House,Boat", "--intervention", "multiply"], ["--settings", tmp_path / "s.toml"])
    ]
    assert plans[0]["features"] == plans[1]["features"]
    assert {c["status"] for c in plans[1]["concepts"]} == {"tuned"}
    many = ["select", "--concepts", "House,Boat", "--select", "count:64"]
    assert any(set(pair["concepts"]) == {"House", "Boat"} for pair in json.loads(run(*many, "--json").stdout)["overlaps"])
    assert "House and Boat share" in run(*many).stdout
    refused("exists", "select", "--concepts", "Neon", "--output", tmp_path / "s.toml")


def test_select_figures_are_what_their_words_say(tmp_path):
    from saeuron.editor import demo
    from saeuron.editor.features.overlap import describe_features, overlaps
    from saeuron.editor.features.selection import scores

    held = ConceptActivations.load(next(demo.ROOT.glob("style-*.safetensors")))
    steps = len(held.timesteps)
    chosen = [[7] if step in (0, 1, 5) else [] for step in range(steps)]
    (entry,) = describe_features(held, "Sepia", chosen)
    at = [0, 1, 5]
    own = held.concepts.index("Sepia")
    others = [i for i in range(len(held.concepts)) if i != own]
    t = held.timesteps.tolist()
    assert entry["ranges"] == [(t[0], t[1]), (t[5], t[5])] and entry["steps"] == 3
    assert entry["score"] == pytest.approx(sum(float(scores(held, "Sepia")[s, 7]) for s in at) / 3)
    above = [float(held.means[i, s, 7] > held.means[:, s, 7].mean()) for i in others for s in at]
    assert entry["others_above"] == pytest.approx(sum(above) / len(above))
    assert overlaps({"a": [[1, 2], [3]], "b": [[2], [4]], "c": [[9], []]}) == [{"concepts": ["a", "b"], "features": [2], "steps": 1}]


@pytest.fixture
def training(tiny, tmp_path):
    (tmp_path / "prompts.txt").write_text("An image of House.\nAn image of Car in Neon style.\n")
    return [
        "train", "--model", tiny["model"], "--hookpoint", HOOKPOINT, "--prompts", tmp_path / "prompts.txt", "--sampling-steps", 4, "--guidance", 3,
        "--batch-size", 2, "--expansion", 4, "--k", 6, "--tokens", 64 * 12, "--batch", 64, "--micro-batches", 2, "--rate", "3e-3", "--pictures", 4,
        "--passes", 2, "--held-out", 4,
    ]  # fmt: skip


def test_train_writes_an_sae_that_collect_reads(training, tiny, tmp_path):
    report = json.loads(run(*training, "--output", tmp_path / "sae", "--json").stdout)
    assert report["steps"] == 12 and report["saes"][HOOKPOINT]["fvu"] > 0
    assert json.loads((tmp_path / "sae" / f"unet.{HOOKPOINT}" / "cfg.json").read_text())["batch_topk"] is True
    (tmp_path / "p.toml").write_text(PROMPTS)
    run("collect", "--prompts", tmp_path / "p.toml", "--model", tiny["model"], "--sae", tmp_path / "sae", "--hookpoint", HOOKPOINT, "--steps", 2,
        "--output", tmp_path / "a.safetensors")  # fmt: skip
    refused("finished training", *training, "--output", tmp_path / "sae")


@pytest.mark.slow
def test_train_by_two_processes_trains_the_same_sae(training, tmp_path, one_thread):
    alone = run(*training, "--output", tmp_path / "one")
    one = json.loads((tmp_path / "one" / "training.json").read_text())
    done = by_two_processes(*training, "--output", tmp_path / "two")
    assert done.stdout.count("FVU") == alone.stdout.count("FVU") > 0, "only one process speaks"
    two = json.loads((tmp_path / "two" / "training.json").read_text())
    assert two["saes"][HOOKPOINT]["sha256"] == one["saes"][HOOKPOINT]["sha256"]


def test_train_dry_run_and_refusals(training, tmp_path):
    plan = json.loads(run(*training, "--output", tmp_path / "x", "--dry-run", "--json").stdout)
    assert plan["steps"] == 12 and "128 latents" in plan[HOOKPOINT] and not (tmp_path / "x").exists()
    refused("--model is missing", "train", "--hookpoint", HOOKPOINT)
    refused("k is 0", *put(training, "--k", 0), "--output", tmp_path / "x")
    refused("multiples of --batch-size", *put(training, "--pictures", 3), "--output", tmp_path / "x")
    refused("is not in this UNet", *put(training, "--hookpoint", "up_blocks.9.attentions.0"), "--output", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_the_dry_run_of_the_main_job_needs_no_network(tmp_path):
    shown = run("export", "--concepts", "nudity,vangogh", "--format", "onnx", "--dry-run", "--output", tmp_path / "x").stdout
    for text in (
        "CompVis/stable-diffusion-v1-4",
        "to fetch",
        "bcywinski/SAeUron_coco",
        "nudity 30",
        "other painters 30",
        "unet/model.onnx",
        "untuned",
    ):
        assert text in shown
    refused("--model", "export", "--concepts", "Van_Gogh", "--output", tmp_path / "x")
    refused("different base models", "export", "--concepts", "Neon,nudity", "--output", tmp_path / "x")


def test_dry_runs_refuse_what_the_run_would(collecting, training, tmp_path):
    there = ["--output", tmp_path / "out", "--dry-run"]
    refused("is not in this UNet", "collect", *put(collecting, "--hookpoint", "up_blocks.1.attentions.9"), *there)
    at = collecting.index("--sae")
    without = [*collecting[:at], *collecting[at + 2 :]]
    refused("it is no Hub id", "collect", *without, "--sae", tmp_path / "nowhere", *there)
    refused("for hookpoint", "collect", *without, "--sae", "demo:saes", *there)
    (tmp_path / "one.toml").write_text('[prompts]\nNeon = ["Neon."]\n')
    refused("only one set of prompts", "collect", *collecting[2:], "--prompts", tmp_path / "one.toml", *there)
    refused("activations are written as .safetensors", "collect", *collecting, "--output", tmp_path / "a.pt", "--dry-run")
    refused("is larger than the", *put(training, "--k", 10**6), *there)
    refused("fewer than one batch", *put(training, "--batch", 10**8, "--micro-batches", 1), *there)
    refused("this machine has", *put(training, "--expansion", 10**8), *there)
    refused("it must be 1 to 1000000000000000", *put(training, "--tokens", "9" * 401), *there)
    assert not (tmp_path / "out").exists()
    said = run("collect", *without, "--sae", "owner/saes", *there).stdout
    assert "to fetch   owner/saes" in said


def test_amplifying_is_asked_for_by_name_in_select_too(tmp_path):
    options = ["select", "--concepts", "Neon", "--select", "count:1", "--multiplier", 2, "--output", tmp_path / "s.toml"]
    refused("--allow-amplify", *options)
    run(*options, "--allow-amplify")
    assert tomllib.loads((tmp_path / "s.toml").read_text())["concepts"][0]["multiplier"] == 2


def test_options_that_can_not_be_meant(collecting, training, tmp_path):
    (tmp_path / "taken.safetensors").mkdir()
    there = ["--output", tmp_path / "a.safetensors"]
    for message, options in (
        ("--seed is 4294967296; it must be 0 to 4294967295", ("--seed", 2**32)), ("--steps is 2000; it must be 1 to 1000", ("--steps", 2000)), ("a finite number", ("--guidance", "nan")),
        ("multiple of 8", ("--height", 20)), ("given twice", ("--hookpoint", f"{HOOKPOINT},unet.{HOOKPOINT}")),
        ("device 'cuda:7' can't be used", ("--device", "cuda:7")), ("is a folder", ("--overwrite", "--output", tmp_path / "taken.safetensors")),
    ):  # fmt: skip
        refused(message, "collect", *put([*collecting, *there], *options))
    refused("twice for the same", "collect", *collecting, *there, "--sae", "demo:saes")
    for message, options in (
        ("--sampling-steps is 1001; it must be 1 to 1000", ("--sampling-steps", 1001)), ("--seed is 10000000000000000000…; it must be 0 to", ("--seed", 10**30)), ("given twice", ("--hookpoint", f"{HOOKPOINT},{HOOKPOINT}")),
        ("a finite number", ("--guidance", "inf")), ("not TOML", ("--prompts", tmp_path / "p.toml")), ("is a file", ("--output", tmp_path / "p.toml")), ("can't be used", ("--device", "cuda:7")),
    ):  # fmt: skip
        refused(message, *put([*training, "--output", tmp_path / "x"], *options))
    assert not (tmp_path / "x").exists()
