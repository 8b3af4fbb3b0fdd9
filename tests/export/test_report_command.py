"""`saeuron report`: what is written where, and refusals."""

from __future__ import annotations

import json
import subprocess
import sys

import made_up
from conftest import refused, run


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
    code = f"""
import sys
for name in ("torch", "diffusers", "transformers", "onnx", "onnxruntime"): sys.modules[name] = None
from typer.testing import CliRunner
from saeuron.export.cli import app
result = CliRunner().invoke(app, ["report", {str(root)!r}])
assert result.exit_code == 0, result.output
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)


def test_a_real_artifact(demo_artifact, tmp_path):
    page = tmp_path / "deep" / "page.html"
    run("report", demo_artifact.path, "-o", page)
    text = page.read_text()
    assert text.count('class="thumb"') >= 8 and "Neon" in text and "proven" in text and (tmp_path / "deep" / "page.md").is_file()
