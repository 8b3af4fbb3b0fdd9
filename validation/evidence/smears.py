"""Figures of pictures that are neither the concept nor anything else, from the rows of verdicts.csv. Needs no torch.

Two signs: tokens of an edited block that lie outside of the unedited model's own distribution (counted by `tokens.py` while pictures are drawn), and
pictures of which a judge is less sure, whatever it names, than of 99 % of the unedited model's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from ...editor.common.errors import SaeuronError, first_line
from ...editor.common.files import file_sha256
from ...editor.common.names import normalise
from ...editor.common.typed import Record, Whole
from ...editor.features.concepts import presets
from .intervals import Mean, Rate

SHARE = 0.01
"""of the unedited model's own tokens and pictures that lie beyond a bar"""
LEAST = 50
"""pictures of the unedited model, below which no bar of a judge is set: 1 of 50 lies below the lowest"""
CALIBRATION = "calibration.safetensors"
"""of the unedited model's tokens, in an evaluation's folder"""
PICTURES, FEWEST = 128, 16
DIGEST = 12
"""hexadecimal digits of the calibration's SHA-256 in each row"""
RULES = {
    "outside": "share of a picture's tokens at a block, over all steps, with a norm outside of the middle 99 % (norm) or a Mahalanobis distance beyond 99 % (distance) of the unedited model's tokens at that block and fifth of the noise levels; mean over pictures",
    "nothing_seen": "share of the pictures whose likeliest name gets a lower score from the judge than on 99 % of the unedited model's pictures; the unedited model's own are counted half by the bar of the other half",
}  # fmt: skip
_Row = Mapping[str, str]


def calibrating(pictures: int) -> int:
    """Pictures of the unedited model that an evaluation of so many is calibrated by, a quarter of them to fit and the others to set bars."""
    return min(PICTURES, max(FEWEST, pictures))


def blocks_of(concepts: Collection[str], model: str | None) -> list[str]:
    """Blocks whose tokens are looked at where no edit acts at any: those of the concepts' presets, if these are of the model; none: all."""
    known = [found for name, found in presets(model=model).items() if name in concepts and found.model == model]
    return list(dict.fromkeys(normalise(block) for preset in known for block in preset.hookpoint.split(",")))


class Outside(Record):
    """Shares of a picture's tokens at one block that the unedited model's own distribution doesn't hold, as means over pictures."""

    norm: Mean
    distance: Mean
    tokens: Whole
    """of a picture"""


class Calibrated(Record):
    """What the distribution was taken from."""

    sha256: str
    """of the file"""
    fitted: Whole
    """pictures of the unedited model that mean and covariance are of"""
    barred: Whole
    """others, that the bars are set by"""
    blocks: dict[str, Outside]
    """of these others: 1 % in the mean, and the interval says how sure a bar is"""


def recorded(path: Path) -> Calibrated:
    """What a calibration's file says, but for the distribution itself.

    Raises:
        SaeuronError: it can't be read.
    """
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
        blocks = {}
        for name in sorted(key.removesuffix("/tokens") for key in tensors if key.endswith("/tokens")):
            norm, distance = tensors[f"{name}/shares"].T.tolist()
            blocks[name] = Outside(Mean.of(norm), Mean.of(distance), int(tensors[f"{name}/tokens"][0]))
        return Calibrated(file_sha256(path), int(tensors["fitted"][0]), next(iter(blocks.values())).norm.count, blocks)
    except Exception as error:  # a damaged file can raise anything
        raise SaeuronError(f"'{path}' can't be read ({first_line(error, 100)}); evaluate again with --overwrite") from None


def told(digest: str, counts: Mapping[str, Sequence[int]]) -> str:
    """The column `tokens` of a picture.

    Args:
        digest: SHA-256 of the calibration.
        counts: block → tokens, those outside by norm, those outside by distance.
    """
    return json.dumps({"calibration": digest[:DIGEST], "blocks": {name: list(map(int, found)) for name, found in counts.items()}})


