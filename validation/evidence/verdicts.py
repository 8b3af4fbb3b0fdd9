"""Pictures and what was seen on them, in a folder that a killed run goes on from."""

from __future__ import annotations

import csv
import io
import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...editor.common.errors import SaeuronError, first_line
from ...editor.common.files import file_sha256, read_json
from ...editor.common.process import Process
from ...editor.common.typed import plain, read_as, strict_json
from ...editor.common.writing import scratch, whole_file
from .picture_backends import Draw
from .results import FORMAT, Begun, Evaluation, SettingsRecord

RESULT, VERDICTS, PICTURES = "evaluation.json", "verdicts.csv", "pictures"
VerdictRow = dict[str, str]
_ALONE = Process()


@dataclass(frozen=True)
class Wanted:
    """One picture to be made and looked at."""

    name: str
    """of its file, without ending"""
    prompt: str
    seed: int
    guidance: float
    fields: VerdictRow = field(default_factory=dict)
    """further columns"""


Look = Callable[[Sequence[Path], Sequence[Wanted]], list[VerdictRow]]
"""files of pictures → columns of what is seen on each"""


def plain_name(text: str) -> str:
    """A name that any file system takes."""
    return re.sub(r"[^\w.\[\]+-]", "_", text)


def check_folder(folder: Path, settings: SettingsRecord, overwrite: bool) -> None:
    """Raise `SaeuronError` unless the folder is new, of these very settings, or an evaluation to be replaced."""
    # What a kill left of a first file is hidden.
    if not folder.exists() or (folder.is_dir() and all(path.name.startswith(".") for path in folder.iterdir())):
        return
    if not (folder / RESULT).is_file():
        raise SaeuronError(f"'{folder}' is no evaluation ({RESULT} is missing), so it is left alone; choose another --output")
    if overwrite:
        return
    known = read_as(Begun, read_json(folder / RESULT), f"'{folder / RESULT}' (--overwrite begins anew)")
    if known.format != FORMAT:
        raise SaeuronError(f"'{folder / RESULT}': format {known.format!r} is not known; --overwrite begins anew")
    held, ours = known.settings, plain(settings)
    for key in {**held, **ours}:
        if held.get(key) != ours.get(key):
            raise SaeuronError(
                f"'{folder}' holds another evaluation: {key} was {_short(held.get(key))}, now {_short(ours.get(key))}; choose another --output, or --overwrite to begin anew"
            )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def stored(folder: Path, columns: Sequence[str]) -> list[tuple[str, str]]:
    """Backend and file of every picture on a folder's lists; the pictures themselves are not looked at."""
    return [(row["backend"], row["file"]) for path in _lists(folder) for row in _read(path, columns)]


def _lists(folder: Path) -> list[Path]:
    return [p for p in (folder / VERDICTS, *sorted(folder.glob("verdicts.part-*.csv"))) if p.is_file()]


