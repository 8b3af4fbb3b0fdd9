"""The seam: a block's output before and after the edit, where an artifact is compared with the hook on the same tokens.

The hook's result for given tokens is continuous but for its decisions, and these are compared on the same tokens too, so only
rounding at a bar can turn one. Nothing upstream can disturb this comparison, as it does one of the whole network's output, where
a single decision that falls otherwise within rounding grows from layer to layer. Needs numpy alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from msgspec.structs import replace

from ...editor.common.typed import Record
from ...editor.edit.how import How
from ...editor.edit.replace import replaced

BARS = {"fp32": 1e-4, "fp16": 5e-3, "bf16": 3e-2}
"""largest `|artifact - hook(h)| / |hook(h) - h|` of a token by precision"""
SHARE = 0.02
"""how far the share of the edit's effect that is kept may lie from 1, over all tokens"""
FEATURE = 1 / 3
"""how far the share of one feature's own part that is kept may lie from 1: a lost feature lies at 1, three times as far"""
_STEADY = 6.0
"""a feature is measured alone where this many standard deviations of rounding fit into `FEATURE`"""
_MANTISSA = {"fp32": 23, "fp16": 10, "bf16": 7}
_LEAST_EXPONENT = {"fp32": -126, "fp16": -14, "bf16": -126}


class Tensors(NamedTuple):
    """What a backend shows of one hookpoint in one forward."""

    input: np.ndarray
    """the block's output `[B, tokens, d]`"""
    before: np.ndarray | None
    """the block's input, for an SAE that reads `delta`"""
    output: np.ndarray
    """the edited output `[B, tokens, d]`"""
    fires: np.ndarray
    """bool `[B, tokens, U]`"""
    members: np.ndarray | None
    """which latents are active, where all of them are decoded: int64 `[B, tokens, k]` or bool `[B, tokens, n]`"""
    places: np.ndarray | None = None
    """row and column of each token, float32 `[1, tokens, 2]`, where tokens are replaced"""


class Seam(Record):
    """Tokens of one hookpoint in one forward, and what the hook makes of them."""

    input: np.ndarray
    """the block's output `[L, d]`"""
    output: np.ndarray
    """the hook's result `[L, d]`, decoded in float64 and not rounded to the model's precision"""
    neutral: np.ndarray
    """the same with every gain at 1: `input` for `residual=keep`"""
    fires: np.ndarray
    """bool `[L, U]`"""
    near: np.ndarray
    """bool `[L, U]`: rounding alone can turn the decision"""
    slack: np.ndarray
    """float32 `[L]`: how far another pick among latents that tie at place k within rounding moves the result; only where all are decoded"""
    room: np.ndarray
    """float32 `[L]`: how far rounding of a token's own latents moves the result; only where no k-th latent decides (directions, JumpReLU):
    a latent that is a small difference of large numbers may be mostly rounding"""
    coefficients: np.ndarray
    """float32 `[L, U]`: how much of its decoder row each feature's change adds; 0 where it doesn't fire or rounding shows in its latent"""
    rows: np.ndarray
    """float32 `[U, d]`: decoder rows of the chosen features, the same for all tokens"""
    before: np.ndarray | None = None
    """the block's input `[L, d]`, for an SAE that reads `delta`"""
    places: np.ndarray | None = None
    """row and column of each token, int64 `[L, 2]`, where tokens are replaced"""
    replacing: How | None = None
    """how, where tokens are replaced"""

    def by(self, fires: np.ndarray) -> Seam:
        """The same tokens with the hook's result for these decisions, where tokens are replaced: each then depends on those of others."""
        assert self.places is not None and self.replacing is not None
        marks = fires.any(1).astype(np.float64)
        output = replaced(self.input.astype(np.float64), marks, self.places, self.replacing)
        return replace(self, output=output.astype(np.float32), fires=fires)

    @property
    def changes(self) -> bool:
        """Whether the hook changes these tokens."""
        return bool(self.fires.any()) and (self.replacing is None or not np.array_equal(self.output, self.input))

    def each(self, change: Callable[[np.ndarray], np.ndarray]) -> Seam:
        """The same with the array of every token changed."""
        before, places = (None if values is None else change(values) for values in (self.before, self.places))
        return Seam(
            change(self.input), change(self.output), change(self.neutral), change(self.fires), change(self.near), change(self.slack),
            change(self.room), change(self.coefficients), self.rows, before, places, self.replacing,
        )  # fmt: skip


