"""Coordinates of the proof's curve in an SVG: ratio over timestep."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from ..proof.results import Backend

WIDTH, HEIGHT = 720, 300
LEFT, RIGHT, TOP, BOTTOM = 78, 16, 20, 44


class Point(NamedTuple):
    """One forward."""

    x: float
    y: float
    beyond: bool
    """no finite number: drawn at the upper edge"""
    says: str


class Line(NamedTuple):
    """One backend."""

    name: str
    path: str
    """`points` of a polyline: at each timestep its largest finite ratio"""
    points: list[Point]


class Tick(NamedTuple):
    """A mark on an axis."""

    at: float
    text: str


class Curve(NamedTuple):
    """Everything to be drawn."""

    lines: list[Line]
    bar: float | None
    """height of the bar that must not be passed"""
    bar_text: str
    across: list[Tick]
    up: list[Tick]
    table: list[tuple[str, list[str]]]
    """timestep, and the largest ratio of each backend there"""


def make_curve(backends: Mapping[str, Backend], share: Callable[[float], str]) -> Curve | None:
    """Lay out the curve.

    Args:
        backends: of a report of the proof.
        share: a number as text.

    Returns:
        None where no forward was compared.
    """
    rows = {name: [(r.timestep, r.ratio, r.kind) for r in parts.forwards.rows] for name, parts in backends.items()}
    rows = {name: found for name, found in rows.items() if found}
    if not rows:
        return None
    bars = [b for b in (backends[name].forwards.allowed for name in rows) if math.isfinite(b) and b > 0]
    bar = min(bars) if bars else None
    finite = [r for found in rows.values() for _, r, _ in found if math.isfinite(r) and r > 0]
    top = math.ceil(math.log10(max([*finite, bar or 1e-2])) + 0.3)
    floor = min(math.floor(math.log10(min([*finite, bar or 1e-2]))), top - 2)
    times = [t for found in rows.values() for t, _, _ in found]
    first, last = max(times), min(times)

    def x(time: float) -> float:
        # Denoising goes from the largest timestep to the smallest.
        return round(LEFT + (WIDTH - LEFT - RIGHT) * ((first - time) / (first - last) if first > last else 0.5), 1)

    def y(ratio: float) -> float:
        if not math.isfinite(ratio):
            return float(TOP)
        place = (top - math.log10(ratio)) / (top - floor) if ratio > 0 else 1.0
        return round(TOP + (HEIGHT - TOP - BOTTOM) * min(max(place, 0.0), 1.0), 1)

    lines = []
    for name, found in rows.items():
        largest = _largest(found)
        path = " ".join(f"{x(t)},{y(r)}" for t, r in sorted(largest.items(), reverse=True) if math.isfinite(r))
        points = [Point(x(t), y(r), not math.isfinite(r), f"{name}, timestep {t:g} ({kind}): {share(r)}") for t, r, kind in found]
        lines.append(Line(name, path, points))
    every = max(1, math.ceil((top - floor) / 6))
    up = [Tick(y(10.0**e), _power(e)) for e in range(floor, top + 1, every)]
    across = [Tick(x(first + (last - first) * i / 5), f"{first + (last - first) * i / 5:.0f}") for i in range(6 if first > last else 1)]
    each = {name: _largest(found) for name, found in rows.items()}
    table = [(f"{t:g}", [share(e[t]) if t in e else "–" for e in each.values()]) for t in sorted(set(times), reverse=True)]
    return Curve(lines, None if bar is None else y(bar), "" if bar is None else f"allowed over all: {share(bar)}", across, up, table)


def _largest(rows: Sequence[tuple[float, float, str]]) -> dict[float, float]:
    found: dict[float, float] = {}
    for time, ratio, _ in rows:
        # NaN is worse than any number.
        found[time] = max(found.get(time, 0.0), math.inf if math.isnan(ratio) else ratio)
    return found


def _power(exponent: int) -> str:
    """10^e as a share of the edit's effect, in percent."""
    percent = exponent + 2
    return f"{10**percent} %" if 0 <= percent <= 3 else f"{10.0**percent:.{-percent}f} %" if -6 <= percent < 0 else f"1e{percent} %"
