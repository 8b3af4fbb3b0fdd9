"""What attacks that begin from a picture of the concept have in common."""

from __future__ import annotations

import time
from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from ..attack import AttackProtocol, row_of
from ..results import CONTROL, Finding
from .counts import counted

if TYPE_CHECKING:
    import torch

    from ....editor.denoisers.denoiser import Text
    from ..attack import Attacker
    from ..cases import AttackCase
    from ..results import AttackRow
    from ..settings import AttackSettings


class FromPictures(AttackProtocol):
    """The picture is the unedited model's, of the same prompt and a tuning seed; the noise is the report seed's.

    Beside each row stands a control: the unedited model with the *empty* prompt from the same beginning. What it shows comes from the picture alone, and what a row
    has beyond it from the edited model.
    """

    given = "pictures"

    @abstractmethod
    def left(self, row: str, steps: int) -> int:
        """Steps of the loop that are run."""

    @abstractmethod
    def draw(self, row: str, pipeline: Any, contexts: Text, seeds: list[int], latents: torch.Tensor, s: AttackSettings) -> list[Any]:
        """Pictures from the latents of others."""

    def budget(self, row: str, case: AttackCase, settings: AttackSettings) -> dict[str, int]:
        found, s = counted(case, settings), settings
        steps = self.left(row.removeprefix(CONTROL), s.sampling.steps)
        return found | {"steps": steps, "forwards": found["pictures"] * steps * (s.a_picture // s.sampling.steps)}

    def run(self, run: Attacker) -> list[AttackRow]:
        import torch

        from ..prompts import context, with_prefix

        s, jobs = run.settings, run.jobs
        # The picture's seed goes round with the report seed.
        beginnings = [(text, s.tune_seeds[i % len(s.report_seeds) % len(s.tune_seeds)]) for i, (text, _) in enumerate(jobs)]
        apart = list(dict.fromkeys(beginnings))
        latents = run.unedited(apart)[torch.tensor([apart.index(one) for one in beginnings])]
        seeds, made = [seed for _, seed in jobs], []
        for row in self.rows:
            began, kind = time.monotonic(), row.removeprefix(CONTROL)
            run.say(f"{run.case.concept}: {row}")
            if row != kind:
                contexts = context(run.original, [with_prefix(run.original, "", 0)] * len(jobs), None)
                pictures = self.draw(kind, run.original, contexts, seeds, latents, s)
            else:
                with run.victim.edited() as pipeline:
                    contexts = context(pipeline, [with_prefix(pipeline, text, 0) for text, _ in jobs], None)
                    pictures = self.draw(kind, pipeline, contexts, seeds, latents, s)
            seen = run.looked(pictures, jobs, row)
            made.append(row_of(row, self.budget(row, run.case, s), run.case.reporting, Finding(), began, jobs, seen))
        return made
