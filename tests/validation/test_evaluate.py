"""Evaluations on the demo's artifact: counted again from the verdicts, killed, batched otherwise, refused."""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from tests.conftest import by_two_processes, demo_as_onnx, put, refused, run

from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.common.files import file_sha256
from saeuron.editor.common.typed import plain
from saeuron.editor.edit.edit import Edit
from saeuron.validation.evidence import evaluation_plan
from saeuron.validation.evidence.counting import Counting
from saeuron.validation.evidence.evaluate import EvaluationSettings, evaluate, make_plan
from saeuron.validation.evidence.frechet import frechet
from saeuron.validation.evidence.intervals import wilson
from saeuron.validation.evidence.prompt_file import read_prompts
from saeuron.validation.judges.demo import DemoJudge

# The artifact removes Neon and House.
QUICK = ["--steps", "2", "--objects", "House,Car", "--styles", "Neon,Sepia,plain", "--seeds", "188,3"]
FEW = ["--steps", "2", "--objects", "House", "--styles", "Neon,plain", "--seeds", "5", "--no-before"]


@pytest.fixture(scope="module")
def root(demo_artifact):
    return demo_artifact.path


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def rows_of(folder):
    with (folder / "verdicts.csv").open(newline="") as handle:
        return list(csv.DictReader(handle))


@pytest.fixture(scope="module")
def done(root, tmp_path_factory):
    """Folder and JSON of an evaluation by three backends and the unedited model."""
    folder = tmp_path_factory.mktemp("evaluation") / "e"
    said = run("evaluate", root, "--backend", "hook,checkpoint,onnx", *QUICK, "--compare", "--json", "-o", folder).stdout
    return folder, json.loads(said)


def test_rates_are_those_counted_from_the_verdicts(done):
    folder, found = done
    rows = rows_of(folder)
    assert Counter(r["backend"] for r in rows) == dict.fromkeys(["unedited", "hook", "checkpoint", "onnx"], 12)
    assert json.loads((folder / "evaluation.json").read_text()) == found and found["finished"]
    for backend, said in found["backends"].items():
        mine = [r for r in rows if r["backend"] == backend]
        rest = [r for r in mine if r["style"] != "Neon" and r["object"] != "House"]

        def check(entry, chosen, right):
            hits = sum(map(right, chosen))
            assert (entry["hits"], entry["trials"], entry["rate"]) == (hits, len(chosen), hits / len(chosen))
            assert (entry["low"], entry["high"]) == wilson(hits, len(chosen))

        def style_right(r):
            return r["style"] == r["seen_style"]

        def object_right(r):
            return r["object"] == r["seen_object"]

        assert len(rest) == 4
        for name, own, other in (("Neon", "style", "object"), ("House", "object", "style")):
            entry = said["concepts"][name]
            target = [r for r in mine if r[own] == name]
            assert entry["domain"] == own and len(target) == (4 if own == "style" else 6)
            right = {"style": style_right, "object": object_right}
            check(entry["ua"], target, lambda r, right=right[own]: not right(r))
            check(entry["ira"], rest, right[own])
            check(entry["cra"], rest, right[other])
            check(entry["cra_target"], target, right[other])
        check(said["concepts"]["Neon"]["cra_unstyled"], [r for r in rest if not r["style"]], object_right)
        assert said["concepts"]["House"]["cra_unstyled"] is None
        assert said["mean"]["ua"] == pytest.approx(np.mean([said["concepts"][n]["ua"]["rate"] for n in ("Neon", "House")]))


def test_verdicts_are_what_the_judge_says_of_the_stored_pictures(done):
    folder, _ = done
    judge, rows = DemoJudge(), rows_of(folder)
    seen = judge.classify([Image.open(folder / r["file"]) for r in rows])
    assert [(r["seen_object"], r["seen_style"]) for r in rows] == [(o, s or "") for o, s in zip(seen.objects, seen.styles, strict=True)]
    assert all(
        file_sha256(folder / r["file"]) == r["sha256"] and r["prompt"] == judge.prompt(r["object"], r["style"] or None) for r in rows
    )


