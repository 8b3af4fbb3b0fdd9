"""Reads what `saeuron features` wrote, for a report: the strongest pictures of an edit's features, and where in them they fire."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from safetensors import SafetensorError, safe_open

from ...editor.common.errors import SaeuronError, first_line
from ...editor.common.files import read_header, read_json
from ...editor.common.typed import Number, Record, Whole, read_as
from ...editor.edit.edit_header import EditHeader
from ..artifact.manifest import Manifest
from .sheets import fitted, heat

FORMAT = "saeuron-features-1"
MARKER, MAPS, PICTURES = "features.json", "maps.safetensors", "pictures"
_MOST, _LONGEST = 4, 320
"""pictures a feature, and pixels of a picture's longer side"""
_FILE = re.compile(rf"{PICTURES}/[0-9]{{1,9}}\.png")


class Top(Record, kw_only=True):
    """A picture in which a feature fires most; figures are one a timestep."""

    picture: Whole = 0
    """its number among all that were made"""
    file: str
    prompt: str
    seed: Whole
    score: Number = 0.0
    """largest of the means"""
    mean: list[Number] = []
    max: list[Number] = []
    active_tokens: list[Number] = []
    """mean and maximum over tokens, and the share of tokens at which it fires"""


class Feature(Record, kw_only=True):
    """A feature over all pictures; figures are one a timestep."""

    feature: Whole
    hookpoint: str
    concepts: list[str] = []
    """that it was chosen for"""
    sheet: str | None = None
    """its picture; None where it was active in none"""
    pictures: Whole
    active_in: Whole
    """of these"""
    timesteps: list[Number]
    mean: list[Number] = []
    max: list[Number] = []
    active_tokens: list[Number]
    """as for a `Top`, over all pictures"""
    top: list[Top]
    """strongest first"""


class FeatureReport(Record, kw_only=True):
    """All that `features.json` says."""

    format: str
    model: str
    saes: dict[str, str]
    """hookpoint → hash"""
    steps: Whole
    guidance: Number
    seed: Whole | None = None
    scheduler: str = ""
    features: list[Feature]


class Strongest(NamedTuple):
    """A picture in which a feature fires most."""

    of: Top
    picture: np.ndarray
    """uint8 `[H, W, 3]`"""
    map: np.ndarray
    """the same with the feature's activation over it, mean over timesteps; one scale a feature"""


class Seen(NamedTuple):
    """A feature of the edit."""

    of: Feature
    concepts: list[str]
    """that it was chosen for"""
    top: list[Strongest]


class Features(NamedTuple):
    """Features of an edit, seen in the unedited model's pictures."""

    model: str
    sampling: str
    seen: list[Seen]
    left: int
    """features of the edit that are not among them"""


def read_features(path: Path, record: Manifest, header: EditHeader) -> Features:
    """Read a folder of `saeuron features`; features that the edit leaves alone are passed over.

    Args:
        path: the folder, or its `features.json`.
        record: manifest of the artifact.
        header: of its edit.

    Raises:
        SaeuronError: missing or damaged, of another SAE, or without any feature of the edit.
    """
    path = path / MARKER if path.is_dir() else path
    if not path.is_file():
        raise SaeuronError(f"'{path}' does not exist")
    said = read_json(path)
    if said.get("format") != FORMAT:
        raise SaeuronError(f"'{path}' is of format {said.get('format')!r}; a report reads {FORMAT!r}, which `saeuron features` writes")
    content = read_as(FeatureReport, said, path)
    chosen = _chosen(header)
    seen, others = [], []
    for entry in content.features:
        at, number = entry.hookpoint, entry.feature
        ours, theirs = record.saes.get(at), content.saes.get(at)
        if ours is not None and theirs != ours.sha256:
            raise SaeuronError(f"'{path}' is of another SAE at {at}: its hash is {str(theirs)[:12]}, the artifact's is {ours.sha256[:12]}")
        if (at, number) not in chosen:
            others.append(number)
            continue
        seen.append(_seen(path, entry, chosen[at, number]))
    if not seen:
        raise SaeuronError(f"'{path}' shows no feature that this edit changes (it shows {', '.join(map(str, others[:6])) or 'none'})")
    left = len(chosen) - len({(s.of.hookpoint, s.of.feature) for s in seen})
    return Features(content.model, f"{content.steps} steps, guidance {content.guidance:g}", seen, left)


def _chosen(header: EditHeader) -> dict[tuple[str, int], list[str]]:
    """Hookpoint and feature → concepts."""
    found: dict[tuple[str, int], list[str]] = {}
    for at, by in header.chosen.items():
        for concept, steps in by.items():
            for number in sorted({n for step in steps for n in step}):
                found.setdefault((at, number), []).append(concept)
    return found


def _seen(path: Path, entry: Feature, concepts: list[str]) -> Seen:
    at, number, top = entry.hookpoint, entry.feature, entry.top
    shares, times = entry.active_tokens, entry.timesteps
    if len(shares) != len(times) or not times or not all(0 <= s <= 1 for s in shares) or not 0 <= entry.active_in <= entry.pictures:
        raise SaeuronError(f"'{path}': the figures of feature {number} don't fit together")
    shown = []
    if top:
        maps = _maps(path.parent / MAPS, f"{at}/{number}", len(top), len(times))
        largest = float(maps[:_MOST].max())
        for one, values in zip(top[:_MOST], maps, strict=False):
            picture = _picture(path.parent, path, one.file)
            shown.append(Strongest(one, np.asarray(picture), np.asarray(heat(picture, values, largest))))
    return Seen(entry, concepts, shown)


def _maps(path: Path, name: str, pictures: int, timesteps: int) -> np.ndarray:
    """Means over timesteps, `[pictures, h, w]`."""
    found = read_header(path)[1].get(name)
    if found is None or len(found[1]) != 4 or found[1][:2] != (pictures, timesteps) or 0 in found[1]:
        raise SaeuronError(f"{path}: no maps '{name}' of {pictures} pictures and {timesteps} timesteps")
    try:
        with safe_open(path, "np") as handle:
            values = handle.get_tensor(name)
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        raise SaeuronError(f"{path} can't be read: {first_line(error, 200)}") from None
    if values.dtype != np.float32 or not np.isfinite(values).all() or (values < 0).any():
        raise SaeuronError(f"{path}: '{name}' holds other things than activations")
    return values.mean(1)


def _picture(folder: Path, said: Path, name: str) -> Image.Image:
    if not _FILE.fullmatch(name):
        raise SaeuronError(f"'{said}' names a picture '{name}'; they lie in {PICTURES}/")
    try:
        with Image.open(folder / name, formats=("PNG",)) as opened:
            picture = opened.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise SaeuronError(f"'{folder / name}' is no picture: {first_line(error, 200)}") from None
    return fitted(picture, _LONGEST) if max(picture.size) > _LONGEST else picture
