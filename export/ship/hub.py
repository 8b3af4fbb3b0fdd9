"""The Hub, through huggingface_hub: where an artifact is fetched from, and published to. Needs no torch."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...editor.common.errors import SaeuronError
from ...editor.common.files import hub_folder, read_json
from ...editor.common.hub_errors import hub_reason
from ...validation.artifact import manifest
from .publishing import Publication, Staged

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Copy:
    """An artifact on this machine."""

    folder: Path
    name: str
    """as it was given; of a Hub id with the commit that was fetched"""
    hub_id: str | None = None
    pinned: bool = True
    """False for a Hub id whose revision is a branch or a tag"""


def local_copy(artifact: str, progress: Callable[[str], None] = lambda text: None) -> Copy:
    """A folder, or `owner/name[@revision]` of the Hub as a folder, in huggingface_hub's own cache.

    Raises:
        SaeuronError: neither is there.
    """
    if Path(artifact).exists() or "/" not in artifact or artifact.startswith((".", "/", "~")):
        if not Path(artifact).is_dir():
            raise SaeuronError(f"'{artifact}' is no folder, and no Hub id (owner/name) either")
        return Copy(Path(artifact), artifact)
    hub_id, _, revision = artifact.partition("@")
    progress(f"fetching {artifact}")
    folder = hub_folder(hub_id, ["*"], revision or None, "artifact")
    commit = folder.name if _COMMIT.fullmatch(folder.name) else revision
    return Copy(folder, f"{hub_id}@{commit}", hub_id, bool(_COMMIT.fullmatch(revision)))


@dataclass(frozen=True)
class Uploaded:
    """Where an artifact lies now."""

    repo: str
    commit: str
    url: str
    private: bool
    created: bool

    @property
    def pinned(self) -> str:
        """What `saeuron verify` takes."""
        return f"{self.repo}@{self.commit}"


@contextlib.contextmanager
def _asking(what: str) -> Iterator[None]:
    """Whatever the client raises becomes one line: what was being done, and why it failed."""
    try:
        yield
    except SaeuronError:
        raise
    except Exception as error:  # the client raises its own types, its network library's, ValueError and RuntimeError
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ is not None else error
        raise SaeuronError(f"{what}: {hub_reason(cause)}") from None


def base_model(source: str, public: bool) -> dict[str, Any] | None:
    """The metadata in a base model's card on the Hub; None if it can't be seen.

    Raises:
        SaeuronError: the base is gated, and everybody would see the artifact; or the Hub can't be asked.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    with _asking(f"base model '{source}'"):
        try:
            info = HfApi().model_info(source)
        except RepositoryNotFoundError:
            return None
    if info.gated and public:
        raise SaeuronError(
            f"the base model '{source}' is gated ({info.gated}): who downloads it accepts its terms first, which a public copy would go around; publish without --public, and gate the repository in its settings"
        )
    return info.card_data.to_dict() if info.card_data else {}


def check_token() -> str:
    """Name of the account that the token belongs to; raises `SaeuronError` where there is no valid token."""
    from huggingface_hub import HfApi

    with _asking("the Hub takes no upload"):
        return str(HfApi().whoami()["name"])


def upload(staged: Staged, wanted: Publication, progress: Callable[[str], None] = lambda text: None) -> Uploaded:
    """Put a staged artifact into a repository, in one commit: nobody can fetch half of it.

    Files of the artifact that lay there before, and that this one hasn't, are removed by that commit. An upload that was cut off is taken up again by
    the same call: what lies on the server already is not sent again.

    Raises:
        SaeuronError: see `hub_reason`; a repository that holds something else, or is seen by others than was asked for; or what lies on
            the server afterwards isn't what was sent.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api, repo = HfApi(), wanted.repo
    progress(f"looking for {repo}")
    before, created = _open_repo(api, wanted)
    ours = _ours(repo, before)
    if wanted.branch != "main":
        with _asking(f"branch '{wanted.branch}' of '{repo}'"):
            api.create_branch(repo, branch=wanted.branch, exist_ok=True)
            before = api.repo_info(repo, revision=wanted.branch)
        ours = _ours(repo, before)
    operations: list[Any] = [CommitOperationDelete(name) for name in sorted(ours - set(staged.files))]
    operations += [CommitOperationAdd(path_in_repo=name, path_or_fileobj=staged.folder / name) for name in staged.files]
    progress(f"uploading {len(staged.files)} files, {sum(staged.files.values()) / 1e6:.1f} MB, to {repo}")
    with _asking(f"'{repo}' could not be written"):
        message = wanted.message or f"saeuron: {', '.join(staged.record.concepts)} removed"
        made = api.create_commit(repo, operations, commit_message=message, revision=wanted.branch, parent_commit=before.sha)
    progress("comparing what lies on the Hub")
    _compare(api, repo, made.oid, staged)
    return Uploaded(repo, made.oid, f"{api.endpoint}/{repo}/tree/{made.oid}", bool(before.private), created)


def _open_repo(api: Any, wanted: Publication) -> tuple[Any, bool]:
    """The repository as the Hub has it, made if it wasn't there."""
    from huggingface_hub.errors import RepositoryNotFoundError

    repo = wanted.repo
    with _asking(f"'{repo}'"):
        try:
            found = api.repo_info(repo)
        except RepositoryNotFoundError:
            found = None
    if found is None:
        with _asking(f"'{repo}' could not be made"):
            api.create_repo(repo, private=not wanted.public)
            return api.repo_info(repo), True
    if bool(found.private) == wanted.public:
        raise SaeuronError(
            f"'{repo}' exists and is {'private' if found.private else 'public'}; {'leave --public out' if found.private else 'say --public'}, or change it in the repository's settings"
        )
    return found, False


def _ours(repo: str, info: Any) -> set[str]:
    """What of the files at a commit came with an artifact: those that its manifest lists, the manifest and the signature.

    Raises:
        SaeuronError: it holds other files too; they are their owner's, and beside an artifact `verify` would refuse them.
    """
    from huggingface_hub import hf_hub_download

    there = {entry.rfilename for entry in info.siblings or ()} - {".gitattributes"}
    if not there - {"README.md"}:
        return there
    listed: set[str] = set()
    if manifest.NAME in there:
        with _asking(f"'{repo}'"):
            path = hf_hub_download(repo, manifest.NAME, revision=info.sha)
        files = read_json(Path(path)).get("files")
        listed = {*(files if isinstance(files, dict) else ()), manifest.NAME, manifest.SIGNATURE}
    if others := sorted(there - listed - {"README.md"}):
        raise SaeuronError(
            f"'{repo}' at commit {info.sha[:12]} holds something else ({others[0]}{' …' if len(others) > 1 else ''}), which is no file of an artifact; move it away, or choose another name or branch"
        )
    return there & listed


def _compare(api: Any, repo: str, commit: str, staged: Staged) -> None:
    """Names and sizes of all files, and the SHA-256 of large ones, as the Hub tells them."""
    with _asking(f"'{repo}' was written, and could not be compared"):
        info = api.repo_info(repo, revision=commit, files_metadata=True)
    held = {entry.rfilename: entry for entry in info.siblings or () if entry.rfilename != ".gitattributes"}
    known = {name: entry.sha256 for name, entry in staged.record.files.items()}
    for name in sorted({*held, *staged.files}):
        entry = held.get(name)
        digest = entry.lfs.sha256 if entry is not None and entry.lfs is not None else None
        if entry is None or entry.size != staged.files.get(name) or (digest and name in known and digest != known[name]):
            raise SaeuronError(f"'{name}' in '{repo}' at commit {commit} is not what was sent; run the same command again")
