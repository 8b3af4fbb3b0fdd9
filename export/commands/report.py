"""`saeuron report`: an artifact's proof, evaluation and attack as a page for people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...editor.common.errors import SaeuronError
from ...editor.common.writing import whole_file, whole_folder
from ..plan.folder import check_with_pictures
from . import options as o
from .console import clean, progress_line, tell, write_json

if TYPE_CHECKING:
    from ...validation.page.render import Pages


@clean
def report(
    artifact: o.Artifact,
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Folder that `saeuron evaluate` wrote for it; again for another protocol.", rich_help_panel=o.WHAT),
    ] = None,
    attack: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File that `saeuron attack` wrote for it.", rich_help_panel=o.WHAT)
    ] = None,
    proof: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Another proof of it, from `saeuron validate --json`, e.g. on the device; stands beside its own.", rich_help_panel=o.WHAT,
        ),
    ] = None,
    features: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder that `saeuron features` wrote: pictures where features fire.", rich_help_panel=o.WHAT)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE.html",
            help="The page; the same as Markdown goes to FILE.md, its pictures to FILE-pictures/. Default: ARTIFACT-report/report.html.",
            rich_help_panel=o.OUTPUT,
        ),
    ] = None,
    into_artifact: Annotated[
        bool,
        typer.Option(
            "--into-artifact", help="Into the artifact: validation/report.html, and a model card with the same content. Hashes follow; a signed one is refused.",
            rich_help_panel=o.OUTPUT,
        ),
    ] = False,
    pictures: Annotated[
        bool,
        typer.Option(
            "--pictures/--no-pictures",
            help="Show pictures. All come from the unedited model; a report without them may go where those may not (publish --without-golden).",
            rich_help_panel=o.OUTPUT,
        ),
    ] = True,
    overwrite: o.Overwrite = False,
    as_json: o.Json = False,
) -> None:  # fmt: skip
    """Write what is known of an artifact as one HTML page that loads nothing from anywhere, and as Markdown.

    It says what was removed, how near the artifact is to the dynamic hook, how well the concept is gone, what attacks found, and what was
    not checked. Needs neither torch nor a model.

    Example: `saeuron report without-neon --evaluation without-neon-evaluation --attack attack.json --features neon-features`
    """
    from ...validation.artifact import contents, manifest

    record = manifest.read(artifact)
    if into_artifact and output is not None:
        raise SaeuronError("--output and --into-artifact are two places; give one of them")
    page = output if output is not None else artifact.resolve().with_name(f"{artifact.resolve().name}-report") / "report.html"
    files = _inside(artifact) if into_artifact else _check_output(page, overwrite)
    content: dict[str, Any] = {}

    def make() -> Pages:
        from ...validation.page.content import make_content
        from ...validation.page.render import render

        content.update(make_content(artifact, evaluation or (), attack, proof, features, into_artifact, pictures))
        return render(content, files["pictures"].name)

    with progress_line("checking files") as say:
        if into_artifact:
            from ..ship.into_artifact import put_report

            put_report(artifact, overwrite, make, say)
        else:
            contents.check(artifact, record)
            say("writing the report")
            made = make()
            _write(files, made.html, made.markdown, made.pictures)
    if as_json:
        write_json({
            "html": str(files["html"]), "markdown": str(files["markdown"]), "verdict": content["verdict"], "not_checked": content["not_checked"],
        })  # fmt: skip
        return
    tell(content["verdict"]["text"])
    tell(f"{files['html']}, the same as Markdown in {files['markdown']}")


def _inside(artifact: Path) -> dict[str, Path]:
    from ..ship.card import REPORT, REPORT_PICTURES
    from ..ship.into_artifact import HTML

    page = artifact / REPORT
    return {"html": artifact / HTML, "markdown": page, "pictures": page.with_name(REPORT_PICTURES)}


def _check_output(page: Path, overwrite: bool) -> dict[str, Path]:
    """What will be written: `html`, `markdown`, `pictures`."""
    if page.is_dir():
        raise SaeuronError(f"--output '{page}' is a folder; give a file, e.g. report.html")
    if page.suffix.lower() not in (".html", ".htm"):
        raise SaeuronError(f"--output '{page}' has to end in .html, since the Markdown goes beside it")
    files = {"html": page, "markdown": page.with_suffix(".md"), "pictures": page.with_name(f"{page.stem}-pictures")}
    check_with_pictures([files["html"], files["markdown"]], files["pictures"], overwrite)
    return files


def _write(files: Mapping[str, Path], html: str, markdown: str, pictures: Mapping[str, bytes]) -> None:
    # Closed in the reverse order: the page, which stands alone, gets its name last.
    with whole_file(files["html"]) as page, whole_file(files["markdown"]) as text, whole_folder(files["pictures"]) as folder:
        page.write_text(html, encoding="utf-8")
        text.write_text(markdown, encoding="utf-8")
        for name, png in pictures.items():
            (folder / name).write_bytes(png)
