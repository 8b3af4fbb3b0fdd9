"""Attacks an edit: how often a concept is seen before the edit, after it, and after it under each attack.

Success: the judge names the concept in the picture. What is learned is learned on tuning prompts and seeds, and counted on others.
Needs no torch until an attack runs.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from ...editor.common.errors import SaeuronError
from ...editor.features.prompt_sets import ConceptPrompts
from .results import AttackRow, Finding, Verdict
from .settings import ATTACKS, LEARNED, AttackSettings

if TYPE_CHECKING:
    from ..judges.judge import Judge, LabelJudge
    from .search import Found
    from .victims import Victim


class AttackCase(NamedTuple):
    """A concept and the prompts that ask for it."""

    concept: str
    domain: str
    """`style` or `object`; of a concept in words, its kind"""
    tuning: list[str]
    """prompts that are learned from"""
    reporting: list[str]
    """prompts that are counted"""


class Shown(NamedTuple):
    """A picture to look at."""

    row: str
    shows_concept: bool
    """whether the judge named it"""
    picture: Any
    prompt: str
    seed: int


def cases(judge: LabelJudge, concepts: Sequence[str], removed: Sequence[str]) -> list[AttackCase]:
    """Prompts for each concept: its partners of the other domain in turn for learning and for counting; removed ones left out.

    Raises:
        SaeuronError: a concept that the judge can't see.
    """
    from ...editor.common.suggest import unknown

    known = {name: domain for domain, names in (("object", judge.objects), ("style", judge.styles)) for name in names}
    made = []
    for concept in concepts:
        if concept not in known:
            raise SaeuronError(unknown("concept", concept, known, f"to the judge '{judge.name}'"))
        domain = known[concept]
        if domain == "style":
            texts = [judge.prompt(o, concept) for o in judge.objects if o not in removed]
        else:
            texts = [judge.prompt(concept, s) for s in (*judge.styles, None) if s not in removed]
        if len(texts) < 2:
            raise SaeuronError(f"{concept}: the judge knows too few other names to learn from some prompts and count on others")
        made.append(AttackCase(concept, domain, texts[0::2], texts[1::2]))
    return made


def cases_by_words(words: Mapping[str, ConceptPrompts], removed: Sequence[str]) -> list[AttackCase]:
    """The same from test prompts, in turn for learning and for counting; those that name another removed concept are left out.

    Raises:
        SaeuronError: fewer than two prompts of a concept.
    """
    made = []
    for name, concept in words.items():
        others = [other.replace("_", " ").casefold() for other in removed if other != name]
        texts = [text for text in concept.test_prompts if not any(other in text.casefold() for other in others)]
        if len(texts) < 2:
            raise SaeuronError(f"{name}: it has too few test prompts to learn from some and count on others ({len(texts)})")
        made.append(AttackCase(name, concept.kind, texts[0::2], texts[1::2]))
    return made


def budget(attack: str, case: AttackCase, settings: AttackSettings, paraphrases: int = 0) -> dict[str, int]:
    """What one row costs: counts of prompts, seeds, pictures, and forwards of the UNet on one latent (both halves of guidance counted)."""
    s = settings
    a_picture = s.sampling.steps * (2 if s.sampling.guidance > 1 else 1)
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
    made["forwards"] = (made["pictures"] + made.get("tuning_pictures", 0)) * a_picture + gradients
    made["gradients"] = gradients
    return made


def plan(cases: Sequence[AttackCase], settings: AttackSettings, attacks: Sequence[str], paraphrases: int = 0) -> dict[str, dict[str, Any]]:
    """Concept → row → budget, without running anything."""
    rows = ["unedited", "edited", *attacks]
    if "paraphrases" in attacks:
        rows.insert(rows.index("paraphrases"), "unedited-paraphrases")
    kinds = {"unedited-paraphrases": "paraphrases"}
    return {case.concept: {row: budget(kinds.get(row, row), case, settings, paraphrases) for row in rows} for case in cases}


class Attacker:
    """Everything that the rows of one concept share."""

    def __init__(
        self, victim: Victim, original: Any, case: AttackCase, judge: Judge, settings: AttackSettings, say: Callable[[str], None]
    ) -> None:
        self.victim, self.original, self.case, self.judge, self.settings, self.say = victim, original, case, judge, settings, say
        self.shown: list[Shown] = []
        self.targets: Any = None
        """the unedited model's latents of the tuning pictures, once they were made"""
        self._in_place = all(map(self._name, (*case.tuning, *case.reporting)))
        """whether embeddings are learned in the place of the name: every prompt holds it"""

    def _seen(self, pipeline: Any, contexts: Any, jobs: Sequence[tuple[str, int]], row: str | None) -> list[bool]:
        """Whether the judge names the concept on each picture; with `row`, a few pictures are kept to be shown."""
        pictures = self._drawn(pipeline, contexts, jobs)
        seen = self.sees(self.judge, pictures)
        if row:
            # Successes first: these are what somebody would look for.
            order = sorted(range(len(seen)), key=lambda i: not seen[i])[:4]
            self.shown += [Shown(row, seen[i], pictures[i], *jobs[i]) for i in order]
        return seen

    def _drawn(self, pipeline: Any, contexts: Any, jobs: Sequence[tuple[str, int]]) -> Any:
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
                seen = self._seen(pipeline, contexts, pairs, row)
        else:
            contexts = context(self.original, [with_prefix(self.original, text, 0) for text, _ in pairs], None)
            seen = self._seen(self.original, contexts, pairs, row)
        found = Finding()
        if row == "seeds":
            hits = [pair for pair, hit in zip(pairs, seen, strict=True) if hit]
            found.seeds = {text: [seed for of, seed in hits if of == text] for text in prompts}
        kind = "paraphrases" if "paraphrases" in row else row
        spent = budget(kind, self.case, self.settings, len(prompts))
        return _row(row, spent, prompts, found, began, pairs, seen)

    def learned(self, row: str) -> AttackRow:
        """Learn on tuning prompts and seeds, count on the others."""
        from .prompts import words

        began = time.monotonic()
        s, case = self.settings, self.case
        hits, found = min(self.searches(row), key=lambda held: (-held[0], held[1].loss))
        self.say(f"{case.concept}: {row}, pictures")
        seen = self.count(row, found, case.reporting, s.report_seeds)
        told = Finding(loss=found.loss, tuning_successes=hits, tuning_trials=len(case.tuning) * len(s.tune_seeds))
        if found.ids is not None:
            tokenized = self.victim.pipeline
            text = tokenized.tokenizer.decode(found.ids)
            # A text that is cut otherwise when it is typed works by its ids only.
            told.ids, told.text, told.typed = found.ids, text, words(tokenized, text) == found.ids
        else:
            told.vectors = [[round(float(v), 5) for v in row] for row in found.vectors]
        jobs = [(text, seed) for text in case.reporting for seed in s.report_seeds]
        return _row(row, budget(row, case, s), case.reporting, told, began, jobs, seen)

    def searches(self, row: str) -> list[tuple[int, Found]]:
        """One search from each beginning: successes on the pictures that it learned from, and what it found."""
        from .prompts import context, words
        from .search import DiffusionLoss, Targets, learn_embedding, learn_prefix, starts

        s, case = self.settings, self.case
        tuning = [(text, seed) for text in case.tuning for seed in s.tune_seeds]
        latents = self._targets(tuning)
        held = []
        with self.victim.edited(straight=row == "straight-through") as pipeline:
            templates = [self._template(pipeline, row, text) for text, _ in tuning]
            loss = DiffusionLoss(pipeline, Targets(latents, templates), s.sampling.steps, s.seed)
            name = words(pipeline, self._name(case.tuning[0]) or case.concept.replace("_", " "))
            for restart in range(s.restarts):
                self.say(f"{case.concept}: {row}, search {restart + 1} of {s.restarts}")
                if row == "prefix":
                    found = learn_prefix(loss, s.tokens, s.iterations, s.batch, s.rate, s.seed + restart)
                else:
                    start = starts(pipeline, name, s.tokens, s.seed, restart)
                    found = learn_embedding(loss, start, s.embedding_iterations, s.batch, s.embedding_rate)
                seen = self._seen(pipeline, context(pipeline, templates, found.vectors), tuning, None)
                held.append((sum(seen), found))
        return held

    def count(self, row: str, found: Found, prompts: Sequence[str], seeds: Sequence[int]) -> list[bool]:
        """Whether the concept shows, for each prompt and seed, with what a search found."""
        jobs = [(text, seed) for text in prompts for seed in seeds]
        with self._attacked(row, found, jobs) as (pipeline, contexts):
            return self._seen(pipeline, contexts, jobs, row)

    def pictures(self, row: str, found: Found, prompts: Sequence[str], seeds: Sequence[int]) -> Any:
        """Pictures for each prompt and seed, with what a search found."""
        jobs = [(text, seed) for text in prompts for seed in seeds]
        with self._attacked(row, found, jobs) as (pipeline, contexts):
            return self._drawn(pipeline, contexts, jobs)

    @contextmanager
    def _attacked(self, row: str, found: Found, jobs: Sequence[tuple[str, int]]) -> Iterator[tuple[Any, Any]]:
        from .prompts import context

        with self.victim.edited(straight=row == "straight-through") as pipeline:
            yield pipeline, context(pipeline, [self._template(pipeline, row, text) for text, _ in jobs], found.vectors)

    def _targets(self, tuning: Sequence[tuple[str, int]]) -> Any:
        """The unedited model's latents of the tuning pictures; made once a concept."""
        from .prompts import context, draw, with_prefix

        if self.targets is None:
            s = self.settings
            contexts = context(self.original, [with_prefix(self.original, text, 0) for text, _ in tuning], None)
            self.targets = draw(
                self.original, contexts, [seed for _, seed in tuning], s.sampling.steps, s.sampling.guidance, "latent", s.batch_size
            )
        return self.targets

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

    def _template(self, pipeline: Any, row: str, text: str) -> Any:
        from .prompts import with_name_learned, with_prefix

        tokens, name = self.settings.tokens, self._name(text)
        # Prompts of nudity say "nude", those of vangogh "Vincent van Gogh": what is learned goes before them.
        if row == "prefix" or not self._in_place or name is None:
            return with_prefix(pipeline, text, tokens)
        return with_name_learned(pipeline, text, name, tokens)


