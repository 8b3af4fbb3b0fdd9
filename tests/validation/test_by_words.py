"""Evaluation on a concept's own test prompts, by judges that are told its words: against plain counting, and with what a forger would change."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.conftest import refused, run
from tests.validation.test_evaluate import rows_of

from saeuron.editor import demo
from saeuron.validation.artifact.concepts import read_concepts
from saeuron.validation.evidence.intervals import wilson
from saeuron.validation.judges.choose import open_judge

CLIP, DEMO = "CLIP demo:clip", "demo"


@pytest.fixture(scope="module")
def root(demo_artifact):
    return demo_artifact.path


@pytest.fixture(scope="module")
def done(root, tmp_path_factory):
    """Folder and JSON of an evaluation by two judges."""
    folder = tmp_path_factory.mktemp("by-words") / "e"
    options = ["--judge", "clip=demo:clip", "--judge", "demo", "--backend", "onnx", "--seeds", "188", "--steps", "4", "-o", folder]
    return folder, json.loads(run("evaluate", root, *options, "--json").stdout)


def test_figures_are_those_counted_from_the_verdicts(root, done):
    folder, found = done
    words, rows = read_concepts(root), rows_of(folder)
    settings = found["settings"]
    assert settings["protocol"] == "concepts" and [j["name"] for j in settings["judges"]] == [CLIP, DEMO]
    counted = Counter((r["backend"], r["set"]) for r in rows)
    sets = {
        n: c.test_prompts for concept in words.values() for n, c in ((concept.name, concept), *concept.contrast.items()) if c.test_prompts
    }
    assert counted == {(b, n): len(texts) for b in ("unedited", "onnx") for n, texts in sets.items()} and len(sets) == 16
    at = {(r["backend"], r["set"], r["prompt"]): json.loads(r["seen"]) for r in rows}
    differs = 0
    for backend in ("unedited", "onnx"):
        for judge in (CLIP, DEMO):
            for concept in ("House", "Neon"):
                own = [(concept, text) for text in sets[concept]]
                rest = [(n, text) for n in words[concept].contrast for text in sets.get(n, ()) if n not in words]
                assert len(rest) > 40
                said = found["backends"][backend]["sightings"][judge][concept]

                def check(entry, hits, trials):
                    assert (entry["hits"], entry["trials"]) == (hits, trials)
                    assert [entry["low"], entry["high"]] == list(wilson(hits, trials))

                check(said["removed"], sum(concept not in at[backend, *k][judge] for k in own), len(own))
                check(said["elsewhere"], sum(concept in at[backend, *k][judge] for k in rest), len(rest))
                for key, places in (("kept", rest), ("beside", own)):
                    before = [(k, n) for k in places for n in at["unedited", *k][judge] if n not in ("House", "Neon")]
                    hits = sum(n in at[backend, *k][judge] for k, n in before)
                    check(said[key], hits, len(before))
                    differs += backend == "onnx" and hits < len(before)
                if backend == "unedited":
                    t = found["trust"][judge][concept]
                    # The other removed concept is a picture without this one, for a judge of the unedited model.
                    others = [(n, text) for n in words[concept].contrast for text in sets.get(n, ())]
                    check(t["shown"], sum(concept in at[backend, *k][judge] for k in own), len(own))
                    check(t["absent"], sum(concept not in at[backend, *k][judge] for k in others), len(others))
                    assert t["balanced"] == pytest.approx((t["shown"]["rate"] + t["absent"]["rate"]) / 2)
    assert differs, "nothing was lost, so the counting of what is kept was not tried"


def test_verdicts_are_what_the_judges_say_of_the_stored_pictures(root, done):
    folder, _ = done
    rows = [r for i, r in enumerate(rows_of(folder)) if i % 7 == 0]
    pictures = [Image.open(folder / r["file"]) for r in rows]
    for judge in (open_judge("clip=demo:clip", read_concepts(root)), open_judge("demo")):
        found = judge.see(pictures)
        for row, seen, scores in zip(rows, found.seen, found.scores, strict=True):
            assert sorted(json.loads(row["seen"])[judge.name]) == sorted(n for n, there in zip(judge.concepts, seen, strict=True) if there)
            said = json.loads(row["scores"])[judge.name]
            assert said.keys() == {"House", "Neon"}
            np.testing.assert_allclose([said[n] for n in said], [scores[judge.concepts.index(n)] for n in said], atol=1e-3)


def test_the_table_is_printed_and_goes_on(root, done):
    folder, found = done
    options = ["--judge", "clip=demo:clip", "--judge", "demo", "--backend", "onnx", "--seeds", "188", "--steps", "4", "-o", folder]
    said = json.loads(run("evaluate", root, *options, "--json").stdout)
    assert said["backends"] == found["backends"] and said["trust"] == found["trust"]
    shown = run("evaluate", root, *options)
    assert "Not seen" in shown.stdout and f"{CLIP} tells the unedited model's pictures of House" in shown.stdout
    assert "to be believed" not in shown.stderr


def test_a_judge_that_is_not_to_be_believed_is_named(root, tmp_path):
    """The demo's CLIP with another text projection sees what it wants."""
    blind = tmp_path / "blind"
    shutil.copytree(demo.resolve("demo:clip"), blind)
    weights = load_file(blind / "model.safetensors")
    weights["text_projection.weight"] = torch.randn(weights["text_projection.weight"].shape, generator=torch.Generator().manual_seed(1))
    save_file(weights, blind / "model.safetensors", {"format": "pt"})
    shown = run("evaluate", root, "--judge", f"clip={blind}", "--backend", "onnx", "--seeds", "188", "--steps", "1", "-o", tmp_path / "e")
    trust = json.loads((tmp_path / "e" / "evaluation.json").read_text())["trust"]["CLIP blind"]
    poor = [name for name, t in trust.items() if t["balanced"] < 0.9]
    assert poor and "to be believed" in shown.stderr
    run("report", root, "--evaluation", tmp_path / "e", "-o", tmp_path / "r.html")
    text = (tmp_path / "r.md").read_text()
    assert all(
        f"of the unedited model's pictures of {name} from the others (believed from 90 %), so its figures say little" in text
        for name in poor
    )
    worst = min(
        json.loads((tmp_path / "e" / "evaluation.json").read_text())["backends"]["onnx"]["sightings"]["CLIP blind"].items(),
        key=lambda c: c[1]["removed"]["rate"],
    )
    assert ("which says little" in text.partition("## What was")[0]) == (worst[0] in poor)


