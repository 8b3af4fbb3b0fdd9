"""The `Edit`: the tables of chosen features, thresholds and gains. Hook, baked UNet, proof and report all read this one object."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from ..common.errors import SaeuronError
from ..common.files import open_safetensors
from ..common.names import RESIDUALS, normalise
from ..common.typed import plain
from ..features.activations import ConceptActivations
from ..features.rule import Rule
from ..features.selection import scores, select
from .edit_header import FORMAT, TENSORS, edit_sha256, read_edit_header
from .provenance import Provenance


@dataclass
class HookpointEdit:
    """Chosen features of one hookpoint with their tables by timestep."""

    features: torch.Tensor
    """int64 `[U]`, ascending: the union over concepts and timesteps"""
    timesteps: torch.Tensor
    """int64 `[T]`, descending"""
    thresholds: torch.Tensor
    """float32 `[T, U]`, mean over concepts of the mean activation; infinite where the feature isn't chosen"""
    gains: torch.Tensor
    """float32 `[T, U]`, gamma · mu; 1 where the feature isn't chosen"""
    gate_thresholds: torch.Tensor
    """float32 `[T, U]`, for the gate without membership test: the larger of threshold and mean k-th latent"""
    latents: int
    """latents n of the SAE"""
    chosen: dict[str, list[list[int]]] = field(default_factory=dict)
    """concept → features at each timestep"""

    def check(self, where: str) -> None:
        """Raise `SaeuronError` unless the tables fit together; a file may come from anywhere."""
        shape = (len(self.timesteps), len(self.features))
        tables = (self.thresholds, self.gains, self.gate_thresholds)
        indices = (self.features, self.timesteps)
        reason = (
            "tables of another type" if any(t.dtype != torch.float32 for t in tables) or any(i.dtype != torch.int64 or i.ndim != 1 for i in indices)
            else "tables that differ in shape" if any(t.shape != shape for t in tables) or not all(shape)
            else "features that are no ascending latents of the SAE"
            if bool((self.features.diff() <= 0).any()) or not 0 <= int(self.features[0]) <= int(self.features[-1]) < self.latents
            else "timesteps that are not descending" if bool((self.timesteps.diff() >= 0).any())
            else "gains that are not finite, or thresholds that are NaN"
            if not bool(self.gains.isfinite().all()) or bool(torch.stack([self.thresholds, self.gate_thresholds]).isnan().any())
            else "another number of steps in its list of chosen features" if any(len(rows) != shape[0] for rows in self.chosen.values())
            else None
        )  # fmt: skip
        if reason:
            raise SaeuronError(f"{where}: damaged edit ({reason})")

    def chosen_mask(self, concepts: Sequence[str]) -> torch.Tensor:
        """bool `[T, U]`: chosen by one of these concepts."""
        mask = torch.zeros_like(self.gains, dtype=torch.bool)
        for concept in concepts:
            for step, row in enumerate(self.chosen.get(concept, [])):
                mask[step] |= torch.isin(self.features, torch.tensor(row, dtype=torch.int64))
        return mask

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a file holds of it, by name."""
        return {key: getattr(self, key).contiguous() for key in TENSORS}

    def rows(self, timestep: torch.Tensor) -> torch.Tensor:
        """Nearest table rows `[B]` for float timesteps `[B]`; halfway takes the larger timestep."""
        distance = (timestep[:, None].double() - self.timesteps[None].double()).abs()
        return (distance == distance.amin(-1, keepdim=True)).int().argmax(-1)


@dataclass
class Edit:
    """Per hookpoint, what to suppress; how the reconstruction error is treated; where it all comes from."""

    hookpoints: dict[str, HookpointEdit]
    residual: str = "keep"
    provenance: Provenance = field(default_factory=Provenance)

    @property
    def concepts(self) -> list[str]:
        """Names of all suppressed concepts, sorted."""
        return sorted({c for h in self.hookpoints.values() for c in h.chosen})

    def neutral(self) -> Edit:
        """The same edit with every gain at 1: what the treatment of the reconstruction error does by itself."""
        return Edit({n: replace(p, gains=torch.ones_like(p.gains)) for n, p in self.hookpoints.items()}, self.residual, self.provenance)

    def only(self, concepts: Sequence[str]) -> Edit:
        """The part of the edit that suppresses some of its concepts; what only the others chose does nothing any more.

        Where one of them shares a feature with another concept, the suppression that won (the stronger one) stays; `shared` says how often.
        """
        parts = {}
        for name, part in self.hookpoints.items():
            kept = part.chosen_mask(concepts)
            parts[name] = replace(
                part, thresholds=torch.where(kept, part.thresholds, torch.inf), gains=torch.where(kept, part.gains, 1.0),
                gate_thresholds=torch.where(kept, part.gate_thresholds, torch.inf),
                chosen={c: rows for c, rows in part.chosen.items() if c in concepts},
            )  # fmt: skip
        return Edit(parts, self.residual, self.provenance)

    def shared(self, concepts: Sequence[str]) -> int:
        """Entries of the tables (feature at a step) that some of these concepts share with another one."""
        others = [c for c in self.concepts if c not in concepts]
        return sum(int((p.chosen_mask(concepts) & p.chosen_mask(others)).sum()) for p in self.hookpoints.values())

    def sha256(self) -> str:
        """Hash of what the edit does (not of its provenance)."""
        tensors = {
            f"{name}/{key}": value.numpy().tobytes() for name, part in self.hookpoints.items() for key, value in part.tensors().items()
        }
        return edit_sha256(self.residual, {name: part.latents for name, part in self.hookpoints.items()}, tensors)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, provenance in its header."""
        tensors = {f"{name}/{key}": value for name, part in self.hookpoints.items() for key, value in part.tensors().items()}
        header = {
            "format": FORMAT, "residual": self.residual, "provenance": json.dumps(plain(self.provenance)),
            "latents": json.dumps({n: p.latents for n, p in self.hookpoints.items()}),
            "chosen": json.dumps({n: p.chosen for n, p in self.hookpoints.items()}),
        }  # fmt: skip
        save_file(tensors, path, metadata=header)

    @classmethod
    def load(cls, path: str | Path) -> Edit:
        """Read a file written by `save`.

        Raises:
            SaeuronError: damaged, or of another form.
        """
        path = Path(path)
        header, tensors = read_edit_header(path), open_safetensors(path)
        try:
            parts = {
                name: HookpointEdit(
                    **{key: tensors[f"{name}/{key}"] for key in TENSORS},
                    latents=n,
                    chosen={c: list(r) for c, r in header.chosen[name].items()},
                )
                for name, n in header.latents.items()
            }
        except KeyError as error:
            raise SaeuronError(f"{path}: damaged edit (no tensor {error})") from None
        for name, part in parts.items():
            part.check(f"{path}, hookpoint '{name}'")
        return cls(parts, header.residual, header.provenance)


