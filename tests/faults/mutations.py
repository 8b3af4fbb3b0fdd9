"""Damaged and hostile versions of valid files: flips, cuts and insertions, and changes of structure that a parser lets through."""

from __future__ import annotations

import io
import json
import pickle
import random
import re
import struct
import zipfile
from collections.abc import Callable
from typing import Any

Mutation = Callable[[random.Random, bytes], bytes]

_NUMBERS = (
    0,
    -1,
    1,
    2**31,
    2**63,
    2**64,
    10**12,
    10**30,
    1e308,
    -1e308,
    5e-324,
    float("nan"),
    float("inf"),
    -float("inf"),
    0.5,
    True,
    False,
)
_TEXTS = (
    "", "x", "\0", "a\0b", "..", "../../../etc/passwd", "/etc/passwd", "..\\..\\x", "C:\\x", "\ud800", "\udfff", "\x1b[2J", "\n", "é" * 200,
    "a" * 100_000, "__class__", "{0.__class__}", "%s%n", "NaN", "1e999", "null", "\N{SNOWMAN}",
)  # fmt: skip
_BYTES = (
    b"\0",
    b"\xff",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b'"',
    b"{",
    b"[",
    b"]",
    b"}",
    b"\n",
    b"9" * 5000,
    b"[" * 5000,
    b"\x80\x04",
    b"PK\x03\x04",
)


def nasty(rng: random.Random) -> Any:
    """A JSON value that nobody expects."""
    kind = rng.randrange(6)
    if kind == 0:
        return rng.choice(_NUMBERS)
    if kind == 1:
        return rng.choice(_TEXTS)
    if kind == 2:
        return rng.choice((None, [], {}, [[]], [None], {"": {}}, [{}] * 3))
    if kind == 3:
        value: Any = rng.choice((1, "x", None))
        for _ in range(rng.choice((3, 50, 400))):
            value = [value] if rng.random() < 0.5 else {"a": value}
        return value
    if kind == 4:
        return [rng.choice((0, 1.5, "x", None)) for _ in range(rng.choice((1, 2, 3, 4, 1000)))]
    return rng.randint(-(10**6), 10**15)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a JSON value."""
    found, todo = [], [value]
    while todo:
        held = todo.pop()
        keys = list(held) if isinstance(held, dict) else range(len(held)) if isinstance(held, list) else ()
        for key in keys:
            found.append((held, key))
            todo.append(held[key])
    return found


def mutated_value(rng: random.Random, value: Any) -> Any:
    """A JSON value with one to three changes: replaced, removed, added, renamed or exchanged parts."""
    whole = [json.loads(json.dumps(value))]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        held, key = rng.choice(_places(whole))
        kind = rng.randrange(6)
        if kind == 0 and isinstance(held, dict):
            del held[key]
        elif kind == 1 and isinstance(held, dict):
            held[rng.choice(_TEXTS)] = held.pop(key)
        elif kind == 2 and isinstance(held[key], dict | list) and held[key] and held is not whole:
            held[key] = rng.choice(list(held[key].values()) if isinstance(held[key], dict) else held[key])
        elif kind == 3 and isinstance(held[key], int | float):
            held[key] = rng.choice((str(held[key]), [held[key]], -held[key], held[key] + 1, held[key] * 10**9, float(held[key])))
        elif kind == 4 and len(_places(whole)) > 1:
            other, at = rng.choice(_places(whole))
            held[key] = json.loads(json.dumps(other[at]))
        else:
            held[key] = nasty(rng)
    return whole[0]


def _text(rng: random.Random, value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=rng.random() < 0.7)
    if rng.random() < 0.1:  # the first key once more, with another value
        text = re.sub(r'^\{("[^"]*"):', lambda m: "{" + m[1] + ": " + json.dumps(nasty(rng)) + ", " + m[1] + ":", text, count=1)
    return text.encode("utf-8", "surrogatepass")


def raw(rng: random.Random, content: bytes) -> bytes:
    """Changes that know nothing of the form."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at, kind = rng.randrange(len(data) + 1), rng.randrange(7)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            data[at:at] = rng.choice(_BYTES)
        elif kind == 3:
            del data[at : at + rng.choice((1, 2, 8, 100))]
        elif kind == 4:
            data[at:at] = data[at : at + rng.choice((1, 8, 200))]
        elif kind == 5 and len(data) >= 8:
            spot = at % (len(data) - 7)
            data[spot : spot + 8] = struct.pack("<Q", rng.choice((0, 1, 2**31, 2**40, 2**63, 2**64 - 1)))
        elif data:
            data[at % len(data)] = rng.randrange(256)
    return bytes(data)