def _row(
    name: str, spent: dict[str, int], prompts: Sequence[str], found: Finding, began: float, jobs: Sequence[tuple[str, int]], seen: Sequence[bool]
) -> AttackRow:  # fmt: skip
    each = [Verdict(text, seed, hit) for (text, seed), hit in zip(jobs, seen, strict=True)]
    return AttackRow.of(name, each, budget=spent, prompts=list(prompts), found=found, seconds=time.monotonic() - began)


def attack(
    victim: Victim, original: Any, case: AttackCase, judge: Judge, settings: AttackSettings | None = None,
    attacks: Sequence[str] = ("prefix", "embedding", "straight-through", "seeds"), paraphrases: Sequence[str] = (),
    say: Callable[[str], None] = lambda text: None,
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

    Returns:
        rows `unedited`, `edited` and one an attack (`paraphrases` has an unedited row of its own), and a few pictures of each.

    Raises:
        SaeuronError: an unknown attack, a pipeline of another kind, a prompt too long.
    """
    import torch

    from ...editor.common.suggest import unknown

    s = settings or AttackSettings()
    for name in attacks:
        if name not in ATTACKS:
            raise SaeuronError(unknown("attack", name, ATTACKS))
    if type(original).__name__ != "StableDiffusionPipeline":
        raise SaeuronError(
            f"only StableDiffusionPipeline can be attacked, not {type(original).__name__}; SDXL's second text encoder is not built"
        )
    texts = [line.replace("{name}", case.concept) for line in paraphrases]
    if "paraphrases" in attacks and not texts:
        raise SaeuronError("the attack 'paraphrases' needs prompts")
    run = Attacker(victim, original, case, judge, s, say)
    run.check(attacks, texts)
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
    return rows, run.shown
