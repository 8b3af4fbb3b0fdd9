"""Opening files that others wrote: every failure is one clear line, and nothing is allocated before it is checked."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import SaeuronError
from .hub_errors import hub_reason

if TYPE_CHECKING:
    import torch

_JSON_LIMIT = 64 * 2**20


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        SaeuronError: missing, larger than 64 MiB, not JSON, or not an object.
    """
    try:
        if path.stat().st_size > _JSON_LIMIT:
            raise SaeuronError(f"{path} is larger than 64 MiB; that is no settings file")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SaeuronError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise SaeuronError(f"{path} can't be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise SaeuronError(f"{path} holds {type(value).__name__}, expected an object")
    return value


def read_header(path: Path) -> tuple[dict[str, str], dict[str, tuple[str, tuple[int, ...]]]]:
    """Metadata and `{name: (dtype, shape)}` of a safetensors file, without reading tensors."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as handle:
            shapes = {}
            for name in handle.keys():  # noqa: SIM118 - not a dict
                piece = handle.get_slice(name)
                shapes[name] = (str(piece.get_dtype()), tuple(piece.get_shape()))
            return handle.metadata() or {}, shapes
    except FileNotFoundError:
        raise SaeuronError(f"{path} does not exist") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise SaeuronError(
            f"{path} is no whole safetensors file ({error}); it may be truncated (download it again) or another kind of file"
        ) from None


def open_safetensors(path: Path, expected: dict[str, tuple[int, ...]] | None = None) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file; with `expected`, only those names, whose shapes must match the header.

    Raises:
        SaeuronError: missing, truncated or corrupt file; a tensor missing or of another shape.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    _, shapes = read_header(path)
    for name, shape in (expected or {}).items():
        if name not in shapes:
            raise SaeuronError(f"{path} has no tensor '{name}' (it has: {', '.join(sorted(shapes)[:6])})")
        if shapes[name][1] != tuple(shape):
            raise SaeuronError(f"{path}: '{name}' has shape {list(shapes[name][1])}, its config says {list(shape)}")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, KeyError) as error:
        raise SaeuronError(f"{path} can't be read: {error}") from None
    return {name: tensors[name] for name in (expected or tensors)}


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, streamed."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def hub_folder(repo_id: str, patterns: list[str], revision: str | None, what: str) -> Path:
    """A local copy of (part of) a Hub repository, through huggingface_hub's own cache.

    Raises:
        SaeuronError: not a folder here and not to be had from the Hub either.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if repo_id.count("/") != 1 or repo_id.startswith((".", "/", "~")):
        raise SaeuronError(f"{what}: no folder '{repo_id}' here, and it is no Hub id (owner/name) either")
    try:
        return Path(snapshot_download(repo_id, allow_patterns=patterns, revision=revision))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise SaeuronError(f"{what}: '{repo_id}' is no folder here and could not be fetched from the Hub: {hub_reason(error)}") from None