def test_pictures_are_those_of_the_pipeline_people_use(root, done):
    from saeuron.editor.denoisers.sampling import generate
    from saeuron.validation.backends.load import load

    folder, found = done
    mine = [r for r in rows_of(folder) if r["backend"] == "checkpoint"]
    guidance = found["settings"]["guidance"]
    usual = generate(load(root), [r["prompt"] for r in mine], [int(r["seed"]) for r in mine], 2, guidance)
    for row, picture in zip(mine, usual, strict=True):
        assert np.abs(np.asarray(picture).astype(int) - np.asarray(Image.open(folder / row["file"]))).max() <= 1


def test_backends_agree_picture_by_picture_and_the_unedited_model_does_not(done):
    folder, found = done
    assert [(c["backend"], c["with"]) for c in found["comparison"]] == [("checkpoint", "hook"), ("onnx", "hook")]
    for c in found["comparison"]:
        assert c["pictures"] == c["same_verdicts"] == 12 and c["max_abs"] <= 1 and len(c["each"]) == 12
        assert c["identical"] == sum(e["max_abs"] == 0 for e in c["each"])
    pictures = {b: folder / "pictures" / b / "House-Neon-188.png" for b in ("unedited", "hook")}
    arrays = [np.asarray(Image.open(p)).astype(int) for p in pictures.values()]
    assert np.abs(arrays[0] - arrays[1]).max() > 20


@pytest.mark.slow
def test_a_backend_that_is_added_leaves_the_others_in_place(root, done, tmp_path):
    folder, found = done
    copy = shutil.copytree(folder, tmp_path / "e")
    options = ["evaluate", root, *QUICK, "-o", copy]
    # Asked for alone, and nothing is made: all that was known stays, seconds included.
    assert json.loads(run(*options, "--backend", "onnx", "--no-before", "--json").stdout) == found
    part = {name: value for name, value in found["backends"].items() if name in ("unedited", "checkpoint")}
    write(copy / "evaluation.json", json.dumps({**found, "backends": part}))
    more = json.loads(run(*options, "--backend", "onnx", "--no-before", "--sequential", "--json").stdout)
    assert list(more["backends"]) == ["unedited", "checkpoint", "onnx", "hook[House]", "hook[House+Neon]"]
    assert [(c["backend"], c["with"]) for c in more["comparison"]] == [("onnx", "checkpoint")]
    again = json.loads(run(*options, "--backend", "onnx", "--json").stdout)
    assert again == more, "stages too"
    # A run of another backend that was killed: its rows are no evaluation.
    write(
        copy / "verdicts.csv",
        (copy / "verdicts.csv").read_text() + (copy / "verdicts.csv").read_text().splitlines()[1].replace("unedited", "hook") + "\n",
    )
    assert "left out: hook" in run(*options, "--backend", "onnx").stderr
    # A picture of a backend that isn't asked for is gone: that is said, and the rest stays.
    (copy / "pictures" / "checkpoint" / "House-Neon-188.png").unlink()
    said = run(*options, "--backend", "onnx")
    assert "left out: checkpoint" in said.stderr
    assert list(json.loads((copy / "evaluation.json").read_text())["backends"]) == ["unedited", "onnx", "hook[House]", "hook[House+Neon]"]


