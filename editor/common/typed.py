"""Types of JSON files: a class says which fields a file has, and reads, checks and writes it. Needs no torch."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from .errors import SaeuronError

Number = Annotated[float, Meta(ge=-sys.float_info.max, le=sys.float_info.max)]
"""finite; whole numbers are taken too"""
Whole = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
"""fits into 64 bits, so that it can be printed and computed with"""
T = TypeVar("T")


class Record(Struct):
    """An object in such a file: fields with their types. What it has no field for is passed over."""


def read_as(kind: type[T], value: Any, where: str | Path, strict: bool = True, tensors: Callable[[str], Any] | None = None) -> T:
    """A value from JSON as a type.

    Args:
        kind: e.g. a `Record`.
        value: from JSON.
        where: whose value, e.g. a path.
        tensors: gives the array of a name, where the type has arrays.
        strict: False takes the texts that `strict_json` writes for infinities and NaN as numbers.

    Raises:
        SaeuronError: a field is missing or holds something else; named as `a.b[0]`, with `*` for a name that the file chooses.
    """

    def array(wanted: Any, name: Any) -> Any:
        if tensors is None or not isinstance(name, str):
            raise ValueError(f"expected the name of a tensor, got {name!r}"[:100])
        return tensors(name)

    try:
        return msgspec.convert(value, kind, strict=strict, dec_hook=array)
    except msgspec.ValidationError as error:
        said, _, place = str(error).partition(" - at `$")
        field = place.rstrip("`").replace("[...]", ".*").lstrip(".")
        missing = re.fullmatch(r"Object missing required field `(.*)`", said)
        if missing:
            raise SaeuronError(f"{where}: '{f'{field}.{missing[1]}'.lstrip('.')}' is missing") from None
        for form, words in _WORDS:
            said = re.sub(form, words, said)
        raise SaeuronError(f"{where}: '{field}' {said}" if field else f"{where} {said}") from None


_WORDS = (
    (r"^Expected (.*), got (.*)", r"must be \1, not \2"), (r"^Expected ", "must be "), (r"^Invalid enum value (.*)", r"is \1, which is none of its values"),
    (r"^Object contains unknown field (.*)", r"holds an unknown field '\1'"), (r"^(?!must |is |holds )", "can't be read: "), ("`", ""),
)  # fmt: skip
"""msgspec's sentences → ours"""


def plain(value: Any) -> Any:
    """A record as dicts and lists."""
    return msgspec.to_builtins(value)


def written(value: float) -> float | str:
    """A number as it may be written: JSON has neither infinities nor NaN, so these become text."""
    return value if math.isfinite(value) else str(value)


def strict_json(value: Any) -> str:
    """JSON that strict readers open: infinities and NaN, which JSON lacks, are written as text."""

    def finite(item: Any) -> Any:
        if isinstance(item, float):
            return written(item)
        if isinstance(item, dict):
            return {k: finite(v) for k, v in item.items()}
        return [finite(v) for v in item] if isinstance(item, list | tuple) else item

    return json.dumps(finite(plain(value)), indent=1, allow_nan=False)


def is_plain(name: str) -> bool:
    """Whether a name can be that of a file or folder and of nothing elsewhere."""
    return re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", name) is not None
