"""Smears: tokens outside of the unedited model's own distribution, and pictures on which a judge sees nothing."""

import json
import math
import shutil
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from PIL import Image
from tests.conftest import HOOKPOINT, inputs, make_sae, make_unet, refused, run

from saeuron.editor import demo
from saeuron.editor.denoisers.families import network_of
from saeuron.editor.denoisers.pipelines import load_pipeline
from saeuron.editor.denoisers.sampling import generate, observe
from saeuron.editor.edit.bake import bake
from saeuron.editor.edit.hook import AblationHook
from saeuron.export.plan.prepare import prepare
from saeuron.export.plan.resolve import resolve
from saeuron.export.plan.settings import Settings
from saeuron.validation.evidence.evaluation_plan import label_rows
from saeuron.validation.evidence.smears import LEAST, nothing_seen, outside, recorded, told
from saeuron.validation.evidence.tokens import Calibration, Counter, calibrate
from saeuron.validation.evidence.unlearning import all_jobs
from saeuron.validation.evidence.verdicts import Wanted, units
from saeuron.validation.judges.demo import DemoJudge

BLOCK, STEPS = "up_blocks.1.attentions.1", 4


@pytest.fixture(scope="module")
def pipeline():
    return load_pipeline("demo")


@pytest.fixture(scope="module")
def wanted():
    judge = DemoJudge()
    jobs = all_jobs(judge.objects[:4], [*judge.styles, None], (188, 288))
    return [Wanted(f"{o}-{s}-{seed}", judge.prompt(o, s), seed, demo.GUIDANCE) for o, s, seed in jobs]


@pytest.fixture(scope="module")
def calibration(pipeline, wanted, tmp_path_factory):
    def draw(unit, over):
        assert not {w.seed for w in unit} & {w.seed for w in wanted}
        with over(network_of(pipeline), len(unit), True):
            generate(
                pipeline, [w.prompt for w in unit], [w.seed for w in unit], STEPS, demo.GUIDANCE, output_type="latent", batch_size=len(unit)
            )

    path = tmp_path_factory.mktemp("c") / "calibration.safetensors"
    return calibrate([BLOCK], wanted, 24, draw).save(path), recorded(path), path


def drawn(pipeline, wanted, calibration, edit=None):
    """Rows of pictures that are drawn now."""
    rows, counter, judge = [], Counter(calibration), DemoJudge()
    with edit or nullcontext():
        for unit in units(wanted, 24):
            with counter.over(network_of(pipeline), len(unit), True):
                made = generate(pipeline, [w.prompt for w in unit], [w.seed for w in unit], STEPS, demo.GUIDANCE, batch_size=len(unit))
            rows += [
                {"file": w.name, **row, "tokens": said}
                for w, row, said in zip(unit, label_rows(judge, list(made)), counter.take(len(unit)), strict=True)
            ]
    return rows


@pytest.fixture(scope="module")
def unedited(pipeline, wanted, calibration):
    return drawn(pipeline, wanted, calibration[0])


def test_the_unedited_model_has_one_percent_outside(unedited, calibration):
    found, bars = outside(unedited)[BLOCK], calibration[1].blocks[BLOCK]
    for ours, theirs in ((found.norm, bars.norm), (found.distance, bars.distance)):
        assert theirs.mean == pytest.approx(0.01, abs=0.004)
        # Both sets of pictures are samples.
        assert abs(ours.mean - theirs.mean) <= math.hypot(ours.high - ours.mean, theirs.high - theirs.mean)


def test_huge_gains_push_tokens_out_and_the_judge_sees_nothing(pipeline, wanted, calibration, unedited):
    prepared = prepare(resolve(Settings(("Star",), "unused", intervention="multiply", multiplier=-200.0)), lambda text: None)
    few = wanted[:24]
    rows = drawn(pipeline, few, calibration[0], AblationHook(network_of(pipeline), prepared.edit, prepared.saes))
    before, after = outside(unedited)[BLOCK], outside(rows)[BLOCK]
    assert after.norm.low > 5 * before.norm.high and after.distance.low > 5 * before.distance.high
    seen = nothing_seen("hook", {"unedited": unedited, "hook": rows}, "unedited")
    assert seen["demo, objects"].low > 0.1


