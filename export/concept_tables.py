"""Writes `[[concepts]]` tables: read by `saeuron-export --settings` and, being whole, by `--preset-file`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def write_tables(path: Path, tables: Iterable[Mapping[str, Any]], comment: str) -> None:
    """Write one table a concept, whole or not at all.

    Args:
        path: the TOML file.
        tables: keys as in a preset file; empty values are left out.
        comment: lines at the top.
    """
    lines = [*(f"# {line}" for line in comment.splitlines())]
    for table in tables:
        lines += ["", "[[concepts]]"]
        for key, value in table.items():
            if value in ("", (), [], None):
                continue
            # JSON's strings, numbers and lists are TOML's.
            lines.append(f"{key} = {json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    partial.replace(path)
