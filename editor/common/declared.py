"""Settings that are declared once: a dataclass field with a docstring under it serves Python, the command and its help. Needs no typer."""

from __future__ import annotations

import inspect
import re
from dataclasses import field, fields
from typing import Any


def option(
    default: Any, metavar: str | None = None, panel: str | None = None, name: str | None = None, short: str | None = None, joined: bool = False
) -> Any:  # fmt: skip
    """A field of settings that is an option of a command, too.

    Args:
        default: of field and option.
        metavar: what stands for the value in the help.
        panel: heading that the help lists it under.
        name: of the option, where it isn't the field's.
        short: one letter with its dash.
        joined: of a tuple: the option takes it as one text with commas; else it is repeated.
    """
    return field(default=default, metadata={"metavar": metavar, "panel": panel, "name": name, "short": short, "joined": joined})


def words_of(settings: type) -> dict[str, str]:
    """Name of each field → the docstring under it, in one line."""
    source = inspect.getsource(settings)
    found = dict(re.findall(r'    (\w+): [^\n]+\n    """(.+?)"""', source, re.DOTALL))
    return {f.name: " ".join(found[f.name].split()) for f in fields(settings)}
