"""Adds engines to a finished artifact: built apart, put in place together with the record of them. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ...editor.common.errors import SaeuronError
from ...editor.common.writing import locked, scratch, written
from ...validation.artifact import contents, engines, manifest
from ...validation.artifact.engines import Target
from ...validation.artifact.manifest import Manifest, file_of
from ..formats.tensorrt import PLACE, EngineSettings, build_targets
from .card import evidence_in, model_card
from .switch import switch


def add_engines(
    root: Path, settings: EngineSettings, targets: Sequence[Target], overwrite: bool = False, progress: Callable[[str], None] = lambda text: None
) -> tuple[Manifest, list[str]]:  # fmt: skip
    """Build engines into an artifact.

    Args:
        root: artifact folder.
        settings: what is asked for.
        targets: from `tensorrt.ready`.
        overwrite: replace engines of the same targets, whatever state they are in.
        progress: told what is being done.

    Returns:
        the manifest as written; names of the targets' folders.

    Raises:
        SaeuronError: another build is at work there, engines that are there already, a changed file, a failed build. Then the artifact is
            as it was.
    """
    names = [t.folder for t in targets]
    with locked(root, f"another build is writing into '{root}'; wait until it has ended"):
        # Read under the lock: what another build has just added stays.
        record = manifest.read(root, replacing=names)
        check_free(root, names, overwrite)
        progress("checking files")
        contents.check(root, record, replacing=names)
        with written(root), scratch(root, PLACE) as place:
            made = build_targets(root, record, settings, targets, place, progress)
            record.formats = sorted({*record.formats, *(entry.backend for entry in made.values())})
            record.engines |= made
            card = model_card(record, evidence_in(root, record)).encode()
            record.files |= {f"{engines.FOLDER}/{n}/{name}": file for n in names for name, file in contents.hashes(place / n).items()}
            record.files["README.md"] = file_of(card)
            record.files = dict(sorted(record.files.items()))
            (place / "README.md").write_bytes(card)
            (place / manifest.NAME).write_bytes(manifest.encode(record))
            switch(root, place, [*(f"{engines.FOLDER}/{n}" for n in names), "README.md"])
    return record, names


def check_free(root: Path, names: Sequence[str], overwrite: bool) -> None:
    """Raise `SaeuronError` if engines of these targets lie there, or are on record, and mustn't be replaced."""
    known = manifest.said_engines(root)
    for name in names:
        if not overwrite and (name in known or (root / engines.FOLDER / name).exists()):
            raise SaeuronError(f"'{root}' holds engines for {name} already; --overwrite replaces them")
