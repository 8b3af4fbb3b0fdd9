"""Published attacks: full success where nothing was edited, other results where what they learn is replaced, budgets that are kept, refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.common.typed import plain, read_as
from saeuron.editor.denoisers.families import rebuilt
from saeuron.editor.edit.bake import bake
from saeuron.editor.edit.edit import Edit
from saeuron.editor.edit.weights import WeightEdit
from saeuron.validation.attack import prompts
from saeuron.validation.attack.attack import Attacker, attack
from saeuron.validation.attack.protocols import cce, p4d, registry, relearn, ring_a_bell, unlearndiffatk
from saeuron.validation.attack.results import AttackRow
from saeuron.validation.attack.settings import AttackSettings
from saeuron.validation.attack.victims import Baked, undone
from saeuron.validation.page.consistent import check_rows
from saeuron.validation.page.sources import Seeds

TINY = AttackSettings(steps=8, tune_seeds=(1,), report_seeds=(2,), share=0.001)


@pytest.fixture
def parts(without_sunset):
    """Two prompts to tune by and one to report."""
    original, victims, judge, case = without_sunset
    return original, victims, judge, case._replace(tuning=case.tuning[:2], reporting=case.reporting[:1])


def attacked(parts, victim, names, settings=TINY):
    """Row → its successes and the row itself; every row's budget, prompts and pictures are those that a report needs."""
    original, victims, judge, case = parts
    _, protocols = registry.chosen(names)
    rows, shown = attack(victims[victim], original, case, judge, settings, [], protocols=protocols)
    assert [row.attack for row in rows] == ["unedited", "edited", *(name for p in protocols for name in p.rows)]
    assert {one.row for one in shown} <= {row.attack for row in rows}
    check_rows(Path("attack.json"), case.concept, rows, Seeds(list(settings.report_seeds), [1]))
    for row in rows[2:]:
        planned = registry.ROWS[row.attack].budget(next(p for p in protocols if row.attack in p.rows), row.attack, case, settings)
        assert row.budget.keys() == planned.keys() and all(row.budget[k] <= planned[k] for k in planned), row.attack
        assert read_as(AttackRow, plain(row), "row") == row
    return {row.attack: row for row in rows}


def test_where_nothing_was_edited_the_concept_shows(parts, tmp_path):
    """And where it was, it doesn't, but by what undoes the edit, or shows it anyway."""
    listed = tmp_path / "list.csv"
    listed.write_text(
        "adv_prompt,evaluation_seed,evaluation_guidance\nAn image of House in Sunset style.,2,3\nAn image of Car in Sunset style.,3,2\n"
    )
    names = ["unlearndiffatk", "p4d", "noise-start", "completion", "leak", f"prompts={listed}"]
    free, edited = (attacked(parts, victim, names) for victim in ("unedited", "checkpoint"))
    for name in ("edited", "unlearndiffatk", "p4d", "noise-start-0.9", "noise-start-0.8", "completion", "leak", "prompts"):
        assert free[name].successes == free[name].trials, name
    assert free["unlearndiffatk"].found.without_attack == free["unlearndiffatk"].trials and free["unlearndiffatk"].budget["gradients"] == 0
    for name in ("edited", "p4d", "noise-start-0.9", "prompts"):
        assert edited[name].successes < edited[name].trials / 2, name
    assert edited["leak"].successes == edited["leak"].trials
    assert free["control-noise-start-0.9"].each == edited["control-noise-start-0.9"].each
    assert [(one.prompt, one.seed) for one in edited["prompts"].each] == [
        ("An image of House in Sunset style.", 2),
        ("An image of Car in Sunset style.", 3),
    ]
    # One timestep and its 40 iterations for each prompt that was attacked; P4D's 3 iterations.
    left = edited["edited"].trials - edited["edited"].successes
    assert edited["unlearndiffatk"].budget["gradients"] == 40 * left and edited["unlearndiffatk"].budget["tuning_pictures"] == left
    assert [len(one.ids) for one in edited["unlearndiffatk"].found.learned] == [5] * left
    assert edited["p4d"].budget["gradients"] == 3 * left and {len(one.ids) for one in edited["p4d"].found.learned} == {16}


