"""Tuning on the demo with few pictures: rounds, order of pictures, figures against a plain computation, stored work, refusals."""

import json
import subprocess
import sys
import tomllib
from dataclasses import replace

import numpy as np
import pytest
from msgspec import structs
from tests.conftest import refused, run

from saeuron.editor import demo
from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.denoisers.families import network_of
from saeuron.editor.denoisers.pipelines import load_pipeline
from saeuron.editor.denoisers.sampling import generate
from saeuron.editor.edit.hook import AblationHook
from saeuron.editor.features.activations import ConceptActivations
from saeuron.editor.features.concepts import presets
from saeuron.editor.features.prompt_sets import ConceptPrompts, ContrastPrompts, prompts_of
from saeuron.editor.sae.sae import SparseAutoencoder
from saeuron.validation.attack.victims import bare
from saeuron.validation.evidence.intervals import Mean, Rate
from saeuron.validation.evidence.sightings import Removal
from saeuron.validation.judges.choose import open_judge
from saeuron.validation.tuning.attacked import attacker
from saeuron.validation.tuning.bench import Bench, Looked
from saeuron.validation.tuning.candidates import Candidate, grid, rounds
from saeuron.validation.tuning.jobs import Job, jobs
from saeuron.validation.tuning.results import Figures, Tuned
from saeuron.validation.tuning.settings import TuneSettings
from saeuron.validation.tuning.tune import believe, make_task, tune

PLACE = "up_blocks.1.attentions.1"
WORDS = ConceptPrompts(
    "Neon", "style", [f"A picture of {o} in Neon style." for o in ("House", "Car", "Star", "Boat")],
    [f"An image of {o} in Neon style." for o in ("House", "Car", "Star", "Boat")],
    {
        "Sepia": ContrastPrompts([f"A picture of {o} in Sepia style." for o in ("House", "Car", "Star", "Boat")], [f"An image of {o} in Sepia style." for o in ("House", "Car")], True),
        "plain": ContrastPrompts(["A picture of House.", "A picture of Car."], ["An image of House."], False),
    },
)  # fmt: skip
SETTINGS = TuneSettings(steps=6, guidance=3.0, budget=64, tune_seeds=(42,), report_seeds=(7,), batch_size=4)


@pytest.mark.parametrize(("candidates", "most", "budget"), [(75, 400, 3000), (9, 40, 200), (3, 20, 60), (1, 8, 8), (100, 1000, 100_000)])
def test_rounds_keep_to_the_budget_and_end_with_few(candidates, most, budget):
    found = rounds(candidates, most, budget, 8)
    assert found[0].candidates == candidates and found[0].pictures >= 8
    spent = last = 0
    for r in found:
        assert r.pictures > last and (r.pictures % 8 == 0 or r.pictures == most) and r.pictures <= most
        spent, last = spent + r.candidates * (r.pictures - last), r.pictures
    assert spent <= budget
    counts = [r.candidates for r in found]
    assert counts == sorted(counts, reverse=True)


def test_too_small_a_budget_is_refused_with_what_it_takes():
    with pytest.raises(SaeuronError, match="10 candidates need at least 80 pictures for one round"):
        rounds(10, 100, 79, 8)


def test_any_first_part_holds_as_many_with_as_without_the_concept():
    listed = jobs(WORDS, (1, 2), False)
    assert len(listed) == 2 * 4 + 4 + 2, "its own with both seeds, the others with the first"
    for n in range(2, 12):
        own = sum(job.asked == "Neon" for job in listed[:n])
        assert abs(own - (n - own)) <= 1
    assert {job.asked for job in listed[:5]} == {"Neon", "Sepia", "plain"}
    assert {job.prompt for job in listed}.isdisjoint(job.prompt for job in jobs(WORDS, (1,), True))
    assert len(jobs(WORDS, (1, 2), True)) == 2 * (4 + 2 + 1)
    bare = ConceptPrompts("Neon", "style", ["x"], [], {"Sepia": ContrastPrompts(["y"], ["z"], True)})
    with pytest.raises(SaeuronError, match="'Neon': it has no test_prompts"):
        jobs(bare, (1,), True)


