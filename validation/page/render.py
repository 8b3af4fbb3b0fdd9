"""A report's content as one HTML page without any outside part, and as Markdown with its pictures beside it."""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import re
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup
from PIL import Image

_HERE = Path(__file__).parent
_MARKS = re.compile(r"([\\`*\[\]|~$])")
_WITHIN_WORD = re.compile(r"(?<=[^\W_])_(?=[^\W_])")


class Pages(NamedTuple):
    """One report."""

    html: str
    markdown: str
    pictures: dict[str, bytes]
    """file name → PNG; what the Markdown shows"""


def render(content: dict[str, Any], folder: str) -> Pages:
    """Write both forms.

    Args:
        content: of `content.make_content`.
        folder: name of the folder, beside the Markdown, that its pictures will lie in.
    """
    files: dict[str, bytes] = {}
    pairs = []
    shown = content["pictures"]
    for number, pair in enumerate(shown["pairs"] if shown else (), 1):
        made = {kind: _png(pair[kind]) for kind in ("before", "after")}
        files |= {f"{number}-{kind}.png": png for kind, png in made.items()}
        sources = {kind: _source(png) for kind, png in made.items()}
        pairs.append({**pair, **sources, "number": number})
    style, script = page_css(), (_HERE / "page.js").read_text(encoding="utf-8")
    values = {**content, "pictures": {**shown, "pairs": pairs} if shown else None, "features": _features(content["features"], files)}
    html = (
        environment(finalize=_kept_together)
        .get_template("page.html.j2")
        .render(**values, style=Markup(style), script=Markup(script), policy=Markup(policy_of(style, script)))
    )
    markdown = environment(finalize=markdown_text).get_template("page.md.j2").render(**values, folder=folder)
    return Pages(html, re.sub(r"\n{3,}", "\n\n", markdown).strip() + "\n", files)


def page_css() -> str:
    """The style of all pages."""
    return (_HERE / "page.css").read_text(encoding="utf-8")


def policy_of(style: str, script: str | None = None) -> str:
    """A page's policy: only this very style and script run, so that nothing smuggled into the page could."""
    scripts = "'none'" if script is None else _hash(script)
    return f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {scripts}; base-uri 'none'; form-action 'none'"


@functools.cache
def environment(**options: Any) -> jinja2.Environment:
    """Of the templates here."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, **options,
    )  # fmt: skip


def _kept_together(value: Any) -> Any:
    """A number and its percent sign on one line."""
    return value.replace(" %", "\u00a0%") if isinstance(value, str) and not isinstance(value, Markup) else value


def _features(section: dict[str, Any] | None, files: dict[str, bytes]) -> dict[str, Any] | None:
    """The section with its pictures encoded, which go into `files` too."""
    if section is None:
        return None
    rows = []
    for place, row in enumerate(section["rows"], 1):
        top = []
        for number, one in enumerate(row["top"], 1):
            made = {kind: _png(one[kind]) for kind in ("picture", "map")}
            names = {kind: f"feature-{place}-{number}-{kind}.png" for kind in made}
            files |= {names[kind]: png for kind, png in made.items()}
            top.append(
                {**one, **{kind: _source(png) for kind, png in made.items()}, **{f"{kind}_file": name for kind, name in names.items()}}
            )
        rows.append({**row, "top": top})
    return {**section, "rows": rows}


def _source(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _png(picture: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def markdown_text(value: Any) -> Markup:
    """Text that Markdown shows as it is: no markup, HTML, table cell or link can come of it. What is `Markup` already stays."""
    if isinstance(value, Markup):
        return value
    text = " ".join(str(value).split())
    text = _MARKS.sub(r"\\\1", text)
    # An underscore within a word is plain; escaping it would only make names hard to read.
    text = "".join(p if i % 2 else p.replace("_", r"\_") for i, p in enumerate(re.split(f"({_WITHIN_WORD.pattern})", text)))
    # A mark at the beginning of a list's item would make a heading, a list or a rule of it; a number's sign stays.
    text = re.sub(r"^([#+=-])(?=[#+=-]*(\s|$))", r"\\\1", text)
    text = re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", text)
    text = text.replace("://", r":\//").replace("www.", r"www\.").replace("@", r"\@")
    # Quotes stand in no attribute here.
    return Markup(escape(text, quote=False))
