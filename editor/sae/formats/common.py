"""What the readers of SAE folders share: the registry, and a check that refuses settings nobody reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...common.errors import SaeuronError
from ...common.files import open_safetensors, read_header

if TYPE_CHECKING:
    import torch

    from .config import SaeFile

    Reader = Callable[[Path], SaeFile]

READERS: list[tuple[str, Callable[[Path], bool], Reader]] = []


def register(name: str, recognises: Callable[[Path], bool]) -> Callable[[Reader], Reader]:
    """Add a reader for folders that `recognises` accepts."""

    def add(reader: Reader) -> Reader:
        READERS.append((name, recognises, reader))
        return reader

    return add


def holds(*names: str) -> Callable[[Path], bool]:
    """Whether a folder has files of these names."""
    return lambda folder: all((folder / name).is_file() for name in names)


def positive(settings: Mapping[str, Any], key: str, where: Path) -> int:
    """A whole number above zero.

    Raises:
        SaeuronError: missing, or something else.
    """
    value = settings.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        found = shown(value) if key in settings else "missing"
        raise SaeuronError(f"{where}: '{key}' is {found}, expected a positive whole number")
    return value


def top_k(settings: Mapping[str, Any], latents: int, where: Path) -> int:
    """The number of active latents of a token, `k`.

    Raises:
        SaeuronError: no positive whole number, or more than there are latents.
    """
    k = positive(settings, "k", where)
    if k > latents:
        raise SaeuronError(f"{where}: k = {k} is larger than the number of latents, {latents}")
    return k


def check_settings(settings: Mapping[str, Any], where: Path, allowed: Mapping[str, tuple[Any, ...]], others: Iterable[str]) -> None:
    """Refuse every setting that is not known to leave the arithmetic as the reader has it.

    Args:
        settings: as the file has them.
        where: the file.
        allowed: settings that change the result → values that the reader does justice to; anything else is refused.
        others: settings that the reader takes into account itself, or that change nothing at inference.

    Raises:
        SaeuronError: another value, or a setting that nobody here knows.
    """
    known = set(others)
    for key, value in settings.items():
        if key in allowed:
            # 0 and 1 equal False and True, and are none.
            if not any(type(value) is type(a) and value == a for a in allowed[key]):
                can = ", ".join(json.dumps(a) for a in allowed[key] if a is not None or len(allowed[key]) == 1)
                raise SaeuronError(f"{where}: '{key}' = {shown(value)} is not supported, only {can}; this SAE can't be used here")
        elif key not in known:
            raise SaeuronError(
                f"{where}: '{key}' = {shown(value)} is a setting that the reader of this form doesn't know, and it may change what the SAE computes; if it doesn't, take it out of a copy of the file"
            )


def tensors_of(path: Path, shapes: Mapping[str, tuple[int, ...]], optional: Iterable[str] = ()) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, compared in its header before anything is allocated.

    Args:
        path: the file.
        shapes: name → shape; all have to be there.
        optional: names that may be there, too.

    Raises:
        SaeuronError: one missing, of another shape, or surplus: its arithmetic would be left out.
    """
    _, held = read_header(path)
    extra = {name: held[name][1] for name in optional if name in held}
    surplus = sorted(name for name in held if name not in shapes and name not in extra)
    if surplus and all(name in held for name in shapes):
        raise SaeuronError(f"{path} holds '{surplus[0]}' too, which no SAE of the kind that its config names has; it would be left out")
    return open_safetensors(path, {**shapes, **extra})


def shown(value: Any) -> str:
    """A value as JSON, cut to a length that a line can hold."""
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
