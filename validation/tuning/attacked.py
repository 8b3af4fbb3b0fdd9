"""Attacks on candidates: how many pictures under attack don't show the concept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import torch

from ...editor.common.errors import SaeuronError
from ...editor.edit.edit import Edit
from ...editor.features.prompt_sets import ConceptPrompts
from ..attack.attack import Attacker
from ..attack.cases import AttackCase
from ..attack.settings import AttackSettings
from ..attack.victims import Hooked
from ..evidence.intervals import Rate
from .bench import Bench
from .candidates import Candidate

Attack = Callable[[Candidate, bool], dict[str, Rate]]
"""candidate, whether on test prompts → judge → pictures under attack that don't show the concept"""


def attacker(bench: Bench, words: ConceptPrompts, kind: str) -> Attack:
    """What attacks the candidates of a concept: learned on half of its prompts with the first seed, counted on the other half with the others.

    Args:
        bench: what measures; its pipeline in float32, without safety checker (`victims.bare`).
        words: the concept's prompts. In a report, learned and counted on test prompts.
        kind: of `LEARNED`.

    Raises:
        SaeuronError: a prompt that is too long with what is learned in it.
    """
    s = bench.settings
    judges = [j for j in bench.judges if words.name in j.concepts]
    runs: dict[bool, Attacker] = {}
    for test, texts, seeds in ((False, words.prompts, s.tune_seeds), (True, words.test_prompts, s.report_seeds)):
        case = AttackCase(words.name, words.kind, list(texts[0::2]), list(texts[1::2]))
        settings = AttackSettings(
            steps=s.steps, guidance=s.guidance, tune_seeds=seeds[:1], report_seeds=seeds[1:], batch_size=s.batch_size, seed=int(test)
        )
        victim = Hooked(bench.pipeline, Edit({}), bench.saes)
        runs[test] = Attacker(victim, bench.pipeline, case, judges[0], settings, lambda text: None)
        try:
            runs[test].check([kind], [])
        except SaeuronError as error:
            raise SaeuronError(f"--attack {kind}: {error}") from None

    @torch.no_grad()
    def run(candidate: Candidate, test: bool) -> dict[str, Rate]:
        attack = runs[test]
        attack.victim = Hooked(bench.pipeline, bench.edit(candidate), bench.saes)
        _, best = min(attack.searches(kind), key=lambda held: (-held[0], held[1].loss))
        made = attack.pictures(kind, best, attack.case.reporting, attack.settings.report_seeds)
        seen = {judge.name: attack.sees(judge, made) for judge in judges}
        return {name: Rate.of(len(shown) - sum(shown), len(shown)) for name, shown in seen.items()}

    def stored(candidate: Candidate, test: bool) -> dict[str, Rate]:
        attack = runs[test]
        spent = {name: value for name, value in asdict(attack.settings).items() if name != "guided_rows"}
        what = ["attack", kind, bench.named(candidate), list(attack.case[:4]), spent]
        trials = len(attack.case.reporting) * len(attack.settings.report_seeds)
        return bench.store.take(
            what, dict[str, Rate], lambda: run(candidate, test),
            lambda held: set(held) == {j.name for j in judges} and all(r.trials == trials for r in held.values()),
        )  # fmt: skip

    return stored
