"""A heat map over each picture for each concept."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from .fired import Fired
from .guard import EditError


def over(pictures: torch.Tensor, fired: Fired) -> tuple[torch.Tensor, str]:
    """Pictures of where each concept's features fired in the last sampling, and a table.

    Args:
        pictures: `[B, H, W, 3]`, 0 to 1, of that sampling.
        fired: what was counted in it.

    Returns:
        `[B · concepts, H, W, 3]`, all concepts of the first picture first: grey, and red by the share of the places' forwards in which a feature fired
        (hookpoints' means; the largest share of the picture is full red and stands in its corner); and the shares as text.

    Raises:
        EditError: nothing was sampled yet, or pictures of another sampling.
    """
    shares = fired.shares()
    if not shares:
        raise EditError("this MODEL, or a clone of it, hasn't sampled anything since it was loaded: connect the picture that it drew")
    counts = {len(share) for share in shares.values()}
    if counts != {len(pictures)}:
        raise EditError(
            f"the last sampling drew {min(counts)} pictures, and {len(pictures)} are given: connect the pictures of that sampling"
        )
    size = pictures.shape[1:3]
    whole = torch.stack([F.interpolate(share, size, mode="nearest") for share in shares.values()]).mean(0)  # [B, concepts, H, W]
    made, lines = [], ["picture  concept               places  strongest"]
    for number, picture in enumerate(pictures.cpu().float()):
        grey = picture.mean(-1, keepdim=True).expand(-1, -1, 3) * 0.6
        for concept, heat in zip(fired.concepts, whole[number], strict=True):
            most = float(heat.max())
            lines.append(f"{number:7}  {concept[:20]:20}  {float((heat > 0).float().mean()):6.1%}  {most:9.1%}")
            weight = (heat / most if most else heat)[..., None] * 0.8
            red = grey * (1 - weight) + torch.tensor([1.0, 0.1, 0.1]) * weight
            made.append(_labelled(red, f"{concept} {most:.0%}"))
    return torch.stack(made), "\n".join(lines)


def _labelled(picture: torch.Tensor, text: str) -> torch.Tensor:
    image = Image.fromarray((picture.clamp(0, 1) * 255).round().byte().numpy())
    ImageDraw.Draw(image).text((2, 1), text, fill=(255, 255, 255), stroke_width=1, stroke_fill=(0, 0, 0))
    return torch.from_numpy(np.asarray(image).astype(np.float32) / 255)
