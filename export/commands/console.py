"""What every command shares: results on stdout, progress and errors on stderr, one line and exit code 2 for a mistake."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from ...editor.common.errors import SaeuronError, first_line

if TYPE_CHECKING:
    from ...validation.proof.results import Proof

_LONGEST = 2000
INTERRUPTED = 130
if os.environ.get("COLUMNS") == "0":  # of a terminal that knows no width: rich would print nothing at all
    del os.environ["COLUMNS"]
out = Console()
err = Console(stderr=True)
_told: list[str] = []


def clean(function: Callable[..., Any]) -> Callable[..., Any]:
    """One line and exit code 2 for what the user can mend."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except SaeuronError as error:
            print_error(str(error))
        except ModuleNotFoundError as error:
            extra = {"onnxruntime": "cpu", "model_signing": "sign"}.get(error.name or "", "export")
            print_error(f"'{error.name}' is not installed; pip install 'saeuron-export[{extra}]'")
        except RuntimeError as error:
            # Known by name and text, since neither torch nor the editor is imported for the sake of an error.
            if "home directory" in str(error):
                print_error(
                    "no home folder is known, so nothing can be kept there; set HOME, or HF_HOME (downloads) and SAEURON_CACHE (activations)"
                )
            elif "allocate memory" in str(error) or type(error).__name__ == "OutOfMemoryError":
                print_error(f"not enough memory ({first_line(error)}); take smaller batches, or a machine with more")
            elif type(error).__name__ != "AblationIntegrityError":
                raise
            else:
                print_error(str(error))
        except OSError as error:
            place = f"'{error.filename}': " if error.filename is not None else ""
            print_error(f"{place}{error.strerror or first_line(error)}")
        except MemoryError as error:
            print_error(f"not enough memory ({error or 'allocation failed'}); take smaller batches, or a machine with more")
        except KeyboardInterrupt:
            interrupted("nothing was left behind")
            raise typer.Exit(INTERRUPTED) from None
        raise typer.Exit(2)

    return run


def resumable(function: Callable[..., Any]) -> Callable[..., Any]:
    """For commands that go on where they were stopped: says so when interrupted."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except KeyboardInterrupt:
            interrupted("the same command goes on from what was finished")
            raise typer.Exit(INTERRUPTED) from None

    return run


def interrupted(what: str) -> None:
    """One line on stderr, once: a command says more than what is around it."""
    if not _told:
        err.print(f"interrupted; {what}", highlight=False, soft_wrap=True)
    _told.append(what)


def print_error(text: str) -> None:
    """One line on stderr."""
    err.print(f"[red]error:[/] {escaped(text)}", highlight=False, soft_wrap=True)


def escaped(text: str) -> str:
    """Text on one line of a sane length, with rich's markup taken literally.

    It may come from a file that somebody else wrote, so what would steer a terminal is shown, not sent.
    """
    from rich.markup import escape

    text = text.replace("\n", " ")
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]}…"
    return escape("".join(c if c.isprintable() else ascii(c)[1:-1] for c in text))


def names(text: str) -> tuple[str, ...]:
    """`A,B` → its parts; the empty text has none.

    Raises:
        SaeuronError: commas alone, which somebody meant to be more than nothing.
    """
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    if text and not found:
        raise SaeuronError(f"the list '{text}' is empty; name what you mean, or leave the option out")
    return found


def tell(text: str) -> None:
    """A line on stdout, as it is."""
    out.print(text, highlight=False, soft_wrap=True, markup=False)


def table_of(*columns: str, left: tuple[str, ...]) -> Table:
    """An empty table; columns are to the right but for those to the `left`."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in columns:
        made.add_column(name, justify="left" if name in left else "right", overflow="fold", no_wrap=name in ("backend", "model"))
    return made


def print_warning(text: str) -> None:
    """One line on stderr."""
    err.print(f"[yellow]warning:[/] {escaped(text)}", highlight=False, soft_wrap=True)


def write_json(value: Any) -> None:
    """Strict JSON on stdout."""
    from ...editor.common.typed import strict_json

    sys.stdout.write(strict_json(value) + "\n")


@contextlib.contextmanager
def progress_line(first: str) -> Iterator[Callable[[str], None]]:
    """A line on stderr that is written over; where stderr is no terminal, a line for each new text."""
    with err.status(first) as status:
        last = ""

        def say(text: str) -> None:
            nonlocal last
            status.update(escaped(text))
            if not err.is_terminal and text != last:
                err.print(escaped(text), highlight=False, soft_wrap=True)
            last = text

        yield say


def report_failures(proof: Proof | None) -> None:
    """What a proof failed by, a line each, eight at most."""
    for line in proof.failures[:8] if proof else ():
        err.print(f"[red]not proven:[/] {escaped(line)}", highlight=False, soft_wrap=True)


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"saeuron-export {importlib.metadata.version('saeuron-export')}\n")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", callback=clean(_print_version), is_eager=True, help="Print the version and exit.")]