class Comparison(Record):
    """Result of all comparisons at the seam."""

    passed: bool
    bar: float
    worst: float
    """largest `|artifact - hook(h)| / |hook(h) - h|` of a token"""
    where: str
    """the forward and hookpoint of that token"""
    share: float
    """of the edit's effect, over tokens without ties"""
    tokens: int
    fired: int
    """decisions that fired"""
    decisions: int
    close: int
    """decisions that rounding alone can turn"""
    turned: int
    """close ones that came out otherwise; their tokens are left out of `worst`"""
    wrong: int
    """others that came out otherwise"""
    tied: int
    """tokens in which another pick among tied latents is as right: held to that room"""
    rounding: int
    """tokens whose own latents may be off by more than the bar through rounding alone: held to that room"""
    features: int
    features_fired: int
    """those that fired on a token at which nothing is in doubt"""
    features_measured: int
    """those whose own part stands out of rounding, so that its share could be measured"""
    furthest: float
    """largest distance of such a share from 1"""
    failures: list[str] = []


def ulp(values: np.ndarray, precision: str) -> np.ndarray:
    """Distance of neighbouring numbers of a precision at these values, float64."""
    _, exponent = np.frexp(np.abs(values.astype(np.float64)))
    return np.ldexp(1.0, np.maximum(exponent - 1, _LEAST_EXPONENT[precision]) - _MANTISSA[precision])


def rounded(values: np.ndarray, precision: str) -> np.ndarray:
    """Values to the nearest number of a precision, ties to even, float64."""
    step = ulp(values, precision)
    return np.round(values.astype(np.float64) / step) * step


