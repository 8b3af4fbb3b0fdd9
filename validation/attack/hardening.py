"""Chooses how much an edit suppresses by attacking it: wider rules and other multipliers, each attacked through the hook.

The candidate under which an attack succeeds least is taken, unless it costs the pictures without the concept more than is allowed. Candidates
are compared on tuning prompts, names and seeds; the figures of the chosen one and of the setting before come from others. Results are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from msgspec import structs

from ...editor.common.typed import Record, Whole
from ...editor.denoisers.families import network_of
from ...editor.edit.hook import AblationHook
from ...editor.features.activations import ConceptActivations
from ...editor.features.rule import Rule
from ...editor.sae.sae import SparseAutoencoder
from ..evidence.intervals import Rate
from ..evidence.judges import Judge
from ..evidence.results import JudgeRecord
from ..evidence.sweep import Sweep, Trial
from ..evidence.sweep_settings import SweepSettings
from ..evidence.unlearning import Job, rates
from .attack import Attacker, cases
from .settings import AttackSettings, HardenSettings
from .victims import Hooked


class Measured(Trial, frozen=True):
    """A candidate with its figures."""

    features: Whole
    """over hookpoints, each with those of any step"""
    attack: Rate
    """pictures that show the concept under attack"""
    ua: Rate
    """pictures of plain prompts that don't show it"""
    ira: Rate
    cra: Rate
    """on pictures without the concept, each counted once"""

    @property
    def trial(self) -> Trial:
        """Without the figures."""
        return Trial(*(getattr(self, name) for name in Trial.__struct_fields__))


class Hardened(Record, kw_only=True):
    """What hardening found for a concept."""

    domain: str
    changed: bool
    compared: list[Measured]
    """every candidate, the chosen one first"""
    before: Measured
    chosen: Measured
    """on the report's prompts and seeds"""


class HardeningReport(Record, kw_only=True):
    """`report.json` of hardening."""

    format: str
    judge: JudgeRecord
    settings: HardenSettings
    confidence: float = 0.95
    concepts: dict[str, Hardened] = {}
    seconds: float = 0.0


