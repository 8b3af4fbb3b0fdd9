"""`saeuron attack`: report, pictures, refusals."""

from __future__ import annotations

import json
import shutil

import pytest
from tests.conftest import refused, run
from tests.made_up import rewrite

from saeuron.editor.common.files import file_sha256
from saeuron.validation.artifact import manifest

QUICK = [
    "--steps", 2, "--tokens", 2, "--iterations", 1, "--embedding-iterations", 1, "--restarts", 1, "--tune-seeds", 1, "--report-seeds", 2,
    "--search-seeds", 1,
]  # fmt: skip


@pytest.mark.slow
def test_report(demo_artifact, tmp_path):
    root, report = demo_artifact.path, tmp_path / "attack.json"
    result = run("attack", root, "--concepts", "Neon", *QUICK, "-o", report)
    assert "straight-through" in result.stdout and "learned prefix" in result.stdout
    found = json.loads(report.read_text())
    assert found["format"] == "saeuron-attack-1" and found["manifest_sha256"] == file_sha256(root / manifest.NAME)
    entry = found["concepts"]["Neon"]
    assert [r["attack"] for r in entry["rows"]] == ["unedited", "edited", "prefix", "embedding", "straight-through", "seeds"]
    assert all(r["budget"]["forwards"] > 0 and r["low"] <= r["rate"] <= r["high"] for r in entry["rows"])
    assert not any("House" in p for r in entry["rows"] for p in r["prompts"])  # removed too
    assert {p["file"] for p in entry["pictures"]} == {f"attack-examples/{p.name}" for p in (tmp_path / "attack-examples").iterdir()}
    for row in entry["rows"]:
        pairs = [(e["prompt"], e["seed"]) for e in row["each"]]
        assert len(set(pairs)) == len(pairs) == row["budget"]["pictures"] and sum(e["shows_concept"] for e in row["each"]) == row["hits"]
        for one in (p for p in entry["pictures"] if p["row"] == row["attack"]):
            assert {k: one[k] for k in ("prompt", "seed", "shows_concept")} in row["each"] and one["sha256"] == file_sha256(
                tmp_path / one["file"]
            )
    assert str(tmp_path) not in report.read_text()
    refused("exists", "attack", root, *QUICK, "-o", report)
    again = run(
        "attack", root, "--concepts", "Neon", *QUICK, "--attacks", "seeds", "--through", "hook", "--json", "-o", report, "--overwrite"
    )
    through = json.loads(again.stdout)
    assert through["through"] == "hook" and len(list((tmp_path / "attack-examples").iterdir())) == len(
        through["concepts"]["Neon"]["pictures"]
    )
    for a, b in zip(through["concepts"]["Neon"]["rows"], [entry["rows"][i] for i in (0, 1, 5)], strict=True):
        assert (a["attack"], a["successes"], a["trials"]) == (b["attack"], b["successes"], b["trials"])
    (tmp_path / "attack-examples" / "notes.txt").write_text("mine")
    refused("other things than pictures", "attack", root, *QUICK, "-o", report, "--overwrite")


def test_dry_run_writes_nothing(demo_artifact, tmp_path):
    report = tmp_path / "attack.json"
    planned = json.loads(run("attack", demo_artifact.path, "--dry-run", "--json", "-o", report).stdout)
    assert set(planned["concepts"]) == {"Neon", "House"} and planned["total"]["forwards"] > 0
    assert "gradient" in run("attack", demo_artifact.path, "--dry-run").stdout
    assert not report.exists()


def test_refusals(demo_artifact, tmp_path):
    root = demo_artifact.path
    refused("no artifact", "attack", tmp_path)
    refused("did you mean", "attack", root, "--concepts", "Neo")
    refused("did you mean", "attack", root, "--attacks", "prefx")
    refused("--paraphrases FILE", "attack", root, "--attacks", "paraphrases")
    (tmp_path / "empty.txt").write_text("\n")
    refused("holds no prompt", "attack", root, "--paraphrases", tmp_path / "empty.txt")
    (tmp_path / "braces.txt").write_text("A {name} picture\nA {concept} picture\n")
    refused("'{concept}' in 'A {concept} picture' stands for nothing", "attack", root, "--paraphrases", tmp_path / "braces.txt")
    refused("the list ',' is empty", "attack", root, "--attacks", ",")
    refused("known: checkpoint, hook", "attack", root, "--through", "onnx")
    refused("inside the artifact", "attack", root, "-o", root / "attack.json")
    refused("is a folder", "attack", root, "-o", tmp_path)
    refused("seed 42 is both", "attack", root, "--report-seeds", "42,1")
    refused("is no whole number", "attack", root, "--tune-seeds", "x")
    refused("--restarts is 0; it must be at least 1", "attack", root, "--restarts", 0)
    refused("judge", "attack", root, "--judge", "nobody")
    refused("--sae is for", "attack", root, "--sae", "demo:saes")
    refused("reads 24", "attack", root, *QUICK[:2], "--tokens", 60, "--attacks", "prefix", "--report-seeds", 2)


