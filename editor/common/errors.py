"""Errors that are the user's to mend: one line saying what is wrong, where, and what to do."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator


class SaeuronError(ValueError):
    """Bad input or an impossible wish; the command line prints it and exits with 2."""


_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\\\)?|\x1b.")
# What a library tells its own callers to do; not where it is part of a path.
_ADVICE = re.compile(
    r"(?<![\w/.-])(please|make sure|try (to|again|using|setting|a|the)|consider \w+ing|trusted source|pip install|check out|refer to|see https?|"
    r"for more (information|details)|file an issue|(you|we) (can|could|should|may|might|must|need|want|changed|recommend)|if you|"
    r"re-?run(ning)?|weights[_ ]only|trust_remote_code|allow_pickle|mmap|torch\.(load|save|serialization)|low_cpu_mem_usage|"
    r"ignore_mismatched_sizes|local_files_only|(pass|set|specify)(ing)? [`'\"]?\w+[`'\"]? ?(=|to\b))(?![\w/])",
    re.IGNORECASE,
)


def first_line(error: BaseException, most: int = 300) -> str:
    """The reason that another library gives, on one line: without escape codes, and without what it advises its own callers to do.

    Args:
        error: what it raised.
        most: characters at most.
    """
    name = type(error).__name__
    if isinstance(error, EOFError) and not str(error):
        return "it is empty, or ends too early"
    if isinstance(error, OSError) and error.strerror:
        return (error.strerror if error.filename is None else f"{error.strerror}: '{error.filename}'")[:most]
    text = _ESCAPES.sub("", f"{name} {error}" if isinstance(error, KeyError) else str(error)).replace(" when allow_pickle=False", "")
    for line in text.splitlines():
        said = [part for part in re.split(r"(?<=[.!?])\s+", line.strip()) if part and not _ADVICE.search(part)]
        if any(c.isalnum() for part in said for c in part):
            return " ".join(said)[:most]
    # Nothing but advice: so does torch where it refuses to run what a file brings along.
    return "it holds more than tensors, or is damaged" if "Unpickling" in name else name


@contextlib.contextmanager
def panics_as_errors() -> Iterator[None]:
    """Turn a panic of a library in Rust (tokenizers, on some damaged files) into a `RuntimeError`.

    Such a `PanicException` derives from `BaseException` alone, so `except Exception` lets it by.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise RuntimeError(first_line(error)) from error
