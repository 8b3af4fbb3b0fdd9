"""`saeuron-export --tune --evidence`: one command from settings to a report in the artifact, which goes on where it was stopped."""

# ruff: noqa: F811 - fixtures

import json
import shutil

import pytest
from tests.conftest import refused, run
from tests.validation.test_signature import keys  # noqa: F401

from saeuron.editor.common.errors import SaeuronError
from saeuron.export.plan import costs
from saeuron.export.plan.dry_run import describe
from saeuron.export.plan.resolve import resolve
from saeuron.export.plan.settings import Settings
from saeuron.export.plan.stage_state import work_folder
from saeuron.export.plan.stages import stages_of
from saeuron.export.ship import stages as module
from saeuron.export.ship.stages import export_artifact
from saeuron.validation.artifact import manifest
from saeuron.validation.trust.verify import verify

# So few steps that a picture takes milliseconds; what judges see then is no matter here.
FEW = {"steps": 3, "judge": ("demo",), "formats": ("checkpoint",), "proof": "short"}


def settings(tmp_path, **changes):
    return Settings(**{"concepts": ("Neon",), "output": tmp_path / "a", "evidence": "quick", **FEW, **changes})


@pytest.fixture
def calls(monkeypatch):
    """Names of the stages that ran."""
    found = []
    for name in ("make_artifact", "evaluate", "write_report"):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, real=real, name=name, **k: (found.append(name), real(*a, **k))[1])
    real_attack = module.attacking.run
    monkeypatch.setattr(module.attacking, "run", lambda *a, **k: (found.append("attack"), real_attack(*a, **k))[1])
    return found


@pytest.mark.slow
def test_evidence_goes_into_the_artifact_and_a_stopped_run_goes_on(tmp_path, monkeypatch, calls):
    told = []
    result = export_artifact(settings(tmp_path), told.append)
    root, work = tmp_path / "a", tmp_path / "a-work"
    assert result.proven and calls == ["make_artifact", "evaluate", "attack", "write_report"]
    assert {text.split(":")[0] for text in told if " of 4, " in text} == {
        "1 of 4, export",
        "2 of 4, evaluate",
        "3 of 4, attack",
        "4 of 4, report",
    }
    assert (root / "validation" / "report.html").is_file() and verify(root)["verified"]
    card = (root / "README.md").read_text()
    assert "## Evidence" in card and "UA" in card and "embedding" in card and "No attack was given" not in card
    assert "Neon removed from demo" in result.verdict["text"] and "UA" in (root / "validation" / "report.md").read_text()
    evaluation = json.loads((work / "unlearncanvas" / "evaluation.json").read_text())
    assert list(evaluation["backends"]) == ["unedited", "checkpoint"] and evaluation["settings"]["seeds"] == [188, 288]
    attack = json.loads((work / "attack.json").read_text())
    assert attack["finished"] and [r["attack"] for r in attack["concepts"]["Neon"]["rows"]] == ["unedited", "edited", "embedding", "seeds"]

    # Finished: the same again is another artifact at the same place.
    with pytest.raises(SaeuronError, match="exists"):
        export_artifact(settings(tmp_path))

    # Stopped at each stage after the artifact: what is done is not done again.
    calls.clear()
    seen = {}
    for name, holder in (("evaluate", module), ("run", module.attacking), ("write_report", module)):
        shutil.rmtree(root, ignore_errors=True)
        shutil.rmtree(work, ignore_errors=True)
        with monkeypatch.context() as patched:

            def stop(*a, **k):
                raise KeyboardInterrupt

            patched.setattr(holder, name, stop)
            with pytest.raises(KeyboardInterrupt):
                export_artifact(settings(tmp_path))
        before = manifest.read(root).created
        assert not (root / "validation" / "report.html").exists() and verify(root)["verified"]
        with pytest.raises(SaeuronError, match="exists"):  # another job doesn't go on from it
            export_artifact(settings(tmp_path, evidence="full"))
        calls.clear()
        said: list[str] = []
        assert export_artifact(settings(tmp_path), said.append).verdict["text"]
        assert sum("is made already" in text for text in said) == 1
        seen[name], after = list(calls), manifest.read(root)
        assert after.created == before and "validation/report.html" in after.files
    assert seen["evaluate"] == ["evaluate", "attack", "write_report"] and "make_artifact" not in seen["write_report"]
    assert "attack" in seen["run"] and "attack" not in seen["write_report"]

    # Killed as soon as the artifact has its name; the dry run knows.
    shutil.rmtree(root)
    shutil.rmtree(work)
    with monkeypatch.context() as patched:
        real = module.make_artifact
        patched.setattr(module, "make_artifact", lambda *a, **k: (real(*a, **k), stop())[0])
        with pytest.raises(KeyboardInterrupt):
            export_artifact(settings(tmp_path))
    planned = describe(settings(tmp_path))
    assert planned["made"] and [stage["stage"] for stage in planned["stages"]] == ["evaluate", "attack", "report"]
    calls.clear()
    export_artifact(settings(tmp_path))
    assert calls == ["evaluate", "attack", "write_report"]

    # Killed between report and the end.
    state = json.loads((work / "stages.json").read_text())
    (work / "stages.json").write_text(json.dumps({**state, "finished": False}))
    calls.clear()
    export_artifact(settings(tmp_path))
    assert calls == []
    # Before it was noted that the report is in the artifact: evaluation and attack are those that lie there, the report is written again.
    (work / "stages.json").write_text(json.dumps({**state, "reported": False, "finished": False}))
    export_artifact(settings(tmp_path))
    assert calls == ["write_report"] and verify(root)["verified"]
    calls.clear()
    # Replaced on wish; evaluation and attack are of the new one.
    export_artifact(settings(tmp_path, overwrite=True))
    assert calls == ["make_artifact", "evaluate", "attack", "write_report"] and verify(root)["verified"]