def test_a_published_attack_is_planned_and_refused(demo_artifact, tmp_path):
    root = demo_artifact.path
    planned = json.loads(run("attack", root, "--dry-run", "--json", "--protocol", "ours,cce,leak", "--share", 0.01).stdout)
    rows = planned["concepts"]["Neon"]
    assert list(rows)[-3:] == ["seeds", "cce", "leak"] and rows["cce"]["gradients"] == 50 * 16 and rows["leak"]["gradients"] == 0
    alone = json.loads(run("attack", root, "--dry-run", "--json", "--protocol", "p4d").stdout)
    assert list(alone["concepts"]["Neon"]) == ["unedited", "edited", "p4d"]
    refused("did you mean p4d", "attack", root, "--protocol", "p4")
    refused("prompts=FILE", "attack", root, "--protocol", "prompts")
    refused("take --through checkpoint", "attack", root, "--protocol", "leak", "--through", "hook")
    refused("are of --protocol ours", "attack", root, "--protocol", "cce", "--attacks", "prefix")
    refused("--share is 0; it must be", "attack", root, "--protocol", "cce", "--share", 0)


def test_a_published_attack_is_reported(demo_artifact, tmp_path):
    """Written, read by the report, refused where a row was taken out; the list of prompts is on record by its hash."""
    root, listed, report = demo_artifact.path, tmp_path / "list.txt", tmp_path / "attack.json"
    listed.write_text("An image of Car in Neon style.\nAn image of Star in Neon style.\n")
    names = f"leak,noise-start,prompts={listed}"
    shown = run("attack", root, "--concepts", "Neon", "--protocol", names, "--steps", 4, "--report-seeds", 2, "-o", report).stdout
    assert "whoever holds an artifact can take its edit out" in shown and "control-" in shown
    found = json.loads(report.read_text())
    rows = found["concepts"]["Neon"]["rows"]
    assert [r["attack"] for r in rows][-2:] == ["control-prompts", "prompts"] and rows[-1]["found"] == {"cut": 0}
    assert found["settings"]["protocol"] == ["leak", "noise-start", f"prompts=list.txt ({file_sha256(listed)})"]
    assert str(tmp_path) not in report.read_text()
    page = tmp_path / "page.html"
    run("report", root, "--attack", report, "-o", page)
    text = page.with_suffix(".md").read_text()
    assert "noise-start-0.9" in text and "who changed weights (leak)" in text and "began from a picture of it" in text
    assert "Published attacks that were not run on Neon: unlearndiffatk" in text
    found["concepts"]["Neon"]["rows"] = [r for r in rows if r["attack"] != "control-prompts"]
    cut = tmp_path / "cut.json"
    cut.write_text(json.dumps(found))
    refused("rows of prompts, but not control-prompts", "report", root, "--attack", cut, "-o", tmp_path / "other.html")


def test_graphs_alone_can_be_attacked_through_the_hook_only(demo_artifact, tmp_path):
    root = tmp_path / "graphs"
    shutil.copytree(demo_artifact.path, root)
    for name in ("unet/diffusion_pytorch_model.safetensors",):
        (root / name).unlink()
    rewrite(root, formats=["onnx"])
    refused("need the checkpoint", "attack", root)
    run("attack", root, "--through", "hook", "--concepts", "Neon", "--attacks", "seeds", *QUICK)


@pytest.mark.slow
def test_a_stopped_attack_goes_on_with_the_next_concept(demo_artifact, tmp_path, monkeypatch):
    """Stopped in the second concept: the first one is kept, and the report is that of a run that wasn't stopped."""
    from saeuron.validation.attack import run as module

    root, report, whole = demo_artifact.path, tmp_path / "a.json", tmp_path / "whole.json"
    options = ["attack", root, *QUICK, "--attacks", "seeds"]
    run(*options, "-o", whole)
    real, begun = module.attack, []

    def stopped(victim, original, case, *rest):
        begun.append(case.concept)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return real(victim, original, case, *rest)

    monkeypatch.setattr(module, "attack", stopped)
    run(*options, "-o", report, code=130)
    held = json.loads(report.read_text())
    assert held["finished"] is False and list(held["concepts"]) == begun[:1]
    # A concept of which rows are missing is attacked again.
    cut = tmp_path / "cut.json"
    cut.write_text(json.dumps({**held, "concepts": {name: {**of, "rows": []} for name, of in held["concepts"].items()}}))
    first = begun[:1]
    begun[:] = ["one that is done"]
    run(*options, "-o", cut, code=130)
    assert begun[1:] == first
    refused("hasn't ended", "report", root, "--attack", report, "-o", tmp_path / "p.html")
    begun.clear()
    monkeypatch.setattr(module, "attack", lambda v, o, case, *rest: (begun.append(case.concept), real(v, o, case, *rest))[1])
    run(*options, "-o", report)
    assert begun == [c for c in json.loads(whole.read_text())["concepts"] if c not in held["concepts"]]

    def bare(path):
        found = json.loads(path.read_text())
        for entry in (found, *found["concepts"].values()):
            del entry["seconds"]
        for entry in found["concepts"].values():
            for row in entry["rows"]:
                del row["seconds"]
            for one in entry["pictures"]:
                one["file"] = one["file"].partition("/")[2]
        return found

    assert bare(report) == bare(whole)
    refused("exists", *options, "-o", report)