def _read(path: Path, columns: Sequence[str]) -> list[VerdictRow]:
    """Whole rows; what a kill left of a last one is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise SaeuronError(f"'{path}' is damaged; remove it to look again") from None
    whole = text[: text.rfind("\n") + 1]
    return [r for r in csv.DictReader(io.StringIO(whole, newline="")) if list(r) == list(columns) and None not in r.values()]


class Store:
    """The folder of one evaluation.

    Args:
        folder: see `check_folder`.
        columns: of verdicts.csv.
        settings: what all its pictures have in common.
        process: this process's share of the work.
        overwrite: begin anew.
    """

    def __init__(
        self, folder: Path, columns: Sequence[str], settings: SettingsRecord, process: Process = _ALONE, overwrite: bool = False
    ) -> None:
        self.folder, self.columns, self.process, self._settings = folder, list(columns), process, settings
        if process.rank == 0 and overwrite and folder.exists():
            _empty(folder)
        process.barrier()
        self.rows = {(row["backend"], row["file"]): row for path in _lists(folder) for row in _read(path, self.columns)}
        process.barrier()  # nobody writes before everybody has read
        self._part = folder / f"verdicts.part-{process.rank:04d}.csv"
        if self._part.is_file():
            self._write(self._part, _read(self._part, self.columns))  # without what a kill left of a line

    def write(self, result: Begun | Evaluation) -> None:
        """Put evaluation.json there, whole."""
        _replace(self.folder / RESULT, strict_json(result) + "\n")

    def begin(self) -> None:
        """Make the folder. Not before there is something to keep: a backend that can't be opened leaves nothing behind."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / RESULT).is_file():
            self.write(Begun(plain(self._settings), FORMAT, finished=False))

    def have(self, backend: str, wanted: Wanted) -> VerdictRow | None:
        """The row of a picture that is there as it was made."""
        row = self.rows.get((backend, self._file(backend, wanted)))
        if row is None or row["prompt"] != wanted.prompt or row["seed"] != str(wanted.seed):
            return None
        path = self.folder / row["file"]
        return row if path.is_file() and file_sha256(path) == row["sha256"] else None

    def make(
        self, backend: str, wanted: Sequence[Wanted], open_maker: Callable[[], Any], look: Look, steps: int, batch_size: int,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> tuple[list[VerdictRow], int, float]:  # fmt: skip
        """Make and look at what isn't there yet.

        Args:
            backend: whose pictures.
            wanted: all of them.
            open_maker: a context that gives a `picture_backends.Draw`; not opened where nothing is to be made.
            look: sees what is on them.
            steps: denoising steps.
            batch_size: pictures at a time.
            progress: told pictures done and pictures in all.

        Returns:
            rows in the order of `wanted`; how many this process made now, and seconds for them, looking included.
        """
        left = [u for u in units(wanted, batch_size) if any(self.have(backend, w) is None for w in u)]
        mine = left[self.process.rank :: self.process.count]
        self.process.barrier()
        before, made, begin = len(wanted) - sum(len(u) for u in left), 0, time.perf_counter()
        if mine:
            with open_maker() as draw:
                begin = time.perf_counter()
                for unit in mine:
                    progress(before + made, len(wanted))
                    missing = [w for w in unit if self.have(backend, w) is None]
                    self._run(backend, missing, draw, look, steps)
                    made += len(missing)
        seconds = time.perf_counter() - begin if mine else 0.0
        self.process.barrier()
        if self.process.count > 1:
            self.rows |= {(row["backend"], row["file"]): row for path in _lists(self.folder) for row in _read(path, self.columns)}
        progress(len(wanted), len(wanted))
        return [self.rows[backend, self._file(backend, w)] for w in wanted] if self.process.rank == 0 else [], made, seconds

    def merge(self) -> None:
        """One verdicts.csv, once everything is made."""
        self._write(self.folder / VERDICTS, self.rows.values())
        for path in self.folder.glob("verdicts.part-*.csv"):
            path.unlink()

    def _run(self, backend: str, unit: Sequence[Wanted], draw: Draw, look: Look, steps: int) -> None:
        from PIL import Image

        try:
            arrays = draw([w.prompt for w in unit], [w.seed for w in unit], steps, unit[0].guidance)
        except Exception as error:
            if not type(error).__module__.startswith("onnxruntime"):
                raise
            raise SaeuronError(f"ONNX Runtime can't run the networks: {first_line(error)}") from None
        self.begin()
        files = [self.folder / self._file(backend, w) for w in unit]
        files[0].parent.mkdir(parents=True, exist_ok=True)
        for file, array in zip(files, arrays, strict=True):
            content = io.BytesIO()
            Image.fromarray(array).save(content, format="PNG")
            _replace(file, content.getvalue())
        rows = []
        for w, file, seen in zip(unit, files, look(files, unit), strict=True):
            common = {"backend": backend, "seed": str(w.seed), "prompt": w.prompt, "file": file.relative_to(self.folder).as_posix()}
            rows.append({**common, **w.fields, "sha256": file_sha256(file), **seen})
        text = self._text(rows, header=not self._part.exists())
        with self._part.open("a", encoding="utf-8", newline="") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        self.rows |= {(row["backend"], row["file"]): row for row in rows}

    def _file(self, backend: str, wanted: Wanted) -> str:
        return f"{PICTURES}/{plain_name(backend)}/{wanted.name}.png"

    def _text(self, rows: Iterable[VerdictRow], header: bool) -> str:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def _write(self, path: Path, rows: Iterable[VerdictRow]) -> None:
        _replace(path, self._text(rows, header=True))


def _empty(folder: Path) -> None:
    """Its result last: without it nobody would know what a kill had left of the folder."""
    with scratch(folder.parent, folder.name) as apart:
        for path in sorted(folder.iterdir(), key=lambda p: p.name == RESULT):
            os.rename(path, apart / path.name)


def units(wanted: Sequence[Wanted], batch_size: int) -> list[list[Wanted]]:
    """Batches of one guidance scale, the same ones whatever is there already."""
    by_guidance: dict[float, list[Wanted]] = {}
    for w in wanted:
        by_guidance.setdefault(w.guidance, []).append(w)
    return [part[i : i + batch_size] for part in by_guidance.values() for i in range(0, len(part), batch_size)]


def _replace(path: Path, content: str | bytes) -> None:
    """Write a file that is there whole or not at all."""
    with whole_file(path) as made:
        made.write_bytes(content.encode() if isinstance(content, str) else content)
