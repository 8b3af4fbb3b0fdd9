"""Attack in the loop: what an attack brought back becomes one more discriminant of `probe`, and the next attack is on that.

A discriminant is made of pictures that the model draws when it is asked. A learned embedding finds other ways to the same thing, in which the blocks' tokens
look otherwise; from the pictures of such an attack they can be known too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from ...editor.common.errors import SaeuronError
from ...editor.common.typed import Record, Whole
from ...editor.denoisers.families import network_of
from ...editor.denoisers.sampling import observe, scheduler_of
from ...editor.edit.added_rows import with_more
from ...editor.edit.edit import Edit
from ...editor.edit.probe import probe_rows
from .attack import Attacker
from .prompts import context, draw
from .victims import Hooked

if TYPE_CHECKING:
    from ...editor.features.activations import ConceptActivations
    from ..judges.judge import Judge
    from .cases import AttackCase
    from .search import Found
    from .settings import HardenSettings

_APART = 500_000
"""from the seed of a round's attack to those of the pictures that tokens are taken of"""


class Round(Record):
    """What one attack found, and what was made of it."""

    concept: str
    number: Whole
    shown: Whole
    """pictures under attack that show the concept, from which the next discriminant is made; none: it stays as it was"""
    pictures: Whole


@torch.no_grad()
def harden(
    pipeline: Any, edit: Edit, statistics: Mapping[str, ConceptActivations], case: AttackCase, judge: Judge, settings: HardenSettings,
    sampling: tuple[int, float], say: Callable[[str], None] = lambda text: None,
) -> tuple[Edit, list[Round]]:  # fmt: skip
    """Attack an edit by embeddings, round by round, and add to its discriminants what came back.

    Args:
        pipeline: the original, in float32 (`victims.bare`).
        edit: with intervention `probe` for the concept.
        statistics: hookpoint → mean tokens and covariance that the concept's discriminant was made of.
        case: the concept and its prompts; all of them are learned from, in turn.
        judge: who says what came back.
        settings: the budget.
        sampling: steps and guidance of the pictures.
        say: told what goes on.

    Raises:
        SaeuronError: a prompt that is too long with what is learned in it.
    """
    name, rounds = case.concept, []
    for number in range(settings.rounds):
        turned = case if number % 2 == 0 else case._replace(tuning=case.reporting, reporting=case.tuning)
        spent = settings.attack(*sampling, number)

        def told(text: str, number: int = number) -> None:
            say(f"round {number + 1} of {settings.rounds}: {text}")

        attack = Attacker(Hooked(pipeline, edit, {}), pipeline, turned, judge, spent, told)
        attack.check(["embedding"], [])
        _, best = min(attack.searches("embedding"), key=lambda held: (-held[0], held[1].loss))
        told(f"{name}: pictures")
        seen, tokens = _brought_back(attack, best, statistics)
        rounds.append(Round(name, number + 1, int(seen.sum()), len(seen)))
        if bool(seen.any()):
            edit = _with(edit, name, {h: found[seen].mean(0) for h, found in tokens.items()}, statistics)
    return edit, rounds


def _with(edit: Edit, concept: str, shown: Mapping[str, torch.Tensor], statistics: Mapping[str, ConceptActivations]) -> Edit:
    parts, directions = dict(edit.hookpoints), dict(edit.directions)
    for hookpoint, tokens in shown.items():
        rows = probe_rows(statistics[hookpoint], concept, tokens)
        parts[hookpoint], directions[hookpoint] = with_more(parts[hookpoint], directions[hookpoint], concept, rows)
    return replace(edit, hookpoints=parts, directions=directions)


def _brought_back(
    attack: Attacker, found: Found, statistics: Mapping[str, ConceptActivations]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Pictures of all prompts with what a search found: which show the concept, bool `[N]`, and hookpoint → their mean tokens `[N, T, d]` before the edit."""
    s, pipeline, case = attack.settings, attack.victim.pipeline, attack.case
    texts = [*case.tuning, *case.reporting]
    jobs = [(text, _APART + s.seed + i) for i, text in enumerate(texts)]
    steps, *others = {len(held.timesteps) for held in statistics.values()}
    if others:
        raise SaeuronError(f"{case.concept}: its blocks' tokens were collected with different step counts; collect them with one")
    guided, network = s.sampling.guidance > 1, network_of(pipeline)
    seen: list[bool] = []
    tokens: dict[str, list[torch.Tensor]] = {h: [] for h in statistics}
    # As the statistics were collected, so that every row of the tables has its own timestep.
    with scheduler_of(pipeline, "ddim"):
        for start in range(0, len(jobs), s.batch_size):
            part = jobs[start : start + s.batch_size]
            held: dict[str, list[torch.Tensor]] = {h: [] for h in statistics}

            def look(level: float, shown: dict[str, torch.Tensor], held: dict[str, list[torch.Tensor]] = held) -> None:
                for hookpoint, values in shown.items():
                    held[hookpoint].append(values.float().mean(1).cpu())

            # Its hooks come before the edit's, so they see what the blocks gave.
            with observe(network, dict.fromkeys(statistics, "output"), look, len(part), guided), attack.victim.edited() as edited:
                contexts = context(edited, [attack.template(edited, text, s.tokens) for text, _ in part], found.vectors)
                made = draw(edited, contexts, [seed for _, seed in part], steps, s.sampling.guidance, batch_size=len(part))
            seen += attack.sees(attack.judge, made)
            for hookpoint, values in held.items():
                tokens[hookpoint].append(torch.stack(values, 1))
    return torch.tensor(seen), {h: torch.cat(values) for h, values in tokens.items()}
