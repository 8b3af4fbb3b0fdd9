"""torch's normal noise of a CPU generator, so that a seed gives the picture that it gives in diffusers.

Sources: aten/src/ATen/core/MT19937RNGEngine.h, TransformationHelper.h, DistributionsHelper.h and
native/cpu/DistributionTemplates.h of pytorch. Values differ from torch's by the rounding of log, sine and cosine alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ....editor.common.errors import SaeuronError
from ....editor.common.seeds import LARGEST_SEED

_BLOCK = 16
"""torch fills this many values at a time; fewer are drawn one by one, in double precision"""


def torch_randn(seed: int, shape: Sequence[int]) -> np.ndarray:
    """`torch.randn(shape, generator=torch.Generator().manual_seed(seed))` on the CPU, float32; see `torch_draws`."""
    return torch_draws(seed, shape, 1)[0]


def torch_draws(seed: int, shape: Sequence[int], draws: int) -> np.ndarray:
    """What `torch.randn(shape, generator=generator)` gives so many times after `generator = torch.Generator().manual_seed(seed)`: float32 `[draws, *shape]`.

    Args:
        seed: 0 to 2³² − 1.
        shape: of one draw.
        draws: how many; they follow one another.

    Raises:
        SaeuronError: a seed outside of these bounds.
    """
    if not 0 <= seed <= LARGEST_SEED:
        raise SaeuronError(f"seed {str(seed)[:20]}: a seed lies between 0 and {LARGEST_SEED}")
    size = math.prod(shape)
    # numpy's legacy seeding and bounds over all 32 bits give the Mersenne twister's own words, as torch takes them.
    twister = np.random.RandomState(seed)

    def words(count: int) -> np.ndarray:
        return twister.randint(0, 2**32, count, dtype=np.uint32)

    def draw() -> np.ndarray:
        whole = size - size % _BLOCK
        drawn = words(size)
        found = np.empty(size, np.float32)
        found[:whole] = _blocks(drawn[:whole])
        if whole < size:
            # What is left over does not fill a block: torch draws the last sixteen values anew.
            found[-_BLOCK:] = _blocks(words(_BLOCK))
        return found

    if size < _BLOCK:
        # The second value of a pair waits for the next draw.
        total = size * draws
        found = _one_by_one(words(4 * ((total + 1) // 2)))[:total].astype(np.float32)
    else:
        found = np.concatenate([draw() for _ in range(draws)])
    return found.reshape(draws, *shape)


def initial_noise(seeds: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """Unit-variance noise `[B, *shape]`, one generator a seed, as `editor.sampling.initial_latents` draws it."""
    return np.stack([torch_randn(int(seed), shape) for seed in seeds])


def _blocks(words: np.ndarray) -> np.ndarray:
    """Box-Muller in float32 on blocks of sixteen: the first eight values are radii, the others angles."""
    uniform = ((words & np.uint32(2**24 - 1)).astype(np.float32) * np.float32(2.0**-24)).reshape(-1, 2, _BLOCK // 2)
    radius = np.sqrt(np.float32(-2) * np.log(np.float32(1) - uniform[:, 0]))
    angle = np.float32(2 * math.pi) * uniform[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)


def _one_by_one(words: np.ndarray) -> np.ndarray:
    """Box-Muller in float64: a pair of 53-bit numbers gives two values."""
    high, low = words.reshape(-1, 2).astype(np.uint64).T
    uniform = (((high << np.uint64(32)) | low) & np.uint64(2**53 - 1)).astype(np.float64) * 2.0**-53
    angle, radius = 2 * math.pi * uniform[0::2], np.sqrt(-2 * np.log1p(-uniform[1::2]))
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)