def test_a_grey_picture_shows_nothing_and_the_unedited_model_does(unedited):
    grey = [
        {"file": str(v), **row} for v, row in enumerate(label_rows(DemoJudge(), [Image.new("RGB", (32, 32), (v,) * 3) for v in (60, 128)]))
    ]
    seen = nothing_seen("grey", {"unedited": unedited, "grey": grey}, "unedited")
    assert seen["demo, objects"].hits == 2
    assert nothing_seen("unedited", {"unedited": unedited}, "unedited") == {}, "halves too small to say"
    scores = [{"file": f"{i:03d}", "sure": json.dumps({"j": (i + 1) / 1000})} for i in range(400)]
    control = nothing_seen("unedited", {"unedited": scores}, "unedited")["j"]
    assert control.trials == 400 and control.hits == 3, "of each half, those below the second lowest of the other"
    assert nothing_seen("unedited", {"unedited": scores[::-1]}, "unedited")["j"] == control
    assert nothing_seen("b", {"unedited": scores[: LEAST - 1], "b": scores}, "unedited") == {}
    for wrong in (2.0, "x", None, True):
        with pytest.raises((ValueError, TypeError)):
            nothing_seen("b", {"unedited": scores, "b": [{"file": "a", "sure": json.dumps({"j": wrong})}]}, "unedited")


def test_no_judge_of_names_no_figure():
    rows = [{"file": str(i), "sure": "{}"} for i in range(100)]
    assert nothing_seen("a", {"unedited": rows, "a": rows}, "unedited") == {}


def test_a_shuffled_calibration_gives_other_figures_and_another_digest(pipeline, wanted, calibration, tmp_path):
    own = calibration[0]
    shuffled = {name: tensor.flip(-1) if name.endswith(("/mean", "/whiten")) else tensor for name, tensor in own.tensors.items()}
    other = replace(own, tensors=shuffled).save(tmp_path / "c.safetensors")
    assert other.sha256 != own.sha256 and Calibration.load(calibration[2]).sha256 == own.sha256
    few = wanted[:8]
    ours, theirs = (outside(drawn(pipeline, few, c))[BLOCK].distance.mean for c in (own, other))
    assert theirs > ours + 0.05


def test_rows_that_nobody_wrote_are_refused():
    good = {"file": "a", "tokens": told("0" * 64, {"b": [10, 1, 2]})}
    assert outside([good, good])["b"].distance.mean == 0.2
    assert outside([good, {"file": "c", "tokens": ""}]) == {}
    bad = [
        told("1" * 64, {"b": [10, 1, 2]}),
        *(told("0" * 64, {"b": c}) for c in ([10, 11, 2], [10, -1, 2], [9, 1, 2], [10, 1], [0, 0, 0])),
    ]
    for tokens in (*bad, told("0" * 64, {"c": [10, 1, 2]}), "[]", "x"):
        with pytest.raises((ValueError, KeyError, TypeError)):
            outside([good, {"file": "c", "tokens": tokens}])


def test_tokens_are_seen_after_the_edit_by_hook_and_in_the_shipped_class(edit):
    sae, seen = make_sae(), {}

    def look(name):
        return lambda level, tokens: seen.update({name: tokens[HOOKPOINT]})

    sample, context = inputs()
    networks = {"unedited": make_unet(), "hook": make_unet(), "shipped": bake(make_unet(), edit, {HOOKPOINT: sae})}
    for name, network in networks.items():
        edited = AblationHook(network, edit, {HOOKPOINT: sae}) if name == "hook" else nullcontext()
        # A guided loop of one picture: its second row.
        with torch.no_grad(), edited, observe(network, {HOOKPOINT: "output"}, look(name), 1, True):
            network(sample, 500, context)
    assert seen["hook"].shape[0] == 1
    torch.testing.assert_close(seen["hook"], seen["shipped"])
    assert (seen["hook"] - seen["unedited"]).abs().max() > 0.1


