"""What each stage takes, before anything is made: pictures, forwards of the denoiser, disk, and a rough time."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...editor.common.typed import Number, Record, Whole
from ...editor.denoisers.families import sizes_in
from ...validation.attack.attack import plan as attack_budgets
from ...validation.evidence.evaluation_settings import EvaluationSettings
from ...validation.evidence.smears import calibrating
from .progress import duration
from .settings import Plan
from .stages import QUICK_SEEDS, Stages, tune_settings
from .tuning import plan_tasks

_TEXT = 77
"""tokens of a prompt while a forward is timed"""
_PNG = 0.7
"""share of a picture's bytes that its PNG takes, about"""
_GRADIENT = 3
"""forwards that one with a gradient takes, about"""


AFTER = ("evaluate", "attack", "report")
"""stages of an artifact that is made"""


class Cost(Record, kw_only=True):
    """Of one stage."""

    stage: str
    pictures: Whole = 0
    """that are drawn"""
    forwards: Whole = 0
    """of the denoiser, on one latent; with guidance, two a picture and step"""
    bytes: Whole = 0
    """of pictures that are kept"""
    seconds: Number | None = None
    """of the forwards alone; None: the model isn't here"""

    def __str__(self) -> str:
        parts = [f"{self.pictures:,} pictures" if self.pictures else "", f"about {self.forwards:,} forwards" if self.forwards else ""]
        parts += [f"{self.bytes / 2**20:,.0f} MiB" if self.bytes > 2**20 else ""]
        if self.seconds is not None and self.forwards:
            parts.append(f"about {duration(self.seconds)}")
        return f"{self.stage}: {', '.join(filter(None, parts)) or 'nothing is drawn'}"


def costs_of(stages: Stages, folder: Path | None, to_collect: Sequence[Mapping[str, Any]]) -> list[Cost]:
    """Costs of all stages in their order.

    Args:
        stages: see `stages_of`.
        folder: of the model; None where it isn't here, and no time can be told.
        to_collect: domains whose activations are to be collected first, as the dry run says them.
    """
    plan, s = stages.plan, stages.plan.settings
    a_picture = plan.steps * (2 if plan.guidance > 1 else 1)
    size = 0 if folder is None else _picture_bytes(folder, plan)
    found = []
    if to_collect:
        prompts = [sum(c["sets"].values()) for c in to_collect]
        # With steps and guidance of its own.
        forwards = sum(n * c["steps"] * (2 if c["guidance"] > 1 else 1) for n, c in zip(prompts, to_collect, strict=True))
        found.append(Cost(stage="collect", pictures=sum(prompts), forwards=forwards))
    if s.tune:
        tasks = [task.pictures for task in plan_tasks(plan, tune_settings(s))]
        drawn = sum(sum(pictures.values()) for pictures in tasks)
        found.append(
            Cost(
                stage="tune", pictures=drawn, forwards=drawn * a_picture, bytes=int(sum(pictures["unedited"] for pictures in tasks) * size)
            )
        )
    found.append(Cost(stage="export", forwards=_proof(plan)))
    if "evaluate" in stages.names:
        backends = 2 if stages.quick else 1 + sum(name != "trt" for name in s.formats)
        seeds = len(QUICK_SEEDS if stages.quick else EvaluationSettings.seeds)
        drawn = stages.pictures * backends * seeds + calibrating(stages.pictures * seeds)
        found.append(Cost(stage="evaluate", pictures=drawn, forwards=drawn * a_picture, bytes=int(drawn * size)))
    if stages.cases:
        rows = [
            row
            for of in attack_budgets(stages.cases, stages.attack_settings, stages.attack_settings.attacks).values()
            for row in of.values()
        ]
        # The targets of the searches are pictures of the unedited model.
        targets = sum(len(case.tuning) for case in stages.cases) * len(stages.attack_settings.tune_seeds)
        forwards = sum(row["forwards"] + (_GRADIENT - 1) * row["gradients"] for row in rows) + targets * a_picture
        found.append(Cost(stage="attack", pictures=sum(row["pictures"] for row in rows), forwards=forwards))
    if "report" in stages.names:
        found.append(Cost(stage="report"))
    if folder is not None:
        seconds = seconds_a_forward(folder, plan)
        for cost in found:
            cost.seconds = cost.forwards * seconds
    return found


def seconds_a_forward(folder: Path, plan: Plan) -> float:
    """Time of one forward on one latent, measured on a denoiser of the model's config with zeros for weights, two latents at a time."""
    import torch

    from .open import empty_network

    denoiser, network = empty_network(folder)
    network = network.to_empty(device=plan.settings.device).eval()
    sides = sizes_in(folder).latents(plan.settings.height, plan.settings.width)
    shapes = denoiser.shapes(network.config, 2, sides, _TEXT)
    inputs = {name: torch.zeros(shape, device=plan.settings.device) for name, shape in shapes.items()}
    with torch.no_grad():
        for held in (*network.parameters(), *network.buffers()):
            held.zero_()
        for _ in range(2):  # the first one is slower
            began = time.perf_counter()
            float(denoiser.call(network, inputs).sum())  # waits for the device
            seconds = (time.perf_counter() - began) / 2
    return seconds


def _proof(plan: Plan) -> int:
    """Forwards of a proof, about: hook and unedited model as the reference, then each backend on the same inputs and in free runs."""
    s = plan.settings
    if not s.validate:
        return 0
    backends = sum(name != "trt" for name in s.formats)
    runs = 7 * plan.steps if s.proof == "full" else 5
    return runs * (4 + 2 * backends)


def _picture_bytes(folder: Path, plan: Plan) -> float:
    sizes = sizes_in(folder)
    rows, columns = sizes.latents(plan.settings.height, plan.settings.width)
    return rows * columns * sizes.factor**2 * 3 * _PNG
