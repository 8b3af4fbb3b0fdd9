"""Makes a command's options of the fields of its settings (`editor/common/declared.py`)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import is_dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args, get_origin

import typer

from ...editor.common.declared import field_of, flag, hints_of, numbers, option_name, words_of
from .console import clean, names


class Only(NamedTuple):
    """Which fields of a parameter's settings are options of the command."""

    defaults: dict[str, Any]
    """name → default; `...`: the field's own"""


def only(*fields: str, **defaults: Any) -> Only:
    """For `Annotated[Settings, only(…)]`: these fields, and those with another default."""
    return Only({**dict.fromkeys(fields, ...), **defaults})


def annotation(settings: type, name: str) -> Any:
    """One field as the annotation of a command's parameter."""
    return _parameter(settings, name).annotation


def _parameter(settings: type, name: str, default: Any = ...) -> inspect.Parameter:
    """One field as a parameter that typer understands."""
    f = field_of(settings, name)
    kind, default, more = hints_of(settings)[name], f.default if default is ... else default, f.metadata
    if get_origin(kind) is tuple:
        joined = ",".join(f"{v:g}" if isinstance(v, float) else str(v) for v in default)
        kind, default = (str, joined) if more["joined"] else (list[get_args(kind)[0]] | None, None)  # type: ignore[misc]
    elif default == Path():
        kind, default = Path | None, None
    # Something that is off by default needs no word for off.
    spelt = [flag(f)] if default is False or more["short"] else []
    shown = typer.Option(
        *spelt, *([more["short"]] if more["short"] else []), metavar=more["metavar"], help=words_of(settings)[name], rich_help_panel=more["panel"]
    )  # fmt: skip
    return inspect.Parameter(option_name(f), inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, shown])


def _value(settings: type, name: str, given: Any) -> Any:
    """What the command line gave, as the field takes it."""
    f, kind = field_of(settings, name), hints_of(settings)[name]
    if get_origin(kind) is not tuple:
        return given
    if not f.metadata["joined"]:
        return tuple(given)
    part = get_args(kind)[0]
    return names(given) if part is str else numbers(given, flag(f), part)


def command(function: Callable[..., Any]) -> Callable[..., Any]:
    """A command: a parameter of settings becomes the options of its fields, or of those that `only` names; mistakes are one line.

    Args:
        function: a parameter whose type is a dataclass takes it made, and checked.
    """
    signature = inspect.signature(function, eval_str=True)
    made: dict[str, tuple[type, dict[str, str]]] = {}
    parameters: list[inspect.Parameter] = []
    for p in signature.parameters.values():
        settings, wanted = (*get_args(p.annotation), None)[:2] if get_origin(p.annotation) is Annotated else (p.annotation, None)
        if not is_dataclass(settings):
            parameters.append(p.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        chosen = wanted.defaults if isinstance(wanted, Only) else dict.fromkeys(words_of(settings), ...)  # type: ignore[arg-type]
        options = {name: _parameter(settings, name, default) for name, default in chosen.items()}  # type: ignore[arg-type]
        made[p.name] = settings, {name: option.name for name, option in options.items()}  # type: ignore[assignment]
        parameters += options.values()

    @clean
    @wraps(function)
    def call(**given: Any) -> Any:
        for name, (settings, options) in made.items():
            said = {name: given.pop(option) for name, option in options.items()}
            given[name] = settings(**{n: _value(settings, n, v) for n, v in said.items() if v is not None})
        return function(**given)

    call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in parameters}
    return call
