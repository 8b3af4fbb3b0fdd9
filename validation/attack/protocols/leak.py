"""What the holder of an artifact can do who reads its edit: take it out again."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ....editor.common.errors import SaeuronError
from ..attack import AttackProtocol, row_of
from ..results import Finding
from .counts import counted

if TYPE_CHECKING:
    from ..attack import Attacker
    from ..cases import AttackCase
    from ..results import AttackRow
    from ..settings import AttackSettings


class Leak(AttackProtocol):
    """Undoes the edit with what lies in the artifact alone, without the original model: at each block, what the decoder rows, tables and directions
    add is taken off again, and edited weights are multiplied by the inverse of the matrix that the artifact holds.

    Budget: no step, no forward but those of the pictures. An edit can be taken out by whoever holds it: this row says that it was tried, not how strong the
    edit is.
    """

    name = "leak"
    given = "weights"
    rows = ("leak",)

    def check_settings(self, settings: AttackSettings) -> None:
        if settings.through != "checkpoint":
            raise SaeuronError("--protocol leak reads what an artifact's checkpoint holds; take --through checkpoint")

    def budget(self, row: str, case: AttackCase, settings: AttackSettings) -> dict[str, int]:
        return counted(case, settings)

    def check(self, run: Attacker) -> None:
        if getattr(run.victim, "edit", None) is None:
            raise SaeuronError("--protocol leak takes out the edit that an artifact holds, and this is no artifact")

    def run(self, run: Attacker) -> list[AttackRow]:
        from ..prompts import context, with_prefix
        from ..victims import Baked, undone

        assert isinstance(run.victim, Baked)
        began = time.monotonic()
        run.say(f"{run.case.concept}: {self.name}")
        with undone(run.victim) as pipeline:
            contexts = context(pipeline, [with_prefix(pipeline, text, 0) for text, _ in run.jobs], None)
            seen = run.seen(pipeline, contexts, run.jobs, self.name)
        return [row_of(self.name, self.budget(self.name, run.case, run.settings), run.case.reporting, Finding(), began, run.jobs, seen)]
