"""Has JSON that somebody else wrote the fields that will be read? One line names the first that it hasn't.

A shape is a type, or one of the classes below. `float` takes whole numbers too; `int` takes no `true`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...editor.common.errors import SaeuronError

_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", dict: "an object", list: "a list"}


@dataclass(frozen=True)
class Fields:
    """An object with these fields; others are passed over."""

    needed: Mapping[str, Any]
    optional: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Each:
    """An object of any names, all its values of one shape."""

    shape: Any


@dataclass(frozen=True)
class Items:
    """A list of one shape, of `count` items if that is given."""

    shape: Any
    count: int | None = None


@dataclass(frozen=True)
class Choice:
    """One of some texts."""

    names: tuple[str, ...]


def is_plain(name: str) -> bool:
    """Whether a name can be that of a file or folder and of nothing elsewhere."""
    return re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", name) is not None


def check(where: str, value: Any, shape: Any, name: str = "") -> None:
    """Compare a value with a shape.

    Args:
        where: whose value, e.g. a path.
        value: from JSON.
        shape: what it has to be.
        name: of the field, dotted.

    Raises:
        SaeuronError: a field is missing or holds something else.
    """
    if isinstance(shape, Fields):
        _is(where, value, dict, name)
        for key, inner in shape.needed.items():
            if key not in value:
                raise SaeuronError(f"{where}: '{_below(name, key)}' is missing")
            check(where, value[key], inner, _below(name, key))
        for key, inner in shape.optional.items():
            if key in value:
                check(where, value[key], inner, _below(name, key))
    elif isinstance(shape, Each):
        _is(where, value, dict, name)
        for key, item in value.items():
            check(where, item, shape.shape, _below(name, key))
    elif isinstance(shape, Items):
        _is(where, value, list, name)
        if shape.count is not None and len(value) != shape.count:
            raise SaeuronError(f"{where}: '{name}' holds {len(value)} items, not {shape.count}")
        for place, item in enumerate(value):
            check(where, item, shape.shape, f"{name}[{place}]")
    elif isinstance(shape, Choice):
        if not isinstance(value, str) or value not in shape.names:
            raise SaeuronError(f"{where}: '{name}' is {_short(value)}; it is one of {', '.join(shape.names)}")
    else:
        _is(where, value, shape, name)


def _is(where: str, value: Any, kind: type, name: str) -> None:
    if not _fits(value, kind):
        raise SaeuronError(f"{where}: '{name or 'it'}' is {_short(value)}; it must be {_WORDS[kind]}")


def _fits(value: Any, kind: type) -> bool:
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63
    if kind is float:
        # Also false of NaN, and of whole numbers that no float can hold.
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return isinstance(value, kind)


def _below(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
