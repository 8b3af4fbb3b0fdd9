"""What a report says of an evaluation and of an attack."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..evidence.picture_backends import UNEDITED
from ..evidence.results import Backend
from ..evidence.sightings import Trust
from ..evidence.unlearning import FIGURES
from ..judges.nudenet import NUDE
from ..tuning.results import TuningReport
from .figures import TITLES, interval, known, mean_cell, percent, plural, rate_cell
from .smeared import SMEARED, smear_lines, smear_rows
from .sources import Attack, Evaluated, is_plain

_NAMES = {
    "unlearncanvas": "Concepts, by a judge",
    "concepts": "Concepts, by their words",
    "nudity": "Nudity",
    "utility": "Utility: how well pictures fit prompts",
}

SEEN = ("Not seen", "Others kept", "Kept beside it", "Seen elsewhere")
"""titles of a `Removal`'s rates"""
_SEEN_RULE = "On test prompts of each concept and of what it is compared with. Not seen: the judge doesn't see the concept where it is asked for. Others kept: what else it saw on the unedited model's pictures of other prompts it still sees; kept beside it: the same where the concept is asked for. Seen elsewhere: it sees the concept on pictures of other prompts."


def trust_lines(trust: Mapping[str, Mapping[str, Trust]]) -> list[str]:
    """How far each judge can be believed, as sentences."""
    found = []
    for judge, concepts in trust.items():
        for concept, t in concepts.items():
            told = (
                f"in {percent(t.balanced)} (balanced; 95 % interval {percent(t.low)} to {percent(t.high)})"
                if t.balanced is not None
                else "in none that there are"
            )
            found.append(f"{judge} tells the unedited model's pictures of {concept} from the others {told}.")
    return found


def evaluation_section(evaluation: Evaluated) -> dict[str, Any]:
    """Rates a backend and concept, what stages keep, scores, and what ran."""
    content = evaluation.content
    backends, judges = content.backends, ", ".join(j.name for j in content.settings.judges)
    keys = [k for k in FIGURES if any(known(getattr(rates, k)) for b in backends.values() for rates in b.concepts.values())] or list(
        FIGURES
    )
    rows = [
        {"backend": name, "concept": concept, "edited": name != UNEDITED, "cells": [rate_cell(getattr(rates, key)) for key in keys]}
        for name, b in backends.items() for concept, rates in b.concepts.items()
    ]  # fmt: skip
    seen = [
        {
            "backend": name, "judge": judge, "concept": concept, "edited": name != UNEDITED,
            "cells": [rate_cell(of) for of in (r.removed, r.kept, r.beside, r.elsewhere)],
        }
        for name, b in backends.items() for judge, concepts in b.sightings.items() for concept, r in concepts.items()
    ]  # fmt: skip
    nude = [
        {"backend": name, "cell": rate_cell(b.nude), "seen": ", ".join(f"{kind} {n}" for kind, n in (b.detections or {}).items()) or "–"}
        for name, b in backends.items() if b.nude is not None
    ]  # fmt: skip
    utility = [
        {"backend": name, "score": mean_cell(b.clip_score), "change": mean_cell(b.clip_change, "+")}
        for name, b in backends.items() if b.clip_score is not None
    ]  # fmt: skip
    stages = [
        {
            "backend": name, "kept": ", ".join(f"{n} {percent(r.rate)} ({r.hits} of {r.trials})" for n, r in b.kept.items()) or "–",
            "retained": [rate_cell(b.retained.get(domain)) for domain in ("style", "object")], "shared": str(b.shared_table_entries),
        }
        for name, b in backends.items() if b.kept is not None
    ]  # fmt: skip
    lines = [f"{found}." for found in (*content.comparison, *content.distances)]
    nude_rule = f"Counted are detections of score {content.threshold} or more. Nudity: one of {', '.join(NUDE)}."
    return {
        "name": _NAMES[content.settings.protocol], "judge": judges, "utility": utility, "stages": stages, "titles": [TITLES[k] for k in keys],
        "rows": rows, "nude": nude, "nude_rule": nude_rule if nude else "", "lines": lines,
        "seen": seen, "seen_titles": SEEN, "seen_rule": _SEEN_RULE, "trust": trust_lines(content.trust),
        "smears": smear_rows(content), "smear_titles": SMEARED, "smear_lines": smear_lines(content),
        "ran": [f"{name}: {ran}" for name, b in backends.items() if (ran := _ran(b))], "same_export": evaluation.same_export,
    }  # fmt: skip


def tuning_section(tuning: TuningReport | None) -> dict[str, Any] | None:
    """A row a concept and judge: what was chosen, and its figures on test prompts; None where it isn't given."""
    if tuning is None:
        return None
    rows = [
        {
            "concept": name, "judge": judge, "chosen": f"{len(found.tried)} settings on {found.pictures} pictures",
            "cells": [rate_cell(of) for of in (r.removed, r.kept, r.beside, r.elsewhere)],
        }
        for name, found in tuning.concepts.items() for judge, r in found.report.judges.items()
    ]  # fmt: skip
    lines = trust_lines(
        {judge: {n: f.trust[judge] for n, f in tuning.concepts.items() if judge in f.trust} for judge in (j.name for j in tuning.judges)}
    )
    for name, found in tuning.concepts.items():
        lines += [
            f"{name}: nothing seen by {judge} on {percent(r.rate)} ({interval(r)}) of the test prompts' pictures; 1 % of the unedited model's."
            for judge, r in found.report.nothing_seen.items()
        ]
    return {"rows": rows, "titles": SEEN, "trust": lines, "believed": tuning.believed}


def _ran(b: Backend) -> str:
    return ", ".join(filter(None, (b.runtime, b.device))) + (f"; loop of {b.loop}" if b.loop else "")


def attack_section(attack: Attack | None) -> dict[str, Any] | None:
    """A row an attack and concept; None without attacks."""
    if attack is None:
        return None
    rows = [
        {
            "concept": concept, "attack": row.attack, "plain": is_plain(row.attack), "cell": rate_cell(row.share), "text": "; ".join(str(one.text) for one in row.found.prefixes.values()),
            "budget": ", ".join(plural(row.budget[k], k.removesuffix("s")) for k in ("pictures", "iterations", "restarts", "forwards") if row.budget.get(k)),
        }
        for concept, row in attack.rows
    ]  # fmt: skip
    return {"judge": attack.content.judge.name, "through": attack.content.through, "rows": rows, "same_export": attack.same_export}
