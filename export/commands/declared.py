"""Makes a command's options of the fields of its settings (`editor/common/declared.py`)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, get_origin, get_type_hints

import typer

from ...editor.common.declared import words_of


def parameter(settings: type, name: str, panel: str | None = None) -> inspect.Parameter:
    """One field as a parameter that typer understands.

    Args:
        settings: a dataclass whose fields have docstrings.
        name: of the field.
        panel: heading in the help; default: the field's.
    """
    (f,) = [f for f in fields(settings) if f.name == name]
    kind, default, more = get_type_hints(settings)[name], f.default, f.metadata
    if get_origin(kind) is tuple:
        kind, default = (str, ",".join(default)) if more["joined"] else (list[str] | None, None)  # type: ignore[arg-type]
    elif default == Path():
        kind, default = Path | None, None  # what must be given, whatever the command
    option = more.get("name") or name
    flag = f"--{option.replace('_', '-')}"
    # Something that is off by default needs no word for off.
    spelt = [flag] if default is False or more.get("short") else []
    shown = typer.Option(
        *spelt, *([more["short"]] if more.get("short") else []), metavar=more.get("metavar"), help=words_of(settings)[name],
        rich_help_panel=panel or more.get("panel"),
    )  # fmt: skip
    return inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, shown])


def annotation(settings: type, name: str, panel: str | None = None) -> Any:
    """One field as the annotation of another command's parameter."""
    return parameter(settings, name, panel).annotation


def with_options(settings: type, command: Callable[..., Any], wrapped: Callable[..., Any], panel: str | None = None) -> Callable[..., Any]:
    """A command whose `**` parameter takes the fields of its settings, by the options' names.

    Args:
        settings: a dataclass whose fields have docstrings.
        command: takes its own parameters and `**`.
        wrapped: what is run: the command with its handlers.
        panel: heading for all of them; without one they come first.
    """
    signature = inspect.signature(command, eval_str=True)
    kept = [
        p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    made = [parameter(settings, f.name, panel) for f in fields(settings) if f.init]
    parameters = [*made, *kept] if panel is None else [*kept, *made]

    def call(**given: Any) -> Any:
        return wrapped(**given)

    call.__name__, call.__doc__ = command.__name__, command.__doc__
    call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in parameters}
    return call
