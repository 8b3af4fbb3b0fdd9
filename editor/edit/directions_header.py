"""What a file of rows of `probe` says in its header: an edit as `saeuron harden` writes it, or a lean file of one concept. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ..common.errors import SaeuronError
from ..common.files import read_header
from .edit_header import FORMAT as EDIT_FORMAT
from .edit_header import read_edit_header

FORMAT = "saeuron-directions-1"
PARTS = ("timesteps", "encoder", "bias", "decoder")
"""what a lean file holds of each hookpoint"""


class DirectionsHeader(NamedTuple):
    """Whose rows lie in a file, and where they act."""

    places: Mapping[str, tuple[str, ...]]
    """concept → hookpoints"""
    model_sha256: str
    """`cache.model_sha256` of the model that they were made from"""
    lean: bool


def read_directions_header(path: Path) -> DirectionsHeader:
    """Read it.

    Raises:
        SaeuronError: missing, damaged, or a file of something else; one that doesn't say from which model it was made.
    """
    if not path.is_file():
        raise SaeuronError(f"directions: '{path}' does not exist or is no file")
    header, tensors = read_header(path)
    if header.get("format") not in (FORMAT, EDIT_FORMAT):
        raise SaeuronError(f"directions: '{path}' holds no rows of probe (format {header.get('format')!r}); saeuron harden makes them")
    if header["format"] == FORMAT:
        hookpoints = tuple(dict.fromkeys(name.rpartition("/")[0] for name in tensors))
        wanted = {f"{hookpoint}/{part}" for hookpoint in hookpoints for part in PARTS}
        if not hookpoints or set(tensors) != wanted or not header.get("concept"):
            raise SaeuronError(f"{path}: damaged directions (its header doesn't hold a concept, or not all of its rows)")
        found = DirectionsHeader({header["concept"]: hookpoints}, header.get("model_sha256", ""), True)
    else:
        edit = read_edit_header(path)
        places: dict[str, list[str]] = {}
        for said in edit.provenance.concepts:
            if said.intervention == "probe" and said.hookpoint in edit.directions and said.name in edit.chosen[said.hookpoint]:
                places.setdefault(said.name, []).append(said.hookpoint)
        if not places:
            raise SaeuronError(f"directions: '{path}' is an edit without rows of probe; saeuron harden makes them")
        found = DirectionsHeader({name: tuple(held) for name, held in places.items()}, edit.provenance.model_sha256, False)
    if not found.model_sha256:
        raise SaeuronError(f"directions: '{path}' doesn't say from which model it was made; make it again with saeuron harden")
    return found
