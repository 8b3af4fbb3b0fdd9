"""Opening files that others wrote: every failure is one clear line, and nothing is allocated before it is checked."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import SaeuronError, first_line
from .hub_errors import hub_reason

if TYPE_CHECKING:
    import torch

_JSON_LIMIT = 16 * 2**20
"""bytes of JSON that are parsed: Python's objects take some twenty times as many"""


def refuse_pointer(path: Path) -> None:
    """Raise where a file is only a Git LFS pointer to what should be there, or none: a pipe would be empty when it is read again.

    Raises:
        SaeuronError: it is one, a folder, a pipe or a device.
        OSError: it can't be opened.
    """
    if path.exists() and not path.is_file():
        raise SaeuronError(f"{path} is {'a folder' if path.is_dir() else 'a pipe or a device'}, where a file is needed")
    with path.open("rb") as file:
        if file.read(42).startswith(b"version https://git-lfs.github.com/spec/"):
            raise SaeuronError(
                f"{path} is a Git LFS pointer, not the file itself; run `git lfs pull` in its repository, or download the file"
            )


def refuse_cut_zip(path: Path) -> bool:
    """Whether a file is a zip archive, as PyTorch's and numpy's are.

    Raises:
        SaeuronError: it begins as one and doesn't end as one.
        OSError: it can't be opened.
    """
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
    try:
        whole = not zipped or zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # an end that speaks of several disks
        whole = False
    if not whole:
        raise SaeuronError(f"{path} is truncated or damaged (a zip archive without its end); download or write it again")
    return zipped


def plain_text(path: Path, encoding: str = "utf-8") -> str:
    """A text file that somebody wrote by hand; a Git LFS pointer is text too, and would be taken for it.

    Raises:
        SaeuronError: it is such a pointer.
        OSError, UnicodeDecodeError: it can't be read.
    """
    refuse_pointer(path)
    return path.read_text(encoding=encoding)


@contextlib.contextmanager
def _opening(named: str) -> Iterator[None]:
    """A file that can't be opened, as one line."""
    try:
        yield
    except FileNotFoundError:
        raise SaeuronError(f"{named} does not exist") from None
    except OSError as error:
        raise SaeuronError(f"{named} can't be read: {error.strerror or first_line(error)}") from None


