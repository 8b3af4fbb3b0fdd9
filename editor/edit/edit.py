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
from ..common.names import BY_DIRECTION, NOISIEST, RESIDUALS, normalise
from ..common.typed import plain
from ..features.activations import ConceptActivations
from ..features.rule import Rule
from ..features.selection import scores, select
from ..sae.sae import SparseAutoencoder
from .edit_header import FORMAT, TENSORS, TEXT_MAP, WeightsSaid, edit_sha256, read_edit_header, rows_of
from .how import How, check_blocks, check_gain_by_token
from .probe import ConceptRows, Rows
from .project import Directions, concept_rows, opened, rows_in
from .provenance import Provenance
from .weights import WeightEdit


@dataclass
class HookpointEdit:
    """Chosen features of one hookpoint with their tables by timestep."""

    features: torch.Tensor
    """int64 `[U]`, ascending: the union over concepts and timesteps"""
    timesteps: torch.Tensor
    """float32 `[T]`, descending: the noise levels that were calibrated, 0 to 1000"""
    thresholds: torch.Tensor
    """float32 `[T, U]`, mean over concepts of the mean activation; infinite where the feature isn't chosen"""
    gains: torch.Tensor
    """float32 `[T, U]`, gamma · mu of `multiply` (gamma alone, of a gain by token), else 0 (of `replace` only a mark); 1 where the feature isn't chosen"""
    offsets: torch.Tensor
    """float32 `[T, U]`, the threshold of `clamp`, else 0: where a latent fires, it becomes gain · latent + offset"""
    gate_thresholds: torch.Tensor
    """float32 `[T, U]`, for the gate without membership test: the larger of threshold and mean k-th latent"""
    latents: int
    """latents n of the SAE"""
    chosen: dict[str, list[list[int]]] = field(default_factory=dict)
    """concept → features at each timestep"""
    how: How = How()

    def check(self, where: str) -> None:
        """Raise `SaeuronError` unless the tables fit together; a file may come from anywhere."""
        shape = (len(self.timesteps), len(self.features))
        tables = (self.thresholds, self.gains, self.offsets, self.gate_thresholds)
        reason = (
            "tables of another type" if any(t.dtype != torch.float32 for t in (*tables, self.timesteps)) or self.features.dtype != torch.int64 or any(i.ndim != 1 for i in (self.features, self.timesteps))
            else "tables that differ in shape" if any(t.shape != shape for t in tables) or not all(shape)
            else "features that are no ascending latents of the SAE"
            if bool((self.features.diff() <= 0).any()) or not 0 <= int(self.features[0]) <= int(self.features[-1]) < self.latents
            else "timesteps that are not descending" if not bool((self.timesteps.diff() < 0).all() and self.timesteps.isfinite().all())
            else "gains or offsets that are not finite, or thresholds that are NaN"
            if not bool(self.gains.isfinite().all() and self.offsets.isfinite().all()) or bool(torch.stack([self.thresholds, self.gate_thresholds]).isnan().any())
            else "gains and offsets that replace has no use for" if self.how.replace_by and not self._only_marks()
            else "another number of steps in its list of chosen features" if any(len(rows) != shape[0] for rows in self.chosen.values())
            else None
        )  # fmt: skip
        if reason:
            raise SaeuronError(f"{where}: damaged edit ({reason})")

    def _only_marks(self) -> bool:
        return not bool(self.offsets.any()) and torch.equal(self.gains, torch.where(self.thresholds.isfinite(), 0.0, 1.0))

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
        """Nearest table rows `[B]` for float timesteps `[B]`; halfway, in float32, takes the larger timestep."""
        bars = (self.timesteps[:-1] + self.timesteps[1:]) / 2
        return (timestep[:, None].float() < bars).sum(-1)


