"""`saeuron.Settings`, as Python users write it."""

import inspect
import json
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import save_file
from tests.conftest import HOOKPOINT, make_sae, refused

from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.edit.how import How
from saeuron.editor.features.concepts import load_presets
from saeuron.export.commands.export import export
from saeuron.export.plan.concept_tables import candidate_table, write_tables
from saeuron.export.plan.prepare import Sources
from saeuron.export.plan.resolve import resolve, resolve_tuning
from saeuron.export.plan.settings import Settings
from saeuron.export.plan.tuning import plan_tasks
from saeuron.validation.tuning.candidates import Candidate
from saeuron.validation.tuning.settings import TuneSettings


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
        return resolve(Settings(output=tmp_path / "x", settings=tmp_path / "s.toml", intervention="multiply"))

    neon = plan("test_prompts = ['{name} here']").concepts["Neon"]
    assert neon.test_prompts == neon.tested["Neon"] == ("Neon here",) and neon.tested["Sepia"]
    neon = plan("prompts = ['{name} there']").concepts["Neon"]
    assert neon.prompts == neon.compared["Neon"] == ("Neon there",)
    with pytest.raises(SaeuronError, match="in the prompts of 'Sepia' and in the test_prompts of 'Neon'"):
        plan("test_prompts = ['a picture of House in Sepia style.']")
    assert resolve(Settings("Neon", "x")).concepts["Neon"].kind == "style"


IDLE = (
    ("multiply", "becomes = 'Car'"), ("zero", "becomes = 'Car'"), ("probe", "becomes = 'Car'"), ("project", "replace_by = 'mean'"),
    ("multiply", "spread = 1"), ("multiply", "replace_by = 'nearest'"), ("zero", "gain = 'token'"), ("weights", "gain = 'mean'"),
    ("clamp", "norm = 'kept'"), ("multiply", "norm = 'free'"), ("weights", "start = 500"), ("weights+project", "spread = 0"),
    ("project", "residual = 'drop'"),
)  # fmt: skip
"""intervention, and a key that it never reads"""
IN_A_PART = (
    ("zero", "multiplier = -3.0"), ("replace", "multiplier = -3.0"), ("weights", "multiplier = -3"), ("project", "select = 'count:3'"),
    ("weights", "hookpoint = 'up'"), ("probe", "sae = 'demo:saes'"), ("project", "activations = 'a.safetensors'"), ("probe", "mean_tokens = 'a'"),
)  # fmt: skip
"""what a whole preset has to say nevertheless"""
READ = (
    ("weights", "becomes = 'Car'"), ("project", "norm = 'kept'"), ("probe", "norm = 'kept'"), ("weights+multiply", "gain = 'token'"), ("replace", "spread = 1"), ("clamp", "start = 500"),
    ("weights+probe", "multiplier = -3.0"), ("project", "residual = 'keep'"), ("multiply", "becomes = ''"),
)  # fmt: skip


@pytest.mark.parametrize(("intervention", "key"), [*IDLE, *IN_A_PART])
def test_a_key_that_no_intervention_of_the_concept_reads_is_refused(intervention, key, tmp_path):
    (tmp_path / "s.toml").write_text(f"[[concepts]]\nname = 'Star'\nintervention = '{intervention}'\n{key}\n")
    name, done = key.split(" ")[0], intervention.replace("+", ", ")
    with pytest.raises(SaeuronError, match=rf"s.toml', concept 'Star': '{name}' is for .*, and it is removed by {done}; leave it out"):
        resolve(Settings(output=tmp_path / "x", settings=tmp_path / "s.toml"))


@pytest.mark.parametrize(("intervention", "key"), READ)
def test_a_key_that_is_read_is_taken(intervention, key, tmp_path):
    (tmp_path / "s.toml").write_text(f"[[concepts]]\nname = 'Star'\nintervention = '{intervention}'\n{key}\n")
    assert resolve(Settings(output=tmp_path / "x", settings=tmp_path / "s.toml")).settings.concepts == ("Star",)


