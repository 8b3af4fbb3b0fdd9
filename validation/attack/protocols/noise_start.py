"""Begin from a noised picture of the concept (arXiv 2505.17013, "diffusion completion")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .from_pictures import FromPictures

if TYPE_CHECKING:
    import torch

    from ....editor.denoisers.denoiser import Text
    from ..settings import AttackSettings

STRENGTHS = {"noise-start-0.9": 0.9, "noise-start-0.8": 0.8}


class NoiseStart(FromPictures):
    """The edited model finishes a picture of the concept that was noised up to 90, or 80 % of the loop.

    Budget: one picture a prompt and seed and strength; nothing is searched. The paper hands over after 5 and 10 of 50 steps of the unedited model; here
    the picture is noised as far, so the attacker needs a picture and not the model. Stopping rule: none.
    """

    name = "noise-start"
    rows = tuple(row for kind in STRENGTHS for row in (f"control-{kind}", kind))

    def left(self, row: str, steps: int) -> int:
        return max(1, round(STRENGTHS[row] * steps))

    def draw(self, row: str, pipeline: Any, contexts: Text, seeds: list[int], latents: torch.Tensor, s: AttackSettings) -> list[Any]:
        from .loop import finish

        return finish(pipeline, contexts, seeds, s, s.sampling.steps - self.left(row, s.sampling.steps), latents)
