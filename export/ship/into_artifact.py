"""Puts a report into a finished artifact: page, Markdown, pictures and a card with the evidence, the manifest last. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ...editor.common.errors import SaeuronError
from ...editor.common.writing import locked, scratch, written
from ...validation.artifact import contents, manifest
from ...validation.artifact.manifest import Manifest, file_of
from ...validation.page.render import Pages
from .card import REPORT, REPORT_PICTURES, model_card
from .switch import switch

HTML, CARD = "validation/report.html", "README.md"
_PICTURES = f"validation/{REPORT_PICTURES}"
_REWRITTEN = (CARD, HTML, REPORT, f"{_PICTURES}/*")
_PLACE = "saeuron-report"


def check_unsigned(root: Path) -> None:
    """Raise `SaeuronError` if the artifact is signed, which a report in it would make untrue."""
    signed = sorted(path.name for path in root.glob("*.sig"))
    if signed:
        raise SaeuronError(
            f"'{root}' is signed ({', '.join(signed)}), and a report in it would break that; write it beside the artifact, or remove {signed[0]}, put the report in and sign again"
        )


def put_report(root: Path, overwrite: bool, make: Callable[[], Pages], progress: Callable[[str], None] = lambda text: None) -> None:
    """Write a report into an artifact.

    Args:
        root: artifact folder.
        overwrite: replace the report that lies there, and mend what a killed run left.
        make: the report; called once the files were checked.
        progress: told what is being done.

    Raises:
        SaeuronError: signed, changed files, a report that is there already, another process at work, no room. Then the artifact is as it was.
    """
    with locked(root, f"another process is writing into '{root}'; wait until it has ended"):
        check_unsigned(root)
        record = manifest.read(root)
        for name in (HTML, REPORT, _PICTURES):
            if not overwrite and (root / name).exists():
                raise SaeuronError(f"'{root / name}' exists; --overwrite replaces the report in the artifact")
        progress("checking files")
        contents.check(root, record, rewriting=_REWRITTEN if overwrite else ())
        progress("writing the report")
        made = make()
        with written(root), scratch(root, _PLACE) as place:
            _write(root, place, record, made)
            switch(root, place, [HTML, REPORT, _PICTURES, CARD])


def _write(root: Path, place: Path, record: Manifest, made: Pages) -> None:
    """The new files and the manifest that lists them, in a folder of their own."""
    files = {HTML: made.html.encode(), REPORT: made.markdown.encode(), CARD: model_card(record, made.markdown).encode()}
    files |= {f"{_PICTURES}/{name}": png for name, png in made.pictures.items()}
    if made.pictures:
        (place / REPORT_PICTURES).mkdir()
    for name, content in files.items():
        (place / name.removeprefix("validation/")).write_bytes(content)
    kept = {name: file for name, file in record.files.items() if name not in files and not name.startswith(f"{_PICTURES}/")}
    record.files = dict(sorted({**kept, **{name: file_of(content) for name, content in files.items()}}.items()))
    (place / manifest.NAME).write_bytes(manifest.encode(record))
