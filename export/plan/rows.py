"""Rows of `probe` that lie in a file (key `directions`): whom they serve, whether they fit the model, and opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from ...editor.common.errors import SaeuronError
from ...editor.common.files import file_sha256
from ...editor.common.names import BY_DIRECTION, file_of, normalise
from ...editor.demo import path_of
from ...editor.edit.directions_header import read_directions_header
from ...editor.edit.provenance import RowsUsed, Setting
from ...editor.features.cache import model_sha256
from ...editor.features.concepts import Concept
from .settings import Plan, Wish

if TYPE_CHECKING:
    from ...editor.edit.probe import ConceptRows


def rows_files(concept: Concept, hookpoints: Sequence[str], asked: bool) -> dict[str, str]:
    """Hookpoint → the file with a concept's rows there; none where they are to be collected.

    Args:
        concept: with its key `directions`.
        hookpoints: where `probe` is to act.
        asked: whether these were asked for, in the place of those that the concept names. What its rows don't serve is then collected.

    Raises:
        SaeuronError: no such file, or nothing of the concept in it; nothing of a hookpoint that the concept names.
    """
    if not concept.directions:
        return {}
    found = {}
    for hookpoint in map(normalise, hookpoints):
        source = concept.directions.replace("{name}", concept.name).replace("{hookpoint}", file_of(hookpoint))
        file = Path(path_of(source))
        if asked and "{hookpoint}" in concept.directions and not file.is_file():
            return {}
        places = read_directions_header(file).places
        if concept.name not in places:
            raise SaeuronError(f"concept '{concept.name}': directions '{source}' hold nothing of it, but of {', '.join(places)}")
        if hookpoint not in places[concept.name]:
            if asked:
                return {}
            raise SaeuronError(
                f"concept '{concept.name}': directions '{source}' hold nothing of it at '{hookpoint}', but at {', '.join(places[concept.name])}; correct its hookpoint"
            )
        found[hookpoint] = source
    return found


def unserved(plan: Plan) -> list[str]:
    """A line for each concept whose rows aren't used, though directions are asked for."""
    found: dict[str, str] = {}
    for wish in plan.wishes:
        known = plan.concepts.get(wish.concept)
        if known and known.directions and wish.intervention in BY_DIRECTION and not wish.rows:
            why = (
                f"serve other blocks than '{wish.hookpoint}'" if wish.intervention == "probe" else f"are for probe, not {wish.intervention}"
            )
            found.setdefault(
                wish.concept,
                f"concept '{wish.concept}': its hardened directions {why}, so mean tokens take their place; nothing is hardened",
            )
    return list(found.values())


def check_rows_model(plan: Plan, folder: Path) -> None:
    """Raise `SaeuronError` for rows of another model than the plan's, whose folder is given."""
    files = {wish.rows: wish.concept for wish in plan.wishes if wish.rows}
    if not files:
        return
    ours = model_sha256(folder, variant=plan.settings.variant)
    for source, concept in files.items():
        if read_directions_header(Path(path_of(source))).model_sha256 != ours:
            raise SaeuronError(
                f"concept '{concept}': directions '{source}' were made from another model than '{plan.model}' (digests differ); harden it on this one (saeuron harden)"
            )


def open_rows(wishes: Sequence[Wish], widths: Mapping[str, int]) -> dict[tuple[str, str], ConceptRows]:
    """(Concept, hookpoint) → rows, of the wishes that a file serves.

    Args:
        wishes: those of a plan.
        widths: hookpoint → channels of the block.

    Raises:
        SaeuronError: damaged files, rows of another width, or none where the edit is to begin.
    """
    from ...editor.edit.directions_file import load_directions

    found = {}
    for wish in wishes:
        if not wish.rows:
            continue
        held = load_directions(Path(path_of(wish.rows)), wish.concept)[wish.hookpoint]
        where, width = f"concept '{wish.concept}': directions '{wish.rows}'", held.rows[0].encoder.shape[1]
        if width != widths[wish.hookpoint]:
            raise SaeuronError(f"{where} are {width} channels wide at '{wish.hookpoint}', which has {widths[wish.hookpoint]}")
        if held.acting is not None and bool(((held.timesteps <= wish.start) & ~held.acting).any()):
            raise SaeuronError(f"{where} hold no rows above timestep {float(held.timesteps[held.acting].max()):g}; give it by --start")
        found[wish.concept, wish.hookpoint] = held
    return found


def with_source(setting: Setting, wish: Wish, rows: Mapping[tuple[str, str], ConceptRows]) -> Setting:
    """A setting with where its rows were taken from, and how many attacks had added."""
    if not wish.rows:
        return setting
    file = Path(path_of(wish.rows))
    used = RowsUsed(file.name, file_sha256(file))
    return replace(setting, added=len(rows[wish.concept, wish.hookpoint].rows) - 1, rows=used)
