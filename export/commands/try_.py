"""`saeuron try`: draw with an artifact on a page of this machine's browser."""

from __future__ import annotations

import signal
from typing import NoReturn

from ...editor.common.errors import SaeuronError
from ...validation.ui.settings import TrySettings
from . import options as o
from .console import err, progress_line, tell
from .declared import command


@command
def try_(artifact: o.Artifact, settings: TrySettings, target: o.Target = None) -> None:
    """Draw with an artifact on a page in the browser: beside the unedited model, with heat maps of where its features fire.

    File hashes are checked first. There is no safety checker. The page is served on 127.0.0.1 only, is never shared and loads nothing from
    other hosts. Ctrl-C ends it. Needs extra `ui`; ONNX graphs need no torch.

    Example: `saeuron try without-neon --attack attack.json`
    """
    from ...validation.artifact import contents, manifest
    from ...validation.artifact.installed import missing
    from ...validation.ui.page import alone, free_port, make_page, serve
    from ...validation.ui.studio import choose, open_studio
    from ...validation.ui.suggestions import attacks_on, examples, found

    # What can't be is told before gradio is imported, which takes seconds.
    record = manifest.read(artifact)
    way = choose(artifact, record, settings, target)
    port = free_port(settings.port)
    attacks = attacks_on(artifact, record, settings.attack)
    if missing(("gradio",)):
        raise SaeuronError("gradio is not installed; pip install 'saeuron-export[ui]'")
    with alone():
        with progress_line("checking files") as say:
            contents.check(artifact, record)
            studio = open_studio(artifact, record, settings, way, say)
            say("making the page")
            prompts = examples(artifact, record, studio.edit.header)
            page = make_page(studio, prompts, found(attacks) if attacks else None, port)
        signal.signal(signal.SIGTERM, _end)
        err.print(f"drawn by {studio.runs_on}", highlight=False, soft_wrap=True, markup=False)
        try:
            serve(page, port, settings.open, lambda address: tell(f"{address} (Ctrl-C ends it)"))
        except KeyboardInterrupt:
            err.print("ended", highlight=False)


def _end(number: int, frame: object) -> NoReturn:
    """A server that is ended in order leaves nothing behind."""
    raise KeyboardInterrupt
