"""Where the features of each concept fired in a picture, step by step. Needs numpy alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...editor.common.names import stream_of
from ...editor.denoisers.sizes import grid
from ..backends.decisions import Decided
from ..trust.tables import EditFile

ALL = "all concepts"


@dataclass(frozen=True)
class Firing:
    """One picture's heat maps."""

    timesteps: list[float]
    """noise levels of the forwards, `T`"""
    maps: dict[str, np.ndarray]
    """concept → int `[T, h, w]`: how many of its features fired at each token, over all hookpoints; `ALL`: of the edit's"""
    features: dict[str, list[int]]
    """concept → how many are chosen at each forward, over all hookpoints"""

    def peak(self, concept: str) -> int:
        """The forward in which the most fired."""
        return int(self.maps[concept].sum((1, 2)).argmax())


def row_of(timesteps: np.ndarray, timestep: float) -> int:
    """The row of an edit's tables at a noise level: the nearest of `timesteps` (descending); halfway takes the noisier, larger one."""
    stored = timesteps.astype(np.float32)
    return int((np.float32(timestep) < (stored[:-1] + stored[1:]) / 2).sum())


def firing(edit: EditFile, forwards: Sequence[Decided], height: int, width: int, picture: int = 0) -> Firing:
    """Heat maps of what a loop decided for tokens of the picture; those of the text have no place in it.

    Args:
        edit: which features it changes, and for which concepts.
        forwards: of the loop.
        height: of the picture, pixels.
        width: of the picture.
        picture: which of the loop's.
    """
    names = (*edit.header.concepts, ALL)
    maps: dict[str, list[np.ndarray]] = {name: [] for name in names}
    features: dict[str, list[int]] = {name: [] for name in names}
    for forward in forwards:
        fired = {hookpoint: fires for hookpoint, fires in forward.fires.items() if not stream_of(hookpoint)}
        sides = {hookpoint: grid(fires.shape[1], height, width) for hookpoint, fires in fired.items()}
        finest = max(sides.values(), key=lambda shape: shape[0] * shape[1])
        chosen = {hookpoint: _chosen(edit, hookpoint, forward.timestep) for hookpoint in sides}
        for name in names:
            counts = [
                _at(fires[picture][:, chosen[hookpoint][name]].sum(1).reshape(sides[hookpoint]), finest)
                for hookpoint, fires in fired.items()
            ]
            maps[name].append(np.sum(counts, axis=0))
            features[name].append(sum(int(masks[name].sum()) for masks in chosen.values()))
    return Firing([f.timestep for f in forwards], {name: np.stack(each) for name, each in maps.items()}, features)


def _chosen(edit: EditFile, hookpoint: str, timestep: float) -> dict[str, np.ndarray]:
    """Concept, and `ALL` → bool `[U]`: which of the edit's features at a hookpoint are chosen for it at a noise level."""
    row = row_of(edit.tensors[f"{hookpoint}/timesteps"], timestep)
    known, by = edit.tensors[f"{hookpoint}/features"], edit.header.chosen[hookpoint]
    found = {name: np.isin(known, by[name][row] if name in by else []) for name in edit.header.concepts}
    return {**found, ALL: np.any([*found.values()], axis=0)}


def _at(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A map `[h, w]` on a finer grid: each place takes the token that covers its middle."""
    rows, columns = (((np.arange(fine) + 0.5) * coarse / fine).astype(int) for fine, coarse in zip(shape, values.shape, strict=True))
    return values[np.ix_(rows, columns)]
