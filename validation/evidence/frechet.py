"""Fréchet distance between two sets of features, each taken for normal; FID is this on Inception's features alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...editor.common.errors import SaeuronError

_BATCH = 32


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """`|mean_a − mean_b|² + tr(A + B − 2 (A B)^½)`, A and B being the covariances.

    The trace of the root is the sum of the square roots of the eigenvalues of `A^½ B A^½`, which is symmetric; no root of a product
    that isn't symmetric is taken, so singular covariances (fewer pictures than features) do no harm.

    Args:
        a: features `[pictures, width]`.
        b: of another set, as wide.

    Raises:
        SaeuronError: fewer than two pictures, or values that are not finite.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"features of shapes {list(a.shape)} and {list(b.shape)}")
    if min(len(a), len(b)) < 2:
        raise SaeuronError(f"a Fréchet distance needs at least two pictures on either side; there are {len(a)} and {len(b)}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise SaeuronError("a Fréchet distance can't be taken of features that are not finite")
    a, b = a.astype(np.float64), b.astype(np.float64)
    first, second = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    product = root @ second @ root
    shared = np.sqrt(np.linalg.eigvalsh((product + product.T) / 2).clip(0)).sum()
    distance = float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first) + np.trace(second) - 2 * shared)
    return max(distance, 0.0)  # rounding; it can't be negative


class Inception:
    """Features of FID's Inception network, by the package torch-fidelity.

    Args:
        weights: torch-fidelity's own file of them (`weights-inception-2015-12-05-6726825d.pth`).

    Raises:
        SaeuronError: the package or the file is missing, or the file is another.
    """

    def __init__(self, weights: Path) -> None:
        if not weights.is_file():
            raise SaeuronError(f"--fid '{weights}' is no file; give torch-fidelity's weights-inception-2015-12-05-6726825d.pth")
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError:
            raise SaeuronError("--fid needs torch-fidelity (which needs torchvision): pip install torch-fidelity torchvision") from None
        try:
            self._network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(weights))
        except Exception as error:  # a damaged file can raise anything
            raise SaeuronError(f"--fid '{weights}' can't be read: {(str(error).splitlines() or [''])[0][:200]}") from None

    def features(self, pictures: Sequence[Any]) -> np.ndarray:
        """PIL pictures → `[pictures, 2048]`."""
        import torch

        found = []
        with torch.no_grad():
            for start in range(0, len(pictures), _BATCH):
                arrays = [np.asarray(p.convert("RGB")) for p in pictures[start : start + _BATCH]]
                batch = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
                found.append(self._network(batch)[0].double().numpy())
        return np.concatenate(found)
