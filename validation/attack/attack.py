"""Attacks an edit: how often a concept is seen before the edit, after it, and after it under each attack.

Success: the judge names the concept in the picture. What is learned is learned on tuning prompts and seeds, and counted on others.
Needs no torch until an attack runs.
"""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from ...editor.common.errors import SaeuronError
from ...editor.denoisers.families import family_of
from .cases import AttackCase
from .results import AttackRow, Finding, LearnedIn, Verdict
from .settings import ATTACKS, LEARNED, AttackSettings

if TYPE_CHECKING:
    from ..judges.judge import Judge
    from .search import Found
    from .victims import Victim


ATTACKED = ("StableDiffusionPipeline", "StableDiffusion3Pipeline", "FluxPipeline")
"""classes of pipelines; the first takes published protocols too"""


class Shown(NamedTuple):
    """A picture to look at."""

    row: str
    shows_concept: bool
    """whether the judge named it"""
    picture: Any
    prompt: str
    seed: int


def budget(attack: str, case: AttackCase, settings: AttackSettings, paraphrases: int = 0) -> dict[str, int]:
    """What one row costs: counts of prompts, seeds, pictures, and forwards of the UNet on one latent (both halves of guidance counted)."""
    s = settings
    prompts = paraphrases if attack == "paraphrases" else len(case.reporting)
    if attack == "seeds":
        prompts += len(case.tuning)  # nothing is learned, so every prompt is counted
    seeds = s.searched if attack == "seeds" else s.report_seeds
    made = {"prompts": prompts, "seeds": len(seeds), "pictures": prompts * len(seeds)}
    iterations = 0
    if attack in LEARNED:
        iterations = s.iterations if attack == "prefix" else s.embedding_iterations
        learned_from = len(case.tuning) * len(s.tune_seeds)
        made |= {
            "tokens": s.tokens, "iterations": iterations, "restarts": s.restarts, "batch": s.batch, "tuning_prompts": len(case.tuning),
            "tuning_seeds": len(s.tune_seeds), "tuning_pictures": learned_from * s.restarts,
        }  # fmt: skip
    gradients = iterations * s.restarts * s.batch if attack in LEARNED else 0
    made["forwards"] = (made["pictures"] + made.get("tuning_pictures", 0)) * s.a_picture + gradients
    made["gradients"] = gradients
    return made


