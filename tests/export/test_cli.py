"""The command line itself: cheap mistakes are refused before torch is imported, help and lists fit 80 columns."""

import functools
import json
import signal
import subprocess
import sys

import pytest
import typer
from tests.conftest import HOOKPOINT
from typer.testing import CliRunner

from saeuron.export import cli

runner = CliRunner()
# The last line on stdout says whether torch was imported on the way.
_WATCHED = """
import sys
from saeuron.export import cli
try:
    getattr(cli, sys.argv.pop(1))()
finally:
    print("torch" in sys.modules)
"""


def command(*arguments, entry="main"):
    """A run in a process of its own, as a user starts it: exit code, stdout, stderr, whether torch was imported."""
    found = subprocess.run([sys.executable, "-c", _WATCHED, entry, *map(str, arguments)], capture_output=True, text=True, check=False)
    *lines, torch_imported = found.stdout.splitlines()
    return found.returncode, "\n".join(lines), found.stderr, torch_imported == "True"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--concepts", "Neom", "--output", "OUT"], "did you mean Neon"),
        (["--concepts", "Neon", "--output", "HERE"], "exists"),
        (["--concepts", "Neon", "--output", "OUT", "--format", "onxx"], "did you mean onnx"),
        (["--concepts", "Neon", "--output", "OUT", "--select", "best"], "expected percentile:P or count:N"),
        (["--concepts", "Neon", "--output", "OUT", "--multiplier", "3"], "--allow-amplify"),
        (["--concepts", "Neon", "--output", "OUT", "--model", "./nowhere"], "no folder './nowhere'"),
        (["--concepts", "Neon", "--output", "OUT", "--intervention", "multiply", "--activations", "nowhere.safetensors"], "does not exist"),
        (["--concepts", "Neon"], "no output folder"),
        (["--concept", "Neon"], "error: no such option '--concept'; did you mean '--concepts'?\n"),
        (["-x"], "error: no such option '-x'; see "),
        (["--concepts"], "requires an argument"),
        (["--concepts", "Neon", "--concepts", "House", "--output", "OUT"], "'--concepts' is given 2 times"),
        (["--concepts", "Neon", "--output", "OUT", "-o", "HERE"], "is given 2 times"),
        (["--concepts", "Neon", "--output", "OUT", "--steps", "abc"], "invalid value for '--steps'"),
        (["surplus"], "unexpected extra argument"),
    ],
)
def test_mistakes_are_refused_in_one_line_without_torch(tmp_path, arguments, message):
    named = {"OUT": tmp_path / "out", "HERE": tmp_path}
    for entry, first in (("main", ["export"]), ("main_export", [])):
        code, stdout, stderr, torch_imported = command(*first, *(named.get(a, a) for a in arguments), entry=entry)
        assert code == 2 and stdout == "" and not torch_imported, stderr
        assert stderr.startswith("error: ") and stderr.count("\n") == 1 and message in stderr, stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["exprt"], "no such command 'exprt'"),
        (["validate"], "missing argument"),
        (["validate", "nowhere"], "'nowhere' is no artifact"),
        (["concepts", "--domain", "stil"], "did you mean style"),
        (["evaluate", "nowhere", "--backend", "hook", "--backend", "onnx"], "'--backend' is given 2 times"),
        (["concepts", "--model", "dmo"], "did you mean demo"),
    ],
)
def test_other_commands_refuse_in_one_line_without_torch(arguments, message):
    code, stdout, stderr, torch_imported = command(*arguments)
    assert code == 2 and stdout == "" and not torch_imported, stderr
    assert stderr.startswith("error: ") and stderr.count("\n") == 1 and message in stderr, stderr


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--help"], 0, "Usage"),
        (["export", "--help"], 0, "─ What ─"),
        (["concepts"], 0, "Neon"),
        (["--version"], 0, "saeuron-export 0."),
        (["export", "--version"], 0, "saeuron-export 0."),
        ([], 2, "Usage"),
    ],
)
def test_what_only_informs_needs_no_torch(arguments, code, text):
    found, stdout, stderr, torch_imported = command(*arguments)
    assert found == code and text in stdout and stderr == "" and not torch_imported, stderr


# What no command may take, and how each says so.
_WRONG = {
    "--steps": ("0", "it must be 1 to 1000"), "--sampling-steps": ("1001", "it must be 1 to 1000"), "--guidance": ("nan", "it must be a finite number"),
    "--batch-size": ("0", "it must be 1 to 10000"), "--height": ("12", "a multiple of 8"), "--width": ("-8", "a multiple of 8"), "--seed": ("-1", "it must be 0 to 4294967295"),
    "--picture-seed": ("4294967296", "it must be 0 to 4294967295"), "--residual": ("wrong", "known: keep, upstream, drop"), "--gate": ("quick", "known: exact, threshold"),
    "--precision": ("fp8", "known: fp32, fp16, bf16"), "--optimization-level": ("6", "it must be 0 to 5"), "--tune-seeds": ("1,x", "'x' is no whole number"),
    "--report-seeds": ("1,1", "1 is given twice"), "--seeds": (",", "is empty"), "--multiplier": ("-1e400", "a finite number"), "--count": ("0", "it must be 1 to 10000"),
}  # fmt: skip
# What is looked at before these.
_FIRST = {
    "collect": ["--concepts", "Neon", "--output", "OUT"], "generate": ["--prompt", "x"], "validate": ["--model", "demo"],
    "steer": ["--feature", "1=0", "--hookpoint", HOOKPOINT, "--model", "demo", "--sae", "demo:saes"], "export": ["--concepts", "Neon", "--output", "OUT"],
    "select": ["--concepts", "Neon"], "features": ["--features", "1", "--hookpoint", HOOKPOINT, "--model", "demo", "--sae", "demo:saes", "--prompts", "demo:prompts.txt", "--output", "OUT"],
}  # fmt: skip


