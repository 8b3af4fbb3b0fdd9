"""What is published of an artifact, and whether it may be: decided before the Hub is asked anything. Needs no torch."""

from __future__ import annotations

import contextlib
import html
import re
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from ...editor.common.errors import SaeuronError
from ...editor.common.writing import temporary
from ...validation.artifact import manifest
from ...validation.artifact.manifest import GOLDEN, File, Manifest, Published, file_of
from ...validation.trust import signature
from ...validation.trust.verify import verify
from . import licence as licences
from .card import REPORT, REPORT_PICTURES, evidence_in, hub_id, model_card

Progress = Callable[[str], None]
_KNOWN = re.compile(
    r"README\.md|model_index\.json|edit/(edit\.safetensors|concepts\.json)|validation/report\.(json|html|md)|tensorrt/[^/]+/[\w.-]+\.(engine|json)"
    r"|(?!edit/|validation/|tensorrt/)[a-z]\w*/(config|\w*_config|[\w.-]*\.index|tokenizer|vocab|special_tokens_map|added_tokens)\.json"
    r"|(?!edit/|validation/|tensorrt/)[a-z]\w*/(merges\.txt|model\.onnx(_data)?|(model|diffusion_pytorch_model)[\w.-]*\.safetensors)"
    r"|(unet|transformer)/saeuron_edit_[0-9a-f]+\.py",
    re.ASCII,
)
"""what is published where golden vectors stay here"""


@dataclass(frozen=True)
class Publication:
    """What to publish, and how."""

    artifact: Path
    repo: str
    """`owner/name`"""
    public: bool = False
    unproven: bool = False
    golden: bool | None = None
    """whether golden vectors go along; None: in a private repository only"""
    licence: str | None = None
    key: Path | None = None
    """signs what is published"""
    branch: str = "main"
    message: str | None = None


@dataclass
class Staged:
    """A folder that is ready to be uploaded; all but its card, manifest and signature are links."""

    folder: Path
    record: Manifest
    files: dict[str, int]
    """path → bytes"""
    signed: bool
    warnings: list[str] = field(default_factory=list)


def check(wanted: Publication) -> Manifest:
    """The artifact's manifest, if what it says may be published. Reads no other file, so it is asked first.

    Raises:
        SaeuronError: a repository's name that the Hub doesn't take; an artifact that isn't proven; golden vectors that nobody decided on; a
            key that can't sign.
    """
    check_repo(wanted.repo)
    record = manifest.read(wanted.artifact)
    if wanted.key is not None:
        signature.check_private_key(wanted.key)
    proof = record.validation
    if not (proof and proof.passed) and not wanted.unproven:
        raise SaeuronError(
            f"'{wanted.artifact}' is not proven ({'its proof failed' if proof else 'exported with --no-validate'}), so it isn't published; --unproven publishes it, and its card says so"
        )
    if wanted.public and wanted.golden is None and GOLDEN in record.files:
        raise SaeuronError(
            f"{GOLDEN} holds pictures and latents of the unedited model for prompts that show {', '.join(record.concepts)}; say --with-golden to make them public, or --without-golden to leave them out"
        )
    return record


def check_files(wanted: Publication, progress: Progress) -> None:
    """Raise `SaeuronError` unless the artifact verifies."""
    found = verify(wanted.artifact, progress=progress)
    if not found["verified"]:
        more = len(found["failures"]) - 1
        raise SaeuronError(
            f"'{wanted.artifact}' doesn't verify, so it isn't published: {found['failures'][0]}{f' (and {more} more)' if more else ''}"
        )


