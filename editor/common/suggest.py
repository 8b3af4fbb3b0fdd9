"""The error for an unknown name: it suggests the nearest one and lists the others."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown(kind: str, name: str, known: Iterable[str], where: str = "") -> str:
    """`concept 'Neom' is unknown: did you mean Neon? Known: …`."""
    names = [name for name in known if name]  # "" is an option left out
    folded = {n.lower(): n for n in names}
    same = folded.get(name.lower())
    near = [same] if same else [folded[n] for n in difflib.get_close_matches(name.lower(), folded, n=3, cutoff=0.6)]
    # With a suggestion a long list would only hide it.
    most = 8 if near else 20
    listed = ", ".join(names[:most]) + (f", … ({len(names)} in all)" if len(names) > most else "")
    place = f" {where}" if where else ""
    known_names = f"known: {listed or 'none'}"
    return f"{kind} '{name}' is not known{place}; " + (f"did you mean {' or '.join(near)}? ({known_names})" if near else known_names)
