"""Signatures over a whole artifact, through OpenSSF `model-signing` (https://github.com/sigstore/model-transparency): key files, ECDSA.

The signature lies in the artifact as `model.sig` and covers every file but itself, the manifest included. Any tool that reads that format
can check it without this package.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import io
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...editor.common.errors import SaeuronError
from ...editor.common.writing import temporary
from ..artifact import contents, manifest
from ..artifact.installed import missing

_CURVES = ("secp256r1", "secp384r1", "secp521r1")
_OTHERS = (".git", ".cache", ".gitattributes")
"""what git and a download leave at the top; not signed, and refused by `verify` if it is anything else"""


def _need() -> None:
    # model-signing 1.1.1 imports pyOpenSSL without asking for it.
    if lacking := missing(("model_signing", "OpenSSL")):
        raise SaeuronError(f"signatures need {' and '.join(lacking)}; pip install 'saeuron-export[sign]'")


def check_private_key(key: Path) -> None:
    """Raise `SaeuronError` unless this is an ECDSA private key, in PEM, that can sign; asked before a long job."""
    _need()
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    text = _read(key, "private key")
    try:
        found = load_pem_private_key(text, _password())
    except (ValueError, TypeError) as error:
        raise SaeuronError(f"'{key}' is no private key in PEM, or its password is another (SAEURON_KEY_PASSWORD): {_line(error)}") from None
    except Exception as error:  # the library's own types, e.g. of an unsupported algorithm
        raise SaeuronError(f"'{key}' can't be used as a private key: {_line(error)}") from None
    _check_curve(key, found)


def check_public_key(key: Path) -> None:
    """Raise `SaeuronError` unless this is an ECDSA public key in PEM."""
    _need()
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    text = _read(key, "public key")
    try:
        found = load_pem_public_key(text)
    except Exception as error:  # the library's own types, beside ValueError
        raise SaeuronError(f"'{key}' is no public key in PEM: {_line(error)}") from None
    _check_curve(key, found)


def _check_curve(key: Path, found: Any) -> None:
    curve = getattr(getattr(found, "curve", None), "name", None)
    if curve not in _CURVES:
        raise SaeuronError(
            f"'{key}' is of another kind ({curve or type(found).__name__}); signatures need an EC key on one of {', '.join(_CURVES)}"
        )


def _read(key: Path, what: str) -> bytes:
    if not key.is_file():
        raise SaeuronError(f"{what}: no file '{key}'")
    try:
        return key.read_bytes()
    except OSError as error:
        raise SaeuronError(f"{what}: '{key}' can't be read: {error.strerror}") from None


def _password() -> bytes | None:
    text = os.environ.get("SAEURON_KEY_PASSWORD")
    return text.encode() if text else None


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def sign(root: Path, key: Path) -> Path:
    """Sign every file of a folder, and put the signature into it.

    Args:
        root: artifact folder, finished: whatever is changed afterwards makes the signature invalid.
        key: ECDSA private key in PEM; the password of an encrypted one is taken from `SAEURON_KEY_PASSWORD`.

    Returns:
        the signature's file.

    Raises:
        SaeuronError: a key that can't be used.
    """
    check_private_key(key)
    from model_signing import hashing, signing

    config = signing.Config().use_elliptic_key_signer(private_key=key, password=_password())  # type: ignore[arg-type]
    config.set_hashing_config(hashing.Config().set_allow_symlinks(True).set_ignored_paths(paths=[manifest.SIGNATURE, *_OTHERS]))
    with temporary() as folder:
        made = folder / manifest.SIGNATURE
        try:
            config.sign(root.resolve(), made)
        except ValueError as error:
            raise SaeuronError(f"'{root}' can't be signed: {_line(error)}") from None
        text = made.read_bytes()
    target = root / manifest.SIGNATURE
    partial = root / f".{manifest.SIGNATURE}.partial-{os.getpid()}"
    try:
        partial.write_bytes(text)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def fault(root: Path, key: Path) -> str | None:
    """What is wrong with an artifact's signature; None if it is good and covers every file on record and the manifest.

    Args:
        root: artifact folder with a `model.sig`.
        key: public key in PEM.
    """
    _need()
    from cryptography.exceptions import InvalidSignature
    from model_signing import hashing, verifying

    path = root / manifest.SIGNATURE
    try:
        covered = _covered(path)
    except (ValueError, KeyError, TypeError, binascii.Error, RecursionError, OSError):
        return f"{manifest.SIGNATURE} is damaged: it can't be read as a signature"
    outside = sorted(name for name in covered if not contents.inside(root, name))
    if outside:
        return f"{manifest.SIGNATURE} is over '{outside[0]}', which is outside the artifact"
    gone = sorted(name for name in covered if not (root / name).is_file())
    if gone:
        return f"the signature doesn't fit: it is over '{gone[0]}', which is missing"
    # Links are a download's own; what is not signed is refused below, and by the manifest.
    config = verifying.Config().use_elliptic_key_verifier(public_key=key)
    config.set_hashing_config(hashing.Config().set_allow_symlinks(True)).set_ignore_unsigned_files(True)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # the library prints notes
            config.verify(root, path)
    except InvalidSignature:
        return "the signature is not valid: the file was changed, or it was made with another key"
    except Exception as error:  # of a damaged file, the library raises many types
        text = _line(error)
        if "key" in text.lower() and "mismatch" in text.lower():
            return f"the signature was made with another key than '{key}'"
        changed = re.findall(r"Hash mismatch for \\?'([^'\\]+)", str(error))
        if changed:
            return f"the signature doesn't fit: {_some(changed)} changed since it was made"
        return f"the signature doesn't fit: {text}"
    unsigned = sorted({manifest.NAME, *_on_record(root)} - covered)
    return f"the signature doesn't cover {_some(unsigned)}" if unsigned else None


def _some(names: list[str]) -> str:
    return f"{', '.join(names[:3])}{' …' if len(names) > 3 else ''}"


def _on_record(root: Path) -> Iterable[str]:
    from ...editor.common.files import read_json

    try:
        return list(read_json(root / manifest.NAME).get("files") or ())
    except SaeuronError:
        return []


def _covered(path: Path) -> set[str]:
    """Files that a signature speaks of (in-toto statement in a DSSE envelope), before anything of it is believed."""
    if path.stat().st_size > 64 * 2**20:
        raise ValueError
    payload = json.loads(base64.b64decode(json.loads(path.read_text(encoding="utf-8"))["dsseEnvelope"]["payload"], validate=True))
    names = {entry["name"] for entry in payload["predicate"]["resources"]}
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError
    return names