def test_what_is_kept_decides_where_two_remove_alike_and_the_worst_judge_counts():
    def figures(removed, kept, likeness, judge="a", score=0.0):
        shares = Rate.of(kept, 10) if kept is not None else Rate.of(0, 0)
        one = Removal(removed=Rate.of(removed, 10), elsewhere=Rate.of(0, 10), kept=shares, beside=Rate.of(0, 0))
        return Figures(judges={judge: one}, scores={judge: score}, change=Mean.of([0.1]), likeness=likeness, pictures=20)

    weights = (0.5, 0.4, 0.1)
    assert figures(10, 9, 0.5).worth(weights) > figures(10, 8, 0.5).worth(weights)
    assert figures(10, 9, 0.6).worth(weights) > figures(10, 9, 0.5).worth(weights)
    assert figures(10, None, 0.5).worth(weights) == pytest.approx(0.5 + 0.5 * 0.5), "no other concept: likeness takes its weight"
    assert figures(10, 9, 0.5, score=0.1).worth(weights) > figures(10, 9, 0.8, score=0.3).worth(weights), "room to spare"
    assert figures(10, 9, 0.5, score=0.4).worth(weights) == pytest.approx(0.5 * 0.8 + 0.4 * 0.9 + 0.1 * 0.5)
    own = figures(10, 9, 0.5)
    lost = structs.replace(own, judges={"a": structs.replace(own.judges["a"], beside=Rate.of(2, 10))})
    assert lost.worth(weights) == pytest.approx(0.5 + 0.4 * 11 / 20 + 0.1 * 0.5), "what was beside the concept and is lost counts as much"
    both = Figures(
        judges={**figures(10, 9, 0.5).judges, **figures(2, 9, 0.5, "b").judges}, scores={"a": 0.0, "b": 0.0}, change=figures(1, 1, 0).change, likeness=0.5, pictures=1
    )  # fmt: skip
    assert both.worth(weights) == figures(2, 9, 0.5, "b").worth(weights)


def test_judges_are_measured_on_enough_pictures_and_what_removes_little_is_not_called_tuned():
    many = ConceptPrompts(
        "Neon", "style", [f"p{i}" for i in range(40)], ["t"], {"a": ContrastPrompts([f"q{i}" for i in range(40)], ["u"], True)}
    )
    task = make_task(
        many, [Candidate("Neon", (PLACE,), "count:4", -0.3)], TuneSettings(budget=8, tune_seeds=(1,), report_seeds=(2,), batch_size=8)
    )
    assert task.rounds[-1].pictures == 8 and task.measured == 32 and task.pictures["unedited"] == 32 + 2
    assert make_task(WORDS, task.candidates, SETTINGS).measured == 10, "as many as there are"

    def tuned(*removed):
        judges = {
            str(i): Removal(removed=Rate.of(n, 10), elsewhere=Rate.of(0, 1), kept=Rate.of(0, 0), beside=Rate.of(0, 0))
            for i, n in enumerate(removed)
        }
        figures = Figures(judges=judges, scores={}, change=Mean.of([0.1]), likeness=1.0, pictures=10)
        return Tuned(chosen=task.candidates[0], trust={}, tuning=figures, report=figures, tried=[], pictures=1)

    assert tuned(5).removes and not tuned(4).removes and not tuned(9, 4).removes, "the worst judge counts"


@pytest.fixture(scope="module")
def parts():
    held = ConceptActivations.load(demo.ROOT / f"style-{PLACE}.safetensors")
    return load_pipeline("demo"), {PLACE: SparseAutoencoder.load(demo.SAES, PLACE)}, {("Neon", PLACE): held}


def bench_at(parts, folder, judges=None, settings=SETTINGS):
    return Bench(*parts, judges or [open_judge("demo")], settings, folder / "results", "model")


def test_figures_equal_a_plain_computation(parts, tmp_path):
    bench, listed = bench_at(parts, tmp_path), jobs(WORDS, (42,), False)[:6]
    candidate = Candidate("Neon", (PLACE,), "count:4", -0.3)
    found = bench.figures(candidate, listed)
    pipeline, saes, _ = parts
    texts, seeds = [j.prompt for j in listed], [j.seed for j in listed]
    before = generate(pipeline, texts, seeds, 6, 3.0)
    with AblationHook(network_of(pipeline), bench.edit(candidate), saes):
        after = generate(pipeline, texts, seeds, 6, 3.0)
    verdict = open_judge("demo").classify(after)
    own = [i for i, j in enumerate(listed) if j.asked == "Neon"]
    rest = [i for i, j in enumerate(listed) if j.asked != "Neon"]
    assert found.judges["demo"].removed.hits == sum(verdict.styles[i] != "Neon" for i in own)
    labels, shares = open_judge("demo").probabilities([after[i] for i in own])["style"]
    assert found.scores["demo"] == pytest.approx(shares[:, labels.index("Neon")].mean(), abs=1e-3)
    pixels = lambda p: np.asarray(p.convert("RGB"), float) / 255  # noqa: E731
    change = [np.abs(pixels(before[i]) - pixels(after[i])).mean() for i in rest]
    assert found.change.mean == pytest.approx(np.mean(change), abs=2e-3)
    unlike = np.mean([np.abs(pixels(before[a]) - pixels(before[b])).mean() for a, b in zip(rest, rest[1:], strict=False)])
    assert found.likeness == pytest.approx(1 - np.mean(change) / unlike, abs=0.02)