@dataclass
class Edit:
    """Per hookpoint, what to suppress; how the reconstruction error is treated; what becomes of weights that read text; where it all comes from."""

    hookpoints: dict[str, HookpointEdit]
    residual: str = "keep"
    provenance: Provenance = field(default_factory=Provenance)
    weights: WeightEdit | None = None
    directions: dict[str, SparseAutoencoder] = field(default_factory=dict)
    """hookpoint → of `project` and `probe`, what stands in an SAE's place there"""

    @property
    def concepts(self) -> list[str]:
        """Names of all removed concepts, sorted."""
        return sorted({c for h in self.hookpoints.values() for c in h.chosen} | set(self.weights.becomes if self.weights else ()))

    def neutral(self) -> Edit:
        """The same edit with every latent left as it is, and no weights: what the treatment of the reconstruction error does by itself."""
        parts = {
            n: replace(p, gains=torch.ones_like(p.gains), offsets=torch.zeros_like(p.offsets), how=How())
            for n, p in self.hookpoints.items()
        }
        return Edit(parts, self.residual, self.provenance, directions=self.directions)

    def only(self, concepts: Sequence[str]) -> Edit:
        """The part of the edit that suppresses some of its concepts; what only the others chose does nothing any more.

        Where one of them shares a feature with another concept, the suppression that won (the stronger one) stays; `shared` says how often.

        Raises:
            SaeuronError: weights are edited, which were solved for all concepts at once.
        """
        if self.weights is not None and set(concepts) != set(self.concepts):
            raise SaeuronError(
                "the weights of this edit were solved for all of its concepts at once, so it has no parts; export the concepts apart"
            )
        parts = {}
        for name, part in self.hookpoints.items():
            kept = part.chosen_mask(concepts)
            parts[name] = replace(
                part, thresholds=torch.where(kept, part.thresholds, torch.inf), gains=torch.where(kept, part.gains, 1.0),
                offsets=torch.where(kept, part.offsets, 0.0),
                gate_thresholds=torch.where(kept, part.gate_thresholds, torch.inf),
                chosen={c: rows for c, rows in part.chosen.items() if c in concepts},
            )  # fmt: skip
        return Edit(parts, self.residual, self.provenance, self.weights, self.directions)

    def saes(self, given: Mapping[str, SparseAutoencoder]) -> dict[str, SparseAutoencoder]:
        """Hookpoint → SAE of each hookpoint: of those that are given, or its directions.

        Raises:
            SaeuronError: none there, or one of another number of latents.
        """
        found = {}
        for name, part in self.hookpoints.items():
            sae = self.directions.get(name) or given.get(name)
            if sae is None:
                raise SaeuronError(f"the edit needs an SAE for hookpoint '{name}'; given: {', '.join(given) or 'none'}")
            check_fit(name, part, sae)
            found[name] = sae
        return found

    def shared(self, concepts: Sequence[str]) -> int:
        """Entries of the tables (feature at a step) that some of these concepts share with another one."""
        others = [c for c in self.concepts if c not in concepts]
        return sum(int((p.chosen_mask(concepts) & p.chosen_mask(others)).sum()) for p in self.hookpoints.values())

    def _tensors(self) -> dict[str, torch.Tensor]:
        """By its name in a file."""
        found = {f"{name}/{key}": value for name, part in self.hookpoints.items() for key, value in part.tensors().items()}
        for name, sae in self.directions.items():
            found |= dict(zip(rows_of(name), rows_in(sae), strict=True))
        return found | ({TEXT_MAP: self.weights.map.contiguous()} if self.weights else {})

    def _how(self) -> dict[str, How]:
        return {name: part.how for name, part in self.hookpoints.items() if part.how != How()}

    def sha256(self) -> str:
        """Hash of what the edit does (not of its provenance)."""
        tensors = {name: value.numpy().tobytes() for name, value in self._tensors().items()}
        return edit_sha256(self.residual, {name: part.latents for name, part in self.hookpoints.items()}, tensors, self._how())

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, provenance in its header."""
        header = {
            "format": FORMAT, "residual": self.residual, "provenance": json.dumps(plain(self.provenance)),
            "latents": json.dumps({n: p.latents for n, p in self.hookpoints.items()}),
            "chosen": json.dumps({n: p.chosen for n, p in self.hookpoints.items()}),
        }  # fmt: skip
        if held := self._how():
            header["how"] = json.dumps(plain(held))
        if self.weights:
            header["weights"] = json.dumps(plain(WeightsSaid(dict(self.weights.becomes), list(self.weights.preserved))))
        save_file(self._tensors(), path, metadata=header)

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
                    how=header.how_at(name),
                )
                for name, n in header.latents.items()
            }
            said = header.weights
            weights = WeightEdit(tensors[TEXT_MAP], said.becomes, tuple(said.preserved)) if said else None
            rows = {name: Rows(*(tensors[key] for key in rows_of(name))) for name in header.directions}
        except KeyError as error:
            raise SaeuronError(f"{path}: damaged edit (no tensor {error})") from None
        for name, part in parts.items():
            part.check(f"{path}, hookpoint '{name}'")
        if weights:
            weights.check(str(path))
        directions = {name: opened(held, f"{path}, hookpoint '{name}'") for name, held in rows.items()}
        for name, sae in directions.items():
            check_fit(name, parts[name], sae)
        return cls(parts, header.residual, header.provenance, weights, directions)


def check_fit(hookpoint: str, part: HookpointEdit, sae: SparseAutoencoder) -> None:
    """Raise `SaeuronError` unless the edit of a hookpoint was made for an SAE of so many latents, and can be made with its kind."""
    if sae.config.num_latents != part.latents:
        raise SaeuronError(f"hookpoint '{hookpoint}': the edit was made for {part.latents} latents, the SAE has {sae.config.num_latents}")
    check_gain_by_token(part.how, "exact", hookpoint, sae.config.k)


@dataclass(frozen=True)
class Suppression:
    """One concept's wish: where, by which rule, how strongly."""

    concept: str
    hookpoint: str
    rule: Rule
    multiplier: float
    """of those in `names.SCALED`"""
    intervention: str = "multiply"
    """one of `names.AT_BLOCKS`"""
    how: How = How()
    start: int = NOISIEST
    """timestep from which on it acts; denoising goes down to 0"""


