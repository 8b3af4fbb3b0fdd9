"""Pieces of the page as HTML: pictures, heat maps, notes. Every text from elsewhere is escaped."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from ..page.sheets import coloured, fitted, heat
from .firing import ALL, Firing

_LONGEST, _SMALL = 512, 256
"""pixels of a heat map's longer side; pictures below this keep their hard edges when they are enlarged"""


def text(value: object) -> str:
    """As text that neither a browser nor gradio's templates take for more."""
    return html.escape(str(value)).replace("$", "&#36;").replace("{", "&#123;").replace("`", "&#96;")


def notice(lines: Sequence[str]) -> str:
    """What must be known, in a box."""
    return f'<div class="try-notice" role="note">{"".join(f"<p>{text(line)}</p>" for line in lines)}</div>'


def section(title: str, lines: Sequence[str]) -> str:
    """A heading, and remarks below it."""
    return f'<div class="try-section"><h2>{text(title)}</h2>{notes(lines)}</div>'


def notes(lines: Sequence[str]) -> str:
    """Remarks in small type; empty for none."""
    return "".join(f'<p class="try-note">{text(line)}</p>' for line in lines)


def figure(title: str, picture: Image.Image | None, said: str, name: str, extra: str = "") -> str:
    """A picture under its title, or a frame that says why there is none.

    Args:
        title: above it.
        picture: to be shown.
        said: the picture's alternative text, or why there is none.
        name: by which scripts find it.
        extra: HTML between picture and title.
    """
    if picture is None:
        shown = f'<div class="try-missing">{text(said)}</div>'
    else:
        hard = ' class="try-hard"' if max(picture.size) < _SMALL else ""
        shown = f'<img{hard} src="{_data(picture)}" alt="{text(said)}" width="{picture.width}" height="{picture.height}">'
    return f'<figure id="{name}"><figcaption>{text(title)}</figcaption>{extra}{shown}</figure>'


def side_by_side(figures: Sequence[str]) -> str:
    """Figures in a row, or below one another where there is no room."""
    return f'<div class="try-pair">{"".join(figures)}</div>'


def heat_map(picture: np.ndarray, firing: Firing, concept: str, step: int) -> str:
    """Where a concept's features fired at one step, over the picture.

    Args:
        picture: uint8 `[H, W, 3]`.
        firing: its heat maps.
        concept: of `firing.maps`.
        step: from 0.
    """
    maps = firing.maps[concept]
    counts, largest = maps[step], int(maps.max())
    drawn = heat(fitted(Image.fromarray(picture), _LONGEST), counts.astype(float), max(largest, 1))
    where = f"step {step + 1} of {len(maps)}, noise level {firing.timesteps[step]:g}"
    fired, of = int((counts > 0).sum()), counts.size
    whose = "features" if concept == ALL else f"features of {concept}"
    said = f"{where}: {whose} fired at {fired} of {of} tokens"
    said += f"; at one token up to {int(counts.max())} of the {firing.features[concept][step]} that are chosen there." if fired else "."
    return (
        f'<div class="try-heat">{figure("", drawn, f"Heat map over the picture, {said}", "try-map")}'
        f'<p class="try-said" id="try-said">{text(said[:1].upper() + said[1:])}</p>{_bars(maps, step)}{_legend(largest)}</div>'
    )


def _bars(maps: np.ndarray, step: int) -> str:
    """How many tokens fire, step by step."""
    shares = (maps > 0).mean((1, 2))
    most = shares.max() or 1.0
    bars = "".join(f'<i class="{"now" if i == step else ""}" style="height:{100 * s / most:.0f}%"></i>' for i, s in enumerate(shares))
    return f'<div class="try-bars" aria-hidden="true">{bars}</div><p class="try-note">Tokens with a feature that fires, by step (highest: {most if shares.max() else 0:.0%}).</p>'


def _legend(largest: int) -> str:
    ramp = ", ".join("rgb({}, {}, {})".format(*colour) for colour in coloured(np.linspace(0, 1, 9)).tolist())
    return f'<p class="try-legend"><span>1</span><b style="background:linear-gradient(90deg, {ramp})"></b><span>{max(largest, 1)}</span> features at a token; grey: none</p>'


def _data(picture: Image.Image) -> str:
    held = io.BytesIO()
    picture.save(held, "PNG")
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()
