"""Counts an evaluation's figures again from its list of pictures, and compares the pictures again."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ...editor.common.errors import SaeuronError, first_line
from ...editor.common.files import file_sha256
from ...editor.common.typed import plain
from ..evidence.comparison import compare, compared, pixels_of
from ..evidence.counting import PLAIN, Counting
from ..evidence.results import Backend, Comparison, Evaluation
from ..evidence.smears import CALIBRATION, DIGEST, calibrations, recorded
from ..evidence.verdicts import PICTURES, RESULT, VERDICTS, VerdictRow
from ..judges.judge import DOMAINS, NOT_JUDGED


def recount(folder: Path, content: Evaluation, sets: Mapping[str, Sequence[str]]) -> list[str]:
    """Compare the figures of evaluation.json with verdicts.csv, and that with the pictures.

    Args:
        folder: of an evaluation.
        content: of its evaluation.json.
        sets: by words, name of a set → the artifact's test prompts.

    Returns:
        what couldn't be compared, as sentences.

    Raises:
        SaeuronError: figures that the list doesn't give, or a picture that is not the one on the list.
    """
    path = folder / VERDICTS
    if not path.is_file():
        return [f"The evaluation's figures were not counted again: {VERDICTS} is not there."]
    backends, settings = content.backends, content.settings
    removed = {name: rates.domain for part in backends.values() for name, rates in part.concepts.items()}
    counting = Counting.of(settings, removed, content.threshold)
    rows = _rows(path, counting.columns, backends, content.left_out)
    _check_judged(path, content, rows)
    _check_asked(path, content, rows, sets)
    stages = {name: tuple(part.concepts) for name, part in backends.items() if part.kept is not None}
    try:
        found, trust = counting.figures(rows, stages), counting.trust(rows)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SaeuronError(f"'{path}' holds what no judge writes ({error}); evaluate again with --overwrite") from None
    for name, figures in found.items():
        if wrong := _differs(plain(figures), plain(backends[name].figures)):
            raise SaeuronError(
                f"'{folder / RESULT}': {wrong} of {name} is not what {VERDICTS} gives; run the same `saeuron evaluate` again, which counts anew"
            )
    unsure = _tokens(folder, content, rows)
    if wrong := _differs(plain(trust), plain(content.trust)):
        raise SaeuronError(
            f"'{folder / RESULT}': trust in {wrong} is not what {VERDICTS} gives; run the same `saeuron evaluate` again, which counts anew"
        )
    if gone := _pictures(folder, [row for made in rows.values() for row in made]):
        unsure += gone
        unsure.append("The comparison of the backends' pictures was not made again.")
    else:
        _compare(folder, content.comparison, {name: rows[name] for name in compared(backends)})
    if any(part.shared_table_entries is not None for part in backends.values()):
        unsure.append("Shared table entries are as evaluation.json has them; they were not counted again.")
    unsure += [f"{VERDICTS} lists pictures by {name}, which {RESULT} leaves out." for name in content.left_out]
    if content.distances:
        unsure.append("Fréchet distances are as evaluation.json has them; they were not taken again.")
    return unsure


def _compare(folder: Path, said: Sequence[Comparison], rows: Mapping[str, Sequence[VerdictRow]]) -> None:
    """Raise unless the comparison on record is the one of the pictures."""
    try:
        found = compare(rows, partial(pixels_of, folder))
    except Exception as error:  # a file that is no picture can raise anything
        raise SaeuronError(f"'{folder / PICTURES}' holds what can't be compared: {first_line(error, 200)}") from None
    if [c.backend for c in found] != [c.backend for c in said]:
        raise SaeuronError(
            f"'{folder / RESULT}' compares other backends than it has pictures of; run the same `saeuron evaluate` again, which compares anew"
        )
    for ours, theirs in zip(found, said, strict=True):
        if wrong := _differs({**plain(ours), "each": None}, {**plain(theirs), "each": None}):
            raise SaeuronError(
                f"'{folder / RESULT}': {wrong} of {ours.backend} beside {ours.beside} is not what the pictures give; run the same `saeuron evaluate` again, which compares anew"
            )


def _rows(path: Path, columns: Sequence[str], backends: Mapping[str, Backend], left_out: Sequence[str]) -> dict[str, list[VerdictRow]]:
    """Rows of the backends, each backend's in the order of its pictures' names."""
    try:
        listed = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SaeuronError(f"'{path}' can't be read: {first_line(error, 200)}") from None
    if any(list(row) != list(columns) or None in row.values() for row in listed):
        raise SaeuronError(f"'{path}' has a row without the columns {', '.join(columns)}; evaluate again with --overwrite")
    if strange := sorted({row["backend"] for row in listed} - {*backends, *left_out}):
        raise SaeuronError(
            f"'{path}' lists pictures by {strange[0]}, of which evaluation.json says nothing; run the same `saeuron evaluate` again"
        )
    rows = {}
    for name, part in backends.items():
        rows[name] = sorted((row for row in listed if row["backend"] == name), key=lambda row: row["file"].rpartition("/")[2])
        if len(rows[name]) != part.pictures or len({row["file"] for row in rows[name]}) < len(rows[name]):
            raise SaeuronError(
                f"'{path}' lists {len(rows[name])} pictures of {name}, evaluation.json counts {'none' if part.pictures is None else part.pictures}; run the same `saeuron evaluate` again"
            )
    return rows


def _tokens(folder: Path, content: Evaluation, rows: Mapping[str, Sequence[VerdictRow]]) -> list[str]:
    """Raise unless the tokens were counted by the calibration on record; what couldn't be compared, as sentences."""
    path, said = folder / CALIBRATION, content.tokens
    by = calibrations([row for made in rows.values() for row in made])
    if (said is None) != (not by) or (said is not None and by != {said.sha256[:DIGEST]}):
        raise SaeuronError(
            f"'{folder / VERDICTS}' holds tokens counted by another calibration than '{folder / RESULT}' names; evaluate again with --overwrite"
        )
    if said is None:
        return []
    if not path.is_file():
        return [f"What tokens were counted by is as {RESULT} has it: {CALIBRATION} is not there."]
    if wrong := _differs(plain(recorded(path)), plain(said)):
        raise SaeuronError(
            f"'{path}' is not the calibration that '{folder / RESULT}' names (tokens.{wrong}); evaluate again with --overwrite"
        )
    return []


