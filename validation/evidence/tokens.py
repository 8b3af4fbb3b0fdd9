"""Counts the tokens of a block that lie outside of the unedited model's own distribution, while pictures are drawn.

Mean and covariance of the unedited model's tokens are summed in float64, for each block and each fifth of the noise levels, on some pictures; on
others the norms and distances are taken beyond which 1 % of its tokens lie. Both kinds of pictures have seeds of their own.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from ...editor.common.errors import SaeuronError, first_line
from ...editor.common.files import file_sha256
from ...editor.common.writing import whole_file
from ...editor.denoisers.families import denoiser_of
from ...editor.denoisers.sampling import observe
from .picture_backends import UNEDITED
from .smears import CALIBRATION, SHARE, calibrating, check, told
from .verdicts import VERDICTS, Store, Wanted, units

if TYPE_CHECKING:
    from .evaluation_plan import EvaluationPlan

FIRST_SEED = 7_000_001
LEVELS, HIGHEST = 5, 1000
"""parts of the noise levels, and the highest of these"""
SHRINKAGE = 0.01
"""λ: the covariance S becomes (1 − λ) S + λ tr(S)/d · I, so that directions without any spread give no infinite distances"""
Look = Callable[[float, dict[str, torch.Tensor]], None]
Over = Callable[[Any, int, bool], Any]
"""network, pictures, whether with guidance → a context around the loop that draws them"""


def part(level: float) -> int:
    """The fifth that a noise level belongs to."""
    return min(LEVELS - 1, max(0, int(level * LEVELS // HIGHEST)))


class Spread:
    """Mean and covariance of tokens, summed up in float64."""

    def __init__(self, width: int) -> None:
        self._count, self._sum, self._outer = 0, torch.zeros(width, dtype=torch.float64), torch.zeros(width, width, dtype=torch.float64)

    def add(self, tokens: torch.Tensor) -> None:
        """Take in tokens `[N, d]`."""
        x = tokens.double()
        self._count += len(x)
        self._sum += x.sum(0).cpu()
        self._outer += (x.T @ x).cpu()

    def law(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean `[d]`, and the matrix `[d, d]` that turns a difference from it into one whose length is the Mahalanobis distance; both float32."""
        mean = self._sum / self._count
        covariance = self._outer / self._count - torch.outer(mean, mean)
        scale = covariance.diagonal().mean().clamp_min(1e-12)
        eye = torch.eye(len(mean), dtype=torch.float64)
        # From the eigenvalues: rounding may leave one just below 0, at which a Cholesky decomposition stops.
        values, vectors = torch.linalg.eigh((1 - SHRINKAGE) * covariance + SHRINKAGE * scale * eye)
        whiten = (vectors / values.clamp_min(SHRINKAGE * scale / 2).sqrt()).T
        return mean.float(), whiten.float().contiguous()


