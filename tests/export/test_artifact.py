"""The folder as a whole: atomic, swept, and honest about what the command says."""

import contextlib
import json
import signal
import subprocess
import sys
import time

import pytest
from tests.conftest import HOOKPOINT, check_plan, guard
from typer.testing import CliRunner

from saeuron.editor.features.concepts import presets
from saeuron.export.cli import app
from saeuron.export.plan.folder import building
from saeuron.export.plan.settings import Settings
from saeuron.export.ship.stages import export_artifact
from saeuron.validation.trust.verify import verify

runner = CliRunner()


def settings(tiny, output, **changes):
    known = {
        "concepts": ("A",), "output": output, "formats": ("checkpoint",), "model": str(tiny["model"]), "sae": (str(tiny["sae"]),), "hookpoint": HOOKPOINT,
        "activations": (str(tiny["activations"]),), "select": "count:20", "multiplier": -3.0, "steps": 2, "proof": "short",
    }  # fmt: skip
    return Settings(**(known | changes))


def test_an_error_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), building(tmp_path / "out", False) as folder:
        (folder / "half").write_text("x")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_files_are_as_readable_as_their_folder(tmp_path):
    """A library that writes for its owner alone must not make an artifact that a server can't read."""
    with building(tmp_path / "out", False) as folder:
        (folder / "unet").mkdir()
        (folder / "unet" / "weights").touch(mode=0o600)
    mode = (tmp_path / "out").stat().st_mode & 0o666
    assert (tmp_path / "out" / "unet" / "weights").stat().st_mode & 0o777 == mode


@pytest.mark.slow
def test_overwrite_replaces_whole(tiny, tmp_path):
    first = export_artifact(settings(tiny, tmp_path / "out"))
    second = export_artifact(settings(tiny, tmp_path / "out", multiplier=-5.0, overwrite=True))
    assert first.manifest.edit.sha256 != second.manifest.edit.sha256
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
@pytest.mark.parametrize("being_written", ["edit/edit.safetensors", "edit/golden.safetensors", "unet/*"])
def test_a_kill_leaves_nothing_under_the_final_name(tiny, tmp_path, being_written):
    """Killed the moment that a file of the artifact is there, in its hidden place."""
    options = ["--concepts", "A", "--model", tiny["model"], "--sae", tiny["sae"], "--activations", tiny["activations"], "--hookpoint", HOOKPOINT, "--format", "checkpoint",
               "--select", "count:20", "--multiplier", "-3", "--steps", "2", "--proof", "short", "--output", tmp_path / "out"]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "saeuron", "export", *map(str, options)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    written = []
    while not written:
        with contextlib.suppress(FileNotFoundError):  # what is hidden comes and goes while it is looked through
            written = list(tmp_path.glob(f".*/**/{being_written}"))
        assert process.poll() is None, "it ended before a file was seen being written"
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL and written[0].exists(), "killed in the middle, with files half way"
    assert not (tmp_path / "out").exists()
    export_artifact(settings(tiny, tmp_path / "out"))
    assert [p.name for p in tmp_path.iterdir()] == ["out"], "the killed export's folder was not swept"


def test_no_validate_says_so(tiny, tmp_path):
    wanted = settings(tiny, tmp_path / "out", validate=False)
    result = export_artifact(wanted)
    check_plan(result, wanted)
    assert result.manifest.validation is None and not result.proven
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Not validated" in card and "`edit/` holds" in card and "validation/report.json" not in card


def test_an_edit_that_never_fires_exits_with_1(tiny, tmp_path):
    from tests.conftest import make_activations

    made = make_activations(scale=1e4)
    made.save(tmp_path / "a.safetensors")
    command = ["export", "--concepts", "A", "--model", str(tiny["model"]), "--sae", str(tiny["sae"]), "--activations", str(tmp_path / "a.safetensors"), "--hookpoint", HOOKPOINT,
               "--select", "count:20", "--multiplier", "-3", "--steps", "2", "--proof", "short", "--format", "checkpoint", "--output", str(tmp_path / "out")]  # fmt: skip
    result = runner.invoke(app, command)
    assert result.exit_code == 1 and "never fired" in result.stderr