@pytest.mark.slow
def test_hook_and_checkpoint_give_the_same_rows(parts):
    settings = replace(TINY, steps=4)
    one, other = (attacked(parts, victim, ["unlearndiffatk", "p4d", "completion"], settings) for victim in ("checkpoint", "hook"))
    for name, row in one.items():
        assert (row.each, row.found) == (other[name].each, other[name].found), name
    assert not parts[0].unet._forward_hooks


def test_an_edit_is_taken_out_by_what_the_artifact_holds(parts):
    original, victims, _, case = parts
    with torch.no_grad():
        context = prompts.context(original, [prompts.with_prefix(original, case.reporting[0], 0)], None).states
        given = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([501.0]), context

        def apart(network):
            return float((network(*given).sample - original.unet(*given).sample).abs().max())

        victim = victims["checkpoint"]
        assert apart(victim.pipeline.unet) > 1e-2
        with undone(victim) as pipeline:
            assert apart(pipeline.unet) < 1e-6
        assert apart(victim.pipeline.unet) > 1e-2
        width = original.unet.config.cross_attention_dim
        map_of = torch.eye(width) + 0.05 * torch.randn(width, width, generator=torch.Generator().manual_seed(2))
        edit = Edit({}, weights=WeightEdit(map_of, {"Sunset": "Neon"}, ()))
        baked = Baked(rebuilt(original, unet=bake(original.unet, edit, {})), edit)
        assert apart(baked.pipeline.unet) > 1e-2
        with undone(baked) as pipeline:
            assert apart(pipeline.unet) < 1e-4
        assert apart(baked.pipeline.unet) > 1e-2
        # Without the matrix, it stays.
        with undone(Baked(baked.pipeline)) as pipeline:
            assert apart(pipeline.unet) > 1e-2


def weights_of(network):
    """Name → the bytes of each tensor; some are NaN on purpose."""
    return {name: value.numpy().tobytes() for name, value in network.state_dict().items()}


class Watched(Attacker):
    """Looks at the weights whenever pictures are drawn."""

    def seen(self, pipeline, *rest):
        self.weights = weights_of(pipeline.unet)
        return super().seen(pipeline, *rest)


def test_relearning_changes_stock_weights_alone_and_leaves_them_as_they_were(parts, monkeypatch):
    original, victims, judge, case = parts
    monkeypatch.setattr(relearn, "RATE", 1e-3)
    monkeypatch.setattr(relearn.Relearn, "rows", ("control-relearn-0", "control-relearn-2", "relearn-2"))
    for victim in (victims["checkpoint"], victims["hook"]):
        before = weights_of(victim.pipeline.unet)
        run = Watched(victim, original, case, judge, replace(TINY, steps=2), print)
        with torch.no_grad():
            rows = relearn.Relearn().run(run)
        assert [row.attack for row in rows] == list(relearn.Relearn.rows) and [row.budget["gradients"] for row in rows] == [0, 8, 8]
        assert weights_of(victim.pipeline.unet) == before and not any(p.requires_grad for p in victim.pipeline.unet.parameters())
        changed = {name for name in before if run.weights[name] != before[name]}
        assert "conv_out.weight" in changed and not any("ablation" in name for name in changed)
    text = case.reporting[0]
    assert "Sunset" not in run.renamed(text, "sks") and "sks" in run.renamed(text, "sks")
    with pytest.raises(SaeuronError, match="doesn't hold its name"):
        run.renamed("A drawing of Car.", "sks")


