"""Intervention `replace`: a token at which a chosen feature fires takes the output of another place of the same map (after PER, arXiv 2606.31699).

So what an SAE is used for is to see where a concept is; what stands there then is something that the model itself gave. PER takes a place at random, which no
graph can; here it is the nearest by place at which nothing fires (of several the first in row order), or the mean of all of these. Needs numpy alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .how import How


def replaced(tokens: Any, fires: Any, places: np.ndarray, how: How) -> Any:
    """The tokens of one map `[L, d]` after the intervention: as they are where none or all would be replaced.

    Args:
        tokens: `[L, d]` of torch or numpy.
        fires: `[L]` of the same library and type, 1 where a chosen feature fires, else 0. If it has a gradient, it passes as through `x + fires (other − x)`.
        places: int `[L, 2]` of numpy, row and column of each.
        how: what by.
    """
    certain = np.asarray(fires.detach().cpu() if hasattr(fires, "detach") else fires) > 0
    down, across = (np.abs(place[:, None] - place[None]) for place in places.T)
    marks = (np.maximum(down, across) <= how.spread) & certain
    flagged = marks.any(1)
    free = np.flatnonzero(~flagged)
    if not flagged.any() or not len(free):
        return tokens
    others = tokens[free].mean(0) if how.replace_by == "mean" else tokens[free[(down**2 + across**2)[:, free].argmin(1)]]
    fires = fires[np.where(flagged, marks.argmax(1), np.arange(len(flagged)))]
    return tokens + fires[:, None] * (others - tokens)
