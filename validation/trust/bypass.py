"""Whether what follows an edit in a graph reads the edited tokens: no way leads from the unedited ones around them. Runs nothing.

A proof up to the edited block (`--proof seam`) runs nothing behind it, so the graph's own nodes must say it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..artifact.graphs import reads
from ..artifact.manifest import SeamNames

_SIZES = ("Shape", "Size")
"""what they give holds nothing of the values"""
_FORMS = ("Identity", "Cast", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze")
"""what they give is their first input in another form; in such a form the block gives what the edit reads"""
_WITH_CONSTANT = ("Add", "Sub", "Mul", "Div")
"""such a form too where all else that they read lies in the graph"""


def around(graph: Any, hookpoints: Iterable[str], seams: Mapping[str, SeamNames]) -> list[str]:
    """Look for ways from a block's unedited tokens to the graph's outputs that don't pass the edited ones.

    A copy of the block that stands beside it, with nodes of its own, is none of its tokens and isn't looked for.

    Args:
        graph: of an ONNX model; weights aren't looked at.
        hookpoints: of the edit.
        seams: hookpoint → tensors at the edge of its edit, by which the proof compares it.

    Returns:
        at most one line a hookpoint.
    """
    made_by = {name: node for node in graph.node for name in node.output if name}
    held = {tensor.name for tensor in graph.initializer} | {node.output[0] for node in graph.node if node.op_type == "Constant"}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in reads(node) if not _plain(node, _SIZES) else ():
            readers.setdefault(name, []).append(node)
    outputs = {value.name for value in graph.output}
    found = []
    for hookpoint in hookpoints:
        names = seams.get(hookpoint)
        if names is None or not {names.input, names.output} <= set(made_by):
            found.append(f"onnx: the graph doesn't show the edit of '{hookpoint}': no tensors of it by the names on record")
        elif _reached(_forms(names.input, made_by, held), names.output, readers) & outputs:
            found.append(f"onnx: unedited tokens of '{hookpoint}' reach an output of the graph around its edit")
    return found


def _plain(node: Any, kinds: Iterable[str]) -> bool:
    return node.op_type in kinds and node.domain in ("", "ai.onnx")


def _forms(name: str, made_by: Mapping[str, Any], held: set[str]) -> list[str]:
    """A tensor, and those that it is a form of."""
    found = [name]
    while (node := made_by.get(found[-1])) is not None:
        values = [name for name in node.input if name not in held]
        if _plain(node, _FORMS) or (_plain(node, _WITH_CONSTANT) and len(values) == 1):
            found.append(node.input[0] if _plain(node, _FORMS) else values[0])
        else:
            break
    return found


def _reached(names: Iterable[str], end: str, readers: Mapping[str, list[Any]]) -> set[str]:
    """Tensors that depend on these otherwise than through `end`, themselves included."""
    found: set[str] = set()
    open_ = list(names)
    while open_:
        name = open_.pop()
        if name and name != end and name not in found:
            found.add(name)
            for node in readers.get(name, ()):
                open_ += node.output
    return found
