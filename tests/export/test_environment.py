"""Odd surroundings of the commands, each in a process of its own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.conftest import refused

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-m", "saeuron"]


def run(*options, **more):
    return subprocess.run([*COMMAND, *map(str, options)], check=False, stderr=subprocess.PIPE, text=True, **more)


def one_line(done, words):
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("error: ") and "Traceback" not in done.stderr, done.stderr
    assert words in done.stderr


@pytest.mark.parametrize("options", [("export", "--help"), ("concepts",)])
def test_ascii_output(options):
    env = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": ""}
    done = run(*options, stdout=subprocess.PIPE, env=env)
    assert done.returncode == 0 and done.stderr == "" and done.stdout.isascii() and len(done.stdout) > 200


@pytest.mark.parametrize("options", [("--help",), ("--version",), (), ("concepts", "--json")])
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_stdout_is_said(options):
    with open("/dev/full", "w") as full:
        one_line(run(*options, stdout=full), "stdout can't be written: No space left on device")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_stderr_stops_nothing():
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, "concepts"], check=False, stdout=subprocess.PIPE, stderr=full)
        assert done.returncode == 0 and b"Neon" in done.stdout
        assert subprocess.run([*COMMAND, "concepts", "--domain", "nope"], check=False, stdout=subprocess.PIPE, stderr=full).returncode == 2


@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_closed_streams(closed):
    done = subprocess.run(["sh", "-c", f'"$0" -m saeuron concepts {closed}', sys.executable], check=False, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "" and done.stdout == ""


def test_a_closed_stdout_gets_no_file(tmp_path):
    """A number that is free would be given to the next file that is opened."""
    code = f"from saeuron.export.commands.streams import prepare\nprepare()\nf = open({str(tmp_path / 'x')!r}, 'w')\nimport os\nos.write(1, b'note')\nassert f.fileno() > 2"
    assert subprocess.run(["sh", "-c", '"$0" -c "$1" >&-', sys.executable, code], check=False).returncode == 0
    assert (tmp_path / "x").read_text() == ""


def test_nobody_reads():
    done = subprocess.run(
        ["bash", "-c", '"$0" -m saeuron concepts --json | true; exit ${PIPESTATUS[0]}', sys.executable],
        check=False,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == 141 and done.stderr == ""


@pytest.mark.slow
def test_no_home(tmp_path):
    """As in `docker run -u 1234`: no HOME, and no entry of the user."""
    code = """
import os, pwd, sys
def nobody(uid): raise KeyError(uid)
pwd.getpwuid = nobody
sys.argv = ["saeuron", *sys.argv[1:]]
from saeuron.export.start import main
main()
"""
    env = {k: v for k, v in os.environ.items() if k not in ("HOME", "HF_HOME", "XDG_CACHE_HOME", "SAEURON_CACHE", "HF_HUB_CACHE")}
    for options in (("export", "--concepts", "nudity", "-o", "x"), ("verify", "me/x")):
        done = subprocess.run([sys.executable, "-c", code, *options], check=False, env=env, cwd=tmp_path, capture_output=True, text=True)
        one_line(done, "HF_HOME")
        assert "HOME" in done.stderr and not (tmp_path / "x").exists()


@pytest.mark.parametrize("delay", [0.1, 0.4, 2.5])
def test_an_interruption_at_any_time_is_one_line(tmp_path, delay):
    """The time is counted from when the door is there; what comes before is Python itself."""
    # A shell's background jobs ignore the signal, and so would their children.
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); sys.argv = ['saeuron', *sys.argv[1:]]\n"
        "from saeuron.export.start import main\nprint(flush=True)\nmain()"
    )
    options = ("export", "--concepts", "Neon", "--format", "checkpoint", "--output", str(tmp_path / "x"))
    process = subprocess.Popen(
        [sys.executable, "-c", code, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None and process.stdout.readline() == "\n"
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in said and said.splitlines()[-1] == "interrupted; nothing was left behind"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_dash_is_no_place(tmp_path):
    for options in (("export",), ("generate", "x"), ("train",)):
        one_line(run(*options, "-o", "-", stdout=subprocess.PIPE, cwd=tmp_path), "don't go to stdout")
    assert list(tmp_path.iterdir()) == []


def test_what_is_missing_is_called_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("models").mkdir()
    Path("link").symlink_to("gone")
    Path("file").touch()
    job = ("export", "--concepts", "Neon", "--format", "checkpoint", "--output", "x")
    for words, *options in (
        ("there is no such folder", "validate", "nothere"),
        ("it is a file; give its folder", "validate", "file"),
        ("there is no folder 'models/nothere', though there is a folder 'models'", "verify", "models/nothere"),
        ("there is no folder 'models/nothere'", *job, "--model", "models/nothere"),
        ("'./link' is a link to 'gone', which isn't there", *job, "--model", "./link"),
        ("no folder './nothere' here", *job, "--model", "./nothere"),
        ("there is no folder 'models/nothere'", *job, "--intervention", "multiply", "--sae", "models/nothere"),
        (
            "prompts 'p.toml' does not exist",
            "collect",
            "--model",
            "demo",
            "--sae",
            "demo:saes",
            "--hookpoint",
            "mid_block",
            "--prompts",
            "p.toml",
            "-o",
            "x",
        ),
    ):
        refused(words, *options)
    assert not Path("x").exists()


@pytest.mark.parametrize(
    ("output", "words"),
    [("", "--output is empty"), ("~/x.safetensors", "the shell left ~ as it is"), (b"x\xff.safetensors", "is no UTF-8 text")],
)
def test_names_that_nobody_means(tmp_path, output, words):
    one_line(run("collect", *([os.fsdecode(output)] if isinstance(output, bytes) else ["-o", output]), cwd=tmp_path), words)
    assert list(tmp_path.iterdir()) == []


def test_an_input_is_not_written_over(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    for name in ("weights.safetensors", "p.txt"):
        (model / name).write_text("x")
    (tmp_path / "link.safetensors").symlink_to(model / "weights.safetensors")
    sets = ("--prompts", f"A={model / 'p.txt'}", "--prompts", f"B={model / 'p.txt'}", "--overwrite", "--sae", "demo:saes")
    for options in (
        ("--model", model, "-o", model / "weights.safetensors"),
        ("--model", model, "-o", tmp_path / "link.safetensors"),
        ("--model", "demo", "-o", model / "p.txt"),
    ):
        refused_by_usage("which is only read", "collect", *sets, *options)
    assert {p.read_text() for p in model.iterdir()} == {"x"}


def refused_by_usage(words, *options):
    from typer.testing import CliRunner

    from saeuron.export.cli import app

    result = CliRunner().invoke(app, [str(o) for o in options], env={"COLUMNS": "2000"})
    assert result.exit_code == 2 and words in result.stderr, result.output


def test_a_removed_folder_is_said(tmp_path):
    (tmp_path / "gone").mkdir()
    shell = f'cd "{tmp_path}/gone" && rmdir "{tmp_path}/gone" && exec "$0" -m saeuron concepts'
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    one_line(
        subprocess.run(["sh", "-c", shell, sys.executable], check=False, capture_output=True, text=True, env=env), "folder was removed"
    )


@pytest.mark.parametrize("columns", ["0", "x"])
def test_any_width(columns):
    done = run("concepts", stdout=subprocess.PIPE, env={**os.environ, "COLUMNS": columns})
    assert done.returncode == 0 and done.stderr == "" and len("".join(done.stdout.split())) > 200
