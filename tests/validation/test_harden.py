"""Attack in the loop, on the demo: what came back becomes rows of the edit, which is exported and proven as any other."""

import json

import pytest
import torch
from tests.conftest import refused, run

from saeuron.editor.common.writing import alone
from saeuron.editor.denoisers.pipelines import load_pipeline
from saeuron.editor.edit.edit import Edit
from saeuron.editor.features.prompt_sets import prompts_of
from saeuron.export.plan.prepare import open_sources, prepare
from saeuron.export.plan.resolve import resolve
from saeuron.export.plan.settings import Settings
from saeuron.validation.artifact import manifest
from saeuron.validation.attack.cases import AttackCase
from saeuron.validation.attack.harden import harden
from saeuron.validation.attack.settings import HardenSettings
from saeuron.validation.attack.victims import bare
from saeuron.validation.judges.choose import open_judges

LITTLE = HardenSettings(rounds=2, embedding_iterations=2, restarts=1, tune_seeds=(5,))


class Blind:
    """Sees nothing."""

    def __init__(self, judge):
        self.judge, self.concepts, self.name, self.sha256 = judge, judge.concepts, judge.name, judge.sha256

    def see(self, pictures):
        found = self.judge.see(pictures)
        return found._replace(seen=found.seen & False)


@pytest.mark.slow
def test_what_came_back_is_added_and_nothing_else(tmp_path):
    plan = resolve(
        Settings(("Car",), tmp_path / "o", intervention="probe", multiplier=0.9), anew=True
    )  # so weak that it comes back at once
    edit, sources = prepare(plan).edit, open_sources(plan)
    statistics = {w.hookpoint: sources.of(w) for w in sources.wishes}
    words = prompts_of(plan.concepts["Car"])
    case = AttackCase("Car", "object", list(words.prompts[0:4]), list(words.prompts[4:8]))
    (judge,) = open_judges(("demo",), {"Car": words}, "cpu")
    pipeline = bare(load_pipeline("demo"))
    grown, rounds = harden(pipeline, edit, statistics, case, judge, LITTLE, (plan.steps, plan.guidance))
    assert [(r.number, r.pictures) for r in rounds] == [(1, 8), (2, 8)] and all(r.shown for r in rounds)
    for name, part in grown.hookpoints.items():
        steps = len(part.timesteps)
        assert part.latents == 3 * steps and torch.equal(part.gains[:, :steps], edit.hookpoints[name].gains)
        encoder = grown.directions[name].W_enc
        assert torch.equal(encoder[:steps], edit.directions[name].W_enc)
        for one, other in ((0, 1), (1, 2)):
            assert not torch.allclose(encoder[one * steps : (one + 1) * steps], encoder[other * steps : (other + 1) * steps], rtol=1e-2)
    again, _ = harden(pipeline, edit, statistics, case, judge, LITTLE, (plan.steps, plan.guidance))
    assert again.sha256() == grown.sha256()
    same, found = harden(pipeline, edit, statistics, case, Blind(judge), LITTLE, (plan.steps, plan.guidance))
    assert same.sha256() == edit.sha256() and not any(r.shown for r in found), "nothing came back, so nothing is added"


@pytest.mark.slow
def test_from_the_command_to_a_proven_artifact(tmp_path):
    path = tmp_path / "e.safetensors"
    little = ("--rounds", 1, "--embedding-iterations", 2, "--restarts", 1, "--tune-seeds", 5)
    said = json.loads(run("harden", "--concepts", "Car", "--multiplier", "0.9", *little, "-o", path, "--json").stdout)
    assert said["rounds"][0]["shown"] and said["edit"] == str(path)
    edit = Edit.load(path)
    assert edit.weights is not None and all(p.latents == 2 * len(p.timesteps) for p in edit.hookpoints.values())
    run("export", "--edit", path, "--format", "checkpoint", "--proof", "short", "-o", tmp_path / "a")
    assert {s.added for s in manifest.read(tmp_path / "a").settings if s.intervention == "probe"} == {1}
    refused("exists", "harden", "--concepts", "Car", *little, "-o", path)


def test_what_can_not_be_hardened(tmp_path):
    out = ("-o", tmp_path / "e.safetensors")
    (tmp_path / "s.toml").write_text('[[concepts]]\nname = "Car"\nintervention = "multiply"\n')
    refused("removed by multiply; give --intervention probe", "harden", "--settings", tmp_path / "s.toml", *out)
    refused("removed by weights; give --intervention probe", "harden", "--concepts", "Car", "--intervention", "weights", *out)
    refused("give the edit a place", "harden", "--concepts", "Car")
    refused("give the edit a place", "harden", "--concepts", "Car", "-o", tmp_path / "e.txt")
    refused("takes one --judge", "harden", "--concepts", "Car", "--judge", "demo", "--judge", "clip=demo:clip", *out)
    refused("multiplier above 1", "harden", "--concepts", "Car", "--multiplier", "2", *out)
    refused("is not known", "harden", "--concepts", "Nobody", *out)
    refused(
        "seed 188 is one that attack and evaluate count on",
        "harden",
        "--concepts",
        "Car",
        "--judge",
        "demo",
        "--tune-seeds",
        "42,188",
        *out,
    )
    with alone(tmp_path / ".e.safetensors.hardening"):
        refused("is being made by another process", "harden", "--concepts", "Car", "--judge", "demo", *out)
    assert not list(tmp_path.glob("*e.safetensors*"))
