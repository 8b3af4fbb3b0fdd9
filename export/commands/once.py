"""Refuses, before a command begins, an option that is given twice and an output path that is no place to write to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typer.core import TyperCommand, TyperGroup


class OnceCommand(TyperCommand):
    """Refuses options that are given twice, unless they are repeatable or flags: click would keep the last and drop the others without a word.

    Refuses names that no library can open, and outputs that somebody meant otherwise: `-`, `~`, or a file that is itself an input.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        _check(self, ctx, args)
        return super().parse_args(ctx, args)


class OnceGroup(TyperGroup):
    """The same for a command that has others below it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        _check(self, ctx, args)
        return super().parse_args(ctx, args)


def _check(command: Any, ctx: Any, args: list[str]) -> None:
    for text in args:
        if not text.isprintable() and any("\ud800" <= c <= "\udfff" for c in text):
            ctx.fail(f"{ascii(text)} is no UTF-8 text; give it in UTF-8")
    given, _, order = command.make_parser(ctx).parse_args(args=list(args))
    if (output := given.get("output")) is not None and (wrong := _misplaced(output, given)):
        ctx.fail(wrong)
    for parameter in dict.fromkeys(order):
        count = order.count(parameter)
        if count > 1 and parameter.param_type_name == "option" and not (parameter.multiple or parameter.is_flag):
            ctx.fail(
                f"'{parameter.opts[-1]}' is given {count} times, and only the last would count; give it once, several values separated by commas where it takes them"
            )


def _misplaced(output: str, given: Mapping[str, Any]) -> str | None:
    """Why nothing should be written to `output`, or None."""
    if output == "-":
        return "'--output -': results that are files don't go to stdout; give a name (or ./- for a file called so)"
    if not output:
        return "--output is empty; give a name (a variable that isn't set?)"
    if output.startswith("~"):
        return f"'--output {output}': the shell left ~ as it is; write $HOME, or ./{output} for a place called so"
    place = Path(output)
    try:
        if not place.is_file():
            return None
        for name, values in given.items():
            for value in values if isinstance(values, list | tuple) else [values]:
                if name == "output" or not isinstance(value, str):
                    continue
                # Several in one: A,B and NAME=FILE.
                for part in {value, *re.split("[,=]", value)} - {""}:
                    if Path(part).exists() and place.resolve().is_relative_to(Path(part).resolve()):
                        return f"'--output {output}' is, or is part of, --{name.replace('_', '-')} {part}, which is only read; choose another place"
    except OSError:  # names too long to be one; whoever opens it says so
        pass
    return None