def calibrations(rows: Sequence[_Row]) -> set[str]:
    """First digits of the calibrations that rows were counted by.

    Raises:
        ValueError, KeyError, TypeError: a row that nobody wrote.
    """
    return {json.loads(row["tokens"])["calibration"] for row in rows if row["tokens"]}


def check(sha256: str, rows: Sequence[_Row]) -> None:
    """Raise `ValueError` unless all rows that say something of tokens were counted by this calibration; errors as for `calibrations`."""
    if calibrations(rows) - {sha256[:DIGEST]}:
        raise ValueError("its tokens were counted by another calibration than the one that is there")


def outside(rows: Sequence[_Row]) -> dict[str, Outside]:
    """Block → figures; empty where not every picture's tokens were seen.

    Raises:
        ValueError, KeyError, TypeError: rows that nobody wrote.
    """
    if not rows or not all(row["tokens"] for row in rows):
        return {}
    said = [json.loads(row["tokens"]) for row in rows]
    names = list(said[0]["blocks"])
    found = {}
    for name in names:
        counts = [tuple(one["blocks"][name]) for one in said]
        total = counts[0][0]
        if any(len(c) != 3 or c[0] != total or not all(type(n) is int and 0 <= n <= total for n in c) or not total for c in counts):
            raise ValueError(f"counts of tokens at {name} that no picture has")
        found[name] = Outside(Mean.of([c[1] / total for c in counts]), Mean.of([c[2] / total for c in counts]), total)
    if any(list(one["blocks"]) != names or one["calibration"] != said[0]["calibration"] for one in said):
        raise ValueError("tokens of other blocks, or by another calibration")
    return found


def nothing_seen(name: str, rows: Mapping[str, Sequence[_Row]], unedited: str) -> dict[str, Rate]:
    """Judge (and domain) → pictures of which it is not sure; empty without a judge of names, or where there are fewer than `LEAST` unedited pictures.

    Args:
        name: backend.
        rows: of all backends, with the column `sure`: JSON, judge → score of its likeliest name.
        unedited: name of the backend that bars are set by.

    Raises:
        ValueError, KeyError, TypeError: rows that nobody wrote.
    """
    before = _scores(rows.get(unedited, ()))
    if name != unedited:
        return unsure(before, _scores(rows[name]))
    found = {}
    for judge, values in before.items():
        halves = values[0::2], values[1::2]
        bars = [_bar(half) for half in halves]
        if None not in bars:
            found[judge] = Rate.of(
                sum(v < (bar or 0.0) for half, bar in zip(halves, reversed(bars), strict=True) for v in half), len(values)
            )
    return found


def unsure(before: Mapping[str, Sequence[float]], after: Mapping[str, Sequence[float]]) -> dict[str, Rate]:
    """Judge (and domain) → pictures whose likeliest name has a lower score than `SHARE` of the unedited model's; where these are too few, none.

    Args:
        before: judge → scores of the likeliest names on pictures of the unedited model.
        after: on the edited model's.
    """
    bars = {judge: _bar(before.get(judge, ())) for judge in after}
    return {judge: Rate.of(sum(v < bar for v in after[judge]), len(after[judge])) for judge, bar in bars.items() if bar is not None}


def _bar(scores: Sequence[float]) -> float | None:
    """The score below which the next one falls with a chance of about `SHARE`: of n others' scores, the k-th lowest, k = (n + 1) · SHARE, at least 1."""
    if len(scores) < LEAST:
        return None
    return sorted(scores)[max(1, round(SHARE * (len(scores) + 1))) - 1]


def _scores(rows: Sequence[_Row]) -> dict[str, list[float]]:
    """Judge → scores, in the order of the pictures' names: halves must not depend on the order of a list."""
    said = [json.loads(row["sure"]) for row in sorted(rows, key=lambda row: row["file"]) if row.get("sure")]
    if any(one.keys() != said[0].keys() for one in said):
        raise ValueError("scores by other judges")
    found = {judge: [one[judge] for one in said] for judge in (said[0] if said else ())}
    if not all(type(v) in (int, float) and math.isfinite(v) and 0 <= v <= 1 for values in found.values() for v in values):
        raise ValueError("a score that is none from 0 to 1")
    return found