class Tally:
    """Collects comparisons of one backend, forward by forward.

    Args:
        precision: of the artifact.
    """

    def __init__(self, precision: str) -> None:
        self._precision = precision
        self._excess: list[np.ndarray] = []
        self._whole: list[np.ndarray] = []
        self._acting: list[np.ndarray] = []
        self._where: list[str] = []
        self._kept = self._effect = 0.0
        self._counts = dict.fromkeys(("decisions", "fired", "close", "turned", "wrong", "tied", "rounding"), 0)
        self._features: dict[str, np.ndarray] = {}
        self._parts: dict[str, np.ndarray] = {}
        self._failures: list[str] = []

    def add(self, where: str, hookpoint: str, expected: Seam, output: np.ndarray, fires: np.ndarray) -> None:
        """Compare what a backend made of the same tokens.

        Args:
            where: names the forward.
            hookpoint: of the tokens.
            expected: the hook's.
            output: `[L, d]`.
            fires: bool `[L, U]`.
        """
        label = f"{where}, {hookpoint}"
        if output.shape != expected.output.shape or fires.shape != expected.fires.shape:
            self._failures.append(f"{label}: the edit gives {list(output.shape)} and decisions {list(fires.shape)}, not {list(expected.output.shape)} and {list(expected.fires.shape)}")  # fmt: skip
            return
        if not np.isfinite(output).all():
            self._failures.append(f"{label}: the edited output is not finite")
            return
        differs = fires != expected.fires
        seen = expected.fires[(expected.slack == 0) & ~expected.near.any(1)].any(0)
        self._features[hookpoint] = self._features.get(hookpoint, np.zeros_like(seen)) | seen
        for name, mask in (
            ("fired", expected.fires), ("close", expected.near), ("turned", differs & expected.near), ("wrong", differs & ~expected.near),
            ("decisions", np.ones_like(differs)), ("tied", expected.slack > 0),
        ):  # fmt: skip
            self._counts[name] += int(mask.sum())
        # Where a close decision came out otherwise the result is another, and as right.
        turned = differs & expected.near
        kept = ~turned.any(1)
        if expected.replacing and turned.any():
            expected, kept = expected.by(expected.fires ^ turned), np.ones_like(kept)
        y, hook, neutral, h = (v[kept].astype(np.float64) for v in (output, expected.output, expected.neutral, expected.input))
        # Both sides were rounded once when they were stored; what is left is the arithmetic's.
        room = 0.5 * ulp(hook, self._precision) + 0.5 * ulp(hook, "fp32")
        excess = np.linalg.norm(np.maximum(np.abs(y - hook) - room, 0.0), axis=1)
        self._excess.append(np.maximum(excess - expected.slack[kept] - expected.room[kept], 0.0))
        self._whole.append(np.linalg.norm(hook - h, axis=1))
        self._acting.append(expected.fires[kept].any(1))
        self._counts["rounding"] += int((expected.room[kept] > BARS[self._precision] * self._whole[-1]).sum())
        self._where.append(label)
        # Another pick among tied latents is as right and belongs to no feature of the edit.
        clear = expected.slack[kept] == 0
        effect = (rounded(hook, self._precision) - rounded(neutral, self._precision))[clear]
        self._kept += float(((y - rounded(neutral, self._precision))[clear] * effect).sum())
        self._effect += float((effect**2).sum())
        self._add_parts(hookpoint, expected, expected.coefficients[kept][clear], (y - hook)[clear], room[clear], self._whole[-1][clear])

    def _add_parts(
        self, hookpoint: str, expected: Seam, coefficients: np.ndarray, apart: np.ndarray, room: np.ndarray, whole: np.ndarray
    ) -> None:
        """Project what is amiss on each feature's own part: `Σ (y - hook) · part`, `Σ |part|²` and the variance that rounding gives the first."""
        rows, c = expected.rows.astype(np.float64), coefficients.astype(np.float64)
        # An element is rounded when it is stored, and the arithmetic before rounds a change of that size.
        unit = 2.0 ** -(_MANTISSA[self._precision] + 1)
        spread = room**2 + (unit * whole[:, None]) ** 2 / rows.shape[1]
        found = np.stack([
            ((apart @ rows.T) * c).sum(0), (c**2).sum(0) * (rows**2).sum(1), ((spread @ (rows**2).T) * c**2).sum(0)
        ])  # fmt: skip
        self._parts[hookpoint] = self._parts.get(hookpoint, 0.0) + found

    def _shares(self) -> tuple[int, float, str]:
        """Features measured alone, the largest distance of a share from 1, and where."""
        count, furthest, where = 0, 0.0, ""
        for hookpoint, (off, whole, variance) in self._parts.items():
            measured = np.flatnonzero((whole > 0) & (_STEADY * np.sqrt(variance) <= FEATURE * whole))
            count += len(measured)
            for i in measured:
                if (distance := abs(off[i]) / whole[i]) > furthest:
                    furthest, where = float(distance), f"the edit's feature {i} at {hookpoint}"
        return count, furthest, where

    def result(self) -> Comparison:
        """The verdict."""
        bar, failures = BARS[self._precision], list(self._failures)
        whole = np.concatenate([*self._whole, np.zeros(0)])
        acting = np.concatenate([*self._acting, np.zeros(0, bool)])
        least = float(whole[acting & (whole > 0)].min(initial=np.inf))
        worst, where = 0.0, ""
        for excess, scale, label in zip(self._excess, self._whole, self._where, strict=True):
            # Where the hook changes nothing, the least change that it makes elsewhere is the yardstick.
            ratio = float((excess / np.where(scale > 0, scale, least)).max(initial=0.0)) if np.isfinite(least) else 0.0
            if ratio > worst or not where:
                worst, where = ratio, label
        share = self._kept / self._effect if self._effect else float("nan")
        measured, furthest, feature = self._shares()
        c = self._counts
        if not c["fired"]:
            failures.append("seam: no decision fired on the tokens compared, so nothing was proven there")
        elif not worst <= bar:
            failures.append(f"seam: a token is {worst:.2%} of its change from the hook's at {where} (bar {bar:.2%})")
        if c["fired"] and not abs(share - 1) <= SHARE:
            failures.append(f"seam: {share:.1%} of the edit's effect is kept (bar {1 - SHARE:.0%} to {1 + SHARE:.0%})")
        if not furthest <= FEATURE:
            failures.append(f"seam: {feature}: its own part is {furthest:.0%} off (bar {FEATURE:.0%})")
        if c["rounding"] > acting.sum() / 2:
            failures.append(
                f"seam: at {c['rounding']} of {acting.sum()} edited tokens rounding alone may be more than the bar, so nothing was proven there"
            )
        if c["wrong"]:
            failures.append(f"seam: {c['wrong']} of {c['decisions']} decisions on the same tokens differ from the hook's beyond rounding")
        # Rounding is as likely to push a close decision one way as the other: more than half (and three standard deviations) can't be rounding.
        if c["turned"] > c["close"] / 2 + 1.5 * c["close"] ** 0.5:
            failures.append(f"seam: {c['turned']} of {c['close']} close decisions differ from the hook's: more than rounding can explain")
        return Comparison(
            not failures, bar, worst, where, share, sum(map(len, self._whole)), features=sum(f.size for f in self._features.values()),
            features_fired=sum(int(f.sum()) for f in self._features.values()), features_measured=measured,
            furthest=furthest, failures=failures, **c,
        )  # fmt: skip