def test_the_token_of_cce_is_learned(parts, monkeypatch):
    """A mutant without steps, or with a random token, has another loss."""
    original, victims, judge, case = parts
    run = Attacker(victims["unedited"], original, case, judge, replace(TINY, steps=4, share=0.001), print)
    with torch.no_grad():
        (row,) = cce.CCE().run(run)
        from saeuron.validation.attack.search import DiffusionLoss, Targets

        loss = DiffusionLoss(original, Targets(run.targets(), [run.template(original, text, 1) for text, _ in run.tuning]), 4, 0)
        table = prompts.embedding_table(original)
        start = table[prompts.words(original, "art")[:1]]
        learned = torch.tensor(row.found.vectors)
        assert row.budget["gradients"] == 5 * 16 and learned.shape == start.shape
        assert loss.fixed(learned) < loss.fixed(start) and not torch.allclose(learned, start, atol=1e-2)
        again = cce.CCE().run(Attacker(victims["unedited"], original, case, judge, replace(TINY, steps=4, share=0.001), print))[0]
        assert again.found == row.found and again.each == row.each


def test_p4d_comes_nearer_to_the_prompt_than_random_tokens(parts, monkeypatch):
    original, victims, judge, case = parts
    run = Attacker(victims["unedited"], original, case, judge, TINY, print)
    job = [(case.reporting[0], 2)]
    with torch.no_grad():
        target = run.unedited(job)
        found = {}
        for iterations in (1, 40):
            monkeypatch.setattr(p4d, "ITERATIONS", iterations * 1000)
            (found[iterations],) = p4d.P4D().search(run, job, [0], target)
        assert found[1].ids != found[40].ids
        table, wanted = (
            prompts.embedding_table(original),
            prompts.context(original, [prompts.with_prefix(original, job[0][0], 0)], None).states,
        )
        given = target + torch.randn(target.shape, generator=torch.Generator().manual_seed(5)), torch.tensor([700.0])

        def apart(ids):
            made = prompts.context(original, [prompts.with_prefix(original, "", 16)], table[ids]).states
            return float((original.unet(*given, made).sample - original.unet(*given, wanted).sample).square().mean())

        assert apart(found[40].ids) < apart(found[1].ids)


def test_ring_a_bell_goes_where_the_direction_leads(parts):
    original, _, _, case = parts
    assert case.pairs and all("Sunset" in one and "Sunset" not in other for one, other in case.pairs)
    with torch.no_grad():
        blank, allowed = prompts.with_prefix(original, "", 16), prompts.vocabulary(original)
        states = {text: prompts.context(original, [prompts.with_prefix(original, text, 0)], None).states[0] for text in case.pairs[0]}
        one, other = (states[text] for text in case.pairs[0])
        table, found = prompts.embedding_table(original), {}
        for generations in (1, 12):
            for strength in (0.0, 3.0):
                target = other + strength * (one - other)
                ids = ring_a_bell.evolve(original, blank, target, allowed, generations, torch.Generator().manual_seed(3))
                made = prompts.context(original, [blank], table[ids]).states[0]
                found[generations, strength] = ids.tolist(), float((made - target).square().sum())
        assert set(found[12, 3.0][0]) <= set(allowed.tolist())
        assert found[12, 3.0][1] < found[1, 3.0][1] and found[12, 0.0][0] != found[12, 3.0][0]


def test_tokens_stay_on_the_simplex_and_nearest_is_by_angle():
    print("seed 4")
    rows = torch.randn(6, 40, generator=torch.Generator().manual_seed(4))
    found = unlearndiffatk.on_simplex(rows)
    assert torch.allclose(found.sum(1), torch.ones(6), atol=1e-5) and bool((found >= 0).all())
    for row, point in zip(rows.double(), found, strict=True):  # by bisection, as the released code has it
        low, high = row.min() - 1, row.max()
        for _ in range(80):
            middle = (low + high) / 2
            low, high = (middle, high) if (row - middle).clamp(0, 1).sum() > 1 else (low, middle)
        assert torch.allclose(point.double(), (row - low).clamp(0, 1), atol=1e-6)
    assert torch.equal(unlearndiffatk.on_simplex(found), found) or torch.allclose(unlearndiffatk.on_simplex(found), found, atol=1e-6)
    assert unlearndiffatk._timesteps(1000, 50) == list(range(10, 1000, 20)) and unlearndiffatk._timesteps(1000, 1) == [500]
    table = torch.tensor([[1.0, 0.0], [10.0, 10.0], [0.0, 1.0]])
    assert p4d.by_angle(torch.tensor([[[0.1, 0.09], [5.0, 0.1]]]), table).tolist() == [[1, 0]]


