"""The one file of code that is shipped, joined from those that it is written in. Needs no torch."""

from __future__ import annotations

import ast
from pathlib import Path

PARTS = ("feature_ablation.py", "ablated_network.py", "ablated_kinds.py")
"""in this order"""


def joined(*parts: str) -> bytes:
    """Modules as one: their imports merged, those of one another dropped, and the last one's docstring at the top.

    Args:
        *parts: their texts; imports stand together, after the docstring.
    """
    imports: set[str] = set()
    bodies, said = [], ""
    for part in parts:
        lines = part.splitlines()
        first, *nodes = ast.parse(part).body
        held = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
        said = "\n".join(lines[: first.end_lineno])
        bodies.append("\n".join(lines[held[-1].end_lineno :]).strip())
        imports |= {ast.unparse(node) for node in held if not getattr(node, "level", 0)}
    future = "from __future__ import annotations"
    return "\n\n\n".join([f"{said}\n\n{future}\n\n" + "\n".join(sorted(imports - {future})), *bodies, ""]).rstrip().encode() + b"\n"


SHIPPED = joined(*(Path(__file__).with_name(name).read_text(encoding="utf-8") for name in PARTS))
