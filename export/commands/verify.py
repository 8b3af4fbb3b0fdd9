"""`saeuron verify`: is an artifact whole, with nothing added, and signed by whom it should be?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..ship.hub import local_copy
from . import options as o
from .console import clean, err, escaped, print_warning, progress_line, tell, write_json

PublicKey = Annotated[
    Path | None,
    typer.Option("--public-key", metavar="PEM", help="Public key of the publisher; without a valid signature by it, the artifact fails."),
]


@clean
def verify(
    artifact: Annotated[str, typer.Argument(metavar="DIR|ID@REVISION", help="Folder of the artifact, or a Hub id, which is downloaded.")],
    public_key: PublicKey = None,
    as_json: o.Json = False,
) -> None:
    """Verify an artifact: file hashes, nothing extra that would be executed, the edit in the tensors, the signature.

    Runs no model, and needs no torch. `saeuron validate` then proves that the edit does what it should.

    Example: `saeuron verify me/sd14-without-nudity@0123456789abcdef0123456789abcdef01234567 --public-key publisher.pem`

    Exit code 0: verified; 1: not verified; 2: can't be done.
    """
    from ...validation.trust.verify import verify as check

    with progress_line("verifying") as say:
        found_at = local_copy(artifact, say)
        found = check(found_at.folder, public_key, say)
    if found_at.hub_id and not found_at.pinned:
        print_warning(f"'{artifact}' is not pinned: its branch or tag can move; this was {found_at.name}")
    for entry in found["not_checked"]:
        print_warning(f"not checked: {entry['check']} ({entry['reason']})")
    if as_json:
        write_json({"artifact": found_at.name, "folder": str(found_at.folder), "pinned": found_at.pinned, **found})
    else:
        signed = {"valid": ", signature valid", "not checked": ", signature not checked", "none": ", not signed"}.get(
            found["signature"], ""
        )
        verdict = f"verified ({found['files']} files and the manifest{signed})" if found["verified"] else "NOT VERIFIED"
        place = f" in {found_at.folder}" if found_at.hub_id else ""
        tell(f"{found_at.name}: {verdict}{place}")
        if found["quantised"]:
            tell(f"on record: {found['quantised']}")
    for line in found["failures"]:
        err.print(f"[red]not verified:[/] {escaped(line)}", highlight=False, soft_wrap=True)
    if not found["verified"]:
        raise typer.Exit(1)