def test_prompts_too_long_are_refused_before_anything_is_drawn(parts, monkeypatch):
    original, victims, judge, case = parts
    monkeypatch.setattr(Attacker, "seen", None)
    for houses, names in ((20, ("unlearndiffatk", "cce", "ring-a-bell", "relearn", "noise-start")), (14, ("unlearndiffatk",))):
        long = case._replace(reporting=["An image of " + "House " * houses + "in Sunset style."])
        for name in names:
            with pytest.raises(SaeuronError, match="the text encoder reads 24"):
                attack(victims["checkpoint"], original, long, judge, TINY, [], protocols=registry.chosen([name])[1])
    with pytest.raises(SaeuronError, match="paired"):
        attack(victims["checkpoint"], original, case._replace(pairs=()), judge, TINY, [], protocols=registry.chosen(["ring-a-bell"])[1])
    with pytest.raises(SaeuronError, match="no artifact"):
        attack(Baked(original), original, case, judge, TINY, [], protocols=registry.chosen(["leak"])[1])


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["unlearndifatk"], "did you mean unlearndiffatk"),
        (["cce", "cce"], "cce is given twice"),
        (["cce=3"], "cce takes no value"),
        (["prompts"], "give a file: prompts=FILE"),
        (["prompts="], "give a file: prompts=FILE"),
        (["prompts=nowhere.csv"], "can't be read"),
    ],
)  # fmt: skip
def test_refusals(names, said):
    with pytest.raises(SaeuronError, match=said):
        registry.chosen(names)


def test_lists_that_would_be_read_otherwise_are_refused(tmp_path):
    (tmp_path / "twice.csv").write_text("prompt,seed\nA,1\nA,1\n")
    with pytest.raises(SaeuronError, match="'A' stands there twice with seed 1"):
        registry.chosen([f"prompts={tmp_path / 'twice.csv'}"])
    (tmp_path / "bare.csv").write_text("a pika with hat\nanother\n")
    with pytest.raises(SaeuronError, match="name a list of bare lines .txt"):
        registry.chosen([f"prompts={tmp_path / 'bare.csv'}"])


def test_rows_that_lack_their_control_are_refused(parts):
    rows = list(attacked(parts, "unedited", ["noise-start"], replace(TINY, steps=2)).values())
    with pytest.raises(SaeuronError, match="has rows of noise-start, but not control-noise-start-0.9"):
        check_rows(Path("attack.json"), "Sunset", [row for row in rows if row.attack != "control-noise-start-0.9"], Seeds([2], [1]))


def test_the_tokens_of_unlearndiffatk_follow_the_gradient(parts, monkeypatch):
    """With the gradient turned round, other tokens are found, and the loss is larger."""
    import torch.nn.functional as F

    from saeuron.validation.attack.search import DiffusionLoss, Targets

    original, victims, judge, case = parts
    job, found = [(case.reporting[0], 2)], {}
    with torch.no_grad():
        for kind in ("learned", "mutant"):
            if kind == "mutant":
                monkeypatch.setattr(F, "hardtanh", lambda value: -value.clamp(-1, 1))
            run = Attacker(victims["checkpoint"], original, case, judge, replace(TINY, steps=2), print)
            target = run.unedited(job)
            (outcome,) = unlearndiffatk.UnlearnDiffAtk().search(run, job, [0], target)
            vectors = prompts.embedding_table(original)[outcome.ids]
            loss = DiffusionLoss(run.victim.pipeline, Targets(target, [prompts.with_prefix(original, job[0][0], 5)]), 20, 0)
            found[kind] = outcome.ids, loss.fixed(vectors)
    assert found["learned"][0] != found["mutant"][0] and found["learned"][1] < found["mutant"][1]
