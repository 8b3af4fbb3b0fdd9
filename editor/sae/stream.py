"""Activations as a stream: the running pipeline fills a buffer, training empties it in random order, nothing goes to disk.

The released code writes every activation: 50 steps × 256 tokens × 1280 channels × 2 bytes are 33 MB a picture. Here one
buffer of `pictures` pictures lies in memory. Everything in it follows from the seed and its number, so a resumed or a shared
training sees the same tokens in the same order.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file

from ..common.errors import SaeuronError
from ..common.files import read_header
from ..common.names import normalise
from ..common.writing import whole_file
from ..denoisers.families import network_of
from ..denoisers.sampling import generate, observe, scheduler_of
from ..denoisers.sampling_settings import Sampling


class Buffer(NamedTuple):
    """Tokens of some pictures over all their denoising steps, in random order."""

    tokens: dict[str, torch.Tensor]
    """hookpoint → fp16 `[N, d]`, row by row the same tokens of the same pictures"""
    steps: torch.Tensor
    """int16 `[N]`: index of the denoising step that a token is of"""
    timesteps: torch.Tensor
    """float32 `[T]`: timestep of each step"""


@dataclass(frozen=True)
class Share:
    """This process among those that fill a buffer together."""

    rank: int = 0
    count: int = 1
    gather: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor
    """`[n, …]` of each process → `[count · n, …]`, in order of rank"""


_ALONE = Share()


class ActivationStream:
    """Fills buffers.

    Args:
        pipeline: the unedited text-to-image pipeline.
        reads: hookpoint → `output` or `delta`.
        prompts: drawn at random, one a picture.
        sampling: how the pipeline is run; the latents kept are those of the conditional half.
        pictures: pictures a buffer; a multiple of `sampling.batch_size` times the number of processes.
        cache: folder for buffers; those found there are read instead of made.
        share: for several processes.
        identity: hash of the model's files; cached buffers of another model are refused.

    Raises:
        SaeuronError: no prompts, or pictures that can't be shared out evenly.
    """

    def __init__(
        self, pipeline: Any, reads: Mapping[str, str], prompts: Sequence[str], sampling: Sampling, pictures: int,
        cache: Path | None = None, share: Share = _ALONE, identity: str = "",
    ) -> None:  # fmt: skip
        if not prompts:
            raise SaeuronError("no prompts to generate from")
        unit = sampling.batch_size * share.count
        if pictures % unit:
            raise SaeuronError(
                f"{pictures} pictures a buffer can't be shared out in batches of {sampling.batch_size} to {share.count} processes; take a multiple of {unit}"
            )
        self.pipeline, self.prompts, self.sampling, self.pictures = pipeline, list(prompts), sampling, pictures
        self.reads = {normalise(name): kind for name, kind in reads.items()}
        self.cache, self.share, self._identity = cache, share, identity
        self._last: tuple[int, Buffer] | None = None

    def buffer(self, number: int, shuffle: int = 0, progress: Callable[[int, int], None] = lambda done, total: None) -> Buffer:
        """Buffer `number` (negative ones are never trained on); `shuffle` numbers its orders; `progress` hears pictures done and in all."""
        if self._last is None or self._last[0] != number:
            self._last = None  # freed before the next one is made
            self._last = number, self._cached(number) or self._fill(number, progress)
        made = self._last[1]
        order = torch.randperm(len(made.steps), generator=self._generator("order", number, shuffle))
        return Buffer({name: t[order] for name, t in made.tokens.items()}, made.steps[order], made.timesteps)

    def _generator(self, *what: Any) -> torch.Generator:
        import hashlib

        text = json.dumps([self.sampling.seed, *what])
        return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big"))

    def _fill(self, number: int, progress: Callable[[int, int], None]) -> Buffer:
        s = self.sampling
        drawn = torch.randint(len(self.prompts), (self.pictures,), generator=self._generator("prompts", number)).tolist()
        noise = torch.randint(2**31, (self.pictures,), generator=self._generator("noise", number)).tolist()
        rows: dict[str, list[torch.Tensor]] = {name: [] for name in self.reads}
        timesteps: list[float] = []
        starts = range(self.share.rank * s.batch_size, self.pictures, s.batch_size * self.share.count)
        for start in starts:
            progress(start, self.pictures)
            part = slice(start, start + s.batch_size)
            timesteps.clear()
            pieces: dict[str, list[torch.Tensor]] = {name: [] for name in self.reads}

            def look(timestep: float, seen: dict[str, torch.Tensor], pieces: dict[str, list[torch.Tensor]] = pieces) -> None:
                timesteps.append(timestep)
                for name, found in seen.items():
                    pieces[name].append(found.half().cpu())

            watched = observe(network_of(self.pipeline), self.reads, look, s.batch_size, s.guided)
            with torch.no_grad(), scheduler_of(self.pipeline, s.scheduler), watched:
                texts = [self.prompts[i] for i in drawn[part]]
                generate(self.pipeline, texts, noise[part], s.steps, s.guidance, s.height, s.width, "latent", s.batch_size)
            for name, found in pieces.items():
                rows[name].append(torch.stack(found))  # [T, B, tokens, d]
        tokens = {name: self._gathered(torch.stack(found)) for name, found in rows.items()}
        first = next(iter(tokens.values()))
        units, count, batch, positions, _ = first.shape
        steps = torch.arange(count, dtype=torch.int16)[None, :, None, None].expand(units, count, batch, positions).flatten()
        made = Buffer({name: t.flatten(0, 3) for name, t in tokens.items()}, steps, torch.tensor(timesteps))
        for name, t in made.tokens.items():
            if not bool(torch.isfinite(t).all()):
                raise SaeuronError(f"activations at '{name}' are not finite in fp16; is the model sound at this precision?")
        self._keep(number, made)
        return made

    def _gathered(self, mine: torch.Tensor) -> torch.Tensor:
        """`[units of this process, …]` → `[all units, …]` in the order of one process alone."""
        if self.share.count == 1:
            return mine
        everything = self.share.gather(mine).unflatten(0, (self.share.count, -1))
        return everything.transpose(0, 1).flatten(0, 1)

    def _path(self, number: int) -> Path:
        assert self.cache is not None
        return self.cache / f"buffer-{'held' if number < 0 else ''}{abs(number):05d}.safetensors"

    def _cached(self, number: int) -> Buffer | None:
        if self.cache is None or not self._path(number).is_file():
            return None
        header, _ = read_header(self._path(number))
        held = load_file(self._path(number))
        steps, timesteps = held.pop("steps"), held.pop("timesteps")
        if header.get("content") != self._content() or set(held) != set(self.reads):
            raise SaeuronError(f"{self._path(number)} was made with other settings; choose another --cache folder, or empty this one")
        return Buffer(held, steps, timesteps)

    def _content(self) -> str:
        return json.dumps(
            [self._identity, str(network_of(self.pipeline).dtype), self.sampling.__dict__, self.pictures, self.reads, self.prompts],
            sort_keys=True,
        )

    def _keep(self, number: int, made: Buffer) -> None:
        if self.cache is None or self.share.rank:
            return
        with whole_file(self._path(number)) as file:
            save_file({**made.tokens, "steps": made.steps, "timesteps": made.timesteps}, file, metadata={"content": self._content()})


def buffer_bytes(width: int, positions: int, steps: int, pictures: int) -> int:
    """Memory of one hookpoint's buffer: fp16 tokens, twice while they are shuffled."""
    return 2 * 2 * math.prod((width, positions, steps, pictures))
