"""Fréchet distances of an evaluation: a backend's pictures from the unedited model's, and from a folder of reference pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...editor.common.errors import SaeuronError, first_line
from ...editor.common.files import file_sha256
from ..judges.demo import DemoJudge
from ..judges.judge import Judge
from .frechet import Inception, frechet
from .picture_backends import UNEDITED
from .results import Distance, Reference

REFERENCE = "reference"
_CHUNK = 32
_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def opened(files: Sequence[Path]) -> list[Any]:
    """PIL pictures, RGB."""
    from PIL import Image

    found = []
    for file in files:
        with Image.open(file) as picture:
            found.append(picture.convert("RGB"))
    return found


class Distances:
    """Features of the reference, taken at once, so that what is wrong with it shows before any picture is made.

    Args:
        judges: the demo's gives features of its own; others don't.
        fid: weights of FID's Inception network.
        reference: folder of pictures, its subfolders included.

    Raises:
        SaeuronError: weights or pictures that can't be read; a reference without features to compare it by.
    """

    def __init__(self, judges: Sequence[Judge], fid: Path | None, reference: Path | None) -> None:
        self._kinds: list[tuple[str, Callable[[Sequence[Any]], np.ndarray]]] = []
        self._kinds += [("Fréchet distance (demo classifier features)", judge.features) for judge in judges if isinstance(judge, DemoJudge)]
        if fid is not None:
            self._kinds.append(("FID (Inception features by torch-fidelity)", Inception(fid).features))
        self.fid_weights_sha256 = None if fid is None else file_sha256(fid)
        self.reference: Reference | None = None
        self._reference: list[np.ndarray] = []
        if reference is None:
            return
        if not self._kinds:
            raise SaeuronError("--reference is compared by features: give --fid FILE (Inception's weights), or use the demo's judge")
        files = reference_files(reference)
        self._reference = [self._features(of, files) for _, of in self._kinds]
        total = hashlib.sha256("".join(file_sha256(f) for f in files).encode()).hexdigest()
        self.reference = Reference(reference.resolve().name, len(files), total)

    def between(self, pictures: Mapping[str, Sequence[Path]], rest: Sequence[int]) -> list[Distance]:
        """Distances on all pictures, and on those that ask for none of the removed concepts.

        Args:
            pictures: backend → files, in the same order for all.
            rest: places of the pictures that ask for none of the removed; none where that isn't known.
        """
        found = []
        for place, (name, of) in enumerate(self._kinds):
            features = {backend: self._features(of, files) for backend, files in pictures.items()}
            pairs = [(b, UNEDITED) for b in pictures if b != UNEDITED and UNEDITED in pictures]
            pairs += [(b, REFERENCE) for b in pictures if self._reference]
            for backend, against in pairs:
                values = []
                for chosen in (range(len(features[backend])), sorted(rest)):
                    index = np.array(chosen, dtype=int)
                    other = features[UNEDITED][index] if against == UNEDITED else self._reference[place]
                    values.append(frechet(other, features[backend][index]) if len(index) > 1 else None)
                found.append(Distance(
                    name=name, backend=backend, against=against, all=values[0], all_pictures=len(features[backend]), rest=values[1], rest_pictures=len(rest),
                ))  # fmt: skip
        return found

    def _features(self, of: Callable[[Sequence[Any]], np.ndarray], files: Sequence[Path]) -> np.ndarray:
        # In pieces: thousands of pictures don't fit into memory.
        return np.concatenate([_of_files(of, files[i : i + _CHUNK]) for i in range(0, len(files), _CHUNK)])


def reference_files(folder: Path) -> list[Path]:
    """Pictures of a folder and its subfolders, sorted.

    Raises:
        SaeuronError: no folder, or fewer than two pictures.
    """
    if not folder.is_dir():
        raise SaeuronError(f"--reference '{folder}' is no folder; give one of pictures ({', '.join(_ENDINGS)})")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _ENDINGS and path.is_file())
    if len(found) < 2:
        raise SaeuronError(f"--reference '{folder}' holds {len(found)} pictures ({', '.join(_ENDINGS)}); a distance needs at least two")
    return found


def _of_files(of: Callable[[Sequence[Any]], np.ndarray], files: Sequence[Path]) -> np.ndarray:
    found: list[Any] = []
    for file in files:
        try:
            (picture,) = opened([file])
        except Exception as error:  # a damaged file can raise anything
            raise SaeuronError(f"'{file}' is no picture that can be read: {first_line(error, 200)}") from None
        found.append(picture)
    # A network takes pictures of one size at a time.
    parts = [[i for i, p in enumerate(found) if p.size == size] for size in dict.fromkeys(p.size for p in found)]
    features = np.concatenate([of([found[i] for i in places]) for places in parts])
    return features[np.argsort(np.concatenate(parts))]