@dataclass(frozen=True)
class Calibration:
    """The unedited model's own distribution, as `CALIBRATION` holds it."""

    tensors: Mapping[str, torch.Tensor]
    """`<block>/<part>/mean` `[d]`, `…/whiten` `[d, d]`, `…/bars` float32 `[3]` (least and largest norm, largest distance); `<block>/shares` float64 `[pictures, 2]` and `<block>/tokens` `[1]`; `fitted` `[1]`"""
    sha256: str = ""

    @property
    def blocks(self) -> list[str]:
        """Names of the blocks."""
        return [name.removesuffix("/tokens") for name in self.tensors if name.endswith("/tokens")]

    def measures(self, block: str, level: float, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Norms and Mahalanobis distances `[…]` of tokens `[…, d]` at a noise level."""
        mean, whiten = (self.tensors[f"{block}/{part(level)}/{kind}"].to(tokens.device) for kind in ("mean", "whiten"))
        x = tokens.float()
        return x.norm(dim=-1), ((x - mean) @ whiten.T).norm(dim=-1)

    def count(self, block: str, level: float, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens `[B, L, d]` → how many, how many outside by norm and by distance, int64 `[B, 3]`. What is no number is outside."""
        low, high, far = self.tensors[f"{block}/{part(level)}/bars"].to(tokens.device)
        norms, distances = self.measures(block, level, tokens)
        inside = torch.stack([(norms >= low) & (norms <= high), distances <= far])
        outside = (~inside).sum(-1)
        return torch.stack([torch.full_like(outside[0], tokens.shape[1]), *outside], 1).cpu()

    def save(self, path: Path) -> Calibration:
        """Write it, and return it with the file's hash."""
        with whole_file(path) as made:
            save_file({name: tensor.contiguous() for name, tensor in sorted(self.tensors.items())}, made)
        return replace(self, sha256=file_sha256(path))

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read it.

        Raises:
            SaeuronError: it can't be read.
        """
        try:
            tensors = load_file(path)
        except Exception as error:  # a damaged file can raise anything
            raise SaeuronError(f"'{path}' can't be read ({first_line(error, 100)}); --overwrite begins anew") from None
        return cls(dict(sorted(tensors.items())), file_sha256(path))


@dataclass
class Counter:
    """Counts the tokens of the pictures that are drawn."""

    calibration: Calibration
    _counts: list[dict[str, list[int]]] = field(default_factory=list)

    @contextmanager
    def over(self, network: Any, pictures: int, guided: bool) -> Iterator[None]:
        """A context around the loop that draws so many pictures. Its hooks come after those of an edit that is there already, so they see edited tokens."""
        sums = {name: torch.zeros(pictures, 3, dtype=torch.int64) for name in self.calibration.blocks}

        def look(level: float, tokens: dict[str, torch.Tensor]) -> None:
            for name, found in tokens.items():
                sums[name] += self.calibration.count(name, level, found)

        with observe(network, dict.fromkeys(sums, "output"), look, pictures, guided):
            yield
        self._counts = [{name: found[i].tolist() for name, found in sums.items()} for i in range(pictures)]

    def take(self, pictures: int) -> list[str]:
        """The column `tokens` of the pictures that were drawn last; empty where the backend gave none."""
        found, self._counts = self._counts, []
        return [told(self.calibration.sha256, one) for one in found] or [""] * pictures


def calibrate(
    blocks: Sequence[str], wanted: Sequence[Wanted], batch_size: int, draw: Callable[[Sequence[Wanted], Over], None],
    told: Callable[[int, int], None] = lambda done, total: None,
) -> Calibration:  # fmt: skip
    """Fit, then set the bars on other pictures. One process does all of it, so the result knows nothing of how many share the evaluation.

    Args:
        blocks: names; none: all of the network's transformer blocks.
        wanted: pictures of the evaluation: prompts are taken from all over it, with seeds that it doesn't have.
        batch_size: pictures at a time.
        draw: draws pictures of the unedited model, within a context.
        told: pictures done, and in all.
    """
    first, second = _chosen(wanted)
    spreads: dict[tuple[str, int], Spread] = {}
    held: dict[tuple[str, int], list[tuple[int, np.ndarray]]] = {}
    done = 0

    def fit(level: float, tokens: dict[str, torch.Tensor]) -> None:
        for name, found in tokens.items():
            spreads.setdefault((name, part(level)), Spread(found.shape[-1])).add(found.flatten(0, 1))

    def measure(level: float, tokens: dict[str, torch.Tensor]) -> None:
        for name, found in tokens.items():
            measured = torch.stack(fitted.measures(name, level, found), -1).cpu().numpy()
            held.setdefault((name, part(level)), []).append((done, measured))

    for batch in units(first, batch_size):
        told(done, len(first) + len(second))
        draw(batch, _watching(blocks, fit))
        done += len(batch)
    tensors = {"fitted": torch.tensor([done])}
    for (name, at), spread in spreads.items():
        tensors[f"{name}/{at}/mean"], tensors[f"{name}/{at}/whiten"] = spread.law()
    fitted, done = Calibration(tensors), 0
    for batch in units(second, batch_size):
        told(len(first) + done, len(first) + len(second))
        draw(batch, _watching(blocks, measure))
        done += len(batch)
    return Calibration(tensors | _bars(held, done))


def counter_of(plan: EvaluationPlan, store: Store, told: Callable[[int, int], None]) -> Counter:
    """What counts tokens by the calibration in an evaluation's folder, which the first process makes where there is none.

    Raises:
        SaeuronError: another calibration than that of the pictures that are there, or of other blocks.
    """
    path = store.folder / CALIBRATION
    if store.process.rank == 0 and not path.is_file():
        with plan.pictures_by.open(UNEDITED) as draw:

            def drawn(unit: Sequence[Wanted], over: Over) -> None:
                plan.pictures_by.watch = over
                draw([w.prompt for w in unit], [w.seed for w in unit], plan.settings.steps, unit[0].guidance)

            made = calibrate(plan.blocks, plan.wanted, plan.options.batch_size, drawn, told)
        store.begin()
        made.save(path)
    store.process.barrier()
    calibration = Calibration.load(path)
    again = "--overwrite makes and judges all pictures anew"
    try:
        check(calibration.sha256, list(store.rows.values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SaeuronError(f"'{path}' is not what '{store.folder / VERDICTS}' was made with ({first_line(error)}); {again}") from None
    if plan.blocks and set(calibration.blocks) != set(plan.blocks):
        raise SaeuronError(
            f"'{store.folder}' looks at tokens of {', '.join(calibration.blocks)}; give --block {','.join(calibration.blocks)}, or another --output; {again}"
        )
    counter = Counter(calibration)
    plan.pictures_by.watch = counter.over
    return counter


def _bars(held: Mapping[tuple[str, int], Sequence[tuple[int, np.ndarray]]], pictures: int) -> dict[str, torch.Tensor]:
    """Bars of each block and part, and of each block each picture's shares beyond them.

    Args:
        held: block and part → for each forward the number of its first picture, and norms and distances `[B, L, 2]`.
        pictures: in all.
    """
    found: dict[str, torch.Tensor] = {}
    beyond: dict[str, np.ndarray] = {}
    for (name, at), forwards in held.items():
        values = np.concatenate([measured.reshape(-1, 2) for _, measured in forwards])
        low, high = np.quantile(values[:, 0], (SHARE / 2, 1 - SHARE / 2))
        far = np.quantile(values[:, 1], 1 - SHARE)
        found[f"{name}/{at}/bars"] = torch.tensor([low, high, far], dtype=torch.float32)
        low, high, far = found[f"{name}/{at}/bars"].numpy()
        counts = beyond.setdefault(name, np.zeros((pictures, 3)))
        for start, measured in forwards:
            norms, distances = measured[..., 0], measured[..., 1]
            places = slice(start, start + len(measured))
            counts[places] += np.stack([np.ones_like(norms), (norms < low) | (norms > high), distances > far], -1).sum(1)
    for name, counts in beyond.items():
        found[f"{name}/shares"] = torch.from_numpy(counts[:, 1:] / counts[:, :1])
        found[f"{name}/tokens"] = torch.tensor([int(counts[0, 0])])
    return found


def _watching(blocks: Sequence[str], look: Look) -> Over:
    def over(network: Any, pictures: int, guided: bool) -> Any:
        names = blocks or [n for n, _ in network.named_modules() if re.fullmatch(denoiser_of(network).blocks, n)]
        return observe(network, dict.fromkeys(names, "output"), look, pictures, guided)

    return over


def _chosen(wanted: Sequence[Wanted]) -> tuple[list[Wanted], list[Wanted]]:
    """Pictures to fit, and pictures to set bars by: of prompts from all over the evaluation, each as often as the others if there are enough."""
    prompts = list({(w.prompt, w.guidance): w for w in wanted}.values())
    count, taken = calibrating(len(wanted)), {w.seed for w in wanted}
    seeds = (seed for seed in itertools.count(FIRST_SEED) if seed not in taken)
    sizes = count // 4, count - count // 4
    first, second = ([replace(prompts[i * len(prompts) // size], seed=next(seeds)) for i in range(size)] for size in sizes)
    return first, second
