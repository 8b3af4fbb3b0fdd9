"""Where features of each concept fired in the last sampling."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F


class Fired:
    """Counts, on the device that samples, of the forwards in which a concept's feature fired at a place.

    Args:
        chosen: hookpoint → concept → features at each timestep of its tables.
        features: hookpoint → int64 `[U]`, those of its tables.
    """

    def __init__(self, chosen: Mapping[str, Mapping[str, list[list[int]]]], features: Mapping[str, torch.Tensor]) -> None:
        self.concepts = sorted({concept for by_concept in chosen.values() for concept in by_concept})
        self._lock = threading.Lock()
        self._masks = {
            name: torch.stack([
                torch.stack([torch.isin(numbers, torch.tensor(row, dtype=torch.int64)) for row in chosen[name][concept]])
                if concept in chosen.get(name, {})
                else torch.zeros(max((len(rows) for rows in chosen.get(name, {}).values()), default=1), len(numbers), dtype=torch.bool)
                for concept in self.concepts
            ], 1).float()
            for name, numbers in features.items() if self.concepts
        }  # fmt: skip
        """hookpoint → `[T, concepts, U]`, 1 where it is the concept's at that timestep"""
        self._counts: dict[str, torch.Tensor] = {}
        self._forwards: dict[str, int] = {}

    def clear(self) -> None:
        """Forget what was counted: a sampling begins."""
        with self._lock:
            self._counts, self._forwards = {}, {}

    def add(self, name: str, fires: torch.Tensor, rows: torch.Tensor, shape: Any, options: Mapping[str, Any]) -> None:
        """Count the decisions of one forward.

        Args:
            name: hookpoint.
            fires: bool `[B, L, U]`; the batch holds all pictures once for each of ComfyUI's conditionings that run together.
            rows: of the tables, `[B]` or `[1]`.
            shape: height and width of the map, `L` in all.
            options: ComfyUI's `transformer_options`.
        """
        if name not in self._masks:
            return
        # Kept where the sampling is: nothing here waits for a device.
        self._masks[name] = self._masks[name].to(fires.device)
        masks = self._masks[name][rows.to(fires.device)]
        places = (fires.float() @ masks.mT > 0).float()  # [B, L, concepts]
        together = len(options.get("cond_or_uncond") or [0])
        together = together if len(places) % together == 0 else 1
        found = places.mT.unflatten(-1, tuple(shape)).unflatten(0, (together, -1)).sum(0)
        with self._lock:
            known = self._counts.get(name)
            if known is not None and known.shape != found.shape:
                if len(known) != len(found):
                    return
                # A part of the picture, or a step at another size: shown as if it were the whole.
                found = F.interpolate(found, known.shape[-2:], mode="nearest")
            self._counts[name] = found if known is None else known + found
            self._forwards[name] = self._forwards.get(name, 0) + together

    def shares(self) -> dict[str, torch.Tensor]:
        """Hookpoint → float32 `[pictures, concepts, h, w]`, the share of forwards in which one fired; on the CPU."""
        with self._lock:
            return {name: count.cpu() / self._forwards[name] for name, count in self._counts.items()}
