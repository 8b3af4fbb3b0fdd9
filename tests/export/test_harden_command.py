"""`saeuron harden`: settings that an export takes, resumed runs, refusals."""

from __future__ import annotations

import json
import tomllib

import pytest
from tests.conftest import refused, run

QUICK = [
    "--steps", 2, "--iterations", 1, "--restarts", 1, "--tune-seeds", 1, "--trial-seeds", 3, "--report-seeds", 2, "--report-searches", 1,
    "--widen", 2, "--batch-size", 64,
]  # fmt: skip


@pytest.mark.slow
def test_settings_and_report(tmp_path):
    command = ["harden", "--concepts", "Neon", *QUICK, "--multiplier=-0.001", "--cost", 99, "--output", tmp_path / "h"]
    report = json.loads(run(*command, "--json").stdout)
    entry = report["concepts"]["Neon"]
    assert report["format"] == "saeuron-hardening-1" and json.loads((tmp_path / "h" / "report.json").read_text()) == report
    for m in (entry["before"], entry["chosen"], *entry["compared"]):
        assert all(m[k]["low"] <= m[k]["rate"] <= m[k]["high"] for k in ("attack", "ua", "ira", "cra"))
    # What is written is what was chosen, and an export takes it.
    (table,) = tomllib.loads((tmp_path / "h" / "settings.toml").read_text())["concepts"]
    assert (table["select"], table["multiplier"]) == (entry["compared"][0]["select"], entry["compared"][0]["multiplier"])
    plan = json.loads(
        run("export", "--settings", tmp_path / "h" / "settings.toml", "--output", tmp_path / "x", "--dry-run", "--json").stdout
    )
    assert plan["concepts"][0]["select"] == table["select"]
    results = sorted((tmp_path / "h" / "results").iterdir())
    shown = run(*command).stdout
    assert "before" in shown and "chosen" in shown and sorted((tmp_path / "h" / "results").iterdir()) == results
    # A run that begins from what another one wrote.
    again = json.loads(run("harden", "--settings", tmp_path / "h" / "settings.toml", *QUICK, "--output", tmp_path / "h2", "--json").stdout)
    assert again["concepts"]["Neon"]["before"]["select"] == table["select"]


def test_refusals(tmp_path):
    there = ["--output", tmp_path / "h"]
    refused("no output folder", "harden", "--concepts", "Neon")
    refused("did you mean", "harden", "--concepts", "Neo", *there)
    refused("above 1", "harden", "--concepts", "Neon", "--widen", "1,2", *there)
    refused("--multiplier is 1; it must be at most 0", "harden", "--concepts", "Neon", "--multiplier", "1", *there)
    refused("did you mean", "harden", "--concepts", "Neon", "--attack", "embeding", *there)
    refused("used twice", "harden", "--concepts", "Neon", "--trial-seeds", "42", *there)
    refused("both learned from and counted", "harden", "--concepts", "Neon", "--report-seeds", "42", *there)
    refused("at least 0 and below 100", "harden", "--concepts", "Neon", "--cost", 100, *there)
    refused("judge", "harden", "--concepts", "Neon", "--judge", "nobody", *there)
    refused("no concept", "harden", *there)
    (tmp_path / "file").write_text("")
    refused("is a file", "harden", "--concepts", "Neon", "--output", tmp_path / "file")
    assert not (tmp_path / "h").exists()