@pytest.mark.slow
def test_the_better_candidate_wins_and_nothing_is_drawn_twice(parts, tmp_path):
    bench = bench_at(parts, tmp_path)
    tried = grid("Neon", [(PLACE,)], ["count:4"], [-0.3, -0.001])
    task = make_task(WORDS, tried, SETTINGS)
    trusted, believed = believe(bench, [task])
    found = tune(bench, task, trusted["Neon"])
    assert found.chosen.multiplier == -0.3 and believed
    assert found.report.pictures == len(task.report) and found.report.judges["demo"].removed.trials == 4
    drawn = bench.drawn
    again = bench_at(parts, tmp_path)
    assert tune(again, task, believe(again, [task])[0]["Neon"]) == found and again.drawn == 0 < drawn
    other = bench_at(parts, tmp_path, settings=TuneSettings(steps=7, guidance=3.0, batch_size=4))
    other.unedited(task.report[:4])
    assert other.drawn == 4, "other steps are other pictures"


def test_a_judge_that_sees_nothing_is_not_believed(parts, tmp_path):
    class Blind:
        name, sha256, concepts = "blind", "0", ("Neon", "Sepia")

        def see(self, pictures):
            from saeuron.validation.judges.judge import Sightings

            return Sightings(np.zeros((len(pictures), 2), bool), np.zeros((len(pictures), 2), np.float32))

    bench = bench_at(parts, tmp_path, [Blind()])
    task = make_task(WORDS, [Candidate("Neon", (PLACE,), "count:4", -0.3)], SETTINGS)
    with pytest.raises(SaeuronError, match=r"the judge 'blind' tells 50% .*seen on 0 of .* --judge-anyway"):
        believe(bench, [task])
    anyway = bench_at(parts, tmp_path, [Blind()], replace(SETTINGS, judge_anyway=True))
    assert believe(anyway, [task])[1] is False


@pytest.mark.slow
def test_attacks_on_candidates_are_stored_and_counted_on_other_prompts(parts, tmp_path):
    pipeline, saes, activations = parts
    settings = replace(SETTINGS, steps=3, tune_seeds=(1, 2), report_seeds=(3, 4))
    bench = Bench(bare(pipeline), saes, activations, [open_judge("demo")], settings, tmp_path / "results", "model")
    attack, candidate = attacker(bench, WORDS, "prefix"), Candidate("Neon", (PLACE,), "count:4", -0.3)
    found = attack(candidate, True)["demo"]
    assert found.trials == 2, "two of four test prompts, with the second seed"
    stored = list((tmp_path / "results").glob("*.json"))
    assert len(stored) == 1
    again = attacker(bench, WORDS, "prefix")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("saeuron.validation.attack.attack.Attacker.searches", lambda *_: pytest.fail("searched again"))
        assert again(candidate, True)["demo"] == found
    long = ConceptPrompts("Neon", "style", ["a picture " * 20] * 2, ["an image"] * 2, WORDS.contrast)
    with pytest.raises(SaeuronError, match="--attack embedding: the prompt .* the text encoder reads 24"):
        attacker(bench, long, "embedding")


def test_likeness_is_none_where_everything_changed_and_nothing_can_be_told_apart(parts, tmp_path):
    bench, listed = bench_at(parts, tmp_path), [Job("Neon", "a", 1), Job("Sepia", "b", 1)]
    before, after = (Looked({"demo": [[], []]}, {"demo": [0.0, 0.0]}, {}, change) for change in ([0.0, 0.0], [0.2, 0.1]))
    bench._unlikes[(listed[1],)] = 0.0  # one picture elsewhere: there is no other to compare it with
    assert bench.figures_of("Neon", listed, before, after).likeness == 0
    assert bench.figures_of("Neon", listed, before, before).likeness == 1


