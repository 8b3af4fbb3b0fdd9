"""The published attacks by their names. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ....editor.common.errors import SaeuronError
from ....editor.common.suggest import unknown
from ..attack import AttackProtocol
from .cce import CCE
from .completion import Completion
from .leak import Leak
from .listed import Listed
from .noise_start import NoiseStart
from .p4d import P4D
from .relearn import Relearn
from .ring_a_bell import RingABell
from .unlearndiffatk import UnlearnDiffAtk

OURS = "ours"
"""the attacks of `--attacks`"""
PROTOCOLS: dict[str, type[AttackProtocol]] = {
    kind.name: kind for kind in (UnlearnDiffAtk, CCE, P4D, RingABell, NoiseStart, Completion, Relearn, Leak, Listed)
}
ROWS: dict[str, type[AttackProtocol]] = {row: kind for kind in PROTOCOLS.values() for row in kind.rows}
"""row → the protocol that has it"""


def chosen(texts: Sequence[str], guidance: float = 1.0) -> tuple[bool, list[AttackProtocol]]:
    """Whether our own attacks are among them, and the others.

    Args:
        texts: as `--protocol` takes them.
        guidance: of a list of prompts that names none.

    Raises:
        SaeuronError: an unknown one, one given twice, a list of prompts that can't be read.
    """
    found: list[AttackProtocol] = []
    for text in texts:
        name, equals, value = text.partition("=")
        if name not in PROTOCOLS and name != OURS:
            raise SaeuronError(unknown("--protocol", name, (OURS, *PROTOCOLS)))
        if bool(equals and value) != (name == Listed.name):
            raise SaeuronError(f"--protocol {text}: {'give a file: prompts=FILE' if name == Listed.name else f'{name} takes no value'}")
        if [t.partition("=")[0] for t in texts].count(name) > 1:
            raise SaeuronError(f"--protocol: {name} is given twice")
        if name != OURS:
            found.append(Listed(Path(value), guidance) if name == Listed.name else PROTOCOLS[name]())
    return OURS in texts, found