def as_json(rng: random.Random, content: bytes) -> bytes:
    """A JSON file of another structure, or damaged."""
    if rng.random() < 0.25:
        return raw(rng, content)
    if rng.random() < 0.01:
        return rng.choice((b"[" * 200_000, b'{"a":' * 100_000, b"9" * 100_000, b'{"a": ' + b"9" * 5000 + b"}", b"", b"null", b"3"))
    return _text(rng, mutated_value(rng, json.loads(content)))


def as_safetensors(rng: random.Random, content: bytes) -> bytes:
    """A file with another header (types, shapes, offsets, metadata and JSON inside metadata), or damaged."""
    if rng.random() < 0.2:
        return raw(rng, content)
    size = struct.unpack("<Q", content[:8])[0]
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    said = header.get("__metadata__", {})
    inner = [key for key, value in said.items() if value[:1] in "{["]
    kind = rng.random()
    if kind < 0.4 and inner:
        key = rng.choice(inner)
        said[key] = _text(rng, mutated_value(rng, json.loads(said[key]))).decode("utf-8", "replace")
    elif kind < 0.55 and len(header) > 1:
        entry = header[rng.choice([n for n in header if n != "__metadata__"])]
        entry["dtype"] = rng.choice(("F64", "F16", "BF16", "I8", "U8", "BOOL", "F8_E4M3", "I64", "I32", "C64", "X"))
        if rng.random() < 0.7:  # as many bytes as before
            width = {"F64": 8, "F16": 2, "BF16": 2, "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "I64": 8, "I32": 4, "C64": 8}.get(
                entry["dtype"], 1
            )
            entry["shape"] = [(entry["data_offsets"][1] - entry["data_offsets"][0]) // width]
    elif kind < 0.7 and len(header) > 1:
        name = rng.choice([n for n in header if n != "__metadata__"])
        shape = header[name]["shape"]
        header[name]["shape"] = rng.choice((shape[::-1], [1, *shape], [*shape, 1], [10**12, *shape], [2**63, 2**63], [0], [], [-1]))
    elif kind < 0.8:
        data = raw(rng, data) if data else data
    else:
        header = mutated_value(rng, header)
    text = _text(rng, header)
    return struct.pack("<Q", len(text) if rng.random() < 0.97 else rng.choice((0, 2**40, 2**63, len(text) + 10**6))) + text + data


def as_toml(rng: random.Random, content: bytes) -> bytes:
    """Another value, key or line, or damaged text."""
    if rng.random() < 0.3:
        return raw(rng, content)
    lines = content.decode().split("\n")
    for _ in range(rng.choice((1, 1, 2))):
        at, kind = rng.randrange(len(lines)), rng.randrange(5)
        if kind == 0:
            del lines[at]
        elif kind == 1:
            lines.insert(at, rng.choice(lines))
        elif kind == 2:
            lines.insert(
                at,
                rng.choice(
                    ("[a]", "[[concepts]]", "[export]", "x = " + "[" * 300 + "]" * 300, "a.b.c = 1", "x = 9" + "9" * 5000, "name = ''")
                ),
            )
        else:
            value = rng.choice(
                (
                    '""',
                    "0",
                    "-1",
                    "1e400",
                    "nan",
                    "inf",
                    "[]",
                    "{}",
                    "true",
                    "1979-05-27",
                    '["a", 1]',
                    '"\\u0000"',
                    '"../x"',
                    "9" * 30,
                    "9" * 5000,
                    "[[[]]]",
                )
            )
            lines[at] = lines[at].partition("=")[0] + "= " + value
        if not lines:
            lines = [""]
    return "\n".join(lines).encode()


class _Call:
    """Pickles as a call of anything."""

    def __init__(self, function: Any, arguments: tuple[Any, ...]) -> None:
        self.made = function, arguments

    def __reduce__(self) -> Any:
        return self.made


def as_pickle(rng: random.Random, content: bytes) -> bytes:
    """Damaged, or asking for what could run code or take memory. What it would do if it ran: make the file that `witness` names."""
    import os
    import shutil
    import subprocess

    import torch

    if rng.random() < 0.75:
        return raw(rng, content)
    store = torch.zeros(4).untyped_storage()
    calls = (
        (os.system, (f"touch {witness}",)), (eval, (f"open({witness!r}, 'w')",)), (exec, (f"open({witness!r}, 'w')",)), (open, (witness, "w")),
        (subprocess.Popen, (["touch", witness],)), (shutil.rmtree, (witness,)), (__import__, ("os",)), (bytearray, (10**11,)), (bytes, (10**11,)),
        (torch.load, (witness,)), (torch.empty, (10**12,)), (torch._utils._rebuild_tensor_v2, (store, 0, (10**12,), (1,), False, None)),
        (torch._utils._rebuild_tensor_v2, (store, 10**12, (4,), (1,), False, None)), (torch._utils._rebuild_tensor_v2, (store, 0, (10**12,), (0,), False, None)),
        (torch._utils._rebuild_tensor_v2, (store, 0, (-1,), (1,), False, None)), (torch._utils._rebuild_tensor_v2, (3, 0, (1,), (1,), False, None)),
        (torch.storage._load_from_bytes, (pickle.dumps(_Call(os.system, (f"touch {witness}",))),)), (torch.storage._load_from_bytes, (b"x",)),
    )  # fmt: skip
    value: Any = _Call(*rng.choice(calls))
    return pickle.dumps(
        rng.choice((value, {"A": value}, {"A": torch.zeros(2, 3, 4), "B": value}, [value])), protocol=rng.choice((0, 1, 2, 3, 4, 5))
    )


witness = "/nonexistent/witness"
"""what hostile pickles would write to; the caller sets it"""


def as_torch_zip(rng: random.Random, content: bytes) -> bytes:
    """torch.save's form with another pickle inside, members renamed or left out, or damaged."""
    if rng.random() < 0.5:
        return raw(rng, content)
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w") as new:
        for info in old.infolist():
            data, name = old.read(info), info.filename
            if name.endswith("data.pkl") and rng.random() < 0.7:
                data = as_pickle(rng, data)
            elif rng.random() < 0.15:
                continue
            elif rng.random() < 0.2:
                data = raw(rng, data) if data else b"x"
            if rng.random() < 0.05:
                name = rng.choice(("../../evil", "/tmp/evil", "a\\..\\b", "x" * 500))
            new.writestr(name, data, rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))
    return made.getvalue()


def as_lines(rng: random.Random, content: bytes) -> bytes:
    """A text file or CSV with other lines and fields, or damaged."""
    if rng.random() < 0.4:
        return raw(rng, content)
    lines = content.decode().split("\n")
    for _ in range(rng.choice((1, 2, 3))):
        at = rng.randrange(len(lines))
        fields = lines[at].split(",")
        fields[rng.randrange(len(fields))] = str(nasty(rng))
        lines[at] = rng.choice((lines[at], ",".join(fields), ",".join(fields[::-1]), "", '"', '"' + lines[at]))
    return "\n".join(lines).encode("utf-8", "surrogatepass")
