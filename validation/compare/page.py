"""Writes a comparison as Markdown and as a page, with one sheet of pictures of all models."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup
from PIL import Image

from ...editor.common.writing import whole_file
from ..evidence.verdicts import PICTURES, plain_name
from ..page.figures import SENSITIVE
from ..page.render import environment, markdown_text, page_css, policy_of
from ..page.sheets import picture_rows
from .results import MARKDOWN, PAGE, SHEET, Comparison
from .table import NOTE, header, rows, said

if TYPE_CHECKING:
    from .plan import ComparisonPlan

_SHOWN = 4
"""columns of pictures of the concepts, and as many of others"""


def write_pages(plan: ComparisonPlan, found: Comparison, output: Path) -> None:
    """Write table, page and sheet into `output`."""
    sheet = io.BytesIO()
    picture_sheet(plan, found, output).save(sheet, "PNG", optimize=True)
    with whole_file(output / SHEET) as made:
        made.write_bytes(sheet.getvalue())
    with whole_file(output / MARKDOWN) as made:
        made.write_text(markdown(found), encoding="utf-8")
    with whole_file(output / PAGE) as made:
        made.write_text(html(found, sheet.getvalue()), encoding="utf-8")


def picture_sheet(plan: ComparisonPlan, found: Comparison, output: Path) -> Image.Image:
    """A row a model, the same prompts and seeds in each: of the concepts on the left, of others on the right."""
    first = plan.entries[0].evaluation
    rest = set(first.rest)
    own = [i for i in range(len(first.wanted)) if i not in rest]
    places = [*_spread(own), *_spread(sorted(rest))]
    shown = []
    for model in found.models:
        backend = next((e.backend for e in plan.entries if e.name == model.name), "unedited")
        # The original as a subject of its own draws as a pipeline.
        folder = output / model.folder / PICTURES / plain_name(backend)
        shown.append((model.name, [_opened(folder / f"{first.wanted[i].name}.png") for i in places]))
    return picture_rows(shown, 96, [first.wanted[i].prompt for i in places])


def markdown(found: Comparison) -> str:
    """The table, and what was done."""
    lines = [header(found), ["---"] * len(header(found))]
    lines += [[markdown_text(f"{a} ({b})" if b else a) for a, b in row] for row in rows(found)]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return f"{markdown_text(said(found))}\n\n{table}\n{NOTE}\n"


def html(found: Comparison, sheet: bytes) -> str:
    """One page that loads nothing from anywhere."""
    style = page_css()
    values: dict[str, Any] = {
        "title": f"{', '.join(found.concepts)}: {len(found.models)} models", "said": said(found), "note": NOTE, "header": header(found), "rows": rows(found),
        "sheet": f"data:image/png;base64,{base64.b64encode(sheet).decode()}", "style": Markup(style), "policy": Markup(policy_of(style)),
        "sensitive": bool(SENSITIVE.search(" ".join(found.concepts))), "models": found.models,
    }  # fmt: skip
    return environment().get_template("compare.html.j2").render(**values)


def _spread(places: list[int]) -> list[int]:
    """Some of them, evenly."""
    return places[:: max(1, len(places) // _SHOWN)][:_SHOWN]


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")
