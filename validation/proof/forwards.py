"""Whole forwards of the UNet beside the hook's.

A network's output is not continuous in its rounding: one decision that falls otherwise upstream grows from layer to layer, though
either fall is right. So the bars are on forwards together, and on single ones only where every decision came out as the hook's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ...editor.common.typed import Record
from ..artifact.golden import Case, Golden

BARS = {"fp32": 0.01, "fp16": 0.02, "bf16": 0.05}
"""least allowance of `sqrt(sum |artifact - hook|² / sum effect²)` by precision, where no decision turned; in fp32 of single forwards too"""
TURNED_BAR = 0.2
"""the same where decisions turned in every forward"""
UNSEEN_BARS = {"fp32": 0.02, "fp16": 0.1, "bf16": 0.2}
"""the same by precision where a backend doesn't show them; few turn in fp32"""
DRIFT_FACTOR = {"fp32": 10.0, "fp16": 3.0, "bf16": 3.0}
"""the artifact may lie from the hook by this many times the distance that rounding alone was seen to make: in 16 bits by all of a network's
roundings (its float32 twin), in fp32 by that of the input alone"""
QUANTISED_FACTOR = 2.0
"""the same of a quantised graph: by this many times what quantising alone does"""
DRIFT_MARGIN = 1.5
"""by this many times may a quantised graph's drift be above the one on record: another runtime rounds inputs to other codes"""
HALF = 0.5
"""beyond half of the edit's effect nothing is told from a half-strength edit"""
SHARE = 0.1
"""how far the share of the edit's effect that is kept may lie from 1"""


class Forward(Record):
    """One forward."""

    kind: str
    timestep: float
    batch: int
    height: int
    width: int
    effect: float
    """`|hook - neutral|`; 0 where the edit doesn't fire"""
    distance: float
    """`|artifact - hook|`"""
    ratio: float
    """distance by effect; where the edit doesn't fire, by the smallest effect seen"""
    drift: float
    hook_drift: float
    turned: int | None
    """decisions that came out otherwise; None where the backend doesn't show them"""


class Forwards(Record):
    """Result of all forwards."""

    passed: bool | None
    pooled: float = math.nan
    """`sqrt(sum |artifact - hook|² / sum effect²)` over the forwards that are held to `allowed`"""
    allowed: float = math.nan
    held: int = 0
    """forwards in which no decision turned; all, where there are none of these in which the edit fires, or none are shown"""
    drift: float = math.nan
    """the same of the model itself under its precision's rounding: the unedited one's where no decision turned, else the hook's if larger"""
    every: float = math.nan
    """pooled over all forwards"""
    share: float = math.nan
    """of the edit's effect that is kept, over all forwards"""
    worst: float = math.nan
    """largest ratio in which the edit fires, of the forwards held"""
    worst_turned: float = math.nan
    """the same of the others; shown, not judged by itself"""
    forwards: int = 0
    fired: int = 0
    silent: int = 0
    shipped: float | None = None
    """`every` of the file without extra outputs, where the others were read from a copy that shows the seam"""
    outside: int = 0
    """forwards of shapes that an engine wasn't built for"""
    rows: list[Forward] = []
    not_checked: str = ""
    failures: list[str] = []


class _Pooled(NamedTuple):
    effect: float
    distance: float
    drift: float
    hook_drift: float


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Euclidean, in float64."""
    return float(np.linalg.norm(a.astype(np.float64) - b.astype(np.float64)))


def place(case: Case) -> str:
    """A forward's name in messages."""
    return f"{case.kind} t={case.timestep:g} batch={len(case.sample)} {case.sample.shape[-2]}x{case.sample.shape[-1]}"


def effects_of(golden: Golden) -> list[float]:
    """What the edit does to the output of each forward; 0 where it doesn't fire."""
    everywhere = golden.notes.edits_weights
    return [distance(c.hook, c.neutral) if everywhere or any(f.any() for f in c.fires.values()) else 0.0 for c in golden.cases]


