"""`saeuron sign`: signs a finished artifact with a key file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...editor.common.errors import SaeuronError
from . import options as o
from .console import clean, progress_line, tell, write_json


@clean
def sign(
    artifact: o.Artifact,
    key: Annotated[
        Path, typer.Option("--key", metavar="PEM", help="ECDSA private key; password: SAEURON_KEY_PASSWORD.", show_default=False)
    ],
    as_json: o.Json = False,
) -> None:
    """Verify an artifact, and sign every file of it. The signature goes into `model.sig`, and replaces an older one.

    Sign last: engines that are built afterwards, and a card that `publish` completes, need a new signature.

    Example: `saeuron sign without-neon --key publisher.key`
    """
    from ...validation.trust import signature
    from ...validation.trust.verify import verify

    signature.check_private_key(key)
    with progress_line("verifying") as say:
        found = verify(artifact, progress=say)
        if not found["verified"]:
            raise SaeuronError(f"'{artifact}' doesn't verify, so it isn't signed: {found['failures'][0]}")
        say("signing")
        made = signature.sign(artifact, key)
    if as_json:
        write_json({"artifact": str(artifact), "signature": str(made), "files": found["files"] + 1})
    else:
        tell(f"{artifact}: {found['files']} files and the manifest signed, in {made}")
