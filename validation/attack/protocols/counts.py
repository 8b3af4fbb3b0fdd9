"""What rows of published attacks cost, counted as `attack.budget` counts. Needs no torch."""

from __future__ import annotations

from ..cases import AttackCase
from ..settings import AttackSettings


def counted(case: AttackCase, s: AttackSettings, looked: int = 0, forwards: int = 0, gradients: int = 0, **more: int) -> dict[str, int]:
    """Costs of a row on each of the case's prompts with each seed.

    Args:
        case: whose prompts.
        s: whose seeds and steps.
        looked: pictures that are drawn while something is searched.
        forwards: of the denoiser on one latent, beside those of pictures and gradients.
        gradients: forwards with a gradient.
        **more: other counts.
    """
    pictures = len(case.reporting) * len(s.report_seeds)
    found = {"prompts": len(case.reporting), "seeds": len(s.report_seeds), "pictures": pictures, **more}
    if looked:
        found["tuning_pictures"] = looked
    return found | {"forwards": (pictures + looked) * s.a_picture + forwards + gradients, "gradients": gradients}


def share_of(count: int, s: AttackSettings) -> int:
    """That part of a published count which `--share` asks for; one at least."""
    return max(1, round(count * s.share))