QUICK = ["--steps", "2", "--objects", "House,Car", "--styles", "Neon,Sepia,plain", "--seeds", "188,3", "--backend", "checkpoint,onnx"]


@pytest.fixture(scope="module")
def evaluated(demo_artifact, tmp_path_factory):
    folder = tmp_path_factory.mktemp("smears") / "e"
    shown = run("evaluate", demo_artifact.path, *QUICK, "-o", folder).stdout
    return demo_artifact.path, folder, shown, json.loads((folder / "evaluation.json").read_text())


def test_an_evaluation_counts_tokens_where_there_are_any(evaluated):
    _, folder, shown, found = evaluated
    said = {name: b.get("outside", {}) for name, b in found["backends"].items()}
    assert not said["onnx"] and set(said["unedited"]) == set(said["checkpoint"]) == set(found["tokens"]["blocks"]) != set()
    assert "Tokens of onnx: not seen by this backend" in " ".join(shown.split())
    assert (found["tokens"]["fitted"], found["tokens"]["barred"]) == (4, 12)
    assert recorded(folder / "calibration.safetensors").sha256 == found["tokens"]["sha256"]


def test_a_resumed_evaluation_has_the_same_figures(evaluated, tmp_path):
    root, folder, _, found = evaluated
    copy = shutil.copytree(folder, tmp_path / "e")
    for file in sorted((copy / "pictures" / "checkpoint").iterdir())[:5]:
        file.unlink()
    run("evaluate", root, *QUICK, "-o", copy)
    again = json.loads((copy / "evaluation.json").read_text())
    assert again["backends"]["checkpoint"]["made"] == 5 and again["tokens"] == found["tokens"]
    assert again["backends"]["checkpoint"]["outside"] == found["backends"]["checkpoint"]["outside"]


def test_another_calibration_or_another_count_is_refused(evaluated, tmp_path):
    root, folder, _, found = evaluated
    copies = iter(range(9))

    def spoiled(change):
        copy = shutil.copytree(folder, tmp_path / f"e{next(copies)}")
        change(copy)
        return copy

    def shuffled(copy):
        own = Calibration.load(copy / "calibration.safetensors")
        replace(own, tensors={n: t.flip(-1) if n.endswith("/mean") else t for n, t in own.tensors.items()}).save(
            copy / "calibration.safetensors"
        )

    def fewer(copy):
        text = (copy / "verdicts.csv").read_text()
        counts = next(iter(json.loads(found_tokens(text))["blocks"].values()))
        (copy / "verdicts.csv").write_text(text.replace(str(counts), str([counts[0], counts[0], counts[0]]), 1))

    def better(copy):
        content = json.loads((copy / "evaluation.json").read_text())
        for of in content["backends"]["checkpoint"]["outside"].values():
            of["distance"]["mean"] = 0.01
        (copy / "evaluation.json").write_text(json.dumps(content))

    def kinder(copy):
        content = json.loads((copy / "evaluation.json").read_text())
        content["tokens"]["fitted"] = 4000
        (copy / "evaluation.json").write_text(json.dumps(content))

    page = ["-o", tmp_path / "r.html", "--overwrite"]
    refused("is not what", "evaluate", root, *QUICK, "-o", spoiled(shuffled))
    refused("give --block", "evaluate", root, *QUICK, "--block", "mid_block.attentions.0", "-o", spoiled(lambda copy: None))
    refused("is not the calibration that", "report", root, "--evaluation", spoiled(shuffled), *page)
    refused("is not what verdicts.csv gives", "report", root, "--evaluation", spoiled(fewer), *page)
    refused("is not what verdicts.csv gives", "report", root, "--evaluation", spoiled(better), *page)
    refused("is not the calibration that", "report", root, "--evaluation", spoiled(kinder), *page)
    run("report", root, "--evaluation", folder, *page)
    text = (tmp_path / "r.md").read_text()
    assert "sign of a smear" in text and "Tokens of onnx: not seen by this backend" in text


def found_tokens(text):
    import csv
    import io

    return next(row["tokens"] for row in csv.DictReader(io.StringIO(text)) if row["backend"] == "checkpoint")