@pytest.mark.slow
def test_a_stopped_run_goes_on_only_as_the_same_job_and_makes_its_own_report(tmp_path, monkeypatch, calls):
    file, root = tmp_path / "s.toml", tmp_path / "a"
    table = '[[concepts]]\nname = "Neon"\nintervention = "multiply"\nselect = "count:2"\nmultiplier = -1.0\n'
    file.write_text(table)
    with monkeypatch.context() as patched:
        patched.setattr(module, "evaluate", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            export_artifact(settings(tmp_path, settings=file))
    file.write_text(table.replace("-1.0", "-2.0"))
    with pytest.raises(SaeuronError, match="exists"):
        export_artifact(settings(tmp_path, settings=file))
    file.write_text(table)
    run("report", root, "--into-artifact")
    calls.clear()
    export_artifact(settings(tmp_path, settings=file))
    assert calls == ["evaluate", "attack", "write_report"] and "No attack was given" not in (root / "README.md").read_text()


@pytest.mark.slow
def test_tuned_settings_are_those_of_the_artifact_and_its_signature_is_the_last(tmp_path, keys):
    private, public = keys["mine"]
    judges = ("clip=demo:clip", "demo")
    wanted = settings(tmp_path, tune=True, judge=judges, budget=608, intervention="multiply", sign=private, steps=2)
    result = export_artifact(wanted)
    work = work_folder(wanted.output)
    report = json.loads((work / "tuning" / "report.json").read_text())
    chosen = report["concepts"]["Neon"]["chosen"]
    record = manifest.read(wanted.output)
    assert [(w.hookpoint, w.select, w.multiplier, w.status) for w in record.settings] == [
        (h, chosen["select"], chosen["multiplier"], "tuned") for h in chosen["hookpoints"]
    ]
    assert [j["name"] for j in report["judges"]] == ["CLIP demo:clip", "demo"] and result.proven
    assert (work / "concepts" / "evaluation.json").is_file() and not (work / "unlearncanvas").exists()
    assert json.loads((work / "attack.json").read_text())["judge"]["name"] == "CLIP demo:clip"
    assert "How the settings were chosen" in (wanted.output / "validation" / "report.md").read_text()
    found = verify(wanted.output, public)
    assert found["verified"] and found["signature"] == "valid" and "validation/report.html" in record.files


def test_a_failed_proof_gets_no_evidence(tmp_path, monkeypatch, calls):
    class Failed:
        passed = False

    made = tmp_path / "made"
    run("export", "--concepts", "Neon", "--format", "checkpoint", "--no-validate", "--steps", 2, "-o", made)
    calls.clear()
    monkeypatch.setattr(module, "make_artifact", lambda plan, *told: module.Result(plan.settings.output, manifest.read(made), Failed()))
    result = export_artifact(settings(tmp_path))
    assert not result.proven and result.verdict is None and calls == []


def test_the_dry_run_counts_what_the_stages_draw(tmp_path):
    plan = resolve(settings(tmp_path, tune=True, budget=700, steps=20, intervention="multiply"))
    folder = module.open_model(plan, (None, None))
    stages = stages_of(plan, folder)
    assert stages.names == ("tune", "export", "evaluate", "attack", "report") and stages.attack_judge == "demo"
    found = {cost.stage: cost for cost in costs.costs_of(stages, folder, ())}
    # 8 objects, 8 styles and plain, two seeds, before and after; and what smears are calibrated by.
    assert found["evaluate"].pictures == 8 * 9 * 2 * 2 + 128 and found["evaluate"].forwards == found["evaluate"].pictures * 40
    assert 608 < found["tune"].pictures < 700 + 1000 and found["attack"].pictures > 0
    assert all(cost.seconds > 0 for cost in found.values() if cost.forwards) and found["report"].forwards == 0
    waiting = [{"sets": {"A": 3, "B": 4}, "steps": 100, "guidance": 9.0}, {"sets": {"C": 2}, "steps": 10, "guidance": 1.0}]
    collect = costs.costs_of(stages, None, waiting)[0]
    assert (collect.stage, collect.pictures, collect.forwards) == ("collect", 9, 7 * 200 + 2 * 10)
    full = stages_of(resolve(settings(tmp_path, evidence="full", judge=("clip=demo:clip", "demo"))), folder)
    assert full.judges == (("clip=demo:clip", "demo"), ("demo",)) and full.pictures > 72 + 60
    options = ["export", "--concepts", "Cactus", "--tune", "--evidence", "quick", "-o", tmp_path / "b", "--dry-run"]
    said = json.loads(run(*options, "--json").stdout)
    assert [stage["stage"] for stage in said["stages"]] == ["tune", "export", "evaluate", "attack", "report"]
    assert "stage      tune: " in run(*options).stdout and not (tmp_path / "b").exists() and not (tmp_path / "b-work").exists()


def test_a_backend_that_does_not_run_here_is_left_out_aloud(tmp_path, monkeypatch):
    plan = resolve(settings(tmp_path, evidence="full", formats=("checkpoint", "onnx")))
    stages, told = stages_of(plan, None), []

    def check(self, names):
        if names == ["onnx"]:
            raise SaeuronError("there is no ONNX Runtime for this")

    monkeypatch.setattr(
        "saeuron.export.plan.stages.PictureBackends", type("Backends", (), {"__init__": lambda self, *a, **k: None, "check": check})
    )
    (found,) = stages.evaluations(type("Record", (), {"formats": ["checkpoint", "onnx"]})(), told.append)
    assert found.backends == ("checkpoint",) and told == ["onnx is left out: there is no ONNX Runtime for this"]


def test_refuses_before_anything_is_made(tmp_path):
    there = ["export", "--concepts", "Neon", "-o", tmp_path / "a"]
    refused("--tune chooses what --select says", *there, "--tune", "--select", "count:2")
    refused("--tune chooses what --multiplier says", *there, "--tune", "--multiplier", "-2")
    refused("--judge is for --tune, --evidence and --quantize", *there, "--judge", "clip=demo:clip")
    refused("--budget is for --tune", *there, "--evidence", "quick", "--budget", "700")
    refused("too small", *there, "--tune", "--budget", "100")
    refused("did you mean demo", *there, "--evidence", "quick", "--judge", "dem")
    refused("nudenet sees nudity alone", *there, "--evidence", "quick", "--judge", "nudenet")
    refused("evidence 'ful'", *there, "--evidence", "ful")
    refused("did you mean demo", *there, "--tune", "--steps", "2", "--judge", "dem")
    refused("'/' exists", "export", "--concepts", "Neon", "-o", "/", "--evidence", "quick")
    assert not list(tmp_path.iterdir())
    (tmp_path / "a-work").symlink_to(tmp_path / "nothing")
    refused("holds no stages.json", *there, "--evidence", "quick")
    (tmp_path / "a-work").unlink()
    (tmp_path / "a-work").mkdir()
    (tmp_path / "a-work" / "mine.txt").write_text("mine")
    refused("holds no stages.json", *there, "--evidence", "quick")
    refused("holds no stages.json", *there, "--evidence", "quick", "--dry-run")
    assert not (tmp_path / "a").exists() and (tmp_path / "a-work" / "mine.txt").is_file()


@pytest.mark.slow
def test_the_same_verbs_in_python(tmp_path):
    """Each function is its command: the same files."""
    import saeuron

    out, words = tmp_path / "a", {"steps": 2, "judge": ("demo",)}
    tuned = saeuron.tune(
        Settings(concepts="Neon", steps=2, intervention="multiply"), str(tmp_path / "tuned"),
        saeuron.TuneSettings(judge="demo", budget=40, select=("count:2", "count:4"), multiplier=(-1.0,), hookpoint=("up_blocks.1.attentions.1",)),
    )  # fmt: skip
    assert tuned.settings.select == ("count:2", "count:4") and (tmp_path / "tuned" / "settings.toml").is_file()
    saeuron.export_artifact(Settings(settings=tmp_path / "tuned" / "settings.toml", output=out, formats="checkpoint", proof="short"))
    found = saeuron.evaluate(out, tmp_path / "e", saeuron.EvaluationSettings(seeds=(1,), objects=("House",), **words))
    assert found.backends["checkpoint"].pictures == 9
    attacked = saeuron.attack(
        out, tmp_path / "attack.json", saeuron.AttackSettings(attacks=("seeds",), search_seeds=1, report_seeds=(1,), **words)
    )
    assert attacked.finished and json.loads((tmp_path / "attack.json").read_text())["concepts"]["Neon"]["rows"]
    page = saeuron.report(out, saeuron.ReportSettings(evaluation=str(tmp_path / "e"), attack=str(tmp_path / "attack.json")))
    assert page.html == tmp_path / "a-report" / "report.html" and page.html.is_file() and page.content["verdict"]["state"] == "proven"
    held = json.loads((tmp_path / "tuned" / "report.json").read_text())
    again = {"tuning": str(tmp_path / "tuned" / "report.json"), "overwrite": True}
    text = saeuron.report(out, saeuron.ReportSettings(**again)).markdown.read_text()
    told = held["concepts"]["Neon"]["report"]["judges"]["demo"]["removed"]
    assert "How the settings were chosen" in text and f"{told['hits']} of {told['trials']}" in text and "demo tells the unedited" in text
    assert "How the settings were tuned was not given" not in text
    held["concepts"]["Neon"]["chosen"]["multiplier"] = -2.0
    (tmp_path / "tuned" / "report.json").write_text(json.dumps(held))
    with pytest.raises(SaeuronError, match="didn't choose the artifact's settings of Neon"):
        saeuron.report(out, saeuron.ReportSettings(**again))
    with pytest.raises(SaeuronError, match="no artifact"):
        saeuron.attack(tmp_path)


def test_verbs_in_python_leave_what_is_there(demo_artifact, tmp_path):
    """They refuse what their commands refuse, before anything is made."""
    import saeuron

    root, mine, folder = demo_artifact.path, tmp_path / "mine.json", tmp_path / "folder"
    mine.write_text('{"mine": 1}')
    folder.mkdir()
    few = saeuron.AttackSettings(attacks="seeds", search_seeds=1, report_seeds=1, steps=1)
    for place, said in (
        (mine, "exists"),
        (folder, "is a folder"),
        (root / "attack.json", "lies inside the artifact"),
        (mine / "x", "is a file"),
    ):
        with pytest.raises(SaeuronError, match=said):
            saeuron.attack(root, place, few)
    for place, said in ((mine, "is a file"), (mine / "x", "is a file"), (root / "e", "lies inside the artifact")):
        with pytest.raises(SaeuronError, match=said):
            saeuron.evaluate(root, place, saeuron.EvaluationSettings(seeds=1, objects="House", styles="Neon"))
        with pytest.raises(SaeuronError, match=said):
            saeuron.tune(Settings(concepts="Neon"), place, saeuron.TuneSettings(budget=700))
    assert mine.read_text() == '{"mine": 1}' and not list(folder.iterdir()) and not (root / "attack.json").exists()
