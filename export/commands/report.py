"""`saeuron report`: an artifact's proof, evaluation and attack as a page for people."""

from __future__ import annotations

from ..ship.report import ReportSettings, write_report
from . import options as o
from .console import progress_line, tell, write_json
from .declared import command


@command
def report(artifact: o.Artifact, settings: ReportSettings, as_json: o.Json = False) -> None:
    """Write what is known of an artifact as one HTML page that loads nothing from anywhere, and as Markdown.

    It says what was removed, how near the artifact is to the dynamic hook, how well the concept is gone, what attacks found, and what was
    not checked. Needs neither torch nor a model.

    Example: `saeuron report without-neon --evaluation without-neon-evaluation --attack attack.json --features neon-features`
    """
    with progress_line("checking files") as say:
        made = write_report(artifact, settings, say)
    if as_json:
        write_json({
            "html": str(made.html), "markdown": str(made.markdown), "verdict": made.content["verdict"], "not_checked": made.content["not_checked"],
        })  # fmt: skip
        return
    tell(made.content["verdict"]["text"])
    tell(f"{made.html}, the same as Markdown in {made.markdown}")
