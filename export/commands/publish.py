"""`saeuron publish`: puts a proven artifact on the Hub, with a card that says what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import options as o
from .console import clean, print_warning, progress_line, resumable, tell, write_json

_TRUST, _HUB = "What may be published", "Hub"


@clean
@resumable
def publish(
    artifact: o.Artifact,
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository on the Hub; made if it isn't there.")],
    public: Annotated[bool, typer.Option("--public", help="Everybody may see it. Default: private.", rich_help_panel=_HUB)] = False,
    branch: Annotated[str, typer.Option("--branch", "--revision", metavar="NAME", help="Branch; made if it isn't there.", rich_help_panel=_HUB)] = "main",
    message: Annotated[str | None, typer.Option(metavar="TEXT", help="Of the commit.", rich_help_panel=_HUB)] = None,
    unproven: Annotated[bool, typer.Option("--unproven", help="Publish what failed its proof or has none; the card says so.", rich_help_panel=_TRUST)] = False,
    golden: Annotated[
        bool | None,
        typer.Option(
            "--with-golden/--without-golden",
            help="Golden vectors hold pictures and latents of the unedited model. Default: they go along to a private repository; --public asks for one of the two.",
            rich_help_panel=_TRUST,
        ),
    ] = None,
    licence: Annotated[
        str | None,
        typer.Option("--license", metavar="ID", help="The base model's licence, e.g. creativeml-openrail-m, where its card doesn't tell it.", rich_help_panel=_TRUST),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option("--sign", metavar="PEM", help="ECDSA private key: sign what is published; password: SAEURON_KEY_PASSWORD.", rich_help_panel=_TRUST),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List files and sizes; ask the Hub nothing, so no token is needed.", rich_help_panel=o.OUTPUT)] = False,
    as_json: o.Json = False,
) -> None:  # fmt: skip
    """Verify an artifact and put it on the Hub in one commit, private unless --public says otherwise.

    Card and manifest are completed for it; the folder itself stays as it is. Prints the commit, by which others should load it.

    Example: `saeuron publish sd14-without-nudity me/sd14-without-nudity --sign publisher.key --without-golden`

    Exit code 0: published; 2: can't be done. A repeated command sends only what isn't on the Hub yet.
    """
    from ..ship import hub, publishing
    from ..ship import licence as licences
    from ..ship.card import hub_id

    wanted = publishing.Publication(artifact, repo, public, unproven, golden, licence, key, branch, message)
    with progress_line("reading the manifest") as say:
        record = publishing.check(wanted)
        base, known, on_hub = record.model.source, record.license, None
        if not dry_run:
            hub.check_token()
            if hub_id(base):
                on_hub = hub.base_model(base, public)
                known = licences.of_metadata(on_hub or {}) or known
        unknown = dry_run and known is None and licence is None and hub_id(base)
        settled = None if unknown else licences.settle(known, licence, base, public)
        publishing.check_files(wanted, say)
        with publishing.staged(wanted, record, settled, say) as staged:
            if not dry_run and hub_id(base) and on_hub is None:
                staged.warnings.append(
                    f"the base model '{base}' can't be seen on the Hub with this token, so nobody checked whether it is gated"
                )
            if unknown:
                staged.warnings.append(
                    f"the licence of '{base}' is not known here; its card on the Hub is asked when publishing, or state it with --license"
                )
            for line in staged.warnings:
                print_warning(line)
            done = None if dry_run else hub.upload(staged, wanted, say)
    _print(wanted, staged, done, settled, as_json)


def _print(wanted: Any, staged: Any, done: Any, settled: Any, as_json: bool) -> None:
    total = sum(staged.files.values())
    if as_json:
        where = {} if done is None else {"commit": done.commit, "url": done.url, "created": done.created}
        write_json({
            "repo": wanted.repo, "branch": wanted.branch, "private": not wanted.public, "dry_run": done is None, **where, "license": settled and settled.id,
            "signed": staged.signed, "proven": bool(staged.record.validation and staged.record.validation.passed), "files": staged.files, "bytes": total,
            "warnings": staged.warnings,
        })  # fmt: skip
        return
    if done is None:
        for name, size in staged.files.items():
            tell(f"{size:>14,}  {name}")
    seen = "public" if wanted.public else "private"
    signed = "signed" if staged.signed else "not signed"
    head = "would be published" if done is None else "published"
    tell(
        f"{len(staged.files)} files, {total / 1e6:,.1f} MB, {head}: {wanted.repo} ({seen}, {signed}, licence {settled.id if settled else 'not known'})"
    )
    if done is not None:
        tell(
            f"commit {done.commit}\n{done.url}\n\nverify it:  saeuron verify {done.pinned}{' --public-key PUBLIC.pem' if staged.signed else ''}\n"
            f'load it:    DiffusionPipeline.from_pretrained("{done.repo}", revision="{done.commit}", trust_remote_code=True)'
        )