def make_edit(
    suppressions: Sequence[Suppression], activations: Mapping[tuple[str, str], ConceptActivations], residual: str = "keep",
    allow_amplify: bool = False, provenance: Provenance | None = None, weights: WeightEdit | None = None,
    given: Mapping[tuple[str, str], ConceptRows] | None = None,
) -> Edit:  # fmt: skip
    """Turn wishes into tables; the order of the wishes never matters.

    Args:
        suppressions: the concepts to suppress.
        activations: (concept, hookpoint) → the activations of that concept's domain at that hookpoint.
        residual: `keep`, `upstream` or `drop`.
        allow_amplify: accept positive multipliers, which strengthen a concept.
        provenance: recorded in the edit's file.
        weights: what becomes of weights that read text.
        given: (concept, hookpoint) → rows of `probe` that are there already; such a concept needs no activations.

    Raises:
        SaeuronError: nothing to suppress, a concept that chose no feature, a positive multiplier, or activations of one
            hookpoint that disagree in timesteps or latents.
    """
    if residual not in RESIDUALS:
        raise SaeuronError(f"residual '{residual}' is not known; it is one of {', '.join(RESIDUALS)}")
    if not suppressions and weights is None:
        raise SaeuronError("no concept to suppress")
    grouped: dict[str, list[Suppression]] = {}
    for wish in sorted(
        set(suppressions), key=lambda s: (s.hookpoint, s.concept, str(s.rule), s.multiplier, s.intervention, str(s.how), s.start)
    ):
        if wish.intervention in BY_DIRECTION and wish.multiplier == 1:
            raise SaeuronError(f"concept '{wish.concept}': multiplier 1 changes nothing")
        if wish.multiplier > (1 if wish.intervention in BY_DIRECTION else 0) and not allow_amplify:
            raise SaeuronError(
                f"concept '{wish.concept}': a positive multiplier ({wish.multiplier:g}) strengthens the concept; use a negative one, or --allow-amplify if you mean it"
            )
        grouped.setdefault(normalise(wish.hookpoint), []).append(wish)
    parts, directions = {}, {}
    check_blocks([(name, wish.intervention, wish.how) for name, wishes in grouped.items() for wish in wishes], residual)
    for name, wishes in grouped.items():
        if wishes[0].intervention not in BY_DIRECTION:
            parts[name] = _hookpoint_edit(name, wishes, activations)
            continue
        known = {
            w.concept: (given or {}).get((w.concept, w.hookpoint))
            or concept_rows(w.intervention, activations[w.concept, w.hookpoint], w.concept, name)
            for w in wishes
        }
        acting = {wish.concept: started(wish.concept, known[wish.concept].timesteps, wish.start) for wish in wishes}
        made = Directions(name, {wish.concept: wish.multiplier for wish in wishes}, known, acting)
        directions[name], zeros = made.sae, torch.zeros_like(made.gains)
        features = torch.arange(made.gains.shape[1])
        parts[name] = HookpointEdit(
            features, made.timesteps, made.thresholds, made.gains, zeros, made.thresholds.clone(), len(features), made.chosen, wishes[0].how
        )
    return Edit(parts, residual, provenance or Provenance(), weights, directions)


