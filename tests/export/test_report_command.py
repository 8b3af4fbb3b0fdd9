"""`saeuron report`: what is written where, and refusals."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import made_up
import pytest
from tests.conftest import refused, run

from saeuron.editor.common.typed import plain
from saeuron.export.ship.card import evidence_in, model_card
from saeuron.export.ship.into_artifact import contents, put_report
from saeuron.validation.artifact import manifest
from saeuron.validation.page.content import make_content
from saeuron.validation.page.render import render


def test_report(tmp_path):
    root = made_up.artifact(tmp_path / "without-neon", proof=made_up.report())
    before = sorted(root.rglob("*"))
    evaluation, attack = made_up.evaluation(tmp_path / "e", root), made_up.attack(tmp_path / "attack.json", root)
    result = run("report", root, "--evaluation", evaluation, "--attack", attack)
    folder = tmp_path / "without-neon-report"
    assert {p.name for p in folder.iterdir()} == {
        "report.html",
        "report.md",
        "report-pictures",
    } and "Neon removed from demo" in result.stdout
    assert sorted(root.rglob("*")) == before
    page = (folder / "report.html").read_text()
    assert page.startswith("<!doctype html>") and str(tmp_path) not in page
    markdown = (folder / "report.md").read_text()
    assert "(report-pictures/1-before.png)" in markdown and str(tmp_path) not in markdown
    assert {p.name for p in (folder / "report-pictures").iterdir()} == {"1-before.png", "1-after.png"}
    refused("exists", "report", root)
    said = json.loads(run("report", root, "--overwrite", "--json").stdout)
    assert said["verdict"]["state"] == "proven" and "No evaluation was given" in json.dumps(said["not_checked"])
    assert (folder / "report.html").read_text() != page
    (folder / "report-pictures" / "notes.txt").write_text("mine")
    refused("other things than pictures", "report", root, "--overwrite")


def verified(root):
    record = manifest.read(root)
    contents.check(root, record)
    return record


def test_into_the_artifact(tmp_path):
    root = made_up.artifact(tmp_path / "without-neon", proof=made_up.report())
    evaluation, attack = made_up.evaluation(tmp_path / "e", root), made_up.attack(tmp_path / "attack.json", root)
    options = ("--evaluation", evaluation, "--attack", attack, "--features", made_up.features(tmp_path / "f", root))
    options += ("--proof", made_up.another_proof(tmp_path / "p.json", root))
    before = verified(root)
    run("report", root, *options, "--into-artifact")
    record = verified(root)
    added = {name for name in record.files if name not in before.files}
    assert {"README.md", "validation/report.html", "validation/report.md", "validation/report-pictures/1-before.png"} <= added
    own = ("files", manifest.OWN_HASH)
    assert {k: v for k, v in plain(record).items() if k not in own} == {k: v for k, v in plain(before).items() if k not in own}
    card = (root / "README.md").read_text()
    assert card.startswith("---\n") and "## Evidence" in card and "### What was not checked" in card and "38 of 40" in card
    shown = re.findall(r"\]\((validation/[^)]*)\)", card)
    assert len(shown) == 10 and all((root / name).is_file() for name in shown) and "](report-pictures" not in card
    # A page can't name the hash of a manifest that lists it; an evaluation made before is still of these files.
    page = (root / "validation" / "report.html").read_text()
    assert "saeuron.json</dt>" not in page and manifest.content_sha256(record) in page
    refused("exists; --overwrite", "report", root, *options, "--into-artifact")
    run("report", root, *options, "--into-artifact", "--overwrite")
    assert verified(root) == record and (root / "validation" / "report.html").read_text() == page
    run("report", root, "--into-artifact", "--overwrite")
    assert (
        not [name for name in verified(root).files if "feature-" in name] and "No evaluation was given" in (root / "README.md").read_text()
    )
    # Engines that are added later write the card anew, with the report that lies there.
    assert "No evaluation was given" in model_card(record, evidence_in(root, verified(root))) and not list(root.glob(".saeuron*"))


def test_into_a_signed_artifact(tmp_path):
    root = made_up.artifact(tmp_path / "a", proof=made_up.report())
    (root / "model.sig").write_text("{}")
    contents.write(root, manifest.read(root))
    before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    refused("sign again", "report", root, "--into-artifact")
    refused("--no-pictures leaves out", "report", root, "--no-pictures", "--features", tmp_path)
    refused("two places", "report", root, "--into-artifact", "-o", tmp_path / "x.html")
    assert {p: p.read_bytes() for p in root.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("failing", [0, 3, 5, 7])
def test_an_interrupted_write_is_taken_back_or_mended(tmp_path, monkeypatch, failing):
    root = made_up.artifact(tmp_path / "a", proof=made_up.report())
    run("report", root, "--into-artifact")
    before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    evaluation = made_up.evaluation(tmp_path / "e", root)
    rename, calls = os.rename, []

    def stops(error):
        def stop(old, new):
            calls.append(new)
            if len(calls) == failing + 1:
                raise error
            if len(calls) > failing and isinstance(error, Killed):
                raise error  # nothing is taken back after a kill
            rename(old, new)

        return stop

    with monkeypatch.context() as patch:
        patch.setattr("saeuron.export.ship.switch.exchange", lambda *_: False)
        patch.setattr("saeuron.export.ship.switch.os.rename", stops(OSError(28, "No space left on device", "x")))
        refused("No space left on device", "report", root, "--evaluation", evaluation, "--into-artifact", "--overwrite")
    assert {p: p.read_bytes() for p in root.rglob("*") if p.is_file()} == before
    calls.clear()
    place = tmp_path / "place"
    with monkeypatch.context() as patch:
        patch.setattr("saeuron.export.ship.switch.exchange", lambda *_: False)
        patch.setattr("saeuron.export.ship.switch.os.rename", stops(Killed()))
        patch.setattr("saeuron.export.ship.switch.contextlib.ExitStack.callback", lambda *_: None)
        patch.setattr("saeuron.editor.common.writing.shutil.rmtree", lambda *_, **__: None)
        with pytest.raises(Killed):
            put_report(root, True, lambda: render(make_content(root, [evaluation]), "report-pictures"))
    for left in root.glob(".saeuron-report*"):
        left.rename(place)
    run("report", root, "--evaluation", evaluation, "--into-artifact", "--overwrite")
    verified(root)
    assert "38 of 40" in (root / "README.md").read_text()


class Killed(BaseException):
    """The process ends."""


def test_refusals(tmp_path):
    root = made_up.artifact(tmp_path / "a", proof=made_up.report())
    refused("no artifact", "report", tmp_path)
    refused("lies inside the artifact", "report", root, "-o", root / "report.html")
    other = made_up.artifact(tmp_path / "b", proof=made_up.report())
    refused("lies inside the artifact", "report", root, "-o", other / "report.html")
    refused("is a folder", "report", root, "-o", tmp_path)
    refused("end in .html", "report", root, "-o", tmp_path / "report.txt")
    refused("does not exist", "report", root, "--evaluation", tmp_path / "nowhere")
    refused("does not exist", "report", root, "--attack", tmp_path / "nowhere.json")
    (root / "unet" / "model.onnx").write_bytes(b"changed")
    refused("is not the file that was written", "report", root)
    assert not (tmp_path / "a-report").exists() and not list(tmp_path.glob(".*partial*"))


def test_needs_no_torch(tmp_path):
    root = made_up.artifact(tmp_path / "a", proof=made_up.report())
    features, proof = made_up.features(tmp_path / "f", root), made_up.another_proof(tmp_path / "p.json", root)
    code = f"""
import sys
for name in ("torch", "diffusers", "transformers", "onnx", "onnxruntime"): sys.modules[name] = None
from typer.testing import CliRunner
from saeuron.export.cli import app
result = CliRunner().invoke(app, ["report", {str(root)!r}, "--features", {str(features)!r}, "--proof", {str(proof)!r}, "--into-artifact"])
assert result.exit_code == 0, result.output
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)


def test_a_real_artifact(demo_artifact, tmp_path):
    page = tmp_path / "deep" / "page.html"
    # The hash on a proof is that of the finished artifact, though the export proves before it writes card and report.
    run("report", demo_artifact.path, "-o", page, "--proof", demo_artifact.path / "validation" / "report.json")
    text = page.read_text()
    assert text.count('class="thumb"') >= 8 and "Neon" in text and "proven" in text and (tmp_path / "deep" / "page.md").is_file()