def test_damaged_stored_work_is_named(parts, tmp_path):
    bench, listed = bench_at(parts, tmp_path), jobs(WORDS, (42,), False)[:4]
    bench.unedited(listed)
    (stored,) = (tmp_path / "results").glob("*.json")
    content = json.loads(stored.read_text())
    stored.write_text(json.dumps({**content, "change": content["change"][:-1]}))
    with pytest.raises(SaeuronError, match="stored result is damaged"):
        bench.unedited(listed)


def test_presets_have_prompts_to_tune_and_others_to_judge_by():
    for concept in presets().values():
        words = prompts_of(concept)
        assert len(words.test_prompts) >= 8 and {c.concept for c in words.contrast.values()} <= {True, False}
        assert jobs(words, (1,), False) and jobs(words, (1,), True), concept.name
        every = {p for c in [words, *words.contrast.values()] for p in c.prompts}
        assert every.isdisjoint(p for c in [words, *words.contrast.values()] for p in c.test_prompts), concept.name


@pytest.mark.slow
def test_the_command_writes_what_an_export_reads_and_two_processes_share_it(tmp_path):
    options = [
        "tune", "--concepts", "Stripes", "--intervention", "multiply", "--select", "count:2", "--multiplier=-0.3,-0.01", "--hookpoint", PLACE, "--tune-seeds", "42", "--report-seeds", "188",
        "--budget", "48", "--steps", "8", "--output", str(tmp_path / "s"),
    ]  # fmt: skip
    planned = json.loads(run(*options, "--dry-run", "--json").stdout)["Stripes"]
    assert planned["candidates"] == 2 and planned["pictures"]["choosing"] <= 48 and planned["pictures"]["report"] == 64
    code = "from saeuron.export.start import main; main()"
    both = [
        subprocess.Popen([sys.executable, "-c", code, *options, "--json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        for _ in range(2)
    ]
    reports = [json.loads(p.communicate()[0]) for p in both]
    for report in reports:
        report.pop("seconds")
    assert reports[0] == reports[1] and [p.returncode for p in both] == [0, 0]
    entry = reports[0]["concepts"]["Stripes"]
    assert entry["chosen"]["multiplier"] == -0.3
    table = tomllib.loads((tmp_path / "s" / "settings.toml").read_text())["concepts"][0]
    assert (table["multiplier"], table["status"], table["select"]) == (-0.3, "tuned", "count:2") and table["test_prompts"]
    plan = json.loads(
        run("export", "--settings", tmp_path / "s" / "settings.toml", "--output", tmp_path / "x", "--dry-run", "--json").stdout
    )
    assert plan["concepts"][0]["multiplier"] == -0.3 and plan["concepts"][0]["status"] == "tuned"


def test_refuses_what_flatters_or_cannot_be_before_anything_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr("saeuron.validation.tuning.bench.Bench.draw", lambda *_: pytest.fail("pictures were drawn"))
    there = ["tune", "--concepts", "Neon", "--output", tmp_path / "s"]
    for message, options in (
        ("both for tuning and for the report", ("--tune-seeds", "42,188")), ("--multiplier is 1; it must be at most 0", ("--multiplier", "1")),
        ("three shares", ("--shares", "1,1")), ("'dmo' is not known", ("--judge", "dmo")), ("judge unlearncanvas", ("--judge", "unlearncanvas=/nowhere")),
        ("judge clip: say where it lies", ("--judge", "clip")), ("is no score from 0 to 1", ("--judge", "nudenet=2")), ("is named twice", ("--judge", "demo", "--judge", "demo")),
        ("is too small", ("--intervention", "multiply", "--budget", "20")), ("'42.9' is no whole number", ("--tune-seeds", "42.9")), ("--tune-seeds is empty", ("--tune-seeds", "")),
        ("give at least two", ("--attack", "embedding", "--tune-seeds", "1")), ("does not exist", ("--intervention", "multiply", "--hookpoint", "up_blocks.9.attentions.1")), ("is not in this UNet", ("--hookpoint", "up_blocks.9.attentions.1")),
        ("--clip: no folder 'nowhere'", ("--clip", "nowhere")), ("is no file; give torch-fidelity's", ("--fid", tmp_path)),
    ):  # fmt: skip
        refused(message, *there, *options)
    refused("no output folder", "tune", "--concepts", "Neon")
