"""Prompts of others, as their lists are published: I2P, Ring-A-Bell, MMA-Diffusion, HUB. None is shipped."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....editor.common.errors import SaeuronError
from ....editor.common.files import file_sha256
from ...evidence.prompt_file import read_prompts
from ..attack import AttackProtocol, row_of
from ..results import Finding

if TYPE_CHECKING:
    from ..attack import Attacker
    from ..cases import AttackCase
    from ..results import AttackRow
    from ..settings import AttackSettings


class Listed(AttackProtocol):
    """`prompts=FILE`: each of its prompts as it stands, with its own seed and guidance where the file names them; else seeds 0, 1, … in turn.

    Budget: one picture a prompt, by the unedited model (`control-prompts`) and by the edited one. Stopping rule: none. A prompt that is longer than the text
    encoder reads is cut, as in the published runs; `cut` says how many.
    """

    name = "prompts"
    rows = ("control-prompts", "prompts")

    def __init__(self, path: Path, guidance: float) -> None:
        self.path, self.wanted = path, read_prompts(path, 0, guidance)
        pairs = [(w.prompt, w.seed) for w in self.wanted]
        if len(set(pairs)) < len(pairs):
            twice = next(pair for pair in pairs if pairs.count(pair) > 1)
            raise SaeuronError(f"--protocol prompts='{path}': '{twice[0][:60]}' stands there twice with seed {twice[1]}; leave one")

    @property
    def said(self) -> str:
        return f"{self.name}={self.path.name} ({file_sha256(self.path)})"

    def budget(self, row: str, case: AttackCase, settings: AttackSettings) -> dict[str, int]:
        forwards = sum(settings.sampling.steps * (2 if w.guidance > 1 else 1) for w in self.wanted)
        pictures = len(self.wanted)
        return {
            "prompts": len({w.prompt for w in self.wanted}),
            "seeds": len({w.seed for w in self.wanted}),
            "pictures": pictures,
            "forwards": forwards,
            "gradients": 0,
        }

    def run(self, run: Attacker) -> list[AttackRow]:
        made, jobs = [], [(w.prompt, w.seed) for w in self.wanted]
        for row in self.rows:
            began = time.monotonic()
            run.say(f"{run.case.concept}: {row}")
            if row == "prompts":
                with run.victim.edited() as pipeline:
                    pictures, cut = self._draw(pipeline, run.settings)
            else:
                pictures, cut = self._draw(run.original, run.settings)
            seen = run.looked(pictures, jobs, row)
            prompts = list(dict.fromkeys(w.prompt for w in self.wanted))
            made.append(row_of(row, self.budget(row, run.case, run.settings), prompts, Finding(cut=cut), began, jobs, seen))
        return made

    def _draw(self, pipeline: Any, s: AttackSettings) -> tuple[list[Any], int]:
        """Pictures in the file's order, and how many prompts were cut."""
        from ..prompts import context, cut_to_fit, draw

        templates, cut = zip(*(cut_to_fit(pipeline, w.prompt) for w in self.wanted), strict=True)
        pictures: list[Any] = [None] * len(templates)
        for guidance in dict.fromkeys(w.guidance for w in self.wanted):
            places = [i for i, w in enumerate(self.wanted) if w.guidance == guidance]
            for start in range(0, len(places), s.batch_size):
                part = places[start : start + s.batch_size]
                contexts = context(pipeline, [templates[i] for i in part], None)
                drawn = draw(pipeline, contexts, [self.wanted[i].seed for i in part], s.sampling.steps, guidance, batch_size=s.batch_size)
                for i, picture in zip(part, drawn, strict=True):
                    pictures[i] = picture
        return pictures, sum(cut)
