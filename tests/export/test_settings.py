"""`saeuron.Settings`, as Python users write it."""

import inspect
from pathlib import Path

import pytest

from saeuron.editor.common.errors import SaeuronError
from saeuron.export.commands.export import export
from saeuron.export.plan.resolve import resolve
from saeuron.export.plan.settings import Settings


def test_every_option_of_the_command_is_taken_under_its_name():
    known = set(inspect.signature(Settings).parameters)
    assert set(inspect.signature(export).parameters) - {"dry_run", "as_json", "version"} <= known


def test_one_text_is_one_and_a_list_is_a_list():
    made = Settings(
        "Neon, House", "out", format="checkpoint, onnx", proof_prompt="a house, in neon", sae="a,b/c", activations="x,y.safetensors", preset_file="p,q.toml",
        target="rtx:sm86,sm89",
    )  # fmt: skip
    assert made.concepts == ("Neon", "House") and made.formats == ("checkpoint", "onnx")
    assert made.proof_prompts == ("a house, in neon",) and made.sae == ("a,b/c",) and made.activations == ("x,y.safetensors",)
    assert made.preset_files == ("p,q.toml",) and made.target == ("rtx:sm86,sm89",)
    made = Settings(["Neon"], Path("out"), ["onnx"], proof_prompts=["a, b", "c"], sae=[Path("s,t")], model=Path("m,n"), activations=())
    assert (
        made.concepts == ("Neon",)
        and made.proof_prompts == ("a, b", "c")
        and made.sae == ("s,t",)
        and made.model == "m,n"
        and made.activations == ()
    )
    assert Settings("Neon", "out", proof_prompts="a, b").proof_prompts == ("a, b",)
    assert Settings("Neon", "out", proof_prompts=" a").proof_prompts == (" a",) and Settings("", "out").concepts == ()


def test_paths_are_texts_or_paths(tmp_path):
    made = Settings("Neon", "out", sign="key.pem", settings="s.toml", edit="e.safetensors")
    assert (made.output, made.sign, made.settings, made.edit) == (Path("out"), Path("key.pem"), Path("s.toml"), Path("e.safetensors"))
    from saeuron.export.ship.stages import export_artifact

    with pytest.raises(SaeuronError, match="no file 'nokey.pem'|nokey.pem"):
        export_artifact(Settings("Neon", tmp_path / "x", "checkpoint", sign="nokey.pem"))
    with pytest.raises(SaeuronError, match="no output folder"):
        export_artifact(Settings("Neon"))
    with pytest.raises(SaeuronError, match="does not exist|can't be read"):
        resolve(Settings(output="x", edit=tmp_path / "gone.safetensors"))


def test_what_the_proof_needs_is_looked_for_first(tmp_path, monkeypatch):
    from saeuron.export.plan import checks
    from saeuron.export.ship.stages import export_artifact

    monkeypatch.setattr(checks, "missing", lambda names: [n for n in names if n == "onnxruntime"])
    with pytest.raises(SaeuronError, match=r"'onnxruntime' is not installed.*saeuron-export\[cpu\]"):
        export_artifact(Settings("Neon", tmp_path / "x", "onnx"))
    checks.check_packages(("checkpoint",), True)
    checks.check_packages(("onnx",), False)
    assert list(tmp_path.iterdir()) == []


def test_files_and_presets_hold_the_same_bounds(tmp_path):
    for text, message in (
        ("[export]\nsteps = 5000\n[[concepts]]\nname = 'Neon'\n", r"s.toml', \[export\]: --steps is 5000; it must be 1 to 1000"),
        ("[[concepts]]\nname = 'Neon'\nsteps = 5000\n", "--steps is 5000; it must be 1 to 1000"), ("[[concepts]]\nname = 'Neon'\nguidance = inf\n", "a finite number"),
    ):  # fmt: skip
        (tmp_path / "s.toml").write_text(text)
        with pytest.raises(SaeuronError, match=message):
            resolve(Settings(output=tmp_path / "x", settings=tmp_path / "s.toml"))


def test_a_settings_file_changes_prompts_that_stay_apart(tmp_path):
    def plan(text):
        (tmp_path / "s.toml").write_text(f"[[concepts]]\nname = 'Neon'\n{text}\n")
        return resolve(Settings(output=tmp_path / "x", settings=tmp_path / "s.toml"))

    neon = plan("test_prompts = ['{name} here']").concepts["Neon"]
    assert neon.test_prompts == neon.tested["Neon"] == ("Neon here",) and neon.tested["Sepia"]
    neon = plan("prompts = ['{name} there']").concepts["Neon"]
    assert neon.prompts == neon.compared["Neon"] == ("Neon there",)
    with pytest.raises(SaeuronError, match="in the prompts of 'Sepia' and in the test_prompts of 'Neon'"):
        plan("test_prompts = ['a picture of House in Sepia style.']")
    assert resolve(Settings("Neon", "x")).concepts["Neon"].kind == "style"
