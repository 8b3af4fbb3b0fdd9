"""What a report says of smears: tokens and pictures that the unedited model doesn't make. Needs no torch."""

from __future__ import annotations

from typing import Any

from ..evidence.intervals import Mean
from ..evidence.picture_backends import UNEDITED
from ..evidence.results import Evaluation
from ..evidence.smears import LEAST
from .figures import percent, plural, rate_cell

SMEARED = ("Norm outside", "Distance outside", "Nothing seen")
"""titles of the cells of a row"""
_NONE = rate_cell(None)


def smear_rows(content: Evaluation) -> list[dict[str, Any]]:
    """A row a backend and block, then one a backend and judge; empty where neither could be measured."""
    found = []
    for name, b in content.backends.items():
        common = {"backend": name, "edited": name != UNEDITED}
        found += [
            {**common, "sign": f"tokens of {at}", "cells": [_share(o.norm), _share(o.distance), _NONE]} for at, o in b.outside.items()
        ]
        found += [{**common, "sign": f"judge {judge}", "cells": [_NONE, _NONE, rate_cell(rate)]} for judge, rate in b.nothing_seen.items()]
    return found


def smear_lines(content: Evaluation) -> list[str]:
    """What the figures mean, and what couldn't be measured, as sentences."""
    lines, tokens = [], content.tokens
    if tokens is not None:
        bars = " and ".join(f"{_text(of.norm)} and {_text(of.distance)} at {at}" for at, of in tokens.blocks.items())
        lines.append(
            f"Outside: a picture's share of tokens with a norm, or a Mahalanobis distance, that 1 % of the unedited model's own tokens have; bars from {tokens.fitted} + {tokens.barred} pictures of it with other seeds (on the second of these: {bars})."
        )
        lines += [f"Tokens of {name}: not seen by this backend." for name, b in content.backends.items() if not b.outside]
    elif content.backends:
        lines.append("Tokens of the blocks were not looked at: that needs torch and the unedited model's pictures.")
    if any(b.nothing_seen for b in content.backends.values()):
        lines.append("Nothing seen: the judge's likeliest name has a lower score than on 99 % of the unedited model's pictures.")
    elif content.settings.protocol in ("unlearncanvas", "concepts"):
        lines.append(
            f"Nothing seen: not measured; it needs {LEAST} pictures of the unedited model or more, and a judge that names what is there."
        )
    return lines


def _share(found: Mean) -> dict[str, Any]:
    """A mean of shares as a cell, with a bar where it has an interval."""
    if found.mean is None:
        return _NONE
    if found.low is None or found.high is None:
        return {"text": percent(found.mean), "interval": "", "count": plural(found.count, "picture"), "bar": None}
    low, high = max(0.0, found.low), min(1.0, found.high)
    bar = {key: round(100 * value, 2) for key, value in (("low", low), ("rate", found.mean), ("high", high))}
    span = f"{percent(low).removesuffix(' %')} to {percent(high)}"
    return {"text": percent(found.mean), "interval": span, "count": plural(found.count, "picture"), "bar": bar}


def _text(found: Mean) -> str:
    cell = _share(found)
    return f"{cell['text']} ({cell['interval']})" if cell["interval"] else cell["text"]
