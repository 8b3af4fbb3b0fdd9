"""An evaluation's figures, counted again from what is listed for each picture."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...editor.errors import SaeuronError
from ...editor.files import file_sha256
from ..counting import Counting
from ..verdicts import VERDICTS, Row


def recount(folder: Path, content: Mapping[str, Any]) -> list[str]:
    """Compare the figures of evaluation.json with verdicts.csv, and that with the pictures.

    Args:
        folder: of an evaluation.
        content: of its evaluation.json, whose form was checked.

    Returns:
        what couldn't be compared, as sentences.

    Raises:
        SaeuronError: figures that the list doesn't give, or a picture that is not the one on the list.
    """
    path = folder / VERDICTS
    if not path.is_file():
        return [f"The evaluation's figures were not counted again: {VERDICTS} is not there."]
    backends = content["backends"]
    try:
        counting = _counting(content)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise SaeuronError(
            f"'{folder / 'evaluation.json'}': its form is not known ({type(error).__name__}: {error}); evaluate again with --overwrite"
        ) from None
    rows = _rows(path, counting.columns, backends)
    stages = {name: tuple(part.get("concepts", ())) for name, part in backends.items() if "kept" in part}
    try:
        found = counting.figures(rows, stages)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SaeuronError(f"'{path}' holds what no judge writes ({error}); evaluate again with --overwrite") from None
    for name, figures in found.items():
        if wrong := _differs(figures, backends[name]):
            raise SaeuronError(
                f"'{folder / 'evaluation.json'}': {wrong} of {name} is not what {VERDICTS} gives; run the same `saeuron evaluate` again, which counts anew"
            )
    return _pictures(folder, [row for made in rows.values() for row in made])


def _counting(content: Mapping[str, Any]) -> Counting:
    settings = content["settings"]
    removed = {n: str(c["domain"]) for part in content["backends"].values() for n, c in part.get("concepts", {}).items()}
    return Counting(
        settings["protocol"], removed, settings["judge"].get("judged", ()), content.get("threshold", 0.0), bool(settings["judge"]["sha256"])
    )


def _rows(path: Path, columns: Sequence[str], backends: Mapping[str, Any]) -> dict[str, list[Row]]:
    """Rows of the backends, each backend's in the order of its pictures' names."""
    try:
        listed = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SaeuronError(f"'{path}' can't be read: {error}") from None
    if any(list(row) != list(columns) or None in row.values() for row in listed):
        raise SaeuronError(f"'{path}' has a row without the columns {', '.join(columns)}; evaluate again with --overwrite")
    rows = {}
    for name, part in backends.items():
        rows[name] = sorted((row for row in listed if row["backend"] == name), key=lambda row: row["file"].rpartition("/")[2])
        if len(rows[name]) != part.get("pictures") or len({row["file"] for row in rows[name]}) < len(rows[name]):
            raise SaeuronError(
                f"'{path}' lists {len(rows[name])} pictures of {name}, evaluation.json counts {part.get('pictures', 'none')}; run the same `saeuron evaluate` again"
            )
    return rows


def _differs(ours: Any, theirs: Any, name: str = "") -> str:
    """The first figure that is another one; empty where all are the same."""
    if isinstance(ours, dict):
        if not isinstance(theirs, dict):
            return name
        return next((found for key, value in ours.items() if (found := _differs(value, theirs.get(key), f"{name}.{key}".lstrip(".")))), "")
    if isinstance(ours, float) and isinstance(theirs, int | float):
        # Sums of floats, perhaps on another machine.
        return "" if math.isclose(ours, theirs, rel_tol=1e-9, abs_tol=1e-9) else name
    return "" if ours == theirs else name


def _pictures(folder: Path, rows: Sequence[Row]) -> list[str]:
    gone, root = 0, folder.resolve()
    for row in rows:
        name = row["file"]
        try:
            if "\0" in name or not (folder / name).resolve().is_relative_to(root):
                raise SaeuronError(f"'{folder / VERDICTS}': the picture '{name}' lies outside the folder")
            found = file_sha256(folder / name) if (folder / name).is_file() else None
        except OSError as error:  # also a name that no file can have
            raise SaeuronError(f"'{folder / VERDICTS}': the picture '{name[:100]}' can't be read: {error.strerror}") from None
        if found is None:
            gone += 1
        elif found != row["sha256"]:
            raise SaeuronError(
                f"'{folder / name}' is not the picture that was judged; run the same `saeuron evaluate` again, which makes it anew"
            )
    return [f"{gone} of the evaluation's {len(rows)} pictures are not there, so their hashes were not compared."] if gone else []