def test_the_report_says_it_and_counts_again(root, done, tmp_path):
    folder, found = done
    run("report", root, "--evaluation", folder, "-o", tmp_path / "r.html")
    text = (tmp_path / "r.md").read_text()
    gone = found["backends"]["onnx"]["sightings"][CLIP]["Neon"]["removed"]
    assert f"| onnx | {CLIP} | Neon |" in text and f"{gone['hits']} of {gone['trials']}" in text
    assert "no longer sees" in text and "so its figures say little" not in text and "sets of prompts" in text

    def changed(change, name="evaluation.json"):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy)
        if name == "evaluation.json":
            content = json.loads((copy / name).read_text())
            change(content)
            (copy / name).write_text(json.dumps(content))
        else:
            (copy / name).write_text(change((copy / name).read_text()))
        return "report", root, "--evaluation", copy, "-o", tmp_path / "x.html"

    def part(content):
        return content["backends"]["onnx"]["sightings"][CLIP]["Neon"]

    better = {
        **gone,
        "hits": gone["trials"],
        "rate": 1.0,
        **dict(zip(("low", "high"), wilson(gone["trials"], gone["trials"]), strict=True)),
    }
    worse = {"hits": 0, "trials": 8, "rate": 0.0, **dict(zip(("low", "high"), wilson(0, 8), strict=True))}
    if better != gone:
        refused("of onnx is not what verdicts.csv gives", *changed(lambda c: part(c).update(removed=better)))
    refused("of onnx is not what verdicts.csv gives", *changed(lambda c: part(c).update(kept=better)))
    refused("trust in", *changed(lambda c: c["trust"][CLIP]["Neon"].update(shown=worse)))
    refused("trust in", *changed(lambda c: c.update(trust={})))
    refused("is not judged by", *changed(lambda c: c["backends"]["onnx"]["sightings"].pop(DEMO)))
    refused("no judge sees", *changed(lambda c: [j.update(concepts=["Heart"]) for j in c["settings"]["judges"]]))
    refused("of other concepts", *changed(lambda c: c["settings"]["compared"].pop("Neon")))
    # Who leaves out prompts, sets or a judge chooses the figures.
    other = "other sets of prompts than the artifact holds"
    refused(other, *changed(lambda c: c["settings"]["sets"].update(Heart=1)))
    refused(other, *changed(lambda c: c["settings"]["compared"].update(Neon=c["settings"]["compared"]["Neon"][:1])))
    refused("two judges have one name", *changed(lambda c: c["settings"]["judges"].append(c["settings"]["judges"][0])))
    prompt = rows_of(folder)[0]["prompt"]
    refused("doesn't list all prompts", *changed(lambda text: text.replace(f",{prompt},", ",Another prompt,"), "verdicts.csv"))

    def one_judge(content):
        content["settings"]["judges"] = [j for j in content["settings"]["judges"] if j["name"] == CLIP]
        content["trust"].pop(DEMO)
        for made in content["backends"].values():
            made["sightings"].pop(DEMO)

    refused(f"looked at by {CLIP}, {DEMO}, not by {CLIP}", *changed(one_judge))
    # Who drops what was judged badly has good figures.
    lines = [line for line in (folder / "verdicts.csv").read_text().splitlines(keepends=True) if "Heart-002-188" not in line]
    refused("pictures of unedited, evaluation.json counts", *changed(lambda text: "".join(lines), "verdicts.csv"))
    refused("holds what no judge writes", *changed(lambda text: text.replace('""Sepia""', '""Bogus""'), "verdicts.csv"))
    refused("is no figure of the protocol", *changed(lambda c: c["settings"].update(protocol="unlearncanvas")))


def test_refuses_what_can_not_be_judged(root, tmp_path):
    there = ["evaluate", root, "--backend", "onnx", "-o", tmp_path / "e"]
    refused("--objects goes with one judge", *there, "--judge", "clip=demo:clip", "--objects", "House")
    refused("--sequential goes with one judge", *there, "--judge", "clip=demo:clip", "--judge", "demo", "--sequential")
    refused("named twice", *there, "--judge", "demo", "--judge", "demo")
    refused("nudenet sees nudity alone", *there, "--judge", "nudenet")
    refused("takes one --judge", "attack", root, "--judge", "demo", "--judge", "clip=demo:clip")
    bare = tmp_path / "bare"
    shutil.copytree(root, bare)
    (bare / "edit" / "concepts.json").unlink()
    refused("holds no prompts of 'House'", "evaluate", bare, "--judge", "clip=demo:clip", "-o", tmp_path / "e")
    assert not (tmp_path / "e").exists()
