"""The commands `saeuron-export` and `saeuron`. torch and diffusers are imported only once a command needs them."""

from __future__ import annotations

import sys
from typing import Any

import typer

from ..editor.common.errors import SaeuronError
from .commands.attack import attack
from .commands.bench import bench
from .commands.build import build
from .commands.collect import collect
from .commands.compare import compare
from .commands.concepts import concepts, new
from .commands.console import INTERRUPTED, Version, interrupted, print_error
from .commands.evaluate import evaluate
from .commands.export import export
from .commands.features import features
from .commands.generate import generate
from .commands.harden import harden
from .commands.once import OnceCommand, OnceGroup
from .commands.page import page
from .commands.publish import publish
from .commands.report import report as report_command
from .commands.select import select
from .commands.sign import sign as sign_command
from .commands.steer import steer
from .commands.streams import prepare
from .commands.train import train
from .commands.try_ import try_
from .commands.tune import tune
from .commands.validate import validate
from .commands.verify import verify

# Newer typer carries its own copy of click, so click's base class is reached by way of a public name.
_UsageError: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

app = typer.Typer(name="saeuron", pretty_exceptions_enable=False, rich_markup_mode="markdown")


@app.callback(invoke_without_command=True)
def root(context: typer.Context, version: Version = False) -> None:
    """Remove concepts from diffusion models with features of a sparse autoencoder, and ship the result as one proven artifact."""
    if context.invoked_subcommand is None:
        sys.stdout.write(context.get_help() + "\n")
        raise typer.Exit(2)


_concepts = typer.Typer(cls=OnceGroup)
_concepts.callback(invoke_without_command=True)(concepts)
_concepts.command("new", cls=OnceCommand)(new)
app.add_typer(_concepts, name="concepts")
for _name, _command in {
    "collect": collect, "train": train, "select": select, "tune": tune, "harden": harden, "steer": steer, "features": features,
    "export": export, "build": build, "validate": validate, "evaluate": evaluate, "attack": attack, "compare": compare, "report": report_command, "generate": generate, "try": try_, "page": page, "bench": bench,
    "verify": verify, "sign": sign_command, "publish": publish,
}.items():  # fmt: skip
    app.command(_name, cls=OnceCommand)(_command)

_single = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")
_single.command("saeuron-export", cls=OnceCommand)(export)


def main() -> None:
    """`saeuron …`."""
    _run(app)


def main_export() -> None:
    """`saeuron-export …`."""
    _run(_single)


def _run(command: typer.Typer) -> None:
    """Run a command line; what typer would draw a box for is one line too."""
    _silence()
    prepare()
    try:
        code = command(standalone_mode=False)
        sys.stdout.flush()
    except _UsageError as error:
        print_error(_usage_line(error))
        code = 2
    except SaeuronError as error:  # of stdout, at the very end or under `--help`
        print_error(str(error))
        code = 2
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    if code == INTERRUPTED:  # typer makes it of an interruption between the commands' own handlers, too
        interrupted("nothing was left behind")
    sys.exit(code or 0)


# What newer typer quotes from its validator.
_PLAINER = {
    "Input should be a valid integer, unable to parse string as an integer": "it must be a whole number",
    "Input should be a valid number, unable to parse string as a number": "it must be a number",
}


def _usage_line(error: Any) -> str:
    """typer's message as one sentence that says what to do."""
    if hasattr(error, "possibilities"):
        near = " or ".join(repr(name) for name in error.possibilities or ())
        text = f"no such option '{error.option_name}'" + (f"; did you mean {near}?" if near else "")
    else:
        text = " ".join(error.format_message().split()).rstrip(".").replace(". Did you", "; did you")
        text = text[:1].lower() + text[1:]
        for long, short in _PLAINER.items():
            text = text.replace(long, short)
    context = getattr(error, "ctx", None)
    return text if text.endswith("?") or context is None else f"{text}; see '{context.command_path} --help'"


def _silence() -> None:
    """Bars and notes of libraries would drown ours; their errors reach the user through our own lines."""
    import logging
    import os

    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    logging.captureWarnings(True)
    # Without any handler Python would print warnings of every logger.
    logging.getLogger().addHandler(logging.NullHandler())


if __name__ == "__main__":
    main()
