"""Concept activations: how strongly each latent answers to each concept at each step (METHOD: arXiv 2501.18052, 3.2)."""

from __future__ import annotations

import io
import json
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ..common.errors import SaeuronError, first_line
from ..common.files import file_sha256, open_safetensors, parse_json, read_header, refuse_cut_zip, refuse_pointer

_FORMAT = "saeuron-activations-1"


@dataclass
class ConceptActivations:
    """Means over prompts and tokens, for all concepts of one domain."""

    concepts: list[str]
    prompts: list[int]
    """prompts a concept; the pool of all other concepts counts each prompt once"""
    means: torch.Tensor
    """float32 `[C, T, n]`, non-negative"""
    timesteps: torch.Tensor
    """float32 `[T]`, descending: noise levels, 0 to 1000"""
    kth: torch.Tensor | None = None
    """float32 `[T]`, mean k-th largest latent of a token; None where the file doesn't say"""
    provenance: dict[str, Any] = field(default_factory=dict)
    """hookpoint, domain, hashes of model and SAE, prompts, steps, guidance, seed, source file"""
    within: torch.Tensor | None = None
    """float32 `[S, d, d]`, of tokens: how they vary within a concept, at each of S equal parts of the timesteps; `probe` needs it"""

    def __post_init__(self) -> None:
        self.timesteps = self.timesteps.float()
        c, t, n = self.means.shape
        where = self.provenance.get("file", "concept activations")
        if len(self.concepts) != c or len(self.prompts) != c or self.timesteps.shape != (t,):
            raise SaeuronError(f"{where}: concepts, prompts, timesteps and means disagree in number")
        if len(set(self.concepts)) != c:
            raise SaeuronError(f"{where}: a concept is named twice")
        if c == 0:
            raise SaeuronError(f"{where}: holds no concept; collect it again")
        if c < 2:
            raise SaeuronError(
                f"{where}: holds one concept only ('{self.concepts[0]}'); a score needs others to compare with: collect at least one contrast concept"
            )
        if not bool(torch.isfinite(self.means).all()):
            bad = [name for name, m in zip(self.concepts, self.means, strict=True) if not bool(torch.isfinite(m).all())]
            raise SaeuronError(f"{where}: NaN or infinite activations for {', '.join(bad[:3])}; collect them again")
        if bool((self.means < 0).any()):
            raise SaeuronError(f"{where}: negative activations; latents after ReLU can't be, is this another kind of file?")
        if t > 1 and not bool((self.timesteps[:-1] > self.timesteps[1:]).all()):
            raise SaeuronError(f"{where}: timesteps must be strictly descending")
        if self.kth is not None and self.kth.shape != (t,):
            raise SaeuronError(f"{where}: 'kth' has shape {list(self.kth.shape)}, expected [{t}]")
        if (w := self.within) is not None and (
            w.ndim != 3 or 2 * w.shape[1] != n or w.shape[1] != w.shape[2] or not 0 < len(w) <= t or not bool(w.isfinite().all())
        ):
            raise SaeuronError(f"{where}: 'within' has shape {list(w.shape)}, expected finite [at most {t}, {n // 2}, {n // 2}]")

    @property
    def latents(self) -> int:
        """Number n of the SAE's latents."""
        return self.means.shape[-1]

    def pair(self, concept: str, beside: str) -> ConceptActivations:
        """Those of two of its concepts alone; raises `SaeuronError` where one is missing."""
        for name in (concept, beside):
            if name not in self.concepts:
                raise SaeuronError(
                    f"{self.provenance.get('file', 'concept activations')} holds nothing of '{name}', but of {', '.join(self.concepts)}"
                )
        rows = [self.concepts.index(name) for name in (concept, beside)]
        return ConceptActivations(
            [concept, beside], [self.prompts[r] for r in rows], self.means[rows], self.timesteps, self.kth, self.provenance, self.within
        )

    def save(self, path: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write one safetensors file with its provenance in the header; `dtype` is that of the means on disk."""
        tensors = {"means": self.means.to(dtype).contiguous(), "timesteps": self.timesteps.contiguous()}
        if self.kth is not None:
            tensors["kth"] = self.kth.contiguous()
        if self.within is not None:
            tensors["within"] = self.within.contiguous()
        header = {
            "format": _FORMAT,
            "concepts": json.dumps(self.concepts),
            "prompts": json.dumps(self.prompts),
            "provenance": json.dumps(self.provenance),
        }
        save_file(tensors, path, metadata=header)

    @classmethod
    def load(cls, path: str | Path, timesteps: Callable[[int], torch.Tensor] | None = None) -> ConceptActivations:
        """Open our safetensors file, or a pickle as SAeUron released them.

        Args:
            path: the file.
            timesteps: for released pickles, which carry none: T → float32 `[T]`, the timesteps of the model's own
                scheduler with T DDIM steps.

        Raises:
            SaeuronError: missing, truncated, of another form, or holding code.
        """
        path = Path(path)
        if not path.is_file():
            raise SaeuronError(f"activations: '{path}' does not exist or is no file")
        if path.suffix == ".safetensors":
            return cls._load_safetensors(path)
        refuse_pointer(path)
        return _load_pickle(path, timesteps)

    @classmethod
    def _load_safetensors(cls, path: Path) -> ConceptActivations:
        header, shapes = read_header(path)
        if header.get("format") != _FORMAT:
            raise SaeuronError(f"{path} is no concept-activations file (format {header.get('format')!r}, expected {_FORMAT!r})")
        try:
            concepts, prompts = parse_json(header["concepts"]), parse_json(header["prompts"])
            provenance = parse_json(header["provenance"])
        except (KeyError, ValueError, RecursionError) as error:
            raise SaeuronError(f"{path}: damaged header ({error})") from None
        if "means" not in shapes or len(shapes["means"][1]) != 3 or "timesteps" not in shapes:
            raise SaeuronError(f"{path}: no 'means' [concepts, steps, latents] or no 'timesteps'")
        if not isinstance(concepts, list) or not isinstance(prompts, list) or not isinstance(provenance, dict):
            raise SaeuronError(f"{path}: damaged header")
        if not all(type(p) is int and p > 0 for p in prompts):
            raise SaeuronError(f"{path}: damaged header (prompt counts {prompts} are not all at least 1)")
        tensors = open_safetensors(path)
        kth, within = tensors.get("kth"), tensors.get("within")
        return cls(
            [str(c) for c in concepts], [int(p) for p in prompts], tensors["means"].float(), tensors["timesteps"].float(),
            None if kth is None else kth.float(), {**provenance, "file": path.name, "file_sha256": file_sha256(path)},
            None if within is None else within.float(),
        )  # fmt: skip


def _rebuild_tensor(storage: Any, offset: int, size: tuple, stride: tuple, *rest: Any) -> torch.Tensor:
    """`torch._utils._rebuild_tensor_v2` without hooks: a view of a storage, bounds checked by torch."""
    flat = torch.empty(0, dtype=storage.dtype)
    flat.set_(storage._untyped_storage if hasattr(storage, "_untyped_storage") else storage, offset, tuple(size), tuple(stride))
    return flat


def _storage_from_bytes(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")


class _TensorUnpickler(pickle.Unpickler):
    """Rebuilds dictionaries of tensors; every other name in the stream is refused before it is looked up."""

    ALLOWED = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
        ("torch.storage", "_load_from_bytes"): _storage_from_bytes,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.ALLOWED[module, name]
        except KeyError:
            raise SaeuronError(f"the pickle asks for '{module}.{name}', which could run code; only plain tensors are accepted") from None


def _load_pickle(path: Path, timesteps: Callable[[int], torch.Tensor] | None) -> ConceptActivations:
    """A released `dict[str, tensor [P, T, n]]`; means are taken in float32 (the released code averages in fp16)."""
    zipped = refuse_cut_zip(path)
    try:
        if zipped:
            content = torch.load(path, weights_only=True, map_location="cpu")
        else:
            with path.open("rb") as handle:
                content = _TensorUnpickler(handle).load()
    except SaeuronError as error:
        raise SaeuronError(f"{path}: {error}") from None
    except Exception as error:  # a hostile stream can raise anything
        reason = first_line(error)
        raise SaeuronError(
            f"{path} is no concept-activations file: neither .safetensors nor a pickle of plain tensors ({reason[:160]})"
        ) from None
    if (
        not isinstance(content, dict)
        or not content
        or not all(isinstance(k, str) and isinstance(v, torch.Tensor) and v.ndim == 3 for k, v in content.items())
    ):
        raise SaeuronError(f"{path}: expected a dictionary from concept to a tensor [prompts, steps, latents]")
    shapes = {tuple(v.shape[1:]) for v in content.values()}
    if len(shapes) != 1:
        raise SaeuronError(f"{path}: concepts differ in steps or latents: {sorted(shapes)[:4]}")
    (steps, _), names = shapes.pop(), sorted(content)
    if timesteps is None:
        raise SaeuronError(f"{path} carries no timesteps; the model's scheduler is needed to know them")
    means = torch.stack([_mean_over_prompts(content[name]) for name in names])
    return ConceptActivations(
        names,
        [content[n].shape[0] for n in names],
        means,
        timesteps(steps),
        None,
        {"file": path.name, "file_sha256": file_sha256(path)},
    )


def _mean_over_prompts(values: torch.Tensor) -> torch.Tensor:
    total = torch.zeros(values.shape[1:], dtype=torch.float32)
    for prompt in values:
        total += prompt.float()
    return total / values.shape[0]


def ddim_timesteps(scheduler_config: Mapping[str, Any], steps: int) -> torch.Tensor:
    """The timesteps, descending float32 `[steps]`, of DDIM with a scheduler's config; `schedulers.ddim_of` gives a pipeline's."""
    from diffusers import DDIMScheduler

    # All that the config holds was really used; diffusers would take its defaults for what is named here.
    scheduler = DDIMScheduler.from_config({k: v for k, v in scheduler_config.items() if k != "_use_default_values"})
    if not 0 < steps <= scheduler.config.num_train_timesteps:
        raise SaeuronError(
            f"activations have {steps} steps, but the model's scheduler was trained on {scheduler.config.num_train_timesteps}"
        )
    scheduler.set_timesteps(steps)
    return scheduler.timesteps.float().cpu()
