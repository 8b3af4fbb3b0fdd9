"""Models side by side: the table's figures are those of each model's own evaluation and attack; what is there is taken; refusals."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tests.conftest import put, refused, run

from saeuron.editor import demo
from saeuron.validation.compare.results import Compared, Comparison, outside_of, rates_of
from saeuron.validation.compare.table import header, rows
from saeuron.validation.evidence.intervals import Mean, Rate
from saeuron.validation.evidence.results import Backend
from saeuron.validation.evidence.smears import Outside

FEW = ["--steps", 2, "--objects", "House,Car", "--styles", "Neon,plain", "--seeds", 188]
QUICK = [*FEW, "--rounds", 1]
SEARCH = ["--attack", "seeds", "--search-seeds", 1, "--tune-seeds", 1, "--report-seeds", 2]
KEY = "up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight"
MODEL = Path(demo.resolve("demo"))


@pytest.fixture(scope="module")
def models(demo_artifact, tmp_path_factory):
    """An artifact, a stock pipeline and a file of one weight; the artifact removes Neon and House."""
    root = tmp_path_factory.mktemp("models")
    stock = shutil.copytree(MODEL, root / "stock")
    weight = load_file(MODEL / "unet" / "diffusion_pytorch_model.safetensors")[KEY]
    save_file({KEY: weight * 3}, root / "esd.safetensors")
    return demo_artifact.path, stock, root / "esd.safetensors"


@pytest.fixture(scope="module")
def done(models, tmp_path_factory):
    """Folder and JSON of a comparison of the three."""
    artifact, stock, file = models
    folder = tmp_path_factory.mktemp("compared") / "c"
    options = ["compare", f"ours={artifact}", stock, f"one weight={file}", "--model", "demo", *QUICK, *SEARCH, "-o", folder]
    return options, folder, json.loads(run(*options, "--json").stdout)


def test_figures_are_those_of_evaluate_and_attack(models, done, tmp_path):
    _, folder, found = done
    artifact, stock, _ = models
    by = {model["name"]: model for model in found["models"]}
    assert list(by) == ["unedited", "ours", "stock", "one weight"]
    assert [m["kind"] for m in by.values()] == ["unedited", "artifact", "pipeline", "weights"]
    assert json.loads((folder / "compare.json").read_text()) == found and set(found["concepts"]) == {"Neon", "House"}
    said = json.loads(run("evaluate", artifact, *FEW, "--no-before", "--json", "-o", tmp_path / "e").stdout)["backends"]["checkpoint"]
    for concept, rates in said["concepts"].items():
        ours = by["ours"]["rates"][concept]
        assert (ours["UA"], ours["IRA"], ours["CRA"], ours["CRA on target"]) == tuple(rates[k] for k in ("ua", "ira", "cra", "cra_target"))
    report = json.loads(run("attack", artifact, "--steps", 2, "--attacks", "seeds", *SEARCH[2:], "--json").stdout)
    for concept, of in report["concepts"].items():
        row = of["rows"][-1]
        assert (by["ours"]["rates"][concept]["attack: seeds"]["hits"], by["ours"]["rates"][concept]["attack: seeds"]["trials"]) == (
            row["successes"],
            row["trials"],
        )
    for concept in found["concepts"]:
        same = {k: v for k, v in by["stock"]["rates"][concept].items() if not k.startswith("attack")}
        assert same == by["unedited"]["rates"][concept], "a stock pipeline is the unedited model"
    assert by["one weight"]["identity"]["pipeline"]["unet"]["changed"] == 1
    assert by["one weight"]["bytes"] == models[2].stat().st_size
    assert all(m["cost"]["ratio"] > 0 for m in found["models"][1:]) and by["unedited"].get("cost") is None


def test_pages_hold_the_table_and_nothing_from_outside(done):
    _, folder, found = done
    page, text = (folder / "compare.html").read_text(), (folder / "compare.md").read_text()
    for model in found["models"]:
        for rate in (r for rates in model["rates"].values() for r in rates.values() if r["trials"]):
            assert f"{rate['hits']}/{rate['trials']}" in page and f"{rate['hits']}/{rate['trials']}" in text
    assert "default-src 'none'" in page and "http" not in page.replace("http-equiv", "") and "data:image/png" in page
    assert str(folder.parent) not in page + text + (folder / "compare.json").read_text()


def test_what_is_there_is_taken_and_a_model_can_be_added(done, models, tmp_path, monkeypatch):
    from saeuron.validation.attack import run as attacking
    from saeuron.validation.evidence.verdicts import Store

    options, folder, found = done
    copy = shutil.copytree(folder, tmp_path / "c")
    drawn = []
    real = Store._run
    monkeypatch.setattr(
        Store, "_run", lambda self, backend, unit, *rest: (drawn.append(self.folder.name), real(self, backend, unit, *rest))
    )
    monkeypatch.setattr(attacking, "attack", lambda *_: pytest.fail("attacked again"))
    again = json.loads(run(*options[:-1], copy, "--json").stdout)
    assert not drawn and [m["rates"] for m in again["models"]] == [m["rates"] for m in found["models"]]
    monkeypatch.undo()
    monkeypatch.setattr(
        Store, "_run", lambda self, backend, unit, *rest: (drawn.append(self.folder.name), real(self, backend, unit, *rest))
    )
    more = json.loads(run(*options[:-2], f"again={models[1]}", "-o", copy, "--json").stdout)
    assert set(drawn) == {"again"} and [m["name"] for m in more["models"]] == [*(m["name"] for m in found["models"]), "again"]


def test_dry_run(done, models, tmp_path):
    options, folder, _ = done
    said = json.loads(run(*options, "--dry-run", "--json").stdout)
    assert {name: (of["pictures"], of["done"]) for name, of in said["models"].items()} == dict.fromkeys(said["models"], (4, 4))
    assert said["models"]["ours"]["attack"]["done"] and said["models"]["ours"]["attack"]["forwards"] > 0 and said["original"] == "demo"
    new = tmp_path / "new"
    assert "4 pictures, 0 done" in run(*options[:-1], new, "--dry-run").stdout
    assert not new.exists()


def test_refusals(done, models, tmp_path):
    artifact, stock, file = models
    options, folder, _ = done

    def no(message, *given):
        refused(message, "compare", *given, *([] if "-o" in given else ["-o", tmp_path / "c"]))

    no("no model is named")
    no("name it: --concepts", stock)
    no("give edits of the same concepts", artifact, stock, "--concepts", "Neon")
    no("is the name of two models", stock, stock, "--concepts", "Neon")
    no("is what the original is called", f"unedited={stock}", "--concepts", "Neon")
    no("--unet needs the base", file, "--concepts", "Grumpy Cat", "--kind", "object")
    no("changes nothing", stock / "unet" / "diffusion_pytorch_model.safetensors", "--model", "demo", "--concepts", "Neon")
    no("did you mean embedding", stock, "--concepts", "Neon", "--attack", "embeding")
    no("no folder", tmp_path / "nowhere", "--concepts", "Neon")
    no("is no comparison", stock, "--concepts", "Neon", "-o", tmp_path.parent)
    no("holds another evaluation: steps was 2", *put(options[1:], "--steps", 3))
    no("holds another attack", *put(options[1:], "--search-seeds", 2))
    assert not (tmp_path / "c").exists()


def test_smears_get_columns():
    """Models without such figures get a dash."""
    smeared = Backend(
        nothing_seen={"odd": Rate.of(1, 4)},
        outside={n: Outside(Mean.of([0.5, 0.5]), Mean.of([v, v]), 9) for n, v in (("x", 0.1), ("y", 0.25))},
    )
    made = [
        Compared(
            name=n, kind="artifact", identity={}, folder=n, bytes=1, rates={"Neon": {"UA": Rate.of(1, 2)} | rates_of(backend, "Neon")}, outside=outside_of(backend)
        ) for n, backend in (("a", smeared), ("b", Backend(pictures=5)))
    ]  # fmt: skip
    found = Comparison(
        concepts=["Neon"], original="demo", judges=[], steps=1, guidance=1, seeds=[1], pictures=4, device="cpu", threads=1, models=made
    )  # fmt: skip
    titles = header(found)
    assert [[row[titles.index(title)][0] for row in rows(found)] for title in ("nothing seen by odd", "tokens outside")] == [
        ["1/4", "–"],
        ["25.0%", "–"],
    ]


@pytest.mark.slow
def test_judges_of_words_hold_each_model_against_the_unedited_one(models, tmp_path):
    options = ["--concepts", "Neon", "--steps", 1, "--seeds", 188, "--rounds", 0, "--judge", "demo", "--judge", "clip=demo:clip"]
    found = json.loads(run("compare", models[1], *options, "--json", "-o", tmp_path / "c").stdout)
    before, stock = found["models"]
    # Of its own pictures, the unedited model's are measured half by half (smears.nothing_seen).
    rates = [{t: rate for t, rate in model["rates"]["Neon"].items() if not t.startswith("nothing seen")} for model in (before, stock)]
    assert (before["name"], stock["name"]) == ("unedited", "stock") and rates[0] == rates[1]
    assert {title.rpartition(": ")[2] for title in rates[1]} == {"removed", "kept", "beside", "elsewhere"}
    assert len({title.rpartition(": ")[0] for title in rates[1]}) == 2
    kept = next(rate for title, rate in stock["rates"]["Neon"].items() if title.endswith("kept"))
    assert kept["hits"] == kept["trials"] > 0