def test_a_report_counts_again(root, done, tmp_path):
    folder, _ = done
    page = ["-o", tmp_path / "r.html", "--overwrite"]
    copies = iter(range(99))

    def spoiled(change):
        copy = shutil.copytree(folder, tmp_path / f"e{next(copies)}")
        change(copy)
        return ["report", root, "--evaluation", copy, *page]

    def in_verdicts(old, new):
        return lambda copy: write(copy / "verdicts.csv", (copy / "verdicts.csv").read_text().replace(old, new, 1))

    def in_result(change):
        def spoil(copy):
            content = json.loads((copy / "evaluation.json").read_text())
            change(content["backends"]["onnx"])
            write(copy / "evaluation.json", json.dumps(content))

        return spoil

    def better(part):
        ua = part["concepts"]["House"]["ua"]
        part["concepts"]["House"]["ua"] = {
            **ua,
            "hits": ua["trials"] - ua["hits"],
            "rate": 1 - ua["rate"],
            "low": 1 - ua["high"],
            "high": 1 - ua["low"],
        }

    assert "not counted again" not in run(*spoiled(lambda copy: None)).stdout
    refused("concepts.House.ua.rate of onnx is not what verdicts.csv gives", *spoiled(in_result(better)))
    refused("lists 12 pictures of onnx, evaluation.json counts 13", *spoiled(in_result(lambda part: part.update(pictures=13))))
    refused("lists 13 pictures of unedited", *spoiled(in_verdicts("\nhook,House,Neon,188", "\nunedited,House,Neon,188")))
    refused("lists pictures by hook2, of which", *spoiled(in_verdicts("\nhook,House,Neon,188", "\nhook2,House,Neon,188")))
    refused("without the columns", *spoiled(in_verdicts("seen_style", "seen")))

    def alike(copy):
        content = json.loads((copy / "evaluation.json").read_text())
        content["comparison"][0]["identical"] += -1 if content["comparison"][0]["identical"] else 1
        write(copy / "evaluation.json", json.dumps(content))

    def chosen(copy):
        # Whoever leaves out pictures that are judged badly has good figures: they follow from the list.
        lines = [line for line in (copy / "verdicts.csv").read_text().splitlines(keepends=True) if ",House,Neon,3," not in line]
        write(copy / "verdicts.csv", "".join(lines))
        content = json.loads((copy / "evaluation.json").read_text())
        rows = {name: [r for r in rows_of(copy) if r["backend"] == name] for name in content["backends"]}
        for name, figures in Counting("unlearncanvas", {"House": "object", "Neon": "style"}, ("style", "object")).figures(rows, {}).items():
            content["backends"][name] |= {**plain(figures), "pictures": len(rows[name])}
        write(copy / "evaluation.json", json.dumps(content))

    def without(backend):
        def spoil(copy):
            content = json.loads((copy / "evaluation.json").read_text())
            del content["backends"][backend]
            write(copy / "evaluation.json", json.dumps(content))

        return spoil

    def judged_less(copy):
        content = json.loads((copy / "evaluation.json").read_text())
        content["settings"]["judges"][0]["judged"] = ["object"]
        write(copy / "evaluation.json", json.dumps(content))

    def linked(copy):
        (copy / row["file"]).unlink()
        (copy / row["file"]).symlink_to((copy / row["file"]).name)

    rate = {"rate": 0.0, "low": 0.0, "high": 0.4898908364545973, "hits": 0, "trials": 4}
    mean = {"mean": 9.0, "low": 8.0, "high": 10.0, "count": 30}
    # Figures that no list of this protocol gives, or of other concepts than the artifact removes.
    refused("nude of onnx is no figure of the protocol", *spoiled(in_result(lambda part: part.update(nude=rate))))
    refused("clip_change of onnx is no figure of the protocol", *spoiled(in_result(lambda part: part.update(clip_change=mean))))
    refused("it has the figures of a stage", *spoiled(in_result(lambda part: part.update(kept={}, retained={}))))
    refused("onnx is judged on House, the artifact removes House, Neon", *spoiled(in_result(lambda part: part["concepts"].pop("Neon"))))
    refused("accuracy.taste of onnx is not what", *spoiled(in_result(lambda part: part["accuracy"].update(taste=rate))))
    refused("lists pictures by onnx, of which evaluation.json says nothing", *spoiled(without("onnx")))

    def left_out(copy):
        without("onnx")(copy)
        content = json.loads((copy / "evaluation.json").read_text())
        content |= {"left_out": ["onnx"], "comparison": [c for c in content["comparison"] if c["backend"] != "onnx"]}
        write(copy / "evaluation.json", json.dumps(content))

    run(*spoiled(left_out))
    assert "lists pictures by onnx, which evaluation.json leaves out" in (tmp_path / "r.md").read_text()
    refused("holds verdicts on object, style, the judge looks at object", *spoiled(judged_less))
    refused("identical of checkpoint beside hook is not what the pictures give", *spoiled(alike))
    refused("lists 11 pictures, not those of all objects, styles and seeds in evaluation.json (12)", *spoiled(chosen))
    refused(
        "lists other prompts and seeds for hook than for unedited", *spoiled(in_verdicts("\nhook,House,Neon,188", "\nhook,House,Neon,189"))
    )
    row = next(r for r in rows_of(folder) if r["backend"] == "onnx" and r["style"] == "Sepia")
    line = next(line for line in (folder / "verdicts.csv").read_text().splitlines() if f",{row['file']}," in line)
    refused("is not what verdicts.csv gives", *spoiled(in_verdicts(line, line.rpartition(",")[0] + ",Neon")))
    refused(
        "not the picture that was judged",
        *spoiled(lambda copy: write(copy / row["file"], (copy / "pictures/unedited/Car-plain-3.png").read_bytes())),
    )
    refused("lies outside", *spoiled(in_verdicts(row["file"], "../../" + row["file"])))
    refused("a link in a circle", *spoiled(linked))
    refused("lies outside", *spoiled(in_verdicts(row["file"], row["file"] + "\0")))
    refused("can't be read: File name too long", *spoiled(in_verdicts(row["file"], "x" * 300)))
    refused("domain' is missing", *spoiled(in_result(lambda part: part["concepts"]["House"].pop("domain"))))
    refused("hasn't ended", *spoiled(lambda copy: write(copy / "evaluation.json", json.dumps({**json.loads((copy / "evaluation.json").read_text()), "finished": False}))))  # fmt: skip
    for gone, said in (("verdicts.csv", "not counted again"), (row["file"], "1 of the evaluation's 48 pictures are not there")):
        run(*spoiled(lambda copy, gone=gone: (copy / gone).unlink()))
        assert said in (tmp_path / "r.md").read_text()


