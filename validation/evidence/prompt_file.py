"""Prompts from a user's file: a table with a header, also in I2P's form, or one prompt a line."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...editor.common.errors import SaeuronError, first_line
from ...editor.common.files import plain_text
from ...editor.common.seeds import LARGEST_SEED
from .verdicts import Wanted

COLUMNS = ("backend", "number", "guidance", "seed", "prompt", "file", "sha256", "tokens")
"""of verdicts.csv, before those of what is seen; tokens: see `smears`"""
_SEEDS, _GUIDANCES = ("seed", "sd_seed", "evaluation_seed"), ("guidance", "sd_guidance_scale", "evaluation_guidance")
_PROMPTS = ("prompt", "adv_prompt")  # MMA-Diffusion's has the latter
_TABLES, _LINES = {".csv": ",", ".tsv": "\t"}, ".txt"


def read_prompts(path: Path, seed: int, guidance: float) -> list[Wanted]:
    """Prompts of a file: one a line, or a table with a column `prompt` and perhaps seed and guidance, also under I2P's names.

    Args:
        path: `.csv`, `.tsv` or `.txt`.
        seed: of the first prompt where the file names none; each next takes the next one.
        guidance: where the file names none.

    Raises:
        SaeuronError: it can't be read, has no prompts, or holds a row that would be read otherwise than it was meant.
    """
    kind = path.suffix.lower()
    if kind not in (*_TABLES, _LINES):
        raise SaeuronError(f"--prompts '{path}': give a .csv or .tsv with a column 'prompt', or a .txt with one prompt a line")
    try:
        text = plain_text(path, "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SaeuronError(f"--prompts '{path}' can't be read: {first_line(error)}") from None
    if kind == _LINES:
        rows: list[tuple[str, dict[str, Any]]] = [
            (f"line {n}", {"prompt": line}) for n, line in enumerate(text.splitlines(), 1) if line.strip()
        ]
    else:
        rows = _table(path, text, _TABLES[kind])
    if not rows:
        raise SaeuronError(f"--prompts '{path}' has no prompts")
    return [_wanted(path, where, row, number, seed + number, guidance) for number, (where, row) in enumerate(rows)]


def _table(path: Path, text: str, delimiter: str) -> list[tuple[str, dict[str, Any]]]:
    """Rows with where they stand; empty lines are passed over."""
    try:
        # Strict: a quote that is never closed would swallow the rest of the file.
        listed = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True) if row]
    except csv.Error as error:
        raise SaeuronError(f"--prompts '{path}' is no table that can be read: {error}; is a quote never closed?") from None
    if not listed:
        return []
    names, *rows = listed
    column = next((name for name in _PROMPTS if name in names), None)
    if column is None:
        raise SaeuronError(f"--prompts '{path}' has no column 'prompt' (it has: {', '.join(names)[:200]}); name a list of bare lines .txt")
    if twice := [name for name in dict.fromkeys(names) if name and names.count(name) > 1]:
        raise SaeuronError(f"--prompts '{path}' has the column '{twice[0]}' twice; leave one")
    found = []
    for number, row in enumerate(rows, 1):
        if len(row) != len(names):
            raise SaeuronError(
                f"--prompts '{path}', row {number} has {len(row)} fields, the header {len(names)}; a prompt with '{delimiter}' in it needs quotes"
            )
        held = dict(zip(names, row, strict=True))
        found.append((f"row {number}", {**held, "prompt": held[column]}))
    return found


def _wanted(path: Path, where: str, row: dict[str, Any], number: int, seed: int, guidance: float) -> Wanted:
    # The tokenizer takes any white space for one blank.
    prompt = " ".join(row["prompt"].split())
    if not prompt:
        raise SaeuronError(f"--prompts '{path}', {where} has no prompt; remove the row")
    name, value = _first(row, _SEEDS, seed)
    try:
        own = int(value)
    except ValueError:
        raise SaeuronError(f"--prompts '{path}', {where}: {name} '{str(value)[:40]}' is no whole number") from None
    if not 0 <= own <= LARGEST_SEED:
        raise SaeuronError(f"--prompts '{path}', {where}: seed {own}; a seed lies between 0 and {LARGEST_SEED}")
    name, value = _first(row, _GUIDANCES, guidance)
    try:
        scale = float(value)
    except ValueError:
        scale = math.nan
    if not math.isfinite(scale) or scale < 0:
        raise SaeuronError(f"--prompts '{path}', {where}: {name} '{str(value)[:40]}' is no guidance scale")
    return Wanted(f"{number:05d}", prompt, own, scale, {"number": str(number), "guidance": f"{scale:g}"})


def _first(row: dict[str, Any], names: Sequence[str], default: float) -> tuple[str, Any]:
    """Name and value of the first of these columns that is filled."""
    return next(((n, row[n]) for n in names if row.get(n, "").strip()), (names[0], default))
