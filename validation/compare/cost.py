"""What a forward of an edited network costs beside the original's."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from ...editor.denoisers.families import denoiser_of, family_of, network_of, sizes_of
from .results import Cost


def forward_cost(edited: Any, original: Any, rounds: int) -> Cost:
    """Time forwards of two pipelines' networks in turn, so that whatever else the machine does meets both.

    Args:
        edited: a pipeline.
        original: the one that it was made from, on the same device.
        rounds: forwards of each, after one that isn't counted; which one goes first changes from round to round.
    """
    calls = [_call(pipeline) for pipeline in (original, edited)]
    ratios = []
    with torch.no_grad():
        for number in range(rounds + 1):
            seconds = [0.0, 0.0]
            for which in (0, 1) if number % 2 else (1, 0):
                _wait(original)
                began = time.perf_counter()
                calls[which]()
                _wait(original)
                seconds[which] = time.perf_counter() - began
            if number:
                ratios.append(seconds[1] / seconds[0])
    low, ratio, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return Cost(ratio, low, high, rounds)


def _call(pipeline: Any) -> Any:
    """A forward of two rows, as guidance makes them of one picture, in the middle of the noise levels."""
    network = network_of(pipeline)
    denoiser, made = denoiser_of(network), torch.Generator().manual_seed(0)
    shapes = denoiser.shapes(network.config, 2, sizes_of(pipeline).noise(None, None)[-2:], family_of(pipeline).text_tokens(pipeline))
    given = {n: torch.ones(s, dtype=torch.int64) if n in denoiser.whole else torch.randn(s, generator=made) for n, s in shapes.items()}
    given |= {name: torch.from_numpy(value) for name, value in denoiser.at_level(500.0, 2).items()}
    types = dict.fromkeys(denoiser.float32, torch.float32) | dict.fromkeys(denoiser.whole, torch.int64)
    wide = {name: value.to(network.device, types.get(name, network.dtype)) for name, value in given.items()}
    return lambda: denoiser.call(network, wide)


def _wait(pipeline: Any) -> None:
    if network_of(pipeline).device.type == "cuda":
        torch.cuda.synchronize()