class Hardening(Sweep):
    """Measures candidates through the dynamic hook.

    Args:
        pipeline: the unedited pipeline in float32, without safety checker (`attacks.victims.bare`).
        saes: hookpoint → SAE.
        activations: (domain, hookpoint) → activations.
        judge: who looks at the pictures.
        hardening: what is common.
        store: folder of stored results.
        identity: hash of the model's files.
        say: told what goes on.
    """

    def __init__(
        self, pipeline: Any, saes: Mapping[str, SparseAutoencoder], activations: Mapping[tuple[str, str], ConceptActivations], judge: Judge,
        hardening: HardenSettings, store: Path, identity: str, say: Callable[[str], None] = lambda text: None,
    ) -> None:  # fmt: skip
        hardening.check()
        s = hardening.attack
        common = SweepSettings(s.steps, s.guidance, hardening.residual, s.tune_seeds, s.report_seeds, batch_size=s.batch_size)
        super().__init__(pipeline, saes, activations, judge, common, store, identity)
        self.hardening, self.say = hardening, say
        self._attackers: dict[str, Attacker] = {}

    def compare(self, trial: Trial) -> Measured:
        """On tuning prompts and trial seeds; every search's find is counted, which tells more than the best one's."""
        h = self.hardening
        return self._measured(trial, (h.attack,), True, h.trial_seeds, h.attack.tune_seeds)

    def report_on(self, trial: Trial) -> Measured:
        """On report prompts and seeds, with fresh searches; of one attack's searches the best counts, as in `saeuron attack`."""
        h = self.hardening
        fresh = tuple(replace(h.attack, seed=h.attack.seed + 1 + i) for i in range(h.report_searches))
        return self._measured(trial, fresh, False, h.attack.report_seeds, h.attack.report_seeds[: h.rest_seeds])

    def choose(self, before: Trial, candidates: Iterable[Trial], told: Callable[[Measured], None] = lambda found: None) -> list[Measured]:
        """Compare candidates with the setting before them.

        Candidates come from narrow to wide: at one multiplier, the wider ones are left out once no picture under attack shows the concept,
        or once more is lost than is allowed. Where none shows it to begin with, there is nothing to compare by, and none is tried.

        Returns:
            all that were measured, the chosen one first.
        """
        first = self.compare(before)
        told(first)
        found: list[Measured] = [first]
        done: set[float] = set()
        for trial in dict.fromkeys(candidates) if first.attack.hits else ():
            if trial.multiplier in done or trial == before:
                continue
            found.append(self.compare(trial))
            told(found[-1])
            if not found[-1].attack.hits or not self.affordable(found[-1], first):
                done.add(trial.multiplier)
        return sorted(found, key=lambda m: (not self.affordable(m, first), m.attack.value, m.features))

    def affordable(self, found: Measured, before: Measured) -> bool:
        """Whether UA, IRA and CRA each lose no more than is allowed."""
        # Shares of whole pictures: a margin for rounding keeps "exactly as much" inside.
        return all(getattr(found, k).value >= getattr(before, k).value - self.hardening.cost / 100 - 1e-9 for k in ("ua", "ira", "cra"))

    def rest(self, trial: Trial, tuning: bool, seeds: Sequence[int]) -> list[Job]:
        """Pictures without the concept: along diagonals, one half of all pairs of names to tune on, the other to report on."""
        return [
            (o, s, seed)
            for i, o in enumerate(self.judge.objects)
            for j, s in enumerate((*self.judge.styles, None))
            if (i + j) % 2 == (0 if tuning else 1) and trial.concept not in (o, s)
            for seed in seeds
        ]

    @torch.no_grad()
    def _measured(
        self, trial: Trial, attacks: Sequence[AttackSettings], tuning: bool, seeds: Sequence[int], rest_seeds: Sequence[int]
    ) -> Measured:
        edit = self.edit(trial)
        key = self._key(
            ["hardening", edit.sha256(), {h: self.saes[h].sha256() for h in trial.hookpoints}, trial.concept, self.hardening.row,
             [asdict(a) for a in attacks], tuning, list(seeds), list(rest_seeds)]
        )  # fmt: skip
        found = self._stored(key, Measured)
        if found is None:
            shown: list[bool] = []
            for settings in attacks:
                shown += self._attacked(trial, Hooked(self.pipeline, edit, self.saes), settings, tuning, seeds)
            prompts = self._case(trial).tuning if tuning else self._case(trial).reporting
            # Plain prompts and the rest are judged alike: no learned token, the pipeline's own text encoder.
            with AblationHook(network_of(self.pipeline), edit, self.saes):
                self.say(f"{trial.concept}: {trial.select}, {trial.multiplier:g}: pictures without attack")
                rest = rates(self._pictures(self.rest(trial, tuning, rest_seeds)), {trial.concept: trial.domain})[trial.concept]
                own = rates(self._pictures(self._own(trial, prompts, seeds)), {trial.concept: trial.domain})[trial.concept]
            features = sum(len(p.features) for p in edit.hookpoints.values())
            attacked = Rate.of(sum(shown), len(shown))
            found = Measured(**structs.asdict(trial), features=features, attack=attacked, ua=own.ua, ira=rest.ira, cra=rest.cra)
            self._keep(key, found)
            self.measured += 1
        # Another trial may have given the same edit.
        return structs.replace(found, **structs.asdict(trial))

    def _attacked(self, trial: Trial, victim: Hooked, settings: AttackSettings, tuning: bool, seeds: Sequence[int]) -> list[bool]:
        """Whether the concept shows, picture by picture."""
        case, row = self._case(trial), self.hardening.row
        attacker = Attacker(victim, self.pipeline, case, self.judge, settings, self.say)
        known = self._attackers.setdefault(trial.concept, attacker)
        attacker.targets = known.targets  # the unedited model's pictures are the same for every candidate
        held = attacker.searches(row)
        known.targets = attacker.targets
        if not tuning:
            held = [min(held, key=lambda h: (-h[0], h[1].loss))]
        prompts = case.tuning if tuning else case.reporting
        return [seen for _, found in held for seen in attacker.count(row, found, prompts, seeds)]

    def _case(self, trial: Trial) -> Any:
        return cases(self.judge, [trial.concept], [trial.concept])[0]

    def _own(self, trial: Trial, prompts: Sequence[str], seeds: Sequence[int]) -> list[Job]:
        """The pictures that these prompts ask for."""
        pairs = [(o, s) for o in self.judge.objects for s in (*self.judge.styles, None) if trial.concept in (o, s)]
        return [(o, s, seed) for o, s in pairs if self.judge.prompt(o, s) in prompts for seed in seeds]


def widened(trial: Trial, factors: Sequence[float], multipliers: Sequence[float]) -> list[Trial]:
    """The trial's rule, widened by each factor, at each multiplier; from narrow to wide."""
    rule = Rule.parse(trial.select)
    return [structs.replace(trial, select=str(rule.widened(f)), multiplier=m) for m in multipliers for f in sorted(factors)]