def test_what_the_command_asks_for_may_read_it_too(tmp_path):
    (tmp_path / "s.toml").write_text("[[concepts]]\nname = 'Star'\nbecomes = 'Car'\ngain = 'token'\n")
    plan = resolve(Settings(output=tmp_path / "x", settings=tmp_path / "s.toml", intervention="weights+multiply", residual="keep"))
    assert list(plan.weights[0].choices) == ["Car"] and {w.how.gain for w in plan.wishes} == {"token"}


WHOLE = "model = 'demo'\ndomain = 'd'\nsae = 'demo:saes'\nhookpoint = 'up'\nselect = 'count:3'\nmultiplier = -2.0\nactivations = 'a'\n"


@pytest.mark.parametrize(("intervention", "key"), IDLE)
def test_a_preset_is_refused_for_its_own_keys_and_not_for_what_it_has_to_say_or_the_defaults(intervention, key, tmp_path):
    concept = f"[[concepts]]\nname = 'A'\nintervention = '{intervention}'\n"
    for text in (f"[defaults]\n{WHOLE}{key}\n{concept}", f"{concept}{WHOLE}mean_tokens = 'a'\n"):
        (tmp_path / "p.toml").write_text(text)
        assert load_presets(tmp_path / "p.toml")["A"].intervention == intervention
    for text in (f"[defaults]\n{WHOLE}{concept}{key}\n", f"{concept}{WHOLE}{key}\n"):
        (tmp_path / "p.toml").write_text(text)
        with pytest.raises(SaeuronError, match=rf"p.toml: concept 'A': '{key.split(' ')[0]}' is for .*leave it out"):
            load_presets(tmp_path / "p.toml")


def test_tuned_tables_hold_what_is_read_and_are_whole_presets(tmp_path):
    """Of each kind of candidate, whatever the others would have read."""
    every = Settings(("Star",), tmp_path / "x", intervention="weights+multiply", becomes=("Car",))
    apart = {"project": replace(every, intervention="project"), "replace": replace(every, intervention="replace", becomes=())}
    for kind, how, held in (
        ("multiply", How(gain="token"), {"gain": "token"}), ("multiply", How(), {"gain": "mean"}), ("zero", How(), {}),
        ("weights", How(), {"becomes": "Car"}), ("weights+multiply", How(), {"gain": "mean", "becomes": "Car"}),
        ("replace", How("mean", 2), {"replace_by": "mean", "spread": 2}), ("project", How(norm="kept"), {"norm": "kept", "becomes": "Car"}),
    ):  # fmt: skip
        # Planned as `resolve_tuning` does, together where that can be.
        plan = resolve(apart.get(kind, every), apart=True)
        hookpoints = tuple(w.hookpoint for w in plan.wishes) if kind != "weights" else ()
        chosen = Candidate("Star", hookpoints, "" if kind in ("project", "weights") else "count:2", -3.0, kind, how)
        table = candidate_table(
            Sources(plan, tmp_path, {}, list(plan.wishes), {}, {}), chosen, "tuned", plan.concepts["Star"].becomes or "Car"
        )
        assert {k: v for k, v in table.items() if k in ("gain", "norm", "replace_by", "spread", "becomes")} == held, kind
        write_tables(tmp_path / "s.toml", [table], "x")
        again = resolve(Settings((), tmp_path / "x", settings=tmp_path / "s.toml"))
        assert all(w.how == how for w in again.wishes)
        as_preset = resolve(Settings(("Star",), tmp_path / "x", preset_files=(tmp_path / "s.toml",)))
        assert as_preset.concepts["Star"].intervention == kind and all(w.how == how for w in as_preset.wishes)