def read_toml(path: Path, what: str, hint: str = "") -> dict[str, Any]:
    """The content of a TOML file; `what` it is, e.g. `settings file`; `hint` ends the line where it is no TOML.

    Raises:
        SaeuronError: missing, not to be read, or not TOML.
    """
    named = f"{what} '{path}'"
    with _opening(named):
        try:
            return tomllib.loads(plain_text(path))
        except SaeuronError:
            raise
        except (ValueError, RecursionError) as error:
            raise SaeuronError(f"{named} can't be read as TOML: {error}{hint}") from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        SaeuronError: missing, larger than 16 MiB, not JSON, or not an object.
    """
    with _opening(str(path)):
        if path.stat().st_size > _JSON_LIMIT:
            raise SaeuronError(f"{path} is larger than {_JSON_LIMIT >> 20} MiB; that is no settings file")
        refuse_pointer(path)
        content = path.read_bytes()
    try:
        value = parse_json(content.decode())
    except ValueError as error:
        raise SaeuronError(f"{path} can't be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise SaeuronError(f"{path} holds {type(value).__name__}, expected an object")
    return value


def parse_json(text: str) -> Any:
    """A value from JSON that somebody else wrote.

    Raises:
        ValueError: no JSON, a byte order mark, nested too deeply, numbers of thousands of digits, a key twice, or half a character (a lone surrogate), which
            nothing could write or print.
    """
    if text.startswith("\ufeff"):
        raise ValueError("it begins with a byte order mark; save it as UTF-8 without one")
    try:
        value = json.loads(text, object_pairs_hook=_once)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("it holds half a character (a lone surrogate)") from None
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        # Readers differ in which one they take, so a check by one says nothing of what another will see.
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:60]!r} is there twice")
    return found


def read_header(path: Path) -> tuple[dict[str, str], dict[str, tuple[str, tuple[int, ...]]]]:
    """Metadata and `{name: (dtype, shape)}` of a safetensors file, without reading tensors."""
    from safetensors import SafetensorError, safe_open

    with _opening(str(path)):
        refuse_pointer(path)
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
        if _JSON_LIMIT < size <= path.stat().st_size:
            raise SaeuronError(f"{path}: its header is larger than {_JSON_LIMIT >> 20} MiB")
        try:
            with safe_open(path, "np") as handle:
                shapes = {}
                for name in handle.keys():  # noqa: SIM118 - not a dict
                    piece = handle.get_slice(name)
                    shapes[name] = (str(piece.get_dtype()), tuple(piece.get_shape()))
                return handle.metadata() or {}, shapes
        except (SafetensorError, ValueError) as error:
            raise SaeuronError(
                f"{path} is no whole safetensors file ({first_line(error)}); it may be truncated (download it again) or another kind of file"
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
        raise SaeuronError(f"{path} can't be read: {first_line(error)}") from None
    return {name: tensors[name] for name in (expected or tensors)}


@contextlib.contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Whatever a library says against a file, as one line: a damaged or hostile one makes it raise anything.

    Raises:
        SaeuronError: the block raised something.
    """
    try:
        if path.is_file():
            refuse_pointer(path)
        yield
    except (SaeuronError, ImportError):
        raise
    except Exception as error:
        raise SaeuronError(f"{path} can't be read as {what}: {first_line(error)}") from None


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, streamed."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def check_hub_id(name: str, what: str) -> None:
    """Raise unless a source that isn't here can be a Hub id; `what` it is, e.g. `model`.

    Raises:
        SaeuronError: why it isn't here.
    """
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return
    try:
        os.stat(name)
    except PermissionError:
        raise SaeuronError(f"{what}: there is no permission to look into '{name}'") from None
    except (OSError, ValueError):
        pass
    if os.path.islink(name):
        raise SaeuronError(f"{what}: '{name}' is a link to '{os.readlink(name)}', which isn't there")
    raise SaeuronError(f"{what}: no folder '{name}' here, and it is no Hub id (owner/name) either")


def hub_folder(repo_id: str, patterns: list[str], revision: str | None, what: str, fetch: bool = True) -> Path:
    """A local copy of (part of) a Hub repository, through huggingface_hub's own cache.

    Args:
        repo_id: owner/name.
        patterns: of the files that are needed.
        revision: default: the main one.
        what: it is, e.g. `model`.
        fetch: False: take what was fetched before, and don't ask the Hub.

    Raises:
        SaeuronError: not a folder here and not to be had from the Hub either.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    check_hub_id(repo_id, what)
    # A folder of the owner's name speaks for a path, so what was never fetched is not fetched on a guess.
    near = os.path.isdir(repo_id.partition("/")[0])
    try:
        return Path(snapshot_download(repo_id, allow_patterns=patterns, revision=revision, local_files_only=near or not fetch))
    except RuntimeError as error:
        if "home directory" not in str(error):
            raise
        raise SaeuronError(
            f"{what}: '{repo_id}' is no folder here, and no home folder is known in which it could be kept; set HF_HOME, or HOME, to a folder"
        ) from None
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        if not fetch and isinstance(error, LocalEntryNotFoundError):
            raise SaeuronError(f"{what}: '{repo_id}' is no folder here, and not (whole) in the Hub's cache either") from None
        if near and isinstance(error, LocalEntryNotFoundError):
            owner = repo_id.partition("/")[0]
            raise SaeuronError(
                f"{what}: there is no folder '{repo_id}', though there is a folder '{owner}'; if the Hub's model of that name is meant, run it elsewhere, or fetch it first: hf download {repo_id}"
            ) from None
        raise SaeuronError(f"{what}: '{repo_id}' is no folder here and could not be fetched from the Hub: {hub_reason(error)}") from None
