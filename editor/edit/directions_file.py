"""Rows of `probe` that lie in a file, to be used again: read out of an edit that was hardened, or of a lean file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from ..common.errors import SaeuronError
from ..common.files import open_safetensors
from .directions_header import FORMAT, PARTS, read_directions_header
from .edit import Edit
from .probe import ConceptRows, Rows
from .project import rows_in

_READ = {torch.float16, torch.float32}


def load_directions(path: Path, concept: str) -> dict[str, ConceptRows]:
    """Hookpoint → rows of a concept, in float32.

    Args:
        path: an edit file with rows of `probe`, or a lean file.
        concept: one that it holds.

    Raises:
        SaeuronError: damaged, NaN, or nothing of the concept.
    """
    header = read_directions_header(path)
    if concept not in header.places:
        raise SaeuronError(f"directions: '{path}' holds nothing of '{concept}', but of {', '.join(header.places)}")
    if header.lean:
        tensors = open_safetensors(path)
        return {h: _lean(tensors, h, f"{path}, hookpoint '{h}'") for h in header.places[concept]}
    edit = Edit.load(path)
    return {h: _of_edit(edit, concept, h, f"{path}, hookpoint '{h}'") for h in header.places[concept]}


def save_directions(path: Path, concept: str, model_sha256: str, known: Mapping[str, ConceptRows]) -> None:
    """Write a lean file: what is read and written in float16, biases in float32.

    Args:
        path: the file.
        concept: whose.
        model_sha256: of the model that they were made from.
        known: hookpoint → rows; they have to act at all timesteps.

    Raises:
        SaeuronError: rows that don't, or that float16 can't hold.
    """
    tensors: dict[str, torch.Tensor] = {}
    for hookpoint, (timesteps, rows, acting) in known.items():
        if acting is not None and not bool(acting.all()):
            raise SaeuronError(f"concept '{concept}': its rows at '{hookpoint}' start late, and a lean file has all timesteps")
        encoder, bias, decoder = (torch.stack(held) for held in zip(*rows, strict=True))
        values = timesteps, encoder.half(), bias, decoder.half()
        if not all(bool(v.isfinite().all()) for v in values[1:]):
            raise SaeuronError(f"concept '{concept}': float16 can't hold its rows at '{hookpoint}'")
        tensors |= {f"{hookpoint}/{part}": value.contiguous() for part, value in zip(PARTS, values, strict=True)}
    save_file(tensors, path, metadata={"format": FORMAT, "concept": concept, "model_sha256": model_sha256})


def _lean(tensors: Mapping[str, torch.Tensor], hookpoint: str, where: str) -> ConceptRows:
    timesteps, encoder, bias, decoder = (tensors[f"{hookpoint}/{part}"] for part in PARTS)
    if (
        timesteps.dtype != torch.float32 or timesteps.ndim != 1 or not bool((timesteps.diff() < 0).all())
        or any(held.dtype not in _READ or not held.numel() for held in (encoder, bias, decoder))
        or encoder.ndim != 3 or encoder.shape != decoder.shape or bias.shape != encoder.shape[:2] or encoder.shape[1] != len(timesteps)
    ):  # fmt: skip
        raise SaeuronError(f"{where}: damaged directions (rows of another form)")
    if not all(bool(held.isfinite().all()) for held in (encoder, bias, decoder)):
        raise SaeuronError(f"{where}: damaged directions (NaN or infinite)")
    _refuse_zeros(encoder, decoder, where)
    return ConceptRows(timesteps, tuple(Rows(*(part.float() for part in rows)) for rows in zip(encoder, bias, decoder, strict=True)))


def _refuse_zeros(encoder: torch.Tensor, decoder: torch.Tensor, where: str) -> None:
    """Raise `SaeuronError` where a row reads or writes nothing `[…, d]`: an edit with it would do less than it says."""
    if not all(bool(rows.any(-1).all()) for rows in (encoder, decoder)):
        raise SaeuronError(f"{where}: damaged directions (a row of zeros); make them again with saeuron harden")


def _of_edit(edit: Edit, concept: str, hookpoint: str, where: str) -> ConceptRows:
    part, held = edit.hookpoints[hookpoint], rows_in(edit.directions[hookpoint])
    chosen = part.chosen[concept]
    counts = {len(row) for row in chosen if row}
    if len(counts) != 1 or any(f >= part.latents for row in chosen for f in row):
        raise SaeuronError(f"{where}: damaged edit (it doesn't say which rows are those of '{concept}')")
    acting = torch.tensor([bool(row) for row in chosen])
    rows = []
    for place in range(counts.pop()):
        own = torch.tensor([row[place] for row in chosen if row])
        # Where the edit doesn't act yet no row is known.
        found = Rows(*(torch.zeros(len(chosen), *values.shape[1:]) for values in held))
        for values, into in zip(held, found, strict=True):
            into[acting] = values[own]
        rows.append(found)
        _refuse_zeros(found.encoder[acting], found.decoder[acting], where)
    return ConceptRows(part.timesteps, tuple(rows), acting)
