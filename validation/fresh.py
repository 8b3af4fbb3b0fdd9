"""A new reference for an existing artifact: the hook runs again on the original model, from latents of another seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..editor import demo
from ..editor.edit import Edit
from ..editor.errors import SaeuronError
from ..editor.names import normalise
from ..editor.pipelines import load_pipeline, unet_sha256
from ..editor.sae import SparseAutoencoder
from . import manifest
from .golden import Golden
from .reference import PRECISIONS, make_golden


def open_edit(root: Path, record: dict[str, Any], saes: tuple[str, ...] = ()) -> tuple[Edit, dict[str, SparseAutoencoder]]:
    """What the dynamic hook needs: the artifact's edit, and the SAEs on record.

    Args:
        root: the artifact's folder.
        record: its manifest.
        saes: `PATH` or `HOOKPOINT=PATH`; default: the sources on record.

    Raises:
        SaeuronError: another edit or SAE than the one on record.
    """
    edit = Edit.load(root / "edit" / "edit.safetensors")
    if edit.sha256() != record["edit"]["sha256"]:
        raise SaeuronError(
            f"edit/edit.safetensors in '{root}' is not the edit on record (hashes differ); take the artifact again from its source"
        )
    given = dict((normalise(h), p) if eq else ("", h) for h, eq, p in (s.partition("=") for s in saes))
    opened = {}
    for hookpoint, known in record["saes"].items():
        source = given.get(hookpoint) or given.get("") or known["source"]
        try:
            sae = SparseAutoencoder.load(demo.resolve(source) if source.startswith("demo:") else source, hookpoint)
        except SaeuronError as error:
            if hookpoint in given or "" in given:
                raise
            # Of a local folder only its name is on record.
            raise SaeuronError(f"{error}; say where the SAE on record ('{source}') lies with --sae {hookpoint}=DIR") from None
        if sae.sha256() != known["sha256"]:
            raise SaeuronError(f"the SAE '{source}' is not the one that made this artifact (hashes differ at '{hookpoint}')")
        opened[hookpoint] = sae
    return edit, opened


def open_original(record: dict[str, Any], model: str, device: str = "cpu") -> Any:
    """The pipeline that an artifact was made from, at the artifact's precision.

    Raises:
        SaeuronError: `model` is another one.
    """
    pipeline = load_pipeline(model, PRECISIONS[record["precision"]], device)
    if unet_sha256(pipeline.unet) != record["model"]["unet_sha256"]:
        raise SaeuronError(f"'{model}' is not the model that this artifact was made from (the UNet's hash differs)")
    return pipeline


def fresh_golden(artifact: str | Path, model: str, saes: tuple[str, ...] = (), seed: int = 1, device: str = "cpu") -> Golden:
    """Run the reference for `artifact` on the original model.

    Args:
        artifact: its folder; its own edit file says what the hook does.
        model: the original model.
        saes: `PATH` or `HOOKPOINT=PATH`; default: the sources on record.
        seed: of the latents.
        device: torch device.

    Raises:
        SaeuronError: the model or an SAE is not the one on record.
    """
    root = Path(artifact)
    record = manifest.read(root)
    edit, opened = open_edit(root, record, saes)
    pipeline = open_original(record, model, device)
    kept = Golden.load(root / "edit" / "golden.safetensors").notes
    sampling = record["sampling"]
    return make_golden(
        pipeline, edit, opened, kept["prompts"], sampling["steps"], sampling["guidance"], record["precision"], record["gate"],
        sampling["height"], sampling["width"], seed, kept["scope"],
    )  # fmt: skip
