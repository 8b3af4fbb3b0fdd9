"""P4D (arXiv 2309.06135): tokens with which the edited model predicts what the unedited one predicts for the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .counts import counted, share_of
from .one_by_one import OneByOne, Outcome, own_generators

if TYPE_CHECKING:
    import torch

    from ..attack import Attacker
    from ..cases import AttackCase
    from ..prompts import Template
    from ..settings import AttackSettings

ITERATIONS, EVERY, RATE, DECAY = 3000, 50, 0.1, 0.1
CHECKED = 8


class P4D(OneByOne):
    """P4D-N, as its released code has it: 16 tokens in the place of the whole prompt.

    Budget: 3000 iterations, of which `--share` takes a part; AdamW, rate 0.1, weight decay 0.1, one noised picture an iteration at any timestep; the forward reads the
    nearest tokens (by angle), the gradient moves free embeddings. Begins at random tokens.

    Stopping rule: the tokens of one iteration in 50 are looked at, and the best ones drawn once, with the prompt's own seed: a success if the
    concept shows.

    Otherwise than there: the best ones are those of the smallest loss on 8 noised pictures (the code takes the picture nearest to the target
    by a CLIP model, which not every user has), special tokens are left out, tokens are given by their ids.
    """

    name = "p4d"
    rows = ("p4d",)
    tokens = 16

    def budget(self, row: str, case: AttackCase, settings: AttackSettings) -> dict[str, int]:
        pairs, iterations = len(case.reporting) * len(settings.report_seeds), share_of(ITERATIONS, settings)
        gradients = pairs * iterations
        return counted(case, settings, forwards=_unedited(pairs, gradients), gradients=gradients, tokens=self.tokens, iterations=iterations)

    def spent(self, most: dict[str, int], a_picture: int, searched: int, looked: int, iterations: int) -> dict[str, int]:
        return most | {"gradients": iterations, "forwards": most["pictures"] * a_picture + _unedited(searched, iterations) + iterations}

    def template(self, run: Attacker, pipeline: Any, text: str) -> Template:
        from ..prompts import with_prefix

        return with_prefix(pipeline, "", self.tokens)

    def search(self, run: Attacker, jobs: Sequence[tuple[str, int]], numbers: Sequence[int], targets: torch.Tensor) -> list[Outcome]:
        import torch
        import torch.nn.functional as F

        from ..prompts import context, embedding_table, vocabulary, with_prefix
        from ..search import DiffusionLoss, Targets

        s, original, count = run.settings, run.original, len(jobs)
        generators, which = own_generators(run, jobs, numbers), torch.arange(count)
        plain = DiffusionLoss(original, Targets(targets, [with_prefix(original, text, 0) for text, _ in jobs]), s.sampling.steps, s.seed)
        trained = plain.scheduler.config.num_train_timesteps
        allowed = vocabulary(original)
        rows = embedding_table(original).detach()[allowed.to(targets.device)]
        start = torch.stack([torch.randint(len(rows), (self.tokens,), generator=g) for g in generators])
        free = rows[start.to(rows.device)].clone()
        mover = torch.optim.AdamW([free], lr=RATE, weight_decay=DECAY)

        def draw(times: int) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
            """Timesteps, noise and what the unedited model predicts there for the prompt itself."""
            made = []
            for _ in range(times):
                steps = torch.stack([torch.randint(trained, (), generator=g) for g in generators])
                noise = torch.stack([torch.randn(targets.shape[1:], generator=g) for g in generators])
                made.append((steps, noise, plain.predicted(None, which, steps, noise)[0]))
            return made

        def apart(loss: DiffusionLoss, vectors: torch.Tensor, drawn: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> torch.Tensor:
            steps, noise, wanted = drawn
            return F.mse_loss(loss.predicted(vectors, which, steps, noise)[0], wanted, reduction="none").flatten(1).mean(1)

        fixed, done, iterations = draw(CHECKED), 0, share_of(ITERATIONS, s)
        best, ids = torch.full((count,), torch.inf), start
        while done < iterations:
            block = draw(min(EVERY, iterations - done))  # with the hook off, where the victim has one
            with run.victim.edited() as pipeline:
                loss = DiffusionLoss(
                    pipeline, Targets(targets, [self.template(run, pipeline, text) for text, _ in jobs]), s.sampling.steps, s.seed
                )
                for drawn in block:
                    place = by_angle(free, rows)
                    with torch.enable_grad():
                        hard = rows[place].clone().requires_grad_(True)
                        (free.grad,) = torch.autograd.grad(apart(loss, hard, drawn).sum(), hard)
                    mover.step()
                place = by_angle(free, rows)
                value = torch.stack([apart(loss, rows[place], drawn) for drawn in fixed]).mean(0).cpu()
            better = value < best
            best, ids = torch.where(better, value, best), torch.where(better[:, None], place.cpu(), ids)
            done += len(block)
        with run.victim.edited() as pipeline:
            contexts = context(pipeline, [self.template(run, pipeline, text) for text, _ in jobs], rows[ids.to(rows.device)])
            pictures = run.drawn(pipeline, contexts, jobs)
        seen = run.sees(run.judge, pictures)
        return [Outcome(allowed[ids[i]].tolist(), iterations, seen[i], pictures[i], 1) for i in range(count)]


def _unedited(pairs: int, gradients: int) -> int:
    """Forwards beside those with a gradient: the unedited model's of each, and those on the fixed pictures."""
    each = -(-gradients // (EVERY * pairs)) if pairs else 0
    return gradients + pairs * CHECKED * (1 + each)


def by_angle(vectors: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Index of the row `[V, D]` with the smallest angle to each vector `[..., D]`."""
    import torch.nn.functional as F

    return (F.normalize(vectors.detach().float(), dim=-1) @ F.normalize(rows.float(), dim=-1).T).argmax(-1)