def rows_of(values: np.ndarray) -> np.ndarray:
    """`[B, tokens, n]` → `[B · tokens, n]`."""
    return values.reshape(-1, *values.shape[2:])


def flat(whole: Seam) -> Seam:
    """A map's `[B, tokens, …]` as one list of tokens `[B · tokens, …]`."""
    return whole.each(rows_of)


def together(whole: Seam, output: np.ndarray, fires: np.ndarray) -> Iterator[tuple[Seam, np.ndarray, np.ndarray]]:
    """Lists of tokens that are compared at once: all `[B, tokens, …]` of a forward, or picture by picture where one's tokens depend on each other.

    Args:
        whole: the hook's.
        output, fires: a backend's.
    """
    if whole.replacing and len(output) == len(fires) == len(whole.output):
        for number in range(len(output)):
            yield whole.each(functools.partial(_nth, number)), output[number], fires[number]
    else:
        yield flat(whole), rows_of(output), rows_of(fires)


def _nth(number: int, values: np.ndarray) -> np.ndarray:
    return values[number]  # type: ignore[no-any-return]


def turned_in(found: Mapping[str, Tensors], fires: Mapping[str, np.ndarray], members: Mapping[str, np.ndarray]) -> int:
    """How many decisions of a whole forward came out otherwise than the hook's, on whatever tokens reached each hookpoint.

    Args:
        found: hookpoint → what the backend shows.
        fires: hookpoint → the hook's decisions `[B, tokens, U]`.
        members: hookpoint → `digest` of the hook's active latents `[B, tokens]`, where all of them are decoded.

    Returns:
        decisions of chosen features, and tokens with other active latents.
    """
    count = sum(int((found[name].fires != wanted).sum()) for name, wanted in fires.items())
    for name, wanted in members.items():
        shown = found[name].members
        count += wanted.size if shown is None else int((digest(shown) != wanted).sum())
    return count


def digest(members: np.ndarray) -> np.ndarray:
    """One uint32 a token for its set of active latents.

    Args:
        members: indices `[B, tokens, k]`, in any order, or bool `[B, tokens, n]`.
    """
    # A number a latent, mixed well (splitmix64), added up: the order doesn't matter.
    latents = np.arange(members.shape[-1]) if members.dtype == bool else members
    numbers = latents.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x632BE59BD9B4E019)
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    numbers ^= numbers >> np.uint64(31)
    return (np.where(members, numbers, 0) if members.dtype == bool else numbers).sum(-1).astype(np.uint32)
