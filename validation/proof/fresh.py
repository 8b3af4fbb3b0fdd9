"""A new reference for an existing artifact: the hook runs again on the original model, from latents of another seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...editor.common.errors import SaeuronError
from ...editor.common.names import DIRECTIONS, at_hookpoint, dtype_of
from ...editor.demo import path_of
from ...editor.denoisers.families import family_of, network_of
from ...editor.denoisers.pipelines import load_pipeline, network_sha256
from ...editor.denoisers.sampling import to_numpy
from ...editor.denoisers.streamed import weights_of
from ...editor.edit.edit import Edit
from ...editor.edit.hook import TokenEdit
from ...editor.sae.sae import SparseAutoencoder
from ..artifact import manifest
from ..artifact.golden import Golden
from ..artifact.manifest import Manifest
from ..artifact.weights import exact, plain
from ..trust import quantisation
from .parity import Reference
from .reference import make_golden
from .seam_reference import on_tokens


class Original(NamedTuple):
    """What the hook needs, each the one on record."""

    pipeline: Any
    edit: Edit
    saes: dict[str, SparseAutoencoder]


def open_edit(root: Path, record: Manifest) -> Edit:
    """The artifact's edit.

    Raises:
        SaeuronError: it is not the one on record.
    """
    edit = Edit.load(root / "edit" / "edit.safetensors")
    if edit.sha256() != record.edit.sha256:
        raise SaeuronError(
            f"edit/edit.safetensors in '{root}' is not the edit on record (hashes differ); take the artifact again from its source"
        )
    return edit


def open_original(model: str, record: Manifest, device: str = "cpu") -> Any:
    """The original pipeline at the artifact's precision.

    Raises:
        SaeuronError: it is not the one on record.
    """
    pipeline = load_pipeline(model, dtype_of(record.precision), device, variant=record.model.variant)
    if network_sha256(network_of(pipeline)) != record.model.network_sha256:
        raise SaeuronError(f"'{model}' is not the model that this artifact was made from (the UNet's hash differs)")
    return pipeline


def open_saes(record: Manifest, saes: tuple[str, ...] = ()) -> dict[str, SparseAutoencoder]:
    """Hookpoint → SAE of an artifact.

    Args:
        record: the artifact's manifest.
        saes: `PATH` or `HOOKPOINT=PATH`; default: the sources on record.

    Raises:
        SaeuronError: an SAE that can't be opened, or another one than that on record.
    """
    given = dict(at_hookpoint(text) for text in saes)
    opened = {}
    for hookpoint, known in record.saes.items():
        if known.source == DIRECTIONS:  # they lie in the edit's own file
            continue
        source = given.get(hookpoint) or given.get(None) or known.source
        try:
            sae = SparseAutoencoder.load(path_of(source), hookpoint)
        except SaeuronError as error:
            if hookpoint in given or None in given:
                raise
            # Of a local folder only its name is on record.
            raise SaeuronError(f"{error}; say where the SAE on record ('{source}') lies with --sae {hookpoint}=DIR") from None
        if sae.sha256() != known.sha256:
            raise SaeuronError(f"the SAE '{source}' is not the one that made this artifact (hashes differ at '{hookpoint}')")
        opened[hookpoint] = sae
    return opened


def open_reference(root: Path, record: Manifest, model: str, saes: tuple[str, ...] = (), device: str = "cpu") -> Original:
    """Original pipeline, edit and SAEs of an artifact; arguments and errors as those of `fresh_golden`."""
    edit, opened = open_edit(root, record), open_saes(record, saes)
    return Original(open_original(model, record, device), edit, opened)


def _proof_of(root: Path, record: Manifest, edit: Edit) -> tuple[list[str], str]:
    """Prompts and scope of the export's proof; of an artifact that was published without golden vectors, as its other files have them."""
    path = root / "edit" / "golden.safetensors"
    if path.is_file():
        notes = Golden.load(path).notes
        return notes.prompts, notes.scope
    prompts = edit.provenance.prompts
    if not prompts:
        raise SaeuronError(f"'{root}' holds neither golden vectors nor the prompts of its proof, so it can't be proven")
    return prompts, record.validation.scope if record.validation else "full"


def fresh_golden(
    artifact: str | Path, model: str, saes: tuple[str, ...] = (), seed: int = 1, device: str = "cpu"
) -> tuple[Golden, Reference | None]:
    """Run the reference for `artifact` on the original model.

    Args:
        artifact: its folder; its own edit file says what the hook does.
        model: the original model.
        saes: `PATH` or `HOOKPOINT=PATH`; default: the sources on record.
        seed: of the latents.
        device: torch device.

    Returns:
        golden vectors, and the hook on any tokens; None where it edits weights alone.

    Raises:
        SaeuronError: the model or an SAE is not the one on record, or a weight in 8 bits is not that of the model.
    """
    root = Path(artifact)
    record = manifest.read(root)
    pipeline, edit, opened = open_reference(root, record, model, saes, device)
    own = dict(network_of(pipeline).named_parameters())
    for name, change in record.edit.weights.items():
        if name not in own or change.before != exact(to_numpy(own[name])):
            raise SaeuronError(f"the manifest of '{root}' gives another digest for '{name}' before the edit than '{model}' has")
    if record.quantised is not None:
        held = {plain(name): (name, value) for name, value in own.items()}

        def weight(name: str) -> np.ndarray:
            return next(to_numpy(value) for _, value in weights_of(network_of(pipeline), [held[name]]))

        quantisation.check_codes(root / family_of(pipeline).denoiser.component / "model.onnx", record.quantised, weight)
    prompts, scope = _proof_of(root, record, edit)
    sampling = record.sampling
    golden = make_golden(
        pipeline, edit, opened, prompts, sampling.steps, sampling.guidance, record.precision, record.gate,
        sampling.height, sampling.width, seed, scope,
    )  # fmt: skip
    if not edit.hookpoints:
        return golden, None
    return golden, on_tokens(TokenEdit(edit, opened, dtype_of(record.precision), device, record.gate))