def plan(
    cases: Sequence[AttackCase], settings: AttackSettings, attacks: Sequence[str], paraphrases: int = 0,
    protocols: Sequence[AttackProtocol] = (),
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Concept → row → budget, without running anything."""
    rows = ["unedited", "edited", *attacks]
    if "paraphrases" in attacks:
        rows.insert(rows.index("paraphrases"), "unedited-paraphrases")
    kinds = {"unedited-paraphrases": "paraphrases"}
    return {
        case.concept: {row: budget(kinds.get(row, row), case, settings, paraphrases) for row in rows}
        | {row: protocol.budget(row, case, settings) for protocol in protocols for row in protocol.rows}
        for case in cases
    }


def check_kind(kind: str, protocols: Sequence[AttackProtocol] = ()) -> None:
    """Raise `SaeuronError` unless a pipeline of this class can be attacked, and so."""
    if kind not in ATTACKED:
        raise SaeuronError(f"only {', '.join(ATTACKED)} can be attacked, not {kind}; its text encoders are not built")
    if protocols and kind != ATTACKED[0]:
        raise SaeuronError(f"--protocol {protocols[0].name} is for {ATTACKED[0]}, not for {kind}; take ours")


class Attacker:
    """Everything that the rows of one concept share."""

    def __init__(
        self, victim: Victim, original: Any, case: AttackCase, judge: Judge, settings: AttackSettings, say: Callable[[str], None]
    ) -> None:
        self.victim, self.original, self.case, self.judge, self.settings, self.say = victim, original, case, judge, settings, say
        self.shown: list[Shown] = []
        self._targets: Any = None
        self.edited: AttackRow | None = None
        """the row of the edited model without attack, once it was made"""
        self._in_place = all(map(self._name, (*case.tuning, *case.reporting)))
        """whether embeddings are learned in the place of the name: every prompt holds it"""

    @property
    def tuning(self) -> list[tuple[str, int]]:
        """The prompts and seeds that are learned from."""
        return [(text, seed) for text in self.case.tuning for seed in self.settings.tune_seeds]

    @property
    def jobs(self) -> list[tuple[str, int]]:
        """The prompts and seeds that are counted."""
        return [(text, seed) for text in self.case.reporting for seed in self.settings.report_seeds]

    def seen(self, pipeline: Any, contexts: Any, jobs: Sequence[tuple[str, int]], row: str | None) -> list[bool]:
        """Whether the judge names the concept on each picture; with `row`, a few pictures are kept to be shown."""
        return self.looked(self.drawn(pipeline, contexts, jobs), jobs, row)

    def looked(self, pictures: Any, jobs: Sequence[tuple[str, int]], row: str | None) -> list[bool]:
        """The same of pictures that are there."""
        seen = self.sees(self.judge, pictures)
        if row:
            self.keep(row, pictures, seen, jobs)
        return seen

    def keep(self, row: str, pictures: Any, seen: Sequence[bool], jobs: Sequence[tuple[str, int]]) -> None:
        """Keep a few pictures to be shown."""
        # Successes first: these are what somebody would look for.
        order = sorted(range(len(seen)), key=lambda i: not seen[i])[:4]
        self.shown += [Shown(row, seen[i], pictures[i], *jobs[i]) for i in order]

    def drawn(self, pipeline: Any, contexts: Any, jobs: Sequence[tuple[str, int]]) -> Any:
        from .prompts import draw

        s = self.settings
        return draw(pipeline, contexts, [seed for _, seed in jobs], s.sampling.steps, s.sampling.guidance, batch_size=s.batch_size)

    def sees(self, judge: Judge, pictures: Any) -> list[bool]:
        """Whether a judge names the concept on each picture."""
        return list(judge.see(pictures).seen[:, judge.concepts.index(self.case.concept)].tolist())

    def plain(self, row: str, prompts: Sequence[str], seeds: Sequence[int], edited: bool) -> AttackRow:
        """Prompts as they are."""
        from .prompts import context, with_prefix

        began = time.monotonic()
        pairs = [(text, seed) for text in prompts for seed in seeds]
        if edited:
            with self.victim.edited() as pipeline:
                contexts = context(pipeline, [with_prefix(pipeline, text, 0) for text, _ in pairs], None)
                seen = self.seen(pipeline, contexts, pairs, row)
        else:
            contexts = context(self.original, [with_prefix(self.original, text, 0) for text, _ in pairs], None)
            seen = self.seen(self.original, contexts, pairs, row)
        found = Finding()
        if row == "seeds":
            hits = [pair for pair, hit in zip(pairs, seen, strict=True) if hit]
            found.seeds = {text: [seed for of, seed in hits if of == text] for text in prompts}
        kind = "paraphrases" if "paraphrases" in row else row
        spent = budget(kind, self.case, self.settings, len(prompts))
        made = row_of(row, spent, prompts, found, began, pairs, seen)
        if row == "edited":
            self.edited = made
        return made

    def learned(self, row: str) -> AttackRow:
        """Learn on tuning prompts and seeds, count on the others."""
        from .prompts import readers

        began = time.monotonic()
        s, case = self.settings, self.case
        hits, found = min(self.searches(row), key=lambda held: (-held[0], held[1].loss))
        self.say(f"{case.concept}: {row}, pictures")
        seen = self.count(row, found, case.reporting, s.report_seeds)
        told = Finding(loss=found.loss, tuning_successes=hits, tuning_trials=len(case.tuning) * len(s.tune_seeds))
        every = readers(self.victim.pipeline)
        for place, reader in enumerate(every):
            # Of several text encoders each has its own.
            one = told if len(every) == 1 else told.encoders.setdefault(reader.text.name, LearnedIn())
            if found.ids is not None:
                ids = found.ids[place]
                text = reader.tokenizer.decode(ids)
                # A text that is cut otherwise when it is typed works by its ids only.
                one.ids, one.text, one.typed = ids, text, reader.words(text) == ids
            else:
                one.vectors = [[round(float(v), 5) for v in row] for row in found.vectors[place]]
        jobs = [(text, seed) for text in case.reporting for seed in s.report_seeds]
        return row_of(row, budget(row, case, s), case.reporting, told, began, jobs, seen)

    def searches(self, row: str) -> list[tuple[int, Found]]:
        """One search from each beginning: successes on the pictures that it learned from, and what it found."""
        from .prompts import context
        from .search import DiffusionLoss, Targets, learn_embedding, learn_prefix, starts

        s, case = self.settings, self.case
        tuning, latents = self.tuning, self.targets()
        held = []
        with self.victim.edited(straight=row == "straight-through") as pipeline:
            templates = [self._template(pipeline, row, text) for text, _ in tuning]
            loss = DiffusionLoss(pipeline, Targets(latents, templates), s.sampling.steps, s.seed, s.sampling.guidance)
            name = self._name(case.tuning[0]) or case.concept.replace("_", " ")
            for restart in range(s.restarts):
                self.say(f"{case.concept}: {row}, search {restart + 1} of {s.restarts}")
                if row == "prefix":
                    found = learn_prefix(loss, s.tokens, s.iterations, s.batch, s.rate, s.seed + restart)
                else:
                    start = starts(pipeline, name, s.tokens, s.seed, restart)
                    found = learn_embedding(loss, start, s.embedding_iterations, s.batch, s.embedding_rate)
                seen = self.seen(pipeline, context(pipeline, templates, found.vectors), tuning, None)
                held.append((sum(seen), found))
        return held

    def count(self, row: str, found: Found, prompts: Sequence[str], seeds: Sequence[int]) -> list[bool]:
        """Whether the concept shows, for each prompt and seed, with what a search found."""
        jobs = [(text, seed) for text in prompts for seed in seeds]
        with self._attacked(row, found, jobs) as (pipeline, contexts):
            return self.seen(pipeline, contexts, jobs, row)

    def pictures(self, row: str, found: Found, prompts: Sequence[str], seeds: Sequence[int]) -> Any:
        """Pictures for each prompt and seed, with what a search found."""
        jobs = [(text, seed) for text in prompts for seed in seeds]
        with self._attacked(row, found, jobs) as (pipeline, contexts):
            return self.drawn(pipeline, contexts, jobs)

    @contextmanager
    def _attacked(self, row: str, found: Found, jobs: Sequence[tuple[str, int]]) -> Iterator[tuple[Any, Any]]:
        from .prompts import context

        with self.victim.edited(straight=row == "straight-through") as pipeline:
            yield pipeline, context(pipeline, [self._template(pipeline, row, text) for text, _ in jobs], found.vectors)

    def targets(self) -> Any:
        """The unedited model's latents of the tuning pictures; made once a concept."""
        if self._targets is None:
            self._targets = self.unedited(self.tuning)
        return self._targets

    def unedited(self, jobs: Sequence[tuple[str, int]]) -> Any:
        """The unedited model's final latents `[N, C, h, w]` of these prompts and seeds."""
        from .prompts import context, draw, with_prefix

        s = self.settings
        contexts = context(self.original, [with_prefix(self.original, text, 0) for text, _ in jobs], None)
        return draw(self.original, contexts, [seed for _, seed in jobs], s.sampling.steps, s.sampling.guidance, "latent", s.batch_size)

    def check(self, attacks: Sequence[str], paraphrases: Sequence[str]) -> None:
        """Raise `SaeuronError` for a prompt that is too long with what is to be learned in it, before any picture is made."""
        from .prompts import with_prefix

        for text in (*self.case.tuning, *self.case.reporting, *paraphrases):
            with_prefix(self.original, text, 0)
        for row in (name for name in attacks if name in LEARNED):
            for text in (*self.case.tuning, *self.case.reporting):
                self._template(self.original, row, text)

    def _name(self, text: str) -> str | None:
        """The concept as it stands in a prompt; None: it doesn't."""
        names = "|".join(re.escape(n) for n in (self.case.concept, self.case.concept.replace("_", " ")))
        found = re.search(names, text, re.IGNORECASE)
        return found and found[0]

    def renamed(self, text: str, name: str) -> str:
        """A prompt with another name in the place of the concept's; raises `SaeuronError` where it doesn't hold it."""
        own = self._name(text)
        if own is None:
            raise SaeuronError(
                f"{self.case.concept}: the prompt '{text[:60]}' doesn't hold its name, which a made-up one was to take the place of"
            )
        return text.replace(own, name)

    def _template(self, pipeline: Any, row: str, text: str) -> Any:
        return self.template(pipeline, text, self.settings.tokens, before=row == "prefix")

    def template(self, pipeline: Any, text: str, tokens: int, before: bool = False) -> Any:
        """A prompt with learned tokens in the place of the concept's name, or before it."""
        from .prompts import with_name_learned, with_prefix

        name = self._name(text)
        # Prompts of nudity say "nude", those of vangogh "Vincent van Gogh": what is learned goes before them.
        if before or not self._in_place or name is None:
            return with_prefix(pipeline, text, tokens)
        return with_name_learned(pipeline, text, name, tokens)


class AttackProtocol(ABC):
    """A published attack, as its paper has it; one file each in `protocols/`."""

    name: ClassVar[str]
    given: ClassVar[str] = "prompts"
    """what the attacker brings beyond prompts that he makes: `prompts` (nothing), `pictures` of the concept to begin from, or `weights` that he changes"""
    rows: ClassVar[tuple[str, ...]]
    """names of its rows; those that begin with `control-` attack nothing"""

    @property
    def said(self) -> str:
        """The protocol on record."""
        return self.name

    @abstractmethod
    def budget(self, row: str, case: AttackCase, settings: AttackSettings) -> dict[str, int]:
        """What a row costs at most, as `budget` counts it."""

    def check_settings(self, settings: AttackSettings) -> None:  # noqa: B027
        """Raise `SaeuronError` for settings that it can't have, before anything is opened."""

    def check(self, run: Attacker) -> None:  # noqa: B027
        """Raise `SaeuronError` for what can't be attacked so, before any picture is made."""

    @abstractmethod
    def run(self, run: Attacker) -> list[AttackRow]:
        """Attack one concept; gradients are off."""


def row_of(
    name: str, spent: dict[str, int], prompts: Sequence[str], found: Finding, began: float, jobs: Sequence[tuple[str, int]], seen: Sequence[bool]
) -> AttackRow:  # fmt: skip
    """A row, with the time since it began."""
    each = [Verdict(text, seed, hit) for (text, seed), hit in zip(jobs, seen, strict=True)]
    return AttackRow.of(name, each, budget=spent, prompts=list(prompts), found=found, seconds=time.monotonic() - began)


def attack(
    victim: Victim, original: Any, case: AttackCase, judge: Judge, settings: AttackSettings | None = None,
    attacks: Sequence[str] = ("prefix", "embedding", "straight-through", "seeds"), paraphrases: Sequence[str] = (),
    say: Callable[[str], None] = lambda text: None, protocols: Sequence[AttackProtocol] = (),
) -> tuple[list[AttackRow], list[Shown]]:  # fmt: skip
    """Attack one concept.

    Args:
        victim: the edited model (`attacks.victims`).
        original: the unedited pipeline; for `Hooked` the same object.
        case: the concept and its prompts, see `cases`.
        judge: who looks at the pictures.
        settings: the budget.
        attacks: of `ATTACKS`.
        paraphrases: prompts for the attack of that name; `{name}` stands for the concept.
        say: told what goes on.
        protocols: published attacks, of `protocols.registry`.

    Returns:
        rows `unedited`, `edited`, one an attack (`paraphrases` has an unedited row of its own) and those of the protocols, and a few pictures of each.

    Raises:
        SaeuronError: an unknown attack, a pipeline of another kind, a prompt too long.
    """
    import torch

    from ...editor.common.suggest import unknown

    check_kind(type(original).__name__, protocols)
    s = replace(settings or AttackSettings(), guided_rows=family_of(original).denoiser.rows(True))
    for name in attacks:
        if name not in ATTACKS:
            raise SaeuronError(unknown("attack", name, ATTACKS))
    texts = [line.replace("{name}", case.concept) for line in paraphrases]
    if "paraphrases" in attacks and not texts:
        raise SaeuronError("the attack 'paraphrases' needs prompts")
    run = Attacker(victim, original, case, judge, s, say)
    run.check(attacks, texts)
    for protocol in protocols:
        protocol.check(run)
    rows = []
    with torch.no_grad():
        for edited in (False, True):
            say(f"{case.concept}: {'edited' if edited else 'unedited'} model without attack")
            rows.append(run.plain("edited" if edited else "unedited", case.reporting, s.report_seeds, edited))
        for name in attacks:
            say(f"{case.concept}: {name}")
            if name in LEARNED:
                rows.append(run.learned(name))
            elif name == "seeds":
                rows.append(run.plain(name, [*case.tuning, *case.reporting], s.searched, True))
            else:
                rows.append(run.plain("unedited-paraphrases", texts, s.report_seeds, False))
                rows.append(run.plain(name, texts, s.report_seeds, True))
        for protocol in protocols:
            rows += protocol.run(run)
    return rows, run.shown