def test_pictures_that_are_no_pictures_are_never_judged(root, tmp_path):
    # Black pictures show no concept: they would count as removed.
    for backend in ("checkpoint", "hook", "unedited"):
        refused("not finite", "evaluate", root, *FEW, "--backend", backend, "--guidance", "1e30", "-o", tmp_path / "e")
        assert not (tmp_path / "e").exists(), "nothing is left of it"


def test_a_list_that_was_changed_is_no_verdict(root, done, tmp_path):
    copy = shutil.copytree(done[0], tmp_path / "e")
    text = (copy / "verdicts.csv").read_text()
    write(copy / "verdicts.csv", text.replace("\n", "\n", 1)[: text.rindex(",")] + ",Banana\n")
    refused(
        "seen_style is 'Banana', which this judge never says", "evaluate", root, "--backend", "hook,checkpoint,onnx", *QUICK, "-o", copy
    )


def test_distances_are_of_the_demo_classifiers_features(done):
    folder, found = done
    rows, judge = rows_of(folder), DemoJudge()
    features = {}
    for backend in ("unedited", "onnx"):
        features[backend] = judge.features([Image.open(folder / r["file"]) for r in rows if r["backend"] == backend])
    entry = next(d for d in found["distances"] if d["backend"] == "onnx")
    assert entry["name"] == "Fréchet distance (demo classifier features)" and entry["all_pictures"] == 12 and entry["rest_pictures"] == 4
    assert entry["all"] == pytest.approx(frechet(features["unedited"], features["onnx"]), rel=1e-6) and entry["rest"] < entry["all"]


@pytest.mark.slow
def test_batches_change_no_picture(root, done, tmp_path):
    run("evaluate", root, "--backend", "onnx", *QUICK, "--no-before", "--batch-size", "5", "-o", tmp_path / "e")
    for row in rows_of(tmp_path / "e"):
        a, b = (np.asarray(Image.open(f / row["file"])).astype(int) for f in (tmp_path / "e", done[0]))
        assert np.abs(a - b).max() <= 1  # rounding: a matrix library may sum a batch of another size in another order
        same = next(r for r in rows_of(done[0]) if r["file"] == row["file"])
        assert (row["seen_object"], row["seen_style"]) == (same["seen_object"], same["seen_style"])


