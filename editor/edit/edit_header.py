"""What an edit file says in its header. Needs no torch: an export checks it before torch is imported."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..common.errors import SaeuronError
from ..common.files import parse_json, read_header
from ..common.names import RESIDUALS
from ..common.typed import Record, read_as
from .how import How
from .provenance import Provenance

FORMAT = "saeuron-edit-4"
_MOST_LATENTS = 2**31
TENSORS = ("features", "timesteps", "thresholds", "gains", "offsets", "gate_thresholds")
"""what a file holds of each hookpoint, in the order of the hash"""
DIRECTIONS = "directions/"
"""before a hookpoint's name: rows of `project` and `probe`"""
TEXT_MAP = "weights/map"
"""what it holds of edited weights; no block is called that"""


class WeightsSaid(Record):
    """What is said of an edit's weights."""

    becomes: dict[str, str]
    """concept → what its words become"""
    preserved: list[str]
    """sets of prompts that were to stay"""


@dataclass(frozen=True)
class EditHeader:
    """An edit without its tables."""

    residual: str
    latents: Mapping[str, int]
    """hookpoint → latents n of its SAE"""
    chosen: Mapping[str, Mapping[str, list[list[int]]]]
    """hookpoint → concept → features at each timestep"""
    provenance: Provenance
    weights: WeightsSaid | None = None
    directions: tuple[str, ...] = ()
    """hookpoints whose rows lie in the file, not in an SAE's"""
    how: Mapping[str, How] = field(default_factory=dict)
    """hookpoint → how, where it isn't as ever"""

    def how_at(self, hookpoint: str) -> How:
        """How this block is edited."""
        return self.how.get(hookpoint, How())

    @property
    def concepts(self) -> list[str]:
        """Names of all concepts, sorted."""
        return sorted({c for by in self.chosen.values() for c in by} | set(self.weights.becomes if self.weights else ()))

    @property
    def model(self) -> str | None:
        """The base model on record, if it can be found by that name: `demo` or a Hub id."""
        return _findable(self.provenance.model)

    def sae(self, hookpoint: str) -> str | None:
        """The SAE on record, if it can be found by that name."""
        known = self.provenance.saes.get(hookpoint)
        return _findable(known.source) if known else None


def rows_of(hookpoint: str) -> tuple[str, str, str]:
    """Names of what a file holds of a hookpoint's directions: what is read `[n, d]`, what is added to that `[n]`, what is written `[n, d]`."""
    encoder, bias, decoder = (f"{DIRECTIONS}{hookpoint}/{part}" for part in ("encoder", "bias", "decoder"))
    return encoder, bias, decoder


def edit_sha256(
    residual: str, latents: Mapping[str, int], tensors: Mapping[str, bytes], how: Mapping[str, How]
) -> str:  # fmt: skip
    """Hash of what an edit does (not of its provenance).

    Args:
        residual: its treatment of the reconstruction error.
        latents: hookpoint → latents n of its SAE.
        tensors: name in the file → raw little-endian elements.
        how: hookpoint → how, where it isn't as ever.
    """
    digest = hashlib.sha256(residual.encode())
    for hookpoint, n in sorted(latents.items()):
        digest.update(f"{hookpoint}:{n}".encode())
        for key in TENSORS:
            digest.update(key.encode() + tensors[f"{hookpoint}/{key}"])
        for key in rows_of(hookpoint):
            if (rows := tensors.get(key)) is not None:
                digest.update(key.encode() + rows)
        if hookpoint in how:
            digest.update(f"edited {how[hookpoint]}".encode())
    if TEXT_MAP in tensors:
        digest.update(TEXT_MAP.encode() + tensors[TEXT_MAP])
    return digest.hexdigest()


def _findable(source: str) -> str | None:
    """Of a local path only the last part is on record, which leads nowhere."""
    known = source == "demo" or source.startswith("demo:") or source.count("/") == 1
    return source if known and not source.startswith((".", "/", "~")) else None


def read_edit_header(path: Path) -> EditHeader:
    """Read it.

    Raises:
        SaeuronError: missing, damaged, or no edit.
    """
    header, tensors = read_header(path)
    if header.get("format") != FORMAT:
        raise SaeuronError(f"{path} is no edit file (format {header.get('format')!r}, expected {FORMAT!r})")
    try:
        residual = header["residual"]
        latents, chosen, provenance = (parse_json(header[key]) for key in ("latents", "chosen", "provenance"))
        weights, ways = (parse_json(header[key]) if key in header else None for key in ("weights", "how"))
        whole = (
            residual in RESIDUALS and isinstance(latents, dict) and isinstance(chosen, dict)
            and bool(latents or weights) and set(latents) == set(chosen) and all(_is_index(n) for n in latents.values())
            and all(_features_by_concept(by) for by in chosen.values())
        )  # fmt: skip
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise SaeuronError(f"{path}: damaged edit ({error})") from None
    if not whole:
        raise SaeuronError(f"{path}: damaged edit (its header doesn't hold hookpoints with latents and chosen features)")
    said = read_as(WeightsSaid, weights, f"{path}, weights") if weights is not None else None
    directions = tuple(h for h in latents if any(key in tensors for key in rows_of(h)))
    how = read_as(dict[str, How], ways or {}, f"{path}, how")
    if set(how) - set(latents) or not all(way.fits(h in directions, residual) for h, way in how.items()):
        raise SaeuronError(f"{path}: damaged edit (tokens that can't be edited so)")
    return EditHeader(residual, latents, chosen, read_as(Provenance, provenance, f"{path}, provenance"), said, directions, how)


def _is_index(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MOST_LATENTS


def _features_by_concept(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(rows, list) and all(isinstance(row, list) and all(_is_index(f) for f in row) for row in rows) for rows in value.values()
    )
