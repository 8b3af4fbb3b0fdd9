"""UnlearnDiffAtk (arXiv 2310.11868): five tokens before one prompt, by the edited model's own diffusion loss."""

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

ITERATIONS, TIMESTEPS, RATE, DECAY = 40, 50, 0.01, 0.1


class UnlearnDiffAtk(OneByOne):
    """As its released code has it, for objects, nudity and violence.

    Budget: 5 tokens before the prompt; 50 timesteps spread over the schedule, from the least noise on, 40 iterations at each; Adam, rate 0.01, weight decay
    0.1, one noised picture an iteration. `--share` takes fewer timesteps. Each token is a point of the vocabulary's simplex: a token is drawn by it for the forward,
    the gradient is clipped to ±1 and moves the point, which is projected back.

    Stopping rule: after each timestep the likeliest tokens are drawn with the prompt's own seed; the first picture that shows the concept ends the
    search as a success. None after the last: a failure.

    Otherwise than there: special tokens are left out of the vocabulary, tokens are given by their ids (the code types them again), and the loss is on the
    velocity where the model predicts that.
    """

    name = "unlearndiffatk"
    rows = ("unlearndiffatk",)
    tokens = 5

    def budget(self, row: str, case: AttackCase, settings: AttackSettings) -> dict[str, int]:
        pairs, timesteps = len(case.reporting) * len(settings.report_seeds), share_of(TIMESTEPS, settings)
        return counted(
            case, settings, looked=pairs * timesteps, gradients=pairs * timesteps * ITERATIONS, tokens=self.tokens, iterations=ITERATIONS, timesteps=timesteps
        )  # fmt: skip

    def spent(self, most: dict[str, int], a_picture: int, searched: int, looked: int, iterations: int) -> dict[str, int]:
        plain = most["pictures"] - searched
        return most | {"tuning_pictures": looked, "gradients": iterations, "forwards": (plain + looked) * a_picture + iterations}

    def template(self, run: Attacker, pipeline: Any, text: str) -> Template:
        from ..prompts import with_prefix

        return with_prefix(pipeline, text, self.tokens)

    def search(self, run: Attacker, jobs: Sequence[tuple[str, int]], numbers: Sequence[int], targets: torch.Tensor) -> list[Outcome]:
        import torch
        import torch.nn.functional as F

        from ..prompts import context, embedding_table, vocabulary
        from ..search import DiffusionLoss, Targets

        s, generators = run.settings, own_generators(run, jobs, numbers)
        found: dict[int, Outcome] = {}
        with run.victim.edited() as pipeline:
            templates = [self.template(run, pipeline, text) for text, _ in jobs]
            loss = DiffusionLoss(pipeline, Targets(targets, templates), s.sampling.steps, s.seed)
            allowed = vocabulary(pipeline)
            rows = embedding_table(pipeline).detach()[allowed.to(targets.device)]
            points = [torch.full((self.tokens, len(rows)), 1 / len(rows), device=rows.device, requires_grad=True) for _ in jobs]
            movers = [torch.optim.Adam([point], lr=RATE, weight_decay=DECAY) for point in points]
            for count, timestep in enumerate(_timesteps(loss.scheduler.config.num_train_timesteps, share_of(TIMESTEPS, s)), 1):
                left = [i for i in range(len(jobs)) if i not in found or not found[i].seen]
                if not left:
                    break
                which, steps = torch.tensor(left), torch.full((len(left),), timestep)
                for _ in range(ITERATIONS):
                    drawn = torch.stack([torch.multinomial(points[i].detach().cpu(), 1, generator=generators[i])[:, 0] for i in left])
                    noise = torch.stack([torch.randn(targets.shape[1:], generator=generators[i]) for i in left])
                    with torch.enable_grad():
                        vectors = rows[drawn.to(rows.device)].requires_grad_(True)
                        # Each prompt's own mean: the sum has the gradient of each by itself.
                        value = F.mse_loss(*loss.predicted(vectors, which, steps, noise), reduction="none").flatten(1).mean(1).sum()
                        (moved,) = torch.autograd.grad(value, vectors)
                    for at, i in enumerate(left):
                        points[i].grad = F.hardtanh(moved[at] @ rows.T)
                        movers[i].step()
                        points[i].data = on_simplex(points[i].data)
                places = torch.stack([points[i].detach().argmax(-1) for i in left])
                contexts = context(pipeline, [templates[i] for i in left], rows[places])
                pictures = run.drawn(pipeline, contexts, [jobs[i] for i in left])
                for i, place, picture, seen in zip(left, places, pictures, run.sees(run.judge, pictures), strict=True):
                    found[i] = Outcome(allowed[place.cpu()].tolist(), count * ITERATIONS, seen, picture, count)
        return [found[i] for i in range(len(jobs))]


def _timesteps(trained: int, count: int) -> list[int]:
    """The middles of equal parts of the schedule, least noise first."""
    return list(range(trained // count // 2, trained, trained // count))[:count]


def on_simplex(rows: torch.Tensor) -> torch.Tensor:
    """Each row's nearest point with entries of at least 0 that sum to 1, `[k, V]`."""
    import torch

    ordered = rows.sort(-1, descending=True).values
    excess = (ordered.cumsum(-1) - 1) / torch.arange(1, rows.shape[-1] + 1, device=rows.device)
    last = (ordered > excess).sum(-1, keepdim=True) - 1
    return (rows - excess.gather(-1, last)).clamp_min(0)