def compare_forwards(golden: Golden, outputs: Sequence[np.ndarray | str], turned: Sequence[int] | None = None) -> Forwards:
    """Compare a backend's forwards with the hook's.

    Args:
        golden: the reference.
        outputs: one a case; a text says why it wasn't run (a shape that an engine wasn't built for).
        turned: by case, how many decisions came out otherwise (`seam.turned_in`); None where the backend doesn't show them.
    """
    rows, outside, kept, failures = _rows(golden, outputs, turned)
    least = min((e for e in effects_of(golden) if e > 0), default=0.0)
    calm = [r for r in rows if r.turned == 0]
    every, quiet = _pool(rows), _pool(calm)
    factor = DRIFT_FACTOR[golden.precision]
    # Where no decision turned, the unedited model's own drift is the measure (fp32: the hook's, in which hardly any turns).
    held, drift, bar = calm, quiet.hook_drift if golden.precision == "fp32" else quiet.drift, BARS[golden.precision]
    if not quiet.effect or drift > HALF:
        # Else the hook's own, with the decisions that rounding turns in it.
        held, drift = rows, max(every.drift, every.hook_drift)
        bar = UNSEEN_BARS[golden.precision] if turned is None else TURNED_BAR
    pooled, allowed = _pool(held).distance, min(max(bar, factor * drift), HALF)
    share = kept / every.effect**2 if every.effect else float("nan")
    fired = [r for r in rows if r.effect > 0]
    if not least:
        failures.append(
            "the edit never fired on the golden inputs, so nothing was proven; use prompts that show the concept (--proof-prompt)"
        )
    elif not fired:
        failures.append(f"none of the forwards in which the edit fires fits this engine, so nothing was proven ({outside[0]})")
    else:
        failures += _judge(golden.precision, held, least, drift, pooled, allowed, every.distance, share)
    others = [r for r in rows if r.turned]
    return Forwards(
        not failures, pooled, allowed, len(held), drift, every.distance, share, _worst(held), _worst(others), len(rows), len(fired),
        len(rows) - len(fired), None, len(outside), rows, "", failures,
    )  # fmt: skip


def fault_of_drift(measured: float, known: float | None) -> str:
    """Whether a graph is further from the one in floats than its record says, which widens what it is allowed; empty if not."""
    if known is None or measured <= DRIFT_MARGIN * known:
        return ""
    return f"quantising alone moves the network's output by {measured:.2%} of the edit's effect, on record are {known:.2%} (at most {DRIFT_MARGIN:g} times that)"


def compare_quantised(golden: Golden, outputs: Sequence[np.ndarray | str], drift: float) -> Forwards:
    """Compare a quantised graph's forwards with the hook's, by how far quantising alone moves the network's output.

    Decisions turn all over a quantised network, since the tokens themselves move; so all forwards are held together, and none by itself.

    Args:
        golden: the reference.
        outputs: as for `compare_forwards`.
        drift: from `quantised_drift`.
    """
    rows, outside, kept, failures = _rows(golden, outputs, None)
    every = _pool(rows)
    fired = [r for r in rows if r.effect > 0]
    allowed = min(max(BARS[golden.precision], QUANTISED_FACTOR * drift), HALF)
    share = kept / every.effect**2 if every.effect else float("nan")
    if not fired:
        failures.append(f"none of the forwards in which the edit fires could be compared, so nothing was proven{f' ({outside[0]})' if outside else ''}")  # fmt: skip
    elif not drift <= HALF:
        failures.append(f"inconclusive: quantising alone moves the network's output by {drift:.1%} of what the edit does; use a milder scheme or a stronger edit")  # fmt: skip
    else:
        if not every.distance <= allowed:
            failures.append(f"the network differs from the hook by {every.distance:.2%} of the edit's effect over all forwards (allowed {allowed:.2%}, quantising alone {drift:.2%})")  # fmt: skip
        failures += _whole(every.distance, share)
    return Forwards(
        not failures, every.distance, allowed, len(rows), drift, every.distance, share, _worst(rows), math.nan, len(rows), len(fired),
        len(rows) - len(fired), None, len(outside), rows, "", failures,
    )  # fmt: skip


def quantised_drift(golden: Golden, silent: Sequence[np.ndarray]) -> float:
    """How far a graph in which nothing of the edit fires lies from the same in floats, over all forwards, as a share of the edit's effect.

    Args:
        golden: the reference.
        silent: outputs of that graph, one a case.
    """
    effect = math.sqrt(sum(e**2 for e in effects_of(golden)))
    apart = (distance(o, c.neutral if c.quiet is None else c.quiet) for c, o in zip(golden.cases, silent, strict=True))
    return math.sqrt(sum(d**2 for d in apart)) / effect if effect else math.inf


