"""Ring-A-Bell (arXiv 2310.10012): a prompt whose text states lie where the concept's direction leads. It needs the text encoder alone."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ....editor.common.errors import SaeuronError
from ..attack import AttackProtocol, row_of
from ..results import Finding, Learned
from .counts import counted, share_of

if TYPE_CHECKING:
    import torch

    from ..attack import Attacker
    from ..cases import AttackCase
    from ..results import AttackRow
    from ..settings import AttackSettings

POPULATION, GENERATIONS, MUTATED, CROSSED, STRENGTH, LENGTH = 200, 3000, 0.25, 0.5, 3.0, 16


class RingABell(AttackProtocol):
    """As its released notebooks have it, with K = 16 and η = 3.

    The concept's direction is the mean difference of text states between prompts with it and the same without it (of the judge's own prompts, or the
    artifact's paired ones). A prompt's target: its text states + 3 times the direction.

    Budget, for each prompt: a genetic search over 16 tokens, 200 members, 3000 generations, of which `--share` takes a part; each generation keeps the better half by squared distance
    to the target, crosses with probability 0.5 at one place and changes a token with probability 0.25. No forward of the denoiser.

    Stopping rule: none; the best member is drawn in the place of the prompt, once for each report seed. Tokens are given by their ids.
    """

    name = "ring-a-bell"
    rows = ("ring-a-bell",)

    def budget(self, row: str, case: AttackCase, settings: AttackSettings) -> dict[str, int]:
        generations = share_of(GENERATIONS, settings)
        return counted(case, settings, tokens=LENGTH, iterations=generations, text_forwards=len(case.reporting) * generations * POPULATION)

    def check(self, run: Attacker) -> None:
        from ..prompts import with_prefix

        if not run.case.pairs:
            raise SaeuronError(
                f"{run.case.concept}: --protocol {self.name} needs prompts that are paired with the same without it, and the artifact holds none"
            )
        with_prefix(run.original, "", LENGTH)
        for text in (*run.case.reporting, *(text for pair in run.case.pairs for text in pair)):
            with_prefix(run.original, text, 0)

    def run(self, run: Attacker) -> list[AttackRow]:
        import torch

        from ..prompts import context, vocabulary, with_prefix, words

        began, s, case, pipeline = time.monotonic(), run.settings, run.case, run.original
        states = {
            text: context(pipeline, [with_prefix(pipeline, text, 0)], None).states[0] for text in {*case.reporting, *sum(case.pairs, ())}
        }
        direction = torch.stack([states[one] - states[other] for one, other in case.pairs]).mean(0)
        allowed, blank = vocabulary(pipeline), with_prefix(pipeline, "", LENGTH)
        learned = []
        for number, text in enumerate(case.reporting):
            run.say(f"{case.concept}: {self.name}, prompt {number + 1} of {len(case.reporting)}")
            generator = torch.Generator().manual_seed(s.seed + number)
            ids = evolve(pipeline, blank, states[text] + STRENGTH * direction, allowed, share_of(GENERATIONS, s), generator).tolist()
            said = pipeline.tokenizer.decode(ids)
            learned.append(
                Learned(prompt=text, ids=ids, text=said, typed=words(pipeline, said) == ids, iterations=share_of(GENERATIONS, s))
            )
        table = pipeline.text_encoder.get_input_embeddings().weight
        vectors = {one.prompt: table[torch.tensor(one.ids, device=table.device)] for one in learned}
        with run.victim.edited() as edited:
            contexts = context(edited, [blank for _ in run.jobs], torch.stack([vectors[text] for text, _ in run.jobs]))
            seen = run.seen(edited, contexts, run.jobs, self.name)
        return [row_of(self.name, self.budget(self.name, case, s), case.reporting, Finding(learned=learned), began, run.jobs, seen)]


def evolve(
    pipeline: Any, blank: Any, target: torch.Tensor, allowed: torch.Tensor, generations: int, generator: torch.Generator
) -> torch.Tensor:  # fmt: skip
    """The best tokens `[K]` that a genetic search finds.

    Args:
        pipeline: whose text encoder.
        blank: a template with K open places.
        target: text states `[L, D]`.
        allowed: ids of the vocabulary.
        generations: of the search.
        generator: of all that is drawn.
    """
    import torch

    encoder, slots = pipeline.text_encoder, torch.tensor(blank.slots)
    start = torch.tensor(blank.ids)

    def distances(members: torch.Tensor) -> torch.Tensor:
        ids = start.repeat(len(members), 1)
        ids[:, slots] = members
        parts = [encoder(part.to(encoder.device))[0] for part in ids.split(POPULATION)]
        return torch.cat([(part - target).square().flatten(1).sum(1) for part in parts]).cpu()

    def chance(share: float, count: int) -> torch.Tensor:
        return (torch.rand(count, generator=generator) < share).nonzero()[:, 0]

    members = allowed[torch.randint(len(allowed), (POPULATION, len(slots)), generator=generator)]
    for left in reversed(range(generations)):
        members = members[distances(members).argsort(stable=True)[: POPULATION // 2]]
        if not left:
            break
        one = chance(CROSSED, len(members))
        other = torch.randint(len(members), (len(one),), generator=generator)
        cut = torch.randint(len(slots), (len(one), 1), generator=generator) > torch.arange(len(slots))
        a, b = members[one], members[other]
        members = torch.cat([members, torch.where(cut, a, b), torch.where(cut, b, a)])
        changed = chance(MUTATED, len(members))
        place = torch.randint(len(slots), (len(changed),), generator=generator)
        members[changed, place] = allowed[torch.randint(len(allowed), (len(changed),), generator=generator)]
    return members[0]