def test_what_nothing_that_is_tuned_reads_is_refused(tmp_path):
    wanted = Settings(("Star",), tmp_path / "x")
    for told in ({"gain": ("token",)}, {"norm": "kept"}, {"replace_by": "mean"}, {"spread": (0, 1)}):
        with pytest.raises(
            SaeuronError, match=r"^--(gain|norm|replace-by|spread) is for [a-z, ]+, and nothing is removed by these \(but by zero, clamp\)"
        ):
            resolve_tuning(wanted, TuneSettings(intervention=("zero", "clamp"), **told))
    with pytest.raises(SaeuronError, match="'tokn'"):
        TuneSettings(gain="tokn")


def test_candidates_are_told_every_way_that_theirs_knows(tmp_path):
    tried = TuneSettings(intervention=("multiply", "zero"), gain=("mean", "token"), select=("count:2",), multiplier=(-1.0,))
    plan = resolve_tuning(Settings(("Star",), tmp_path / "x"), tried)
    (task,) = plan_tasks(plan, tried)
    found = {(c.intervention, c.how) for c in task.candidates}
    assert found == {("multiply", How()), ("multiply", How(gain="token")), ("zero", How())}
    assert "count:2, multiplier -1 gain by token at" in str(next(c for c in task.candidates if c.how.gain == "token"))


def test_a_multiplier_of_another_scale_is_not_taken_over(tmp_path):
    def found(text="", **said):
        (tmp_path / "s.toml").write_text(f"[[concepts]]\nname = 'Star'\n{text}\n")
        told = {"intervention": "multiply"} | said  # the preset's own is weights+probe
        return {w.multiplier for w in resolve(Settings(output=tmp_path / "x", settings=tmp_path / "s.toml", **told)).wishes}

    (usual,) = found()
    assert (
        found(gain="mean")
        == {usual}
        != {-1.0}
        == found(gain="token")
        == found("intervention = 'zero'", intervention="multiply", gain="token")
    )
    assert found("gain = 'token'\nmultiplier = -2") == found("gain = 'token'\nmultiplier = -2", gain="token") == {-2.0}
    assert found(gain="token", multiplier=-3.0) == {-3.0} and found(intervention="project") == {-4.0}
    assert found("multiplier = -2", gain="token") == {-1.0}, "of features' means"


def test_an_sae_without_a_k_is_refused_before_anything_is_collected(tiny, tmp_path, monkeypatch):
    """Concept A's activations would have to be collected first."""
    sae = make_sae(activation="jumprelu")
    held = {"W_enc": sae.W_enc.T.contiguous(), "W_dec": sae.W_dec, "b_enc": sae.b_enc, "b_dec": sae.b_dec, "threshold": sae.threshold}
    (folder := tmp_path / "sae" / HOOKPOINT).mkdir(parents=True)
    save_file({name: value.detach() for name, value in held.items()}, folder / "sae_weights.safetensors")
    known = {"architecture": "jumprelu", "d_in": 32, "d_sae": 256, "dtype": "float32", "device": "cpu", "apply_b_dec_to_input": True, "normalize_activations": "none"}  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps({**known, "reshape_activations": "none", "metadata": {}}))
    (tmp_path / "p.toml").write_text(
        f"[defaults]\nmodel = '{tiny['model']}'\ndomain = 'd'\nsae = '{tmp_path / 'sae'}'\nhookpoint = '{HOOKPOINT}'\nselect = 'count:3'\nmultiplier = -1.0\n"
        "[[concepts]]\nname = 'A'\nprompts = ['a']\n[[contrast]]\nname = 'b'\ndomain = 'd'\nprompts = ['b']\n"
    )
    monkeypatch.setattr("saeuron.export.plan.prepare.load_pipeline", lambda *a, **k: pytest.fail("something was collected"))
    given = ("export", "--concepts", "A", "--preset-file", tmp_path / "p.toml", "--gain", "token", "-o", tmp_path / "o")
    for more in ((), ("--dry-run",)):
        refused(f"the SAE at '{HOOKPOINT}' has no k; take --gain mean", *given, *more)
    assert not (tmp_path / "o").exists()
