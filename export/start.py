"""Entry points `saeuron` and `saeuron-export`. They import little, so that Ctrl-C gives one line from the start on."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

INTERRUPTED = 130


def main() -> None:
    """`saeuron …`."""
    _enter("main")


def main_export() -> None:
    """`saeuron-export …`."""
    _enter("main_export")


def _enter(name: str) -> None:
    try:
        from .commands.streams import prepare

        prepare()
        _check_folder()
        from . import cli

        getattr(cli, name)()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; nothing was left behind\n")
        _leave()
    except SystemExit as end:
        if end.code == INTERRUPTED:
            _leave()
        raise
    finally:
        _part()


def _part() -> None:
    """Processes that `torchrun` started leave their group in order: a thread of it that outlives Python's end aborts the process (exit code -6)."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _check_folder() -> None:
    """End with one line where the current folder was removed: some libraries then can't be loaded, and say something else."""
    try:
        os.getcwd()
    except FileNotFoundError:
        sys.stderr.write("error: the current folder was removed, so no path can be found from here; change to another one\n")
        raise SystemExit(2) from None


def _leave() -> NoReturn:
    """A library that was interrupted in the middle of its import may leave Python unable to end in order, so it ends at once."""
    sys.stderr.flush()
    os._exit(INTERRUPTED)
