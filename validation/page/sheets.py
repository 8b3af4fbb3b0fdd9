"""Pictures for people, drawn with PIL: rows of pictures, and heat maps of features over them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_GAP, _LINE, _TEXT, _SMALL = 6, 18, 14, 12
_INK, _PALE, _PAPER = "#1a1a1a", "#666666", "white"
# Blue, violet, red, orange, pale yellow: brightness grows with the value, so it can be read without colours too.
_COLOURS = np.array([[35, 25, 130], [101, 21, 110], [187, 55, 84], [249, 142, 9], [252, 255, 164]], float)


class HeatRow(NamedTuple):
    """One picture with its maps."""

    caption: str
    note: str
    """right of the caption"""
    picture: Image.Image
    maps: Sequence[np.ndarray]
    """`[h, w]` each, non-negative, one a column"""
    labels: Sequence[str]
    """one below each map"""


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def fitted(picture: Image.Image, longest: int) -> Image.Image:
    """The picture with its longer side of that many pixels; small ones keep their hard edges."""
    scale = longest / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.convert("RGB").resize(size, Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS)


def shortened(draw: ImageDraw.ImageDraw, text: str, width: float, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The text, cut with an ellipsis where it is wider than `width` pixels."""
    if draw.textlength(text, font=font) <= width:
        return text
    while text and draw.textlength(text + "…", font=font) > width:
        text = text[:-1]
    return text.rstrip() + "…"


def picture_rows(rows: Sequence[tuple[str, Sequence[Image.Image]]], size: int = 128, captions: Sequence[str] = ()) -> Image.Image:
    """Rows of pictures under one another, each with a title; captions stand above the columns.

    Args:
        rows: title and pictures, as many in each row.
        size: pixels of a picture's longer side.
        captions: one a column, or none.
    """
    shown = [(title, [fitted(p, size) for p in pictures]) for title, pictures in rows]
    width, height = shown[0][1][0].size
    top = _LINE if captions else 0
    sheet = Image.new("RGB", ((width + _GAP) * len(shown[0][1]) + _GAP, top + len(shown) * (height + _LINE + _GAP) + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    # Columns are narrow: what every caption begins with says nothing about them.
    shared = os.path.commonprefix(list(captions)).rpartition(" ")[0] if len(captions) > 1 else ""
    for x, text in enumerate(c.removeprefix(shared).strip() or c for c in captions):
        draw.text((_GAP + x * (width + _GAP), 3), shortened(draw, text, width, _font(_SMALL)), fill=_PALE, font=_font(_SMALL))
    for y, (title, pictures) in enumerate(shown):
        at = top + y * (height + _LINE + _GAP)
        draw.text((_GAP, at + 1), shortened(draw, title, sheet.width - 2 * _GAP, _font(_TEXT)), fill=_INK, font=_font(_TEXT))
        for x, picture in enumerate(pictures):
            sheet.paste(picture, (_GAP + x * (width + _GAP), at + _LINE))
    return sheet


def coloured(values: np.ndarray) -> np.ndarray:
    """Values 0 to 1 `[...]` → colours uint8 `[..., 3]`."""
    places = np.linspace(0, 1, len(_COLOURS))
    return np.stack([np.interp(values, places, _COLOURS[:, i]) for i in range(3)], -1).round().astype(np.uint8)


def heat(picture: Image.Image, values: np.ndarray, largest: float) -> Image.Image:
    """A map over a pale grey picture; where it is zero, only the picture is seen.

    Args:
        picture: at its final size.
        values: `[h, w]`; each value becomes one block, so that tokens can be told apart.
        largest: the value of the brightest colour.
    """
    block = Image.fromarray(np.clip(values / max(largest, 1e-12), 0, 1).astype(np.float32))
    value = np.asarray(block.resize(picture.size, Image.Resampling.NEAREST))
    # Lifted off black and taken off white, so that weakly active tokens are seen on any picture.
    grey = 70 + np.asarray(picture.convert("L"), float)[..., None].repeat(3, -1) * 0.45
    weight = np.where(value > 0, 0.6 + 0.35 * value, 0.0)[..., None]
    return Image.fromarray((grey * (1 - weight) + coloured(value) * weight).round().astype(np.uint8))


def heat_sheet(title: str, subtitle: str, columns: Sequence[str], rows: Sequence[HeatRow], largest: float, size: int = 144) -> Image.Image:
    """A sheet of pictures with their maps, all in one scale of colours.

    Args:
        title: the first line.
        subtitle: the second.
        columns: headings of the maps.
        rows: pictures with as many maps as there are columns.
        largest: the value of the brightest colour.
        size: pixels of a picture's longer side.
    """
    shown = [fitted(row.picture, size) for row in rows]
    width, height = max(p.width for p in shown), max(p.height for p in shown)
    pitch = width + _GAP
    head = 2 * _LINE + 2 * _GAP + _LINE
    step = _LINE + height + _LINE + _GAP
    sheet = Image.new("RGB", (max(2 * _GAP + pitch * (len(columns) + 1), 640), head + step * len(rows) + 2 * _LINE + 2 * _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    text, small, room = _font(_TEXT), _font(_SMALL), sheet.width - 2 * _GAP
    draw.text((_GAP, _GAP), shortened(draw, title, room, _font(_TEXT + 2)), fill=_INK, font=_font(_TEXT + 2))
    draw.text((_GAP, _GAP + _LINE + 2), shortened(draw, subtitle, room, small), fill=_PALE, font=small)
    for x, name in enumerate(("picture", *columns)):
        draw.text((_GAP + x * pitch, head - _LINE), shortened(draw, name, width, text), fill=_INK, font=text)
    for y, (row, picture) in enumerate(zip(rows, shown, strict=True)):
        at = head + y * step
        noted = draw.textlength(row.note, font=small)
        caption = shortened(draw, row.caption, room - noted - 2 * _GAP, text)
        draw.line((_GAP, at, sheet.width - _GAP, at), fill="#dddddd")
        draw.text((_GAP, at + 1), caption, fill=_INK, font=text)
        draw.text((_GAP + draw.textlength(caption, font=text) + 2 * _GAP, at + 2), row.note, fill=_PALE, font=small)
        sheet.paste(picture, (_GAP, at + _LINE))
        for x, (values, label) in enumerate(zip(row.maps, row.labels, strict=True), 1):
            sheet.paste(heat(picture, values, largest), (_GAP + x * pitch, at + _LINE))
            draw.text((_GAP + x * pitch, at + _LINE + height + 1), shortened(draw, label, width, small), fill=_PALE, font=small)
    _legend(sheet, draw, head + step * len(rows) + _GAP, largest)
    return sheet


def _legend(sheet: Image.Image, draw: ImageDraw.ImageDraw, at: int, largest: float) -> None:
    small, bar = _font(_SMALL), 160
    ramp = coloured(np.linspace(0, 1, bar))[None].repeat(_SMALL, 0)
    draw.text((_GAP, at), "0", fill=_INK, font=small)
    sheet.paste(Image.fromarray(ramp), (_GAP + 14, at + 2))
    draw.text((_GAP + 14 + bar + 6, at), f"{largest:.3g}", fill=_INK, font=small)
    x = _GAP + 14 + bar + 64
    draw.text((x, at), "activation, one scale for the sheet; grey: not active", fill=_PALE, font=small)
    draw.text((x, at + _LINE), "below each map: its largest value, share of active tokens", fill=_PALE, font=small)
