"""Writes a report: beside the artifact, or into it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...editor.common.declared import OUTPUT, WHAT, Checked, option
from ...editor.common.errors import SaeuronError
from ...editor.common.writing import whole_file, whole_folder
from ...validation.artifact import contents, manifest
from ..plan.folder import check_with_pictures
from .card import REPORT, REPORT_PICTURES

if TYPE_CHECKING:
    from ...validation.page.render import Pages


@dataclass(frozen=True)
class ReportSettings(Checked):
    """The options of `saeuron report`.

    Raises:
        SaeuronError: two places to write to.
    """

    evaluation: tuple[Path, ...] = option((), "DIR", WHAT)
    """Folder that `saeuron evaluate` wrote for it; again for another protocol."""
    attack: Path | None = option(None, "FILE", WHAT)
    """File that `saeuron attack` wrote for it."""
    tuning: Path | None = option(None, "FILE", WHAT)
    """report.json of the `saeuron tune` that chose its settings."""
    proof: Path | None = option(None, "FILE", WHAT)
    """Another proof of it, from `saeuron validate --json`, e.g. on the device; stands beside its own."""
    features: Path | None = option(None, "DIR", WHAT)
    """Folder that `saeuron features` wrote: pictures where features fire."""
    output: Path | None = option(None, "FILE.html", OUTPUT, short="-o")
    """The page; the same as Markdown goes to FILE.md, its pictures to FILE-pictures/. Default: ARTIFACT-report/report.html."""
    into_artifact: bool = option(False, panel=OUTPUT)
    """Into the artifact: validation/report.html, and a model card with the same content. Hashes follow; a signed one is refused."""
    pictures: bool = option(True, panel=OUTPUT)
    """Show pictures. All come from the unedited model; a report without them may go where those may not (publish --without-golden)."""
    overwrite: bool = option(False, panel=OUTPUT)
    """Replace what is at --output."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.into_artifact and self.output is not None:
            raise SaeuronError("--output and --into-artifact are two places; give one of them")


@dataclass(frozen=True)
class Written:
    """A report that was written."""

    html: Path
    markdown: Path
    content: Mapping[str, Any]
    """what it says; `verdict` and `not_checked` among it"""


def write_report(artifact: Path, settings: ReportSettings | None = None, progress: Callable[[str], None] = lambda text: None) -> Written:
    """Write what is known of an artifact as one HTML page that loads nothing from anywhere, and as Markdown.

    Args:
        artifact: its folder.
        settings: what goes into it, and where it goes.
        progress: told what is being done.

    Raises:
        SaeuronError: a changed artifact, files of another one, a place that may not be written.
    """
    s, record = settings or ReportSettings(), manifest.read(artifact)
    files = _inside(artifact) if s.into_artifact else _beside(artifact, s)
    content: dict[str, Any] = {}

    def make() -> Pages:
        from ...validation.page.content import make_content
        from ...validation.page.render import render

        content.update(make_content(artifact, s.evaluation, s.attack, s.proof, s.features, s.into_artifact, s.pictures, s.tuning))
        return render(content, files["pictures"].name)

    if s.into_artifact:
        from .into_artifact import put_report

        put_report(artifact, s.overwrite, make, progress)
    else:
        contents.check(artifact, record)
        progress("writing the report")
        made = make()
        # Closed in the reverse order: the page, which stands alone, gets its name last.
        with whole_file(files["html"]) as page, whole_file(files["markdown"]) as text, whole_folder(files["pictures"]) as folder:
            page.write_text(made.html, encoding="utf-8")
            text.write_text(made.markdown, encoding="utf-8")
            for name, png in made.pictures.items():
                (folder / name).write_bytes(png)
    return Written(files["html"], files["markdown"], content)


def _inside(artifact: Path) -> dict[str, Path]:
    from .into_artifact import HTML

    page = artifact / REPORT
    return {"html": artifact / HTML, "markdown": page, "pictures": page.with_name(REPORT_PICTURES)}


def _beside(artifact: Path, s: ReportSettings) -> dict[str, Path]:
    """What will be written: `html`, `markdown`, `pictures`."""
    page = s.output if s.output is not None else artifact.resolve().with_name(f"{artifact.resolve().name}-report") / "report.html"
    if page.is_dir():
        raise SaeuronError(f"--output '{page}' is a folder; give a file, e.g. report.html")
    if page.suffix.lower() not in (".html", ".htm"):
        raise SaeuronError(f"--output '{page}' has to end in .html, since the Markdown goes beside it")
    files = {"html": page, "markdown": page.with_suffix(".md"), "pictures": page.with_name(f"{page.stem}-pictures")}
    check_with_pictures([files["html"], files["markdown"]], files["pictures"], s.overwrite)
    return files
