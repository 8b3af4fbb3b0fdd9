"""Settings that are declared once: a dataclass field with a docstring under it serves Python, the command and its help. Needs no typer."""

from __future__ import annotations

import inspect
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from .errors import SaeuronError
from .suggest import unknown

WHAT, WHERE, HOW, PROOF, EVIDENCE, OUTPUT, ENGINES = "What", "Where", "How", "Proof", "Tuning and evidence", "Output", "Engines"
"""headings of the help"""


def option(
    default: Any, metavar: str | None = None, panel: str | None = None, name: str | None = None, short: str | None = None, joined: bool = False,
    **bounds: Any,
) -> Any:  # fmt: skip
    """A field of settings that is an option of a command, too.

    Args:
        default: of field and option; never refused.
        metavar: what stands for the value in the help.
        panel: heading that the help lists it under.
        name: of the option, where it isn't the field's.
        short: one letter with its dash.
        joined: of a tuple: the option takes it as one text with commas; else it is repeated.
        **bounds: `least` and `most` (both allowed), `above` and `below` (both not), `multiple` of a number, or `known` names.
    """
    return field(default=default, metadata={"metavar": metavar, "panel": panel, "name": name, "short": short, "joined": joined, **bounds})


def like(settings: type, name: str, default: Any = MISSING, /, **changes: Any) -> Any:
    """A field declared as the one of that name in other settings; its words too, where no docstring stands under it."""
    f = field_of(settings, name)
    return field(default=f.default if default is MISSING else default, metadata={**f.metadata, "words": (settings, name), **changes})


def field_of(settings: type, name: str) -> Field[Any]:
    """The field of that name."""
    return next(f for f in fields(settings) if f.name == name)


def option_name(f: Field[Any]) -> str:
    """The option's name as a parameter, without dashes."""
    return str(f.metadata.get("name") or f.name)


def flag(f: Field[Any]) -> str:
    """The option as it is written on the command line."""
    return f"--{option_name(f).replace('_', '-')}"


@cache
def words_of(settings: type) -> dict[str, str]:
    """Name of each field that is an option → the docstring under it, in one line."""
    found: dict[str, str] = {}
    for kind in filter(is_dataclass, reversed(settings.__mro__)):
        found |= dict(re.findall(r'^    (\w+): [^\n]+\n    """(.+?)"""', inspect.getsource(kind), re.DOTALL | re.MULTILINE))
    return {
        f.name: " ".join(found[f.name].split()) if f.name in found else words_of(f.metadata["words"][0])[f.metadata["words"][1]]
        for f in fields(settings)
        if f.metadata
    }


@dataclass(frozen=True)
class Checked:
    """Settings whose values are checked whenever they are made: by a command, from a file, or in Python."""

    def __post_init__(self) -> None:
        """Raise `SaeuronError` for the first value outside its option's bounds.

        Python may give a text where a path is meant, a list or one value where several can be, and of several the text that a command takes.
        """
        for f in fields(self):
            value = _taken(getattr(self, f.name), hints_of(type(self))[f.name], f)
            object.__setattr__(self, f.name, value)
            if not isinstance(value, list | tuple):
                value = () if value is None or value == f.default else (value,)
            elif not value and f.default:
                raise SaeuronError(f"{flag(f)} is empty")
            for one in value:
                _check(flag(f), one, f.metadata)
                if isinstance(one, int) and value.count(one) > 1:
                    raise SaeuronError(f"{flag(f)}: {one} is given twice")


hints_of: Callable[[Any], dict[str, Any]] = cache(get_type_hints)
"""settings → name of each field → its type"""


def _taken(value: Any, kind: Any, f: Field[Any]) -> Any:
    """A value as the field holds it."""
    if get_origin(kind) is tuple:
        part = get_args(kind)[0]
        if isinstance(value, str) and f.metadata.get("joined"):
            value = [p.strip() for p in value.split(",") if p.strip()] if part is str else numbers(value, flag(f), part)
        elif isinstance(value, str | os.PathLike | int | float):
            value = [] if value == "" else [value]
        elif not isinstance(value, Iterable) or isinstance(value, bytes):
            raise SaeuronError(f"{flag(f)} is {value!r}; it must be a list, a tuple or one {part.__name__}")
        return tuple(_taken(one, part, f) for one in value)
    kinds = (kind, *get_args(kind))
    if Path in kinds and isinstance(value, str):
        value = Path(value)
    if str in kinds and isinstance(value, os.PathLike):
        value = os.fspath(value)
    # A text is true, whatever it says, and True is a number.
    right = bool in kinds if isinstance(value, bool) else isinstance(value, tuple(k for k in kinds if isinstance(k, type)))
    if not right and not (float in kinds and isinstance(value, int) and not isinstance(value, bool)):
        names = " or ".join(k.__name__ for k in kinds if isinstance(k, type) and k is not type(None))
        raise SaeuronError(f"{flag(f)} is {str(value)[:40]!r}; it must be {names}")
    return value


def _check(shown: str, value: Any, bounds: Mapping[str, Any]) -> None:
    if "known" in bounds and value not in bounds["known"]:
        raise SaeuronError(unknown(shown, str(value), bounds["known"]))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if isinstance(value, float) and not math.isfinite(value):
        raise SaeuronError(f"{shown} is {value}; it must be a finite number")
    least, most, above, below, multiple = (bounds.get(k) for k in ("least", "most", "above", "below", "multiple"))
    if (
        (least is None or value >= least) and (most is None or value <= most) and (above is None or value > above) and (below is None or value < below)
        and (multiple is None or value % multiple == 0)
    ):  # fmt: skip
        return
    # What only keeps a number from overflowing tells nobody anything.
    named = [
        (word, bound)
        for word, bound in (("at least", least), ("at most", most), ("above", above), ("below", below))
        if bound is not None and abs(bound) < 1e30
    ]
    both = [word for word, _ in named] == ["at least", "at most"]
    said = [" to ".join(_short(bound) for _, bound in named)] if both else [f"{word} {_short(bound)}" for word, bound in named]
    if multiple is not None:
        said.append(f"a multiple of {multiple}")
    raise SaeuronError(f"{shown} is {_short(value)}; it must be {' and '.join(said)}")


def _short(number: float) -> str:
    text = f"{number:g}" if isinstance(number, float) else str(number)
    return text if len(text) <= 20 else f"{text[:20]}…"


def numbers(text: str, shown: str, kind: type = int) -> tuple[Any, ...]:
    """`A,B` → numbers.

    Args:
        text: as on the command line.
        shown: the option, for the error.
        kind: `int` or `float`.

    Raises:
        SaeuronError: a part that is none.
    """
    pattern, what = (r"-?\d{1,40}", "whole number, e.g. 188,288") if kind is int else (r"-?\d*\.?\d+(e-?\d+)?", "number, e.g. 0.5,2")
    found: Sequence[str] = [part.strip() for part in text.split(",") if part.strip()]
    for part in found:
        if not re.fullmatch(pattern, part, re.ASCII):
            raise SaeuronError(f"{shown} '{text[:40]}': '{part[:20]}' is no {what}")
    return tuple(kind(part) for part in found)
