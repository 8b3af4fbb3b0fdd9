"""Circumventing Concept Erasure (arXiv 2308.01508): one new token, learned from pictures of the concept."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ..attack import AttackProtocol, row_of
from ..results import Finding
from .counts import counted, share_of

if TYPE_CHECKING:
    from ..attack import Attacker
    from ..cases import AttackCase
    from ..results import AttackRow
    from ..settings import AttackSettings

STEPS, BATCH, ACCUMULATED, RATE = 5000, 4, 4, 5e-3


class CCE(AttackProtocol):
    """Concept inversion for an erased Stable Diffusion, as its released script runs it.

    Budget: 5000 steps, of which `--share` takes a part; AdamW, 4 noised pictures four times a step, at any timestep, rate 0.005 times these 16. The one embedding begins at
    the word `art` of a style, else `object` (its first token). Pictures: the unedited model's, of tuning prompts and seeds (there: 25 of one concept).

    Stopping rule: none; the embedding after the last step counts, in the place of the concept's name (before prompts that don't hold it), on
    reporting prompts and seeds.

    Otherwise than there: prompts are the case's own, where the script has the templates of Textual Inversion.
    """

    name = "cce"
    rows = ("cce",)

    def budget(self, row: str, case: AttackCase, settings: AttackSettings) -> dict[str, int]:
        steps = share_of(STEPS, settings)
        return counted(
            case, settings, gradients=steps * BATCH * ACCUMULATED, tokens=1, iterations=steps, batch=BATCH * ACCUMULATED,
            tuning_prompts=len(case.tuning), tuning_seeds=len(settings.tune_seeds),
        )  # fmt: skip

    def check(self, run: Attacker) -> None:
        for text in (*run.case.tuning, *run.case.reporting):
            run.template(run.original, text, 1)

    def run(self, run: Attacker) -> list[AttackRow]:
        import torch
        import torch.nn.functional as F

        from ..prompts import context, embedding_table, words
        from ..search import DiffusionLoss, Targets

        began, s, case = time.monotonic(), run.settings, run.case
        latents, steps = run.targets(), share_of(STEPS, s)
        generator = torch.Generator().manual_seed(s.seed)
        run.say(f"{case.concept}: {self.name}, {steps} steps")
        with run.victim.edited() as pipeline:
            templates = [run.template(pipeline, text, 1) for text, _ in run.tuning]
            loss = DiffusionLoss(pipeline, Targets(latents, templates), s.sampling.steps, s.seed)
            first = words(pipeline, "art" if case.domain == "style" else "object")[:1]
            vector = embedding_table(pipeline)[first].detach().clone().requires_grad_(True)
            mover = torch.optim.AdamW([vector], lr=RATE * BATCH * ACCUMULATED)
            trained = loss.scheduler.config.num_train_timesteps
            for _ in range(steps):
                for _ in range(ACCUMULATED):
                    which = torch.randint(len(templates), (BATCH,), generator=generator)
                    at = torch.randint(trained, (BATCH,), generator=generator)
                    noise = torch.randn(BATCH, *latents.shape[1:], generator=generator)
                    with torch.enable_grad():
                        (F.mse_loss(*loss.predicted(vector, which, at, noise)) / ACCUMULATED).backward()
                mover.step()
                mover.zero_grad()
            contexts = context(pipeline, [run.template(pipeline, text, 1) for text, _ in run.jobs], vector.detach())
            seen = run.seen(pipeline, contexts, run.jobs, self.name)
        found = Finding(vectors=[[round(float(v), 5) for v in vector[0]]])
        return [row_of(self.name, self.budget(self.name, case, s), case.reporting, found, began, run.jobs, seen)]