def check_repo(repo: str) -> None:
    """Raise `SaeuronError` unless this is `owner/name` as the Hub takes it."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise SaeuronError(f"'{repo}' is no name of a repository: {str(error).splitlines()[0]}") from None
    if repo.count("/") != 1:
        raise SaeuronError(f"'{repo}' is no name of a repository: give OWNER/NAME")


@contextlib.contextmanager
def staged(wanted: Publication, record: Manifest, licence: licences.Licence | None, progress: Progress) -> Iterator[Staged]:
    """The folder as it will be published: card and manifest made anew, golden vectors in or out, signed.

    Args:
        wanted: what to publish.
        record: of `check`.
        licence: to publish under; None in a dry run that couldn't find it.
        progress: told what is being done.

    Raises:
        SaeuronError: a signature that the new card makes invalid, and no key to sign again.
    """
    keeps_golden = GOLDEN in record.files and wanted.golden is not False
    withheld = set() if keeps_golden else _showing_unedited(wanted.artifact, record)
    files = {name: entry for name, entry in record.files.items() if name not in withheld}
    if not keeps_golden:
        _check_known(files, {record.files[name].sha256 for name in withheld})
    made = msgspec.structs.replace(record, files=files, license=licence, published=Published(repo=wanted.repo))
    card = model_card(made, evidence_in(wanted.artifact, made)).encode()
    made.files["README.md"] = file_of(card)
    text = manifest.encode(made)
    was_signed = (wanted.artifact / manifest.SIGNATURE).is_file()
    kept = was_signed and wanted.key is None and text == (wanted.artifact / manifest.NAME).read_bytes()
    if was_signed and wanted.key is None and not kept:
        raise SaeuronError(
            f"'{wanted.artifact}' is signed, and its card and manifest are completed for publishing, which that signature doesn't cover; sign again with --sign KEY"
        )
    with temporary() as place:
        # Of the folder's own name, which a signature holds.
        folder = place / wanted.repo.partition("/")[2]
        for name in files:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if name == "README.md":
                target.write_bytes(card)
            else:
                target.symlink_to((wanted.artifact / name).resolve())
        (folder / manifest.NAME).write_bytes(text)
        if wanted.key is not None:
            progress("signing")
            signature.sign(folder, wanted.key)
        elif kept:
            (folder / manifest.SIGNATURE).write_bytes((wanted.artifact / manifest.SIGNATURE).read_bytes())
        names = sorted([*files, manifest.NAME, *([manifest.SIGNATURE] if kept or wanted.key is not None else [])])
        sizes = {name: (folder / name).stat().st_size for name in names}
        yield Staged(folder, made, sizes, kept or wanted.key is not None, _warnings(wanted, made, keeps_golden, REPORT in withheld))


def _showing_unedited(root: Path, record: Manifest) -> set[str]:
    """Files with pictures or latents of the unedited model: golden vectors, and a report that shows any picture, whole."""
    page, pictures = f"{REPORT.removesuffix('.md')}.html", [n for n in record.files if n.startswith(f"validation/{REPORT_PICTURES}/")]
    # A page holds its pictures as addresses that begin with data:. Without any, its policy and its empty icon alone name them.
    texts = [
        _plain(root / name).replace("img-srcdata:;", "").replace('href="data:,"', "") for name in (page, REPORT) if name in record.files
    ]
    shown = bool(pictures) or any("data:" in text for text in texts)
    return ({GOLDEN} | ({REPORT, page, *pictures} if shown else set())) & set(record.files)


def _plain(path: Path) -> str:
    """Text without what could hide a word in it: case, character references, white space (which browsers pass over in addresses)."""
    return "".join(html.unescape(path.read_text(encoding="utf-8", errors="replace")).lower().split())


def _check_known(files: Mapping[str, File], withheld: Set[str]) -> None:
    """Raise unless these are files that this package writes, none of them the same as one that stays here: of others nobody knows what they show."""
    for name, file in files.items():
        if not _KNOWN.fullmatch(name) or file.sha256 in withheld:
            raise SaeuronError(
                f"'{name}' is no file that this package writes there, so it could show the unedited model; take it out of the artifact, or publish --with-golden"
            )


def _warnings(wanted: Publication, record: Manifest, keeps_golden: bool, keeps_report_here: bool) -> list[str]:
    found = []
    if keeps_golden:
        found.append(
            f"{GOLDEN} goes along: it holds pictures and latents of the unedited model for prompts that show {', '.join(record.concepts)}; --without-golden leaves it out (`validate` then needs the original model)"
        )
    if keeps_report_here:
        found.append(
            "the report in the artifact stays here with the golden vectors, since it shows pictures of the unedited model too; one of `saeuron report --into-artifact --no-pictures` goes along"
        )
    if not hub_id(record.model.source):
        found.append(f"the base model '{record.model.source}' is no Hub id, so the card names no base_model")
    return found
