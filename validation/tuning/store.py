"""Measurements on disk, under a hash of all that they depend on; several processes may share the folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ...editor.common.errors import SaeuronError
from ...editor.common.files import read_json
from ...editor.common.typed import read_as, strict_json
from ...editor.common.writing import alone, whole_file

T = TypeVar("T")


class Store:
    """Takes what was measured before, or has it measured by one process.

    Args:
        folder: of the files.
        common: what every measurement depends on.
    """

    def __init__(self, folder: Path, common: list[Any]) -> None:
        self.folder, self._common = folder, common

    def key(self, what: list[Any]) -> str:
        """Name of a measurement."""
        return hashlib.sha256(json.dumps([self._common, what], sort_keys=True).encode()).hexdigest()[:24]

    def take(
        self, what: list[Any], kind: type[T], make: Callable[[], T], whole: Callable[[T], bool], there: Callable[[], bool] = lambda: True
    ) -> T:
        """A measurement.

        Args:
            what: it depends on, beside `common`.
            kind: of its value.
            make: measures.
            whole: whether a stored value is one of this measurement.
            there: whether the files that belong to it are there; without them it is made again.

        Raises:
            SaeuronError: a stored file that is damaged.
        """
        path = self.folder / f"{self.key(what)}.json"
        if (found := self._held(path, kind, whole, there)) is not None:
            return found
        with alone(path.with_suffix(".making")):
            # Another process may have made it meanwhile.
            if (found := self._held(path, kind, whole, there)) is not None:
                return found
            made = make()
            with whole_file(path) as file:
                file.write_text(strict_json(made) + "\n", encoding="utf-8")
            return made

    @staticmethod
    def _held(path: Path, kind: type[T], whole: Callable[[T], bool], there: Callable[[], bool]) -> T | None:
        if not path.is_file() or not there():
            return None
        try:
            found = read_as(kind, read_json(path), path)
        except SaeuronError as error:
            raise SaeuronError(f"stored result is damaged: {error}; remove it to measure it again") from None
        if not whole(found):
            raise SaeuronError(f"stored result is damaged: '{path}' is of other pictures; remove it to measure it again")
        return found
