"""Formats numbers for a report."""

from __future__ import annotations

import math
import re
from typing import Any

from ..evidence.intervals import Mean, Rate

SENSITIVE = re.compile(r"nud|naked|nsfw|porn|sexual|erotic", re.IGNORECASE)
"""names of concepts whose pictures are blurred"""
TITLES = {"ua": "UA", "ira": "IRA", "cra": "CRA", "cra_unstyled": "CRA unstyled", "cra_target": "CRA on target"}


def share(value: Any) -> str:
    """A ratio as percent with two digits that count."""
    found = float(value)
    if math.isnan(found):
        return "no number"
    if not math.isfinite(found):
        return "infinite"
    size = abs(100 * found)
    if size and not 1e-6 <= size < 1e6:
        return f"{100 * found:.1e} %"
    places = max(0, 1 - math.floor(math.log10(size))) if size else 0
    text = f"{100 * found:.{places}f}"
    return (text.rstrip("0").rstrip(".") if places else text) + " %"


def percent(value: float | None) -> str:
    """A rate as percent; a dash where nothing was counted. Only a whole is 100 %, only nothing is 0 %."""
    if value is None:
        return "–"
    text = f"{100 * value:.1f}".removesuffix(".0")
    text = "> 99.9" if text == "100" and value < 1 else "< 0.1" if text == "0" and value > 0 else text
    return f"{text} %"


def interval(rate: Rate | None) -> str:
    """Both ends of a 95 % interval."""
    return "–" if rate is None or rate.low is None else f"{percent(rate.low).removesuffix(' %')} to {percent(rate.high)}"


def rate_text(rate: Rate | None, between: str = "\n") -> str:
    """A rate and its interval as text; a dash without trials."""
    return f"{percent(rate.rate)}{between}{interval(rate)}" if rate is not None and rate.trials else "–"


def plural(count: int, word: str) -> str:
    """A count with its noun."""
    return f"{count} {word}" + ("" if count == 1 else "s")


def known(rate: Rate | None) -> bool:
    """Whether anything was counted."""
    return rate is not None and rate.rate is not None


def rate_cell(rate: Rate | None) -> dict[str, Any]:
    """A rate with interval, count, and its bar from 0 to 100; `bar` is None where there is none."""
    if rate is None:
        return {"text": "–", "interval": "", "count": "", "bar": None}
    bar = None if rate.rate is None else {key: round(100 * getattr(rate, key), 2) for key in ("low", "rate", "high")}
    count = f"{rate.hits} of {rate.trials}" if rate.trials else "0 trials"
    return {"text": percent(rate.rate), "interval": interval(rate) if rate.trials else "", "count": count, "bar": bar}


def mean_cell(found: Mean | None, sign: str = "") -> dict[str, Any]:
    """A mean with interval and count, as `rate_cell` without a bar."""
    if found is None or found.mean is None:
        return {"text": "–", "interval": "", "count": "", "bar": None}
    span = "" if found.low is None or found.high is None else f"{found.low:{sign}.2f} to {found.high:{sign}.2f}"
    return {"text": f"{found.mean:{sign}.2f}", "interval": span, "count": plural(found.count, "picture"), "bar": None}


def listed(value: Any) -> str:
    """A setting's value as text."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {of}" for key, of in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else f"{value:g}" if isinstance(value, float) else str(value)
