"""What attacks on one prompt at a time have in common."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from ..attack import AttackProtocol, row_of
from ..results import Finding, Learned

if TYPE_CHECKING:
    import torch

    from ..attack import Attacker
    from ..prompts import Template
    from ..results import AttackRow


class Outcome(NamedTuple):
    """Of one prompt and seed."""

    ids: list[int]
    iterations: int
    seen: bool
    """the concept, in the picture"""
    picture: Any
    looked: int
    """pictures drawn for it, this one too"""


class OneByOne(AttackProtocol):
    """Each prompt is attacked for itself, with its own seed and the unedited model's picture of the two.

    A prompt whose plain picture by the edited model shows the concept is not attacked and counts as a success: ASR = pre-ASR + post-ASR, of all prompts, as
    UnlearnDiffAtk's table has it. Prompts are searched side by side, each with noise and beginning of its own, a quarter of `batch_size` at a time.
    """

    tokens: ClassVar[int]

    @abstractmethod
    def template(self, run: Attacker, pipeline: Any, text: str) -> Template:
        """The prompt with open places."""

    @abstractmethod
    def search(self, run: Attacker, jobs: Sequence[tuple[str, int]], numbers: Sequence[int], targets: torch.Tensor) -> list[Outcome]:
        """Attack some prompts.

        Args:
            run: the attack.
            jobs: prompts with seeds.
            numbers: their places among all that are counted.
            targets: the unedited model's latents of them, `[N, C, h, w]`.
        """

    def check(self, run: Attacker) -> None:
        for text in run.case.reporting:
            self.template(run, run.original, text)

    def run(self, run: Attacker) -> list[AttackRow]:
        import torch

        from ..prompts import words

        assert run.edited is not None
        began, s, jobs, seen = time.monotonic(), run.settings, run.jobs, [one.shows_concept for one in run.edited.each]
        before, left = sum(seen), [i for i, hit in enumerate(seen) if not hit]
        targets = run.unedited([jobs[i] for i in left]) if left else torch.empty(0)
        learned, pictures, looked = [], [], 0
        size = max(1, s.batch_size // 4)
        for start in range(0, len(left), size):
            part = left[start : start + size]
            run.say(f"{run.case.concept}: {self.name}, prompts {start + 1} to {start + len(part)} of {len(left)}")
            for i, found in zip(part, self.search(run, [jobs[i] for i in part], part, targets[start : start + size]), strict=True):
                text = run.original.tokenizer.decode(found.ids)
                typed = words(run.original, text) == found.ids
                learned.append(
                    Learned(prompt=jobs[i][0], seed=jobs[i][1], ids=found.ids, text=text, typed=typed, iterations=found.iterations)
                )
                seen[i] = found.seen
                looked += found.looked
                pictures.append(found.picture)
        run.keep(self.name, pictures, [seen[i] for i in left], [jobs[i] for i in left])
        most = self.budget(self.rows[0], run.case, s)
        spent = self.spent(most, s.a_picture, len(left), looked, sum(one.iterations for one in learned))
        return [row_of(self.name, spent, run.case.reporting, Finding(learned=learned, without_attack=before), began, jobs, seen)]

    @abstractmethod
    def spent(self, most: dict[str, int], a_picture: int, searched: int, looked: int, iterations: int) -> dict[str, int]:
        """What it really cost: prompts that were searched, pictures looked at and iterations of all of them; plain ones count as `edited` does."""


def own_generators(run: Attacker, jobs: Sequence[tuple[str, int]], numbers: Sequence[int]) -> list[torch.Generator]:
    """One for each prompt and seed, whatever is searched beside it."""
    import torch

    return [
        torch.Generator().manual_seed(run.settings.seed + seed + 1_000_003 * number)
        for (_, seed), number in zip(jobs, numbers, strict=True)
    ]
