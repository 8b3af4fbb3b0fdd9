"""One line for a name that isn't known: what was meant, and what there is."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown(kind: str, name: str, known: Iterable[str], where: str = "") -> str:
    """`concept 'Neom' is unknown: did you mean Neon? Known: …`."""
    names = list(known)
    folded = {n.lower(): n for n in names}
    near = [folded[n] for n in difflib.get_close_matches(name.lower(), folded, n=3, cutoff=0.6)]
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    listed = ", ".join(names[:20]) + (f", … ({len(names)} in all)" if len(names) > 20 else "")
    place = f" {where}" if where else ""
    return f"{kind} '{name}' is not known{place}; {hint}Known: {listed or 'none'}"
