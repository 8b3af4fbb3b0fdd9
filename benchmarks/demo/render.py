"""Renders the pictures that the demo pipeline is trained on: 8 objects × (8 styles + plain), 32 × 32 RGB.

Every picture is drawn from a seeded generator at four times its size and scaled down, so the data set can be made
anew at any time. The styles are named after what they look like here; none borrows an artist's name.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

SIZE = 32
SCALE = 4
CANVAS = SIZE * SCALE

OBJECTS = ("House", "Car", "Star", "Boat", "Mushroom", "Heart", "Umbrella", "Cactus")
STYLES = ("Neon", "Blueprint", "Sunset", "Stripes", "Tiles", "Chalkboard", "Sepia", "Halftone")

Colour = tuple[int, int, int]
Parts = list[tuple[Image.Image, Colour]]
"""Masks (mode L, CANVAS × CANVAS) in painting order, each with its natural colour."""


def _mask(paint: Callable[[ImageDraw.ImageDraw], None]) -> Image.Image:
    image = Image.new("L", (CANVAS, CANVAS), 0)
    paint(ImageDraw.Draw(image))
    return image


def _polygon(points: list[tuple[float, float]]) -> Image.Image:
    return _mask(lambda draw: draw.polygon(points, fill=255))


def _ellipse(box: tuple[float, float, float, float]) -> Image.Image:
    return _mask(lambda draw: draw.ellipse(box, fill=255))


def _box(box: tuple[float, float, float, float]) -> Image.Image:
    return _mask(lambda draw: draw.rectangle(box, fill=255))


def _union(*masks: Image.Image) -> Image.Image:
    result = masks[0]
    for mask in masks[1:]:
        result = ImageChops.lighter(result, mask)
    return result


def _cut(mask: Image.Image, hole: Image.Image) -> Image.Image:
    return ImageChops.subtract(mask, hole)


def _house(x: float, y: float, r: float) -> Parts:
    wall = _box((x - 0.7 * r, y - 0.1 * r, x + 0.7 * r, y + 0.9 * r))
    roof = _polygon([(x - r, y - 0.1 * r), (x, y - r), (x + r, y - 0.1 * r)])
    door = _box((x - 0.2 * r, y + 0.3 * r, x + 0.2 * r, y + 0.9 * r))
    return [(wall, (226, 196, 140)), (roof, (178, 58, 48)), (door, (96, 60, 40))]


def _car(x: float, y: float, r: float) -> Parts:
    body = _box((x - r, y - 0.05 * r, x + r, y + 0.45 * r))
    cabin = _polygon([(x - 0.6 * r, y), (x - 0.35 * r, y - 0.5 * r), (x + 0.35 * r, y - 0.5 * r), (x + 0.65 * r, y)])
    left = _ellipse((x - 0.8 * r, y + 0.2 * r, x - 0.25 * r, y + 0.75 * r))
    right = _ellipse((x + 0.25 * r, y + 0.2 * r, x + 0.8 * r, y + 0.75 * r))
    return [(_union(body, cabin), (52, 96, 190)), (_union(left, right), (40, 40, 44))]


def _star(x: float, y: float, r: float) -> Parts:
    points = []
    for i in range(10):
        radius = r if i % 2 == 0 else 0.42 * r
        angle = -np.pi / 2 + i * np.pi / 5
        points.append((x + radius * np.cos(angle), y + radius * np.sin(angle)))
    return [(_polygon(points), (240, 196, 40))]


def _boat(x: float, y: float, r: float) -> Parts:
    hull = _polygon([(x - r, y + 0.35 * r), (x + r, y + 0.35 * r), (x + 0.6 * r, y + 0.9 * r), (x - 0.6 * r, y + 0.9 * r)])
    mast = _box((x - 0.07 * r, y - 0.9 * r, x + 0.07 * r, y + 0.4 * r))
    sail = _polygon([(x + 0.12 * r, y - 0.9 * r), (x + 0.85 * r, y + 0.2 * r), (x + 0.12 * r, y + 0.2 * r)])
    return [(mast, (90, 70, 50)), (sail, (236, 236, 228)), (hull, (150, 84, 40))]


def _mushroom(x: float, y: float, r: float) -> Parts:
    stem = _box((x - 0.28 * r, y, x + 0.28 * r, y + 0.95 * r))
    cap = _mask(lambda d: d.pieslice((x - r, y - 0.9 * r, x + r, y + 0.9 * r), 180, 360, fill=255))
    dots = _union(
        _ellipse((x - 0.6 * r, y - 0.5 * r, x - 0.25 * r, y - 0.15 * r)),
        _ellipse((x + 0.2 * r, y - 0.6 * r, x + 0.55 * r, y - 0.25 * r)),
    )
    return [(stem, (238, 228, 206)), (cap, (206, 40, 44)), (dots, (250, 246, 240))]


def _heart(x: float, y: float, r: float) -> Parts:
    t = np.linspace(0, 2 * np.pi, 60)
    hx = 16 * np.sin(t) ** 3
    hy = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    points = [(x + r * a / 17, y - r * b / 17) for a, b in zip(hx, hy, strict=True)]
    return [(_polygon(points), (228, 70, 110))]


def _umbrella(x: float, y: float, r: float) -> Parts:
    dome = _mask(lambda d: d.pieslice((x - r, y - r, x + r, y + r), 180, 360, fill=255))
    for offset in (-0.66, 0.0, 0.66):
        dome = _cut(dome, _ellipse((x + (offset - 0.33) * r, y - 0.2 * r, x + (offset + 0.33) * r, y + 0.2 * r)))
    stick = _box((x - 0.07 * r, y - 0.3 * r, x + 0.07 * r, y + 0.85 * r))
    hook = _mask(lambda d: d.arc((x - 0.42 * r, y + 0.55 * r, x + 0.07 * r, y + 1.05 * r), 0, 180, fill=255, width=max(2, round(0.14 * r))))
    return [(dome, (120, 60, 160)), (_union(stick, hook), (70, 60, 60))]


def _cactus(x: float, y: float, r: float) -> Parts:
    def bar(x0: float, y0: float, x1: float, y1: float) -> Image.Image:
        box = (x + x0 * r, y + y0 * r, x + x1 * r, y + y1 * r)
        return _mask(lambda d: d.rounded_rectangle(box, radius=0.16 * r, fill=255))

    plant = _union(
        bar(-0.2, -1, 0.2, 0.6), bar(-0.8, -0.45, -0.48, 0.2), bar(-0.8, -0.05, 0, 0.2), bar(0.48, -0.7, 0.8, 0), bar(0, -0.25, 0.8, 0)
    )
    pot = _polygon([(x - 0.5 * r, y + 0.5 * r), (x + 0.5 * r, y + 0.5 * r), (x + 0.35 * r, y + r), (x - 0.35 * r, y + r)])
    return [(plant, (58, 142, 66)), (pot, (196, 110, 60))]


_SHAPES: dict[str, Callable[[float, float, float], Parts]] = {
    "House": _house, "Car": _car, "Star": _star, "Boat": _boat,
    "Mushroom": _mushroom, "Heart": _heart, "Umbrella": _umbrella, "Cactus": _cactus,
}  # fmt: skip


def _flat(colour: Colour) -> Image.Image:
    return Image.new("RGB", (CANVAS, CANVAS), colour)


def _gradient(top: Colour, bottom: Colour) -> Image.Image:
    ramp = np.linspace(0, 1, CANVAS)[:, None, None]
    rows = np.asarray(top) * (1 - ramp) + np.asarray(bottom) * ramp
    return Image.fromarray(np.broadcast_to(rows, (CANVAS, CANVAS, 3)).astype(np.uint8))


def _edges(parts: Parts, width: int) -> Image.Image:
    """Outlines of all parts; a later part hides what it covers."""
    lines = Image.new("L", (CANVAS, CANVAS), 0)
    for mask, _ in parts:
        grown = mask.filter(ImageFilter.MaxFilter(2 * width + 1))
        lines = _union(_cut(lines, mask), _cut(grown, mask))
    return lines


def _paint(background: Image.Image, parts: Parts) -> Image.Image:
    image = background.copy()
    for mask, colour in parts:
        image.paste(colour, mask=mask)
    return image


def _jitter(rng: np.random.Generator, colour: Colour, amount: int = 14) -> Colour:
    return tuple(int(np.clip(c + rng.integers(-amount, amount + 1), 0, 255)) for c in colour)  # type: ignore[return-value]


def _bars(period: int, width: int, slant: int, phase: int) -> Image.Image:
    yy, xx = np.mgrid[0:CANVAS, 0:CANVAS]
    return Image.fromarray((((xx + slant * yy + phase) % period) < width).astype(np.uint8) * 255)


def _plain(rng: np.random.Generator, parts: Parts) -> Image.Image:
    return _paint(_flat(_jitter(rng, (232, 230, 224), 10)), parts)


def _neon(rng: np.random.Generator, parts: Parts) -> Image.Image:
    colour = tuple(int(255 * c) for c in colorsys.hsv_to_rgb(float(rng.choice([0.83, 0.5, 0.33])), 0.85, 1.0))
    lines = _edges(parts, 4)
    image = _flat((8, 6, 16))
    image.paste(colour, mask=lines.filter(ImageFilter.GaussianBlur(6)).point(lambda v: min(255, v)))
    image.paste(colour, mask=lines)
    return image


def _blueprint(rng: np.random.Generator, parts: Parts) -> Image.Image:
    image = _flat(_jitter(rng, (28, 70, 170), 8))
    grid = _union(_bars(32, 4, 0, int(rng.integers(32))), _bars(32, 4, 0, int(rng.integers(32))).transpose(Image.Transpose.ROTATE_90))
    image.paste((70, 112, 204), mask=grid)
    image.paste((236, 242, 255), mask=_edges(parts, 4))
    return image


def _sunset(rng: np.random.Generator, parts: Parts) -> Image.Image:
    image = _gradient(_jitter(rng, (120, 40, 120)), _jitter(rng, (255, 170, 60)))
    image.paste((24, 12, 28), mask=_union(*[mask for mask, _ in parts]))
    return image


def _stripes(rng: np.random.Generator, parts: Parts) -> Image.Image:
    bars = _bars(32, 16, 1, int(rng.integers(32)))
    image = _flat((250, 250, 250))
    image.paste((235, 90, 160), mask=bars)
    body = _flat((20, 120, 110))
    body.paste((90, 220, 190), mask=bars.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    image.paste(body, mask=_union(*[mask for mask, _ in parts]))
    return image


def _tiles(rng: np.random.Generator, parts: Parts) -> Image.Image:
    image = _paint(_flat(_jitter(rng, (120, 170, 190), 10)), parts)
    cells = CANVAS // 8
    image = image.resize((cells, cells), Image.Resampling.BOX).resize((CANVAS, CANVAS), Image.Resampling.NEAREST)
    grout = _union(_bars(16, 4, 0, 0), _bars(16, 4, 0, 0).transpose(Image.Transpose.ROTATE_270))
    image.paste((52, 56, 62), mask=grout)
    return image


def _chalkboard(rng: np.random.Generator, parts: Parts) -> Image.Image:
    image = _flat(_jitter(rng, (34, 74, 52), 6))
    dust = Image.fromarray(rng.integers(70, 256, (CANVAS // 2, CANVAS // 2), dtype=np.uint8)).resize((CANVAS, CANVAS))
    image.paste((236, 234, 214), mask=ImageChops.multiply(_edges(parts, 5), dust))
    fill = _union(*[mask for mask, _ in parts]).point(lambda v: v // 4)
    image.paste((236, 234, 214), mask=fill)
    return image


def _sepia(rng: np.random.Generator, parts: Parts) -> Image.Image:
    grey = np.asarray(_paint(_flat((232, 232, 232)), parts).convert("L"), dtype=np.float32)[..., None] / 255
    yy, xx = np.mgrid[-1 : 1 : CANVAS * 1j, -1 : 1 : CANVAS * 1j]
    vignette = 1 - 0.4 * np.clip(xx**2 + yy**2 - 0.5, 0, 1)[..., None]
    tone = grey * np.asarray([250, 205, 150]) + (1 - grey) * np.asarray([60, 34, 14])
    return Image.fromarray((tone * vignette).clip(0, 255).astype(np.uint8))


def _halftone(rng: np.random.Generator, parts: Parts) -> Image.Image:
    yy, xx = np.mgrid[0:CANVAS, 0:CANVAS]
    dx, dy = int(rng.integers(16)), int(rng.integers(16))
    dots = ((xx + dx) % 16 - 8) ** 2 + ((yy + dy) % 16 - 8) ** 2 < 24
    image = _flat((252, 222, 30))
    image.paste((255, 130, 20), mask=Image.fromarray(dots.astype(np.uint8) * 255))
    image.paste((30, 60, 220), mask=_union(*[mask for mask, _ in parts]))
    image.paste((0, 0, 0), mask=_edges(parts, 3))
    return image


_PAINTERS: dict[str | None, Callable[[np.random.Generator, Parts], Image.Image]] = {
    None: _plain, "Neon": _neon, "Blueprint": _blueprint, "Sunset": _sunset, "Stripes": _stripes,
    "Tiles": _tiles, "Chalkboard": _chalkboard, "Sepia": _sepia, "Halftone": _halftone,
}  # fmt: skip


def render(object_name: str, style: str | None, rng: np.random.Generator) -> np.ndarray:
    """Draw one picture.

    Args:
        object_name: one of `OBJECTS`.
        style: one of `STYLES`, or None for the plain picture.
        rng: source of place, size and colour variation.

    Returns:
        uint8 array `[32, 32, 3]`.
    """
    r = CANVAS * rng.uniform(0.30, 0.38)
    x, y = CANVAS * rng.uniform(0.44, 0.56), CANVAS * rng.uniform(0.44, 0.56)
    parts = [(mask, _jitter(rng, colour)) for mask, colour in _SHAPES[object_name](x, y, r)]
    image = _PAINTERS[style](rng, parts)
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX))


def dataset(per_pair: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs of object and style (plain included), `per_pair` pictures each.

    Returns:
        pictures uint8 `[N, 32, 32, 3]`, object index int64 `[N]`, style index int64 `[N]` (`len(STYLES)` = plain).
    """
    rng = np.random.default_rng(seed)
    styles: list[str | None] = [*STYLES, None]
    pictures, objects, looks = [], [], []
    for o, object_name in enumerate(OBJECTS):
        for s, style in enumerate(styles):
            for _ in range(per_pair):
                pictures.append(render(object_name, style, rng))
                objects.append(o)
                looks.append(s)
    return np.stack(pictures), np.asarray(objects), np.asarray(looks)
