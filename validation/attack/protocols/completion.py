"""Complete a picture of the concept that is half shown (arXiv 2505.17013, "inpainting")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .from_pictures import FromPictures

if TYPE_CHECKING:
    import torch

    from ....editor.denoisers.denoiser import Text
    from ..settings import AttackSettings


class Completion(FromPictures):
    """The left half of the latents is put in after every step, noised as far; the edited model draws the right half.

    Budget: one picture a prompt and seed; nothing is searched. The paper masks the middle quarter, with an inpainting pipeline; this replaces latents, so that it
    works on any text-to-image model. Stopping rule: none.
    """

    name = "completion"
    rows = ("control-completion", "completion")

    def left(self, row: str, steps: int) -> int:
        return steps

    def draw(self, row: str, pipeline: Any, contexts: Text, seeds: list[int], latents: torch.Tensor, s: AttackSettings) -> list[Any]:
        import torch

        from .loop import Shown, finish

        width = latents.shape[-1]
        return finish(pipeline, contexts, seeds, s, shown=Shown(latents, torch.arange(width, device=latents.device) < width // 2))
