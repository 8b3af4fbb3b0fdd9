"""Verifies an artifact: all files are there, unchanged, and none was added. Runs no model, and needs neither torch nor a GPU.

`validate` proves that the edit works. `verify` finds what happened to the files since: it compares hashes, looks for anything that a
loader would execute, compares the edit in the tensors with the edit on record, and checks a signature.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...editor.common.errors import SaeuronError
from ...editor.common.files import file_sha256, read_json
from ...editor.common.typed import read_as
from ...editor.denoisers.families import family_in
from ..artifact import contents, engines, manifest, weights
from ..artifact.golden import Golden
from ..artifact.installed import missing
from ..artifact.manifest import GOLDEN, Manifest
from . import executable, quantisation, shipped_class, signature, tables
from .agreement import Ablation, Place, check_said

EDIT = "edit/edit.safetensors"


def verify(
    artifact: str | Path, public_key: str | Path | None = None, progress: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Verify an artifact's folder.

    Args:
        artifact: its folder.
        public_key: PEM file of an ECDSA key; the artifact must then be signed with its private half.
        progress: told what is being checked.

    Returns:
        `verified`; `failures`, one line each; `not_checked`, `[{"check", "reason"}, …]`; `signature`, one of `valid`, `invalid`, `missing`,
        `not checked`, `none`; `quantised`, what is on record of a quantised graph, else empty; `files` and `bytes` on record; `manifest_sha256` of the manifest's file, by which the artifact is known.

    Raises:
        SaeuronError: no artifact there; a key that can't be read, or the package for signatures isn't installed.
    """
    root = Path(artifact)
    if not (root / manifest.NAME).is_file():
        raise SaeuronError(f"'{root}' is no artifact: it has no {manifest.NAME}")
    if public_key is not None:
        signature.check_public_key(Path(public_key))
    found: dict[str, Any] = {
        "verified": False,
        "failures": [],
        "not_checked": [],
        "signature": "none",
        "quantised": "",
        "files": 0,
        "bytes": 0,
        "manifest_sha256": None,
    }
    found["manifest_sha256"] = file_sha256(root / manifest.NAME)
    try:
        record = manifest.read(root, formats=False)
        progress("comparing file hashes")
        found["failures"] += manifest.own_hash_faults(root, record)
        found["failures"] += [_short(line, root) for line in contents.faults(root, record)]
        progress("looking for code")
        if (root / ".git").exists():
            found["not_checked"].append(
                {
                    "check": ".git",
                    "reason": "git's own; commands in its settings run once git is used there, so clone anew what others gave you",
                }
            )
        found["failures"] += executable.check(root, record)
        found["quantised"] = _quantised(record)
        found |= {"files": len(record.files), "bytes": sum(entry.bytes for entry in record.files.values())}
        if found["failures"]:
            found["not_checked"].append({"check": "edit", "reason": "files differ"})
        else:
            progress("comparing the edit in the tensors with the edit on record")
            _contents(root, manifest.read(root), found)
    except SaeuronError as error:
        # A manifest or a file that can't be read is a damaged artifact, not a mistake of whoever asks.
        found["failures"].append(str(error))
    progress("checking the signature")
    _signature(root, public_key, found)
    found["verified"] = not found["failures"]
    return found


def _quantised(record: Manifest) -> str:
    """What is on record of a quantised graph; empty of one in floats."""
    if record.quantised is None:
        return ""
    proven = record.validation is not None and record.validation.passed
    return record.quantised.verdict if proven else f"{record.quantised.scheme} graph, not proven"


def _short(line: str, root: Path) -> str:
    """Without the folder, which the verdict names, and without advice that is the same on every line."""
    return line.replace(f" in '{root}'", "").replace(f" from the artifact '{root}'", "").replace("; take it again from its source", "")


def _contents(root: Path, record: Manifest, found: dict[str, Any]) -> None:
    """Files that are what the manifest says, against one another."""
    edit = tables.read_edit(root / EDIT)
    edited = family_in(root).denoiser.component
    config = read_json(root / edited / "config.json")
    alone = not edit.header.latents
    ablation = Ablation() if alone else read_as(Ablation, config.get("ablation"), f"{edited}/config.json, 'ablation'")
    failures = found["failures"]
    if edit.sha256() != record.edit.sha256:
        failures.append(f"{EDIT} is not the edit on record (hashes differ)")
    golden = Golden.load(root / GOLDEN) if GOLDEN in record.files else None
    if golden is None:
        found["not_checked"].append({"check": "golden vectors", "reason": "published without them"})
    failures += check_said(root, record, golden)
    failures += engines.check_entries(root, record)
    if record.quantised is not None and record.validation is not None and record.validation.passed:
        failures += record.quantised.faults(record.concepts)
    if "checkpoint" in record.formats:
        failures += shipped_class.check_stock(root, family_in(root)) if alone else shipped_class.check(root)
        held = tables.edit_tensors(root / edited)
        failures += tables.in_checkpoint(held, edit, record.gate, record.precision)
        failures += tables.changed_weights(root / edited, record.edit.weights)
        failures += _settings(ablation.hookpoints, record)
        if golden is not None:
            own = (f"{h.replace('.', '-')}.{key}" for h in edit.header.latents for key in edit.of(h, record.gate))
            failures += weights.of_edit(held, golden.weights.get("edit", {}), own)
        if not alone and tables.ablation_sha256(config["ablation"], held) != record.edit.tensors_sha256:
            failures.append("checkpoint: the edit's tensors are not those on record (hashes differ)")
    if "onnx" in record.formats:
        lacking = missing(("onnx",))
        if lacking:
            found["not_checked"].append(
                {"check": "the edit's tables in the ONNX graph", "reason": "needs onnx (its file's hash was compared)"}
            )
        else:
            failures += tables.in_graph(root / edited, edit, record.gate, record.precision, record.onnx.seams)
            failures += quantisation.check(root / edited / "model.onnx", record)


def _settings(hookpoints: dict[str, Place], record: Manifest) -> list[str]:
    """The config's `k` and number of latents against those of the SAEs on record."""
    return [
        f"the network's config: '{key}' of '{name}' is {said}, and the SAE on record has {right}"
        for name, given in hookpoints.items()
        for key in ("k", "latents")
        if (said := getattr(given, key)) != (right := getattr(record.saes.get(name), key, None))
    ]


def _signature(root: Path, public_key: str | Path | None, found: dict[str, Any]) -> None:
    signed = (root / manifest.SIGNATURE).is_file()
    if public_key is None:
        if signed:
            found["signature"] = "not checked"
            found["not_checked"].append({"check": "signature", "reason": "no public key given"})
        return
    if not signed:
        found["signature"] = "missing"
        found["failures"].append(f"the artifact is not signed: it has no {manifest.SIGNATURE}")
        return
    fault = signature.fault(root, Path(public_key))
    found["signature"] = "invalid" if fault else "valid"
    if fault:
        found["failures"].append(fault)