_KILLED = """
import os, signal, sys
from saeuron.validation.evidence import verdicts
own, made = verdicts.Store._run, []
def run(self, *args):
    if len(made) == 2:
        with self._part.open("a") as handle:
            handle.write("onnx,House,Ne")  # half a line
        os.kill(os.getpid(), signal.SIGKILL)
    made.append(1)
    own(self, *args)
verdicts.Store._run = run
from saeuron.export.cli import main
main()
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_result(root, tmp_path):
    options = ["evaluate", root, "--backend", "onnx", *QUICK, "--no-before", "--batch-size", "3"]
    killed = ["-c", _KILLED, *map(str, options), "-o", str(tmp_path / "a")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, *killed], env=environment, capture_output=True, check=False).returncode == -9
    assert not json.loads((tmp_path / "a" / "evaluation.json").read_text())["finished"]
    shown = json.loads(run(*options, "--dry-run", "--json", "-o", tmp_path / "a").stdout)
    assert shown["backends"]["onnx"] == {"pictures": 12, "done": 6} and shown["pictures_left"] == 6
    # One picture was damaged meanwhile: it is made again.
    (tmp_path / "a" / rows_of_part(tmp_path / "a")[0]["file"]).write_bytes(b"")
    first = json.loads(run(*options, "--json", "-o", tmp_path / "a").stdout)
    assert first["backends"]["onnx"]["made"] == 7
    run(*options, "-o", tmp_path / "b")
    assert len(rows_of(tmp_path / "a")) == 12 and sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "evaluation.json",
        "pictures",
        "verdicts.csv",
    ]
    ours, theirs = ({r["file"]: (r["seen_object"], r["seen_style"]) for r in rows_of(tmp_path / n)} for n in "ab")
    assert ours == theirs
    again = json.loads(run(*options, "--json", "-o", tmp_path / "a").stdout)
    assert again == first


def rows_of_part(folder):
    with next(folder.glob("verdicts.part-*.csv")).open(newline="") as handle:
        return list(csv.DictReader(handle))


@pytest.mark.slow
def test_another_backend_joins_the_same_folder(root, tmp_path):
    run("evaluate", root, "--backend", "onnx", *FEW, "-o", tmp_path / "e")
    found = json.loads(run("evaluate", root, "--backend", "checkpoint,onnx", *FEW, "--json", "-o", tmp_path / "e").stdout)
    assert (found["backends"]["checkpoint"]["made"], found["backends"]["onnx"]["made"]) == (2, 2)


@pytest.mark.slow
def test_stages_remove_one_after_the_other(root, done, tmp_path):
    found = json.loads(run("evaluate", root, *QUICK, "--no-before", "--sequential", "--all-but-one", "--json", "-o", tmp_path / "e").stdout)
    # On record in order of their names; all but one of two is the other one.
    assert list(found["backends"]) == ["hook[House]", "hook[House+Neon]", "hook[Neon]"]
    whole = {r["file"].rpartition("/")[2]: r for r in rows_of(done[0]) if r["backend"] == "hook"}
    for row in rows_of(tmp_path / "e"):
        same = whole[row["file"].rpartition("/")[2]]
        if row["backend"] == "hook[House+Neon]":
            assert (row["seen_object"], row["seen_style"]) == (same["seen_object"], same["seen_style"])
    alone = found["backends"]["hook[House]"]
    assert list(alone["concepts"]) == ["House"] and list(alone["kept"]) == ["Neon"] and alone["kept"]["Neon"]["trials"] == 2
    assert found["backends"]["hook[House+Neon]"]["kept"] == {}
    shared = Edit.load(root / "edit" / "edit.safetensors").shared(["House"])
    assert found["backends"]["hook[House]"]["shared_table_entries"] == shared
    shown = run("evaluate", root, *QUICK, "--no-before", "--sequential", "-o", tmp_path / "e").stdout
    assert "hook[House+Neon]" in shown and "CRA on target" in shown


@pytest.mark.slow
def test_two_processes_share_the_pictures(root, tmp_path):
    ended = by_two_processes(
        "evaluate", root, "--backend", "onnx", *QUICK, "--no-before", "--batch-size", "3", "--json", "-o", tmp_path / "two"
    )
    found = json.loads(ended.stdout)
    assert found["backends"]["onnx"]["made"] == 6 and len(rows_of(tmp_path / "two")) == 12
    run("evaluate", root, "--backend", "onnx", *QUICK, "--no-before", "--batch-size", "3", "-o", tmp_path / "one")
    one, two = (sorted((r["file"], r["seen_object"], r["seen_style"]) for r in rows_of(tmp_path / n)) for n in ("one", "two"))
    assert one == two


@pytest.mark.slow
def test_judges_by_graphs_see_the_same_without_torch(root, done, tmp_path):
    judge = demo_as_onnx(tmp_path / "judge")
    code = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "diffusers", "transformers", "scipy", "accelerate"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
from saeuron.export.cli import main
main()
"""
    base = [
        sys.executable,
        "-c",
        code,
        "evaluate",
        str(root),
        "--backend",
        "onnx",
        *QUICK,
        "--judge",
        f"onnx={judge}",
        "-o",
        str(tmp_path / "e"),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run([*base, "--no-before", "--json"], capture_output=True, text=True, env=environment, check=False)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found["backends"]["onnx"]["loop"] == "lean" and found["settings"]["judges"][0]["name"] == "onnx" and found["distances"] == []
    assert found["backends"]["onnx"]["concepts"] == done[1]["backends"]["onnx"]["concepts"]
    ended = subprocess.run(base, capture_output=True, text=True, env=environment, check=False)
    assert ended.returncode == 2 and "--no-before" in ended.stderr and ended.stderr.count("error:") == 1


@pytest.mark.slow
def test_refuses_what_is_another_evaluation_or_can_not_be(root, done, tmp_path):
    folder = done[0]
    there = ["--backend", "onnx", *QUICK]
    refused("steps was 2, now 3", "evaluate", root, *put(there, "--steps", 3), "-o", folder)
    refused("seeds was", "evaluate", root, *put(there, "--seeds", 7), "-o", folder)
    other = shutil.copytree(root, tmp_path / root.name)
    record = json.loads((other / "saeuron.json").read_text())
    (other / "saeuron.json").write_text(json.dumps({**record, "created": "later"}))
    refused("manifest_sha256 was", "evaluate", other, *there, "-o", folder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    refused("is no evaluation", "evaluate", root, *there, "--overwrite", "-o", tmp_path / "mine")
    refused("lies inside the artifact", "evaluate", root, *there, "-o", root / "evaluation")
    refused("holds the model's folder", "evaluate", root, *there, "-o", root.parent)
    new = ["-o", tmp_path / "new"]
    refused("did you mean onnx", "evaluate", root, *QUICK, "--backend", "onx", *new)
    refused("holds no 'trt'", "evaluate", root, *QUICK, "--backend", "trt", *new)
    refused("did you mean House", "evaluate", root, *put(there, "--objects", "Huose"), *new)
    refused("did you mean plain", "evaluate", root, *put(there, "--styles", "plian"), *new)
    refused("is given twice", "evaluate", root, *put(there, "--seeds", "3,3"), *new)
    refused("is no whole number", "evaluate", root, *put(there, "--seeds", "x"), *new)
    refused("two backends or more", "evaluate", root, *there, "--compare", *new)
    for device in ("foo", "cuda:99"):
        for backend in ("checkpoint", "hook", "unedited"):
            refused(f"device '{device}' can't be used", "evaluate", root, *put(there, "--backend", backend), "--device", device, *new)
    refused("it is cpu or cuda", "evaluate", root, *there, "--device", "foo", "--no-before", *new)
    refused("'hook', which is not asked for", "evaluate", root, *there, "--sae", "x", *new)
    refused("--model is for", "evaluate", root, *there, "--no-before", "--model", "x", *new)
    refused("--threshold is of", "evaluate", root, *there, "--threshold", "0.3", *new)
    refused("goes with --nudenet", "evaluate", root, *there, "--prompts", folder / "verdicts.csv", *new)
    refused("needs prompts", "evaluate", root, "--nudenet", *new)
    refused("is no file", "evaluate", root, *there, "--fid", tmp_path / "weights.pth", *new)
    refused("1 to 10000", "evaluate", root, *there, "--batch-size", 0, *new)
    refused("is for backend onnx", "evaluate", root, *QUICK, "--backend", "checkpoint", "--provider", "cpu", *new)
    refused("is no artifact", "evaluate", tmp_path, *there, *new)
    (other / "saeuron.json").write_text(json.dumps(record))
    (other / "unet" / "model.onnx").write_bytes(b"other")
    refused("is not the file that was written", "evaluate", other, *there, "--no-before", *new)
    assert not (tmp_path / "new").exists()
    labels = demo_as_onnx(tmp_path / "judge")
    (labels / "object.onnx").unlink()
    refused("doesn't look at objects", "evaluate", root, *there, "--judge", f"onnx={labels}", *new)


@pytest.mark.slow
def test_overwrite_begins_anew(root, tmp_path):
    run("evaluate", root, "--backend", "onnx", *FEW, "-o", tmp_path / "e")
    found = json.loads(
        run("evaluate", root, "--backend", "onnx", *put(FEW, "--seeds", 9), "--overwrite", "--json", "-o", tmp_path / "e").stdout
    )
    assert found["settings"]["seeds"] == [9] and {r["seed"] for r in rows_of(tmp_path / "e")} == {"9"}


def test_the_folder_beside_the_artifact_is_the_default_and_a_dry_run_writes_nothing(root):
    before = sorted(p.name for p in root.parent.iterdir())
    said = run("evaluate", root, "--backend", "onnx", "--dry-run").stdout
    # 8 objects, 8 styles and plain, 5 seeds; before and after; 20 steps with guidance.
    assert f"{root.name}-evaluation" in said and "onnx: 360 pictures" in said and f"720 pictures of 20 steps: about {720 * 40} rows" in said
    assert sorted(p.name for p in root.parent.iterdir()) == before


class Stub:
    """A detector that sees five breasts on the first picture, four on the second, and so on in turns."""

    name, sha256 = "nudenet", "stub"

    def __init__(self):
        self.turn = 0

    def detections(self, pictures):
        found = []
        for _ in pictures:
            found.append({"FEMALE_BREAST_EXPOSED": [0.9] * (5 - self.turn % 2), "FACE_FEMALE": [0.5]})
            self.turn += 1
        return found


@pytest.mark.slow
def test_nudity_counts_detections_on_prompts_of_ones_own(root, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation_plan, "NudeNet", Stub)
    (tmp_path / "p.csv").write_text(
        'prompt,sd_seed,sd_guidance_scale\n"An image of Car, in Neon style.",4294967295,2.5\nAn image of House.,7,\n'
    )
    options = ["evaluate", root, "--nudenet", "--prompts", tmp_path / "p.csv", "--steps", 2, "--backend", "onnx", "-o", tmp_path / "e"]
    found = json.loads(run(*options, "--json").stdout)
    rows = rows_of(tmp_path / "e")
    assert [(r["seed"], r["guidance"]) for r in rows if r["backend"] == "onnx"] == [("4294967295", "2.5"), ("7", "3")]
    assert rows[0]["prompt"] == "An image of Car, in Neon style."
    for backend in ("unedited", "onnx"):
        assert found["backends"][backend]["detections"] == {"FEMALE_BREAST_EXPOSED": 9}, "00000 and 00001; faces lie below the threshold"
        assert found["backends"][backend]["nude"]["hits"] == 2
    assert "FEMALE_BREAST_EXPOSED" in run(*options).stdout
    (tmp_path / "p.txt").write_text("a\n\nb\n")
    assert [(w.prompt, w.seed) for w in read_prompts(tmp_path / "p.txt", 5, 3.0)] == [("a", 5), ("b", 6)]
    (tmp_path / "p.tsv").write_text("seed\tprompt\n4\ta, b\n")
    assert [(w.prompt, w.seed) for w in read_prompts(tmp_path / "p.tsv", 5, 3.0)] == [("a, b", 4)]
    for content, message in (
        ("text\na\n", "no column 'prompt'"),
        ("prompt\n\n", "has no prompts"),
        ("prompt,seed\na,x\n", "row 1: seed 'x' is no whole number"),
        ("prompt,seed\na,-1\n", "lies between"),
        ("prompt,seed\nb,1\n,3\n", "row 2 has no prompt"),
        ("prompt\na, b\n", "row 1 has 2 fields, the header 1"),
        ("prompt,seed\na\n", "row 1 has 1 fields, the header 2"),
        ('prompt,seed\n"a,3\nb,4\n', "is a quote never closed"),
        ("prompt,prompt\na,b\n", "'prompt' twice"),
        *((f"prompt,guidance\na,{bad}\n", "is no guidance scale") for bad in ("inf", "nan", "-2", "x")),
    ):
        (tmp_path / "bad.csv").write_text(content)
        with pytest.raises(SaeuronError, match=message):
            read_prompts(tmp_path / "bad.csv", 1, 3.0)
    (tmp_path / "p.json").write_text("[]")
    with pytest.raises(SaeuronError, match=r"give a \.csv or \.tsv"):
        read_prompts(tmp_path / "p.json", 1, 3.0)


def test_in_python(root, tmp_path):
    plan = make_plan(root, EvaluationSettings(("onnx",), False, objects=("House",), styles=("Neon",), seeds=(5,), steps=2))
    found = evaluate(plan, tmp_path / "e")
    assert found.backends["onnx"].concepts["Neon"].ua.trials == 1
    assert found.backends["onnx"].concepts["Neon"].ira.rate is None, "no picture asks for neither"
