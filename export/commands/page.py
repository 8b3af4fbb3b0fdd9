"""`saeuron page`: an artifact as a static page that draws in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...editor.common.errors import SaeuronError
from ...editor.common.writing import temporary
from ...validation.web.settings import PageSettings
from ..plan.folder import building, check_output
from . import options as o
from .console import progress_line, tell
from .declared import command

if TYPE_CHECKING:
    from ...validation.web.build import Beside, Plan


@command
def page(
    artifact: o.Artifact,
    settings: PageSettings,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="DIR", help="Folder of the page, to be served by any web server.", rich_help_panel=o.OUTPUT)] = None,
    overwrite: o.Overwrite = False,
) -> None:  # fmt: skip
    """Write a page that draws with an artifact in the browser, by its ONNX graphs: a folder of plain files, for any static host.

    File hashes are checked first. No picture and no prompt leaves the browser. There is no safety checker.

    Example: `saeuron page without-neon --beside demo -o without-neon-page`
    """
    from ...validation.artifact import contents, manifest
    from ...validation.web.build import MARKER, given_beside, make_plan, write

    if output is None:
        raise SaeuronError("no output folder: give --output DIR, one that isn't there yet")
    record = manifest.read(artifact)
    check_output(output, overwrite, MARKER, "page")
    with progress_line("checking files") as say, temporary() as scratch:
        contents.check(artifact, record)
        plan = make_plan(artifact, record, settings)
        beside = None
        if settings.beside is not None and (beside := given_beside(plan)) is None:
            say("exporting the original UNet")
            beside = _exported(plan, scratch)
        say("writing the page")
        with building(output, overwrite, MARKER, "page") as folder:
            write(plan, folder, beside)
    tell(f"{output}: serve it, e.g. by python -m http.server --bind 127.0.0.1 --directory {output}")


def _exported(plan: Plan, scratch: Path) -> Beside:
    """The original model's UNet as a graph."""
    from ...editor.denoisers.families import family_of, network_of
    from ...validation.proof.fresh import open_original
    from ...validation.web.build import Beside
    from ..formats import onnx

    pipeline = open_original(str(plan.settings.beside), plan.record)
    part = onnx.denoiser_component(network_of(pipeline), family_of(pipeline).text_tokens(pipeline))
    onnx.write(part, scratch)
    return Beside(scratch / part.folder, "Unedited")