def test_every_option_is_explained_and_shared_ones_alike():
    words = {}
    for name, made in typer.main.get_command(cli.app).commands.items():
        assert all(getattr(p, "help", None) for p in made.params), name
        for p in made.params:
            words.setdefault(p.opts[0], set()).add(p.help)
    alike = (
        "--batch-size",
        "--judge",
        "--provider",
        "--json",
        "--variant",
        "--preset-file",
        "--activations",
        "--report-seeds",
        "--allow-amplify",
    )
    assert all(len(words[option]) == 1 for option in alike), {o: words[o] for o in alike}


def test_the_same_option_has_the_same_bounds_in_every_command(tmp_path):
    """In one line that names the option, whatever the command."""
    seen = set()
    for name, made in typer.main.get_command(cli.app).commands.items():
        artifact = ["nowhere"] if any(p.name == "artifact" for p in made.params) else []
        first = [a.replace("OUT", str(tmp_path / "out")) for a in _FIRST.get(name, [])]
        for option in {o for p in made.params for o in p.opts} & set(_WRONG):
            given, message = _WRONG[option]
            result = runner.invoke(cli.app, [name, *artifact, *first, f"{option}={given}"])
            assert result.exit_code == 2 and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, (
                name,
                option,
                result.output,
            )
            assert option in result.stderr, (name, option, result.stderr)
            assert message in result.stderr, (name, option, result.stderr)
            seen.add(option)
    assert seen == set(_WRONG) and not list(tmp_path.iterdir())


def test_version_of_the_single_command():
    code, stdout, _, torch_imported = command("--version", entry="main_export")
    assert code == 0 and stdout.startswith("saeuron-export 0.") and not torch_imported


@pytest.mark.slow
def test_an_unproven_artifact_exits_with_1_and_libraries_stay_silent(tiny, tmp_path):
    from tests.conftest import make_activations

    # Activations far above anything that the model shows: the edit never fires, so nothing is proven.
    make_activations(scale=1e4).save(tmp_path / "a.safetensors")
    code, stdout, stderr, _ = command(
        "export", "--concepts", "A", "--model", tiny["model"], "--sae", tiny["sae"], "--activations", tmp_path / "a.safetensors",
        "--hookpoint", HOOKPOINT, "--select", "count:20", "--multiplier", "-3", "--steps", "2", "--proof", "short", "--format", "checkpoint",
        "--output", tmp_path / "out",
    )  # fmt: skip
    assert code == 1 and "NOT PROVEN" in stdout
    ours = ("opening ", "loading ", "running ", "baking ", "writing ", "exporting ", "proving ", "warning: ", "not proven: ")
    assert all(line.startswith(ours) for line in stderr.splitlines()), stderr


@pytest.mark.slow
def test_an_interrupt_exits_with_130_and_leaves_nothing(tmp_path):
    arguments = ["export", "--concepts", "Neon", "--output", tmp_path / "out"]
    # Whoever runs the tests in the background ignores the signal, and children inherit that.
    process = subprocess.Popen(
        [sys.executable, "-m", "saeuron.export.cli", *map(str, arguments)], stderr=subprocess.PIPE, text=True,
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )  # fmt: skip
    assert process.stderr is not None
    while not process.stderr.readline().startswith("running"):  # the folder is being written
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 130 and "interrupted" in stderr and "Traceback" not in stderr, stderr
    assert not list(tmp_path.iterdir())


def test_help_is_readable_at_80_columns():
    result = runner.invoke(cli.app, ["export", "--help"], env={"COLUMNS": "80"})
    assert result.exit_code == 0 and "…" not in result.stdout
    assert "up_blocks.1.attentions.1" in result.stdout and "transformer_blocks.12" in result.stdout
    assert all(panel in result.stdout for panel in ("─ What ─", "─ Where ─", "─ How ─", "─ Proof ─", "─ Output ─"))


def test_concepts_fit_80_columns(monkeypatch):
    from dataclasses import replace

    from saeuron.editor.features import concepts

    known = concepts.presets()
    long = replace(
        known["Neon"], name="Abstractionism", hookpoint="up_blocks.1.attentions.1", model="CompVis/stable-diffusion-v1-4", sae="bcywinski/SAeUron_coco", domain="unlearncanvas-object",
        select="percentile:99.999", multiplier=-12.5, status="untuned", intervention="multiply",
    )  # fmt: skip
    monkeypatch.setattr(concepts, "shipped", lambda: [*known.values(), long])
    result = runner.invoke(cli.app, ["concepts"], env={"COLUMNS": "80"})
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    neon = known["Neon"]
    assert any(line.split() == ["Neon", "style", "weights+probe", f"{neon.multiplier:g}", "tuned"] for line in lines)
    assert f"demo at {neon.hookpoint.replace(',', ', ')}" in lines
    assert any(line.split() == ["Abstractionism", "unlearncanvas-object", "percentile:99.999", "-12.5", "untuned"] for line in lines)
    assert "CompVis/stable-diffusion-v1-4 at up_blocks.1.attentions.1" in lines and "SAE bcywinski/SAeUron_coco, residual keep" in lines


def test_concepts_are_filtered():
    result = runner.invoke(cli.app, ["concepts", "--json", "--model", "demo", "--domain", "style"])
    rows = json.loads(result.stdout)
    assert rows and {row["domain"] for row in rows} == {"style"}
