"""Feeds damaged files to readers and says what came out that mustn't: anything but a result or a `SaeuronError` of one line.

Every reader runs in a process of its own, with a limit on memory and on the time of each input, so that a crash of native code is seen too.
An input follows from seed, reader and number alone.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import resource
import signal
import struct
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from saeuron.editor.common.errors import SaeuronError
from saeuron.export.commands.console import escaped

from . import mutations
from .readers import Reader, damaged

MEMORY = 1 << 30
"""bytes that a reader may take beyond what the process has at its start"""
SECONDS, PATIENCE = 5.0, 120.0
"""of the processor's time for one input, so that a busy machine is no fault; of the clock until a process that hears no alarm is killed"""


class _TooLong(BaseException):
    pass


@dataclass
class Found:
    """What came of one reader."""

    reader: str
    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    seconds: float = 0.0
    faults: dict[str, dict[str, Any]] = field(default_factory=dict)
    """what went wrong, where → `{"number", "count", "text"}`, the first input that showed it"""


def run(one: Reader, inputs: int, seed: int) -> Found:
    """Feed inputs 0, 1, … to a reader."""
    torch.set_num_threads(1)  # a process that was forked from one with more can't use them
    found = Found(one.name)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as place:
        outer = Path(place)
        folder = outer / "inner" / one.name.replace(" ", "-")
        folder.mkdir(parents=True)
        one.held.clear()
        one.prepare(folder)
        one.read(folder)  # the valid files are accepted; and what is imported is imported once, not by every process
        before = sorted(p.name for p in (*outer.iterdir(), *(outer / "inner").iterdir()))
        at = 0
        while at < inputs:
            at = _part(one, folder, seed, at, inputs, found)
        if sorted(p.name for p in (*outer.iterdir(), *(outer / "inner").iterdir())) != before or Path("/tmp/evil").exists():
            _add(found, "a file was written outside the folder", -1, "")
    found.seconds = time.perf_counter() - began
    return found


def _part(one: Reader, folder: Path, seed: int, first: int, end: int, found: Found) -> int:
    """A process that works until it ends or dies; the next number."""
    shared = mmap.mmap(-1, 64)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        code = 1
        try:
            _work(one, folder, seed, first, end, shared, write)
            code = 0
        except BaseException:
            os.write(
                write,
                (json.dumps({"fault": "the harness itself failed", "number": -1, "text": traceback.format_exc()[-400:]}) + "\n").encode(),
            )
        finally:
            os._exit(code)
    os.close(write)
    os.set_blocking(read, False)
    last, since = -1, time.monotonic()
    status = None
    text = b""
    while status is None:
        text += _told(read)
        done, raw = os.waitpid(pid, os.WNOHANG)
        if done:
            status = raw
            break
        now = struct.unpack_from("<q", shared, 0)[0]
        if now != last:
            last, since = now, time.monotonic()
        elif time.monotonic() - since > PATIENCE:
            os.kill(pid, signal.SIGKILL)
            since = time.monotonic()
        time.sleep(0.02)
    text += _told(read)
    os.close(read)
    number, accepted, refused = struct.unpack_from("<qqq", shared, 0)
    found.accepted += accepted
    found.refused += refused
    for line in text.splitlines():
        said = json.loads(line)
        _add(found, said["fault"], said["number"], said["text"])
    if status == 0:
        found.inputs += end - first
        return end
    how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"
    _add(found, f"the process died of {how}", number, "")
    found.inputs += number + 1 - first
    return number + 1


def _told(pipe: int) -> bytes:
    made = b""
    with contextlib.suppress(BlockingIOError):
        while part := os.read(pipe, 1 << 16):
            made += part
    return made


def _add(found: Found, fault: str, number: int, text: str) -> None:
    entry = found.faults.setdefault(fault, {"number": number, "count": 0, "text": text})
    entry["count"] += 1


def _work(one: Reader, folder: Path, seed: int, first: int, end: int, shared: mmap.mmap, write: int) -> None:
    warnings.simplefilter("ignore")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    witness = folder.parent.parent / "witness"
    mutations.witness = str(witness)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 28, 1 << 28))

    def alarm(*_: Any) -> None:
        raise _TooLong

    signal.signal(signal.SIGPROF, alarm)
    accepted = refused = 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(first, end):
        struct.pack_into("<qqq", shared, 0, number, accepted, refused)
        name, content = damaged(one, folder, seed, number)
        (folder / name).write_bytes(content)
        fault = text = None
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            one.read(folder)
            accepted += 1
        except SaeuronError as error:
            refused += 1
            shown = escaped(str(error))
            if not shown.strip() or not shown.isprintable() or len(shown) > 5000:
                fault, text = "the error is no printable line", shown[:200]
        except _TooLong as error:
            fault, text = f"longer than {SECONDS:g} s in {_where(error)}", ""
        except BaseException as error:  # what a user would see as a traceback, or worse
            fault, text = f"{type(error).__name__} in {_where(error)}", str(error)[:200]
        signal.setitimer(signal.ITIMER_PROF, 0)
        (folder / name).write_bytes(one.held[name])
        now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if fault is None and now - peak > MEMORY >> 11:  # KiB: half of the limit
            fault, text = "much memory", f"{(now - peak) >> 10} MiB more"
        peak = max(peak, now)
        if witness.exists():
            fault, text = "code of the file was run", ""
            witness.unlink()
        if fault is not None:
            os.write(write, (json.dumps({"fault": fault, "number": number, "text": text}) + "\n").encode())
    struct.pack_into("<qqq", shared, 0, end, accepted, refused)


def _where(error: BaseException) -> str:
    """The last line of the package on the way to an error."""
    frames = [
        f
        for f in traceback.extract_tb(error.__traceback__)
        if "saeuron" in f.filename or "/editor/" in f.filename or "/validation/" in f.filename or "/export/" in f.filename
    ]
    frames = [f for f in frames if "/site-packages/" not in f.filename and "/tests/" not in f.filename] or frames
    return f"{'/'.join(Path(frames[-1].filename).parts[-2:])}:{frames[-1].lineno} {frames[-1].name}" if frames else "nowhere of ours"


def shares(known: list[Reader], total: int) -> list[tuple[Reader, int]]:
    """How many of `total` inputs each reader gets."""
    whole = sum(one.share for one in known)
    counts = [int(total * one.share / whole) for one in known]
    counts[0] += total - sum(counts)
    return list(zip(known, counts, strict=True))


Say = Callable[[str], None]
