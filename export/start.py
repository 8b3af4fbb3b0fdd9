"""The door: `saeuron` and `saeuron-export`. It imports next to nothing, so that an interruption is one line from the start on."""

from __future__ import annotations

import sys


def main() -> None:
    """`saeuron …`."""
    _enter("main")


def main_export() -> None:
    """`saeuron-export …`."""
    _enter("main_export")


def _enter(name: str) -> None:
    try:
        from .streams import prepare

        prepare()
        from . import cli

        getattr(cli, name)()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; nothing was left behind\n")
        sys.exit(130)