def compare_shipped(golden: Golden, outputs: Sequence[np.ndarray | str]) -> tuple[float, list[str]]:
    """The file as it is shipped, where `compare_forwards` took a copy of it that shows the seam.

    A runtime may fuse the two otherwise, so that other decisions turn, and which is not seen here: held to half of the effect and its share.

    Returns:
        `Forwards.every` of these outputs; failures.
    """
    rows, _, kept, failures = _rows(golden, outputs, None)
    every = _pool(rows)
    if every.effect:
        failures += _whole(every.distance, kept / every.effect**2)
    return every.distance, [f"the file as it is shipped: {line}" for line in failures]


def _rows(
    golden: Golden, outputs: Sequence[np.ndarray | str], turned: Sequence[int] | None
) -> tuple[list[Forward], list[str], float, list[str]]:
    """Forwards that ran; why others didn't; `sum <artifact - neutral, hook - neutral>`; failures."""
    effects = effects_of(golden)
    least = min((e for e in effects if e > 0), default=0.0)
    rows, failures, outside, kept = [], [], [], 0.0
    for i, (case, effect, output) in enumerate(zip(golden.cases, effects, outputs, strict=True)):
        if isinstance(output, str):
            outside.append(output)
            continue
        if not np.isfinite(output).all():
            failures.append(f"the network's output is not finite at {place(case)}")
        apart = distance(output, case.hook)
        if effect:
            change = case.hook.astype(np.float64) - case.neutral
            kept += float(((output - case.neutral.astype(np.float64)) * change).sum())
        rows.append(Forward(
            case.kind, case.timestep, len(case.sample), case.sample.shape[-2], case.sample.shape[-1], effect, apart, apart / (effect or least or 1.0),
            case.drift, case.hook_drift, turned[i] if turned else None,
        ))  # fmt: skip
    return rows, outside, kept, failures


def _judge(
    precision: str, held: Sequence[Forward], least: float, drift: float, pooled: float, allowed: float, every: float, share: float
) -> list[str]:
    failures = []
    if not drift <= HALF:
        failures.append(
            f"inconclusive: rounding at {precision} alone moves the network's output by {drift:.1%} of what the edit does; use a higher precision or a stronger edit"
        )
    elif not pooled <= allowed:
        failures.append(
            f"the network differs from the hook by {pooled:.2%} of the edit's effect over {len(held)} forwards (allowed {allowed:.2%})"
        )
    failures += _whole(every, share)
    for r in held if precision == "fp32" else ():
        room = max(BARS[precision] * (r.effect or least), DRIFT_FACTOR[precision] * r.hook_drift)
        if r.turned == 0 and not r.distance <= room:
            at = f"{r.kind} t={r.timestep:g} batch={r.batch} {r.height}x{r.width}"
            failures.append(
                f"the network differs from the hook by {r.ratio:.2%} of the edit's effect at {at}, where no decision turned (bar {BARS[precision]:.0%})"
            )
    return failures


def _whole(every: float, share: float) -> list[str]:
    failures = []
    if not every <= HALF:
        failures.append(f"the network differs from the hook by {every:.1%} of the edit's effect over all forwards (bar {HALF:.0%})")
    if not abs(share - 1) <= SHARE:
        failures.append(f"{share:.1%} of the edit's effect on the network's output is kept (bar {1 - SHARE:.0%} to {1 + SHARE:.0%})")
    return failures


def _worst(rows: Sequence[Forward]) -> float:
    return max((r.ratio for r in rows if r.effect > 0), default=float("nan"))


def _pool(rows: Sequence[Forward]) -> _Pooled:
    """Root of the summed squares, each as a share of the edit's effect."""
    effect = math.sqrt(sum(r.effect**2 for r in rows))
    parts = (math.sqrt(sum(getattr(r, name) ** 2 for r in rows)) for name in ("distance", "drift", "hook_drift"))
    return _Pooled(effect, *(part / effect if effect else 0.0 for part in parts))