def test_several_hookpoints_and_a_settings_file(tiny, tmp_path):
    from tests.conftest import make_activations, make_sae

    other = "up_blocks.1.attentions.1"
    make_sae(width=16, latents=96, seed=4).save(tmp_path / "sae2")
    make_activations(latents=96, concepts=("X", "Y"), seed=3).save(tmp_path / "a2.safetensors")
    (tmp_path / "s.toml").write_text(
        '[export]\nsteps = 2\n[[concepts]]\nname = "X"\nselect = "count:30"\n[[concepts]]\nname = "A"\nselect = "count:20"\n'
    )
    result = export_artifact(
        settings(
            tiny, tmp_path / "out", concepts=("A", "X"), sae=(f"{HOOKPOINT}={tiny['sae']}", f"unet.{other}={tmp_path / 'sae2'}"), hookpoint=None, select=None,
            activations=(f"{HOOKPOINT}={tiny['activations']}", f"{other}={tmp_path / 'a2.safetensors'}"), settings=tmp_path / "s.toml",
        )
    )  # fmt: skip
    assert result.report.passed, result.report.failures
    assert set(result.manifest.edit.hookpoints) == {HOOKPOINT, other}
    assert {w.name: w.select for w in result.manifest.settings} == {"A": "count:20", "X": "count:30"}


def test_dry_run_writes_nothing_and_tells_the_plan(tiny, tmp_path):
    command = ["export", "--dry-run", "--json", "--concepts", "A", "--model", str(tiny["model"]), "--sae", str(tiny["sae"]), "--activations", str(tiny["activations"]),
               "--hookpoint", HOOKPOINT, "--select", "count:3", "--output", str(tmp_path / "out")]  # fmt: skip
    result = runner.invoke(app, command)
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert plan["features"][HOOKPOINT]["A"]["per_step"] == [3] * 10 and plan["bytes"]["checkpoint"] > 10_000
    assert not list(tmp_path.iterdir())


def test_dry_run_lists_features_in_the_order_of_the_names(tmp_path):
    found = runner.invoke(
        app,
        ["export", "--dry-run", "--concepts", "Tiles,House,Chalkboard", "--intervention", "multiply", "--output", str(tmp_path / "out")],
    )
    lines = [line.split() for line in found.stdout.splitlines()]
    shown = [(line[1], line[3].rstrip(":")) for line in lines if line[0] == "features"]
    known = presets()
    assert shown == [(name, h) for name in ("Tiles", "House", "Chalkboard") for h in known[name].features.hookpoint.split(",")]
    count = known["House"].select.removeprefix("count:")
    assert f"House at {known['House'].features.hookpoint.split(',')[0]}: {count} a step" in found.stdout


def test_dry_run_without_a_network(tmp_path, tiny):
    command = ["export", "--dry-run", "--concepts", "A", "--model", "someone/model", "--sae", "someone/sae", "--activations", str(tiny["activations"]), "--hookpoint", HOOKPOINT,
               "--output", str(tmp_path / "out")]  # fmt: skip
    result = runner.invoke(app, command)
    assert result.exit_code == 0 and "to fetch   someone/model, someone/sae" in result.stdout


def test_concepts_lists_presets():
    result = runner.invoke(app, ["concepts", "--json"])
    rows = json.loads(result.stdout)
    assert len(rows) >= 16 and set(rows[0]) == {
        "name", "model", "domain", "sae", "hookpoint", "intervention", "select", "multiplier", "directions", "features", "residual", "status"
    }  # fmt: skip
    neon = next(row for row in rows if row["name"] == "Neon")
    assert neon["features"] == {"hookpoint": neon["hookpoint"], "multiplier": -0.3} and neon["directions"].startswith("demo:directions/")


def test_the_safety_checker_is_kept(tiny, tmp_path):
    guard(tiny["model"], tmp_path / "guarded")
    wanted = settings(tiny, tmp_path / "kept", model=str(tmp_path / "guarded"))
    kept = export_artifact(wanted)
    check_plan(kept, wanted)
    assert verify(tmp_path / "kept")["failures"] == []
    assert kept.manifest.model.safety_checker and (tmp_path / "kept" / "safety_checker" / "model.safetensors").is_file()
    index = json.loads((tmp_path / "kept" / "model_index.json").read_text())
    assert index["safety_checker"] == ["stable_diffusion", "StableDiffusionSafetyChecker"]
    assert index["feature_extractor"] == json.loads((tmp_path / "guarded" / "model_index.json").read_text())["feature_extractor"]