def started(concept: str, timesteps: torch.Tensor, start: int) -> torch.Tensor:
    """Which of the timesteps float32 `[T]` a concept's edit acts at, bool `[T]`; raises `SaeuronError` where none is left."""
    acting = timesteps <= start
    if not bool(acting.any()):
        raise SaeuronError(
            f"concept '{concept}': --start {start} leaves no timestep to act at; the last calibrated one is {float(timesteps.min()):g}"
        )
    return acting


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
    gains, offsets = torch.ones(steps, n), torch.zeros(steps, n)
    strength = torch.ones(steps, n)
    """what a latent at its threshold is multiplied by"""
    thresholds = torch.full((steps, n), float("inf"))
    gate = torch.full((steps, n), float("inf"))
    chosen: dict[str, list[list[int]]] = {}
    for wish, source in zip(wishes, sources, strict=True):
        mask = select(scores(source, wish.concept), wish.rule) & started(wish.concept, first.timesteps, wish.start)[:, None]
        if not bool(mask.any()):
            raise SaeuronError(
                f"concept '{wish.concept}': no latent of hookpoint '{name}' answers to it more than to the others; its activations can't remove it"
            )
        rows = [row.nonzero().flatten().tolist() for row in mask]
        # One concept may come with two rules; what it chose is their union.
        chosen[wish.concept] = [sorted({*a, *b}) for a, b in zip(rows, chosen.get(wish.concept, [[]] * steps), strict=True)]
        threshold = source.means.mean(0)
        gain = torch.zeros_like(threshold)
        if wish.intervention == "multiply":
            by_token = wish.how.gain == "token"  # what it is multiplied by comes with the token
            gain = wish.multiplier * (torch.ones_like(threshold) if by_token else source.means[source.concepts.index(wish.concept)])
        clamped = wish.intervention == "clamp"
        offset, at_bar = (threshold, torch.ones_like(gain)) if clamped else (torch.zeros_like(gain), gain)
        membership = threshold if source.kth is None else torch.maximum(threshold, source.kth[:, None])
        # Where two concepts choose one feature, the stronger suppression wins; at equal gain, the one that fires more.
        wins = mask & ((at_bar < strength) | ((at_bar == strength) & (threshold < thresholds)) | thresholds.isinf())
        gains, offsets, strength, thresholds, gate = (
            torch.where(wins, new, old)
            for new, old in ((gain, gains), (offset, offsets), (at_bar, strength), (threshold, thresholds), (membership, gate))
        )
    features = thresholds.isfinite().any(0).nonzero().flatten()
    thresholds, gains, offsets, gate = (table[:, features].contiguous() for table in (thresholds, gains, offsets, gate))
    return HookpointEdit(features, first.timesteps.clone(), thresholds, gains, offsets, gate, n, chosen, wishes[0].how)