@dataclass(frozen=True)
class Suppression:
    """One concept's wish: where, by which rule, how strongly."""

    concept: str
    hookpoint: str
    rule: Rule
    multiplier: float


def make_edit(
    suppressions: Sequence[Suppression], activations: Mapping[tuple[str, str], ConceptActivations], residual: str = "keep",
    allow_amplify: bool = False, provenance: Provenance | None = None,
) -> Edit:  # fmt: skip
    """Turn wishes into tables; the order of the wishes never matters.

    Args:
        suppressions: the concepts to suppress.
        activations: (concept, hookpoint) → the activations of that concept's domain at that hookpoint.
        residual: `keep`, `upstream` or `drop`.
        allow_amplify: accept positive multipliers, which strengthen a concept.
        provenance: recorded in the edit's file.

    Raises:
        SaeuronError: nothing to suppress, a concept that chose no feature, a positive multiplier, or activations of one
            hookpoint that disagree in timesteps or latents.
    """
    if residual not in RESIDUALS:
        raise SaeuronError(f"residual '{residual}' is not known; it is one of {', '.join(RESIDUALS)}")
    if not suppressions:
        raise SaeuronError("no concept to suppress")
    grouped: dict[str, list[Suppression]] = {}
    for wish in sorted(set(suppressions), key=lambda s: (s.hookpoint, s.concept, str(s.rule), s.multiplier)):
        if wish.multiplier > 0 and not allow_amplify:
            raise SaeuronError(
                f"concept '{wish.concept}': a positive multiplier ({wish.multiplier:g}) strengthens the concept; use a negative one, or --allow-amplify if you mean it"
            )
        grouped.setdefault(normalise(wish.hookpoint), []).append(wish)
    parts = {name: _hookpoint_edit(name, wishes, activations) for name, wishes in grouped.items()}
    return Edit(parts, residual, provenance or Provenance())


def _hookpoint_edit(name: str, wishes: list[Suppression], activations: Mapping[tuple[str, str], ConceptActivations]) -> HookpointEdit:
    sources = [activations[w.concept, w.hookpoint] for w in wishes]
    first = sources[0]
    for source in sources[1:]:
        if source.latents != first.latents:
            raise SaeuronError(f"hookpoint '{name}': activations disagree in latents ({first.latents} and {source.latents})")
        if not torch.equal(source.timesteps, first.timesteps):
            raise SaeuronError(
                f"hookpoint '{name}': activations were collected at different timesteps ({len(first.timesteps)} and {len(source.timesteps)} steps); collect them with one step count"
            )
    steps, n = first.means.shape[1:]
    gains = torch.ones(steps, n)
    thresholds = torch.full((steps, n), float("inf"))
    gate = torch.full((steps, n), float("inf"))
    chosen: dict[str, list[list[int]]] = {}
    for wish, source in zip(wishes, sources, strict=True):
        mask = select(scores(source, wish.concept), wish.rule)
        if not bool(mask.any()):
            raise SaeuronError(
                f"concept '{wish.concept}': no latent of hookpoint '{name}' answers to it more than to the others; its activations can't remove it"
            )
        rows = [row.nonzero().flatten().tolist() for row in mask]
        # One concept may come with two rules; what it chose is their union.
        chosen[wish.concept] = [sorted({*a, *b}) for a, b in zip(rows, chosen.get(wish.concept, [[]] * steps), strict=True)]
        gain = wish.multiplier * source.means[source.concepts.index(wish.concept)]
        threshold = source.means.mean(0)
        membership = threshold if source.kth is None else torch.maximum(threshold, source.kth[:, None])
        # Where two concepts choose one feature, the stronger suppression wins; at equal gain, the one that fires more.
        wins = mask & ((gain < gains) | ((gain == gains) & (threshold < thresholds)) | thresholds.isinf())
        gains, thresholds, gate = (torch.where(wins, new, old) for new, old in ((gain, gains), (threshold, thresholds), (membership, gate)))
    features = thresholds.isfinite().any(0).nonzero().flatten()
    thresholds, gains, gate = (table[:, features].contiguous() for table in (thresholds, gains, gate))
    return HookpointEdit(features, first.timesteps.clone(), thresholds, gains, gate, n, chosen)