def _check_asked(path: Path, content: Evaluation, rows: Mapping[str, Sequence[VerdictRow]], sets: Mapping[str, Sequence[str]]) -> None:
    """Raise unless every backend has a picture of all that was asked for, and no other: who leaves pictures out chooses the figures."""
    asked = {name: sorted(_asked(row) for row in made) for name, made in rows.items()}
    if not asked:
        return
    first = next(iter(asked))
    for name, jobs in asked.items():
        if jobs != asked[first]:
            raise SaeuronError(f"'{path}' lists other prompts and seeds for {name} than for {first}; evaluate again with --overwrite")
    settings = content.settings
    by_words = sorted((name, str(seed), text) for name, prompts in sets.items() for text in prompts for seed in settings.seeds)
    if settings.protocol == "concepts" and asked[first] != by_words:
        raise SaeuronError(f"'{path}' doesn't list all prompts of each set with each seed; run the same `saeuron evaluate` again")
    if settings.protocol != "unlearncanvas":
        return
    styles = ["" if s == PLAIN else s for s in settings.styles or ()]
    wanted = sorted((o, s, str(seed)) for o in settings.objects or () for s in styles for seed in settings.seeds)
    if asked[first] != wanted:
        raise SaeuronError(
            f"'{path}' lists {len(asked[first])} pictures, not those of all objects, styles and seeds in {RESULT} ({len(wanted)}); run the same `saeuron evaluate` again"
        )


def _check_judged(path: Path, content: Evaluation, rows: Mapping[str, Sequence[VerdictRow]]) -> None:
    """Raise unless the domains that the judge is said to look at are those that it saw something of."""
    if content.settings.protocol != "unlearncanvas":
        return
    said = set(content.settings.judge.judged or ())
    seen = {d for d in DOMAINS for made in rows.values() for row in made if row[f"seen_{d}"] != NOT_JUDGED}
    if seen != said:
        raise SaeuronError(
            f"'{path}' holds verdicts on {', '.join(sorted(seen)) or 'nothing'}, the judge looks at {', '.join(sorted(said))}"
        )


def _asked(row: VerdictRow) -> tuple[str, ...]:
    if "object" in row:
        return row["object"], row["style"], row["seed"]
    if "set" in row:
        return row["set"], row["seed"], row["prompt"]
    return row["number"], row["guidance"], row["seed"], row["prompt"]


def _differs(ours: Any, theirs: Any, name: str = "") -> str:
    """The first figure that is another one; empty where all are the same."""
    if isinstance(ours, dict):
        if not isinstance(theirs, dict):
            return name
        if more := sorted(theirs.keys() - ours.keys()):
            return f"{name}.{more[0]}".lstrip(".")
        return next((found for key, value in ours.items() if (found := _differs(value, theirs.get(key), f"{name}.{key}".lstrip(".")))), "")
    if isinstance(ours, float) and isinstance(theirs, int | float):
        # Sums of floats, perhaps on another machine.
        return "" if math.isclose(ours, theirs, rel_tol=1e-9, abs_tol=1e-9) else name
    return "" if ours == theirs else name


def _pictures(folder: Path, rows: Sequence[VerdictRow]) -> list[str]:
    gone, root = 0, folder.resolve()
    for row in rows:
        name = row["file"]
        try:
            if "\0" in name or not (folder / name).resolve().is_relative_to(root):
                raise SaeuronError(f"'{folder / VERDICTS}': the picture '{name}' lies outside the folder")
            found = file_sha256(folder / name) if (folder / name).is_file() else None
        except (OSError, RuntimeError) as error:  # also a name that no file can have, and a link in a circle
            raise SaeuronError(
                f"'{folder / VERDICTS}': the picture '{name[:100]}' can't be read: {getattr(error, 'strerror', None) or 'a link in a circle'}"
            ) from None
        if found is None:
            gone += 1
        elif found != row["sha256"]:
            raise SaeuronError(
                f"'{folder / name}' is not the picture that was judged; run the same `saeuron evaluate` again, which makes it anew"
            )
    return [f"{gone} of the evaluation's {len(rows)} pictures are not there, so their hashes were not compared."] if gone else []
