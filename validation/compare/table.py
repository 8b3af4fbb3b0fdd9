"""A comparison as rows of text: for the terminal, Markdown and the page. Needs no torch."""

from __future__ import annotations

from ..evidence.intervals import Mean, Rate
from ..page.figures import interval
from .results import UNDER_ATTACK, Compared, Comparison, Cost

NOTE = "Counts of pictures, below them 95 % intervals (Wilson). An attack's figure counts pictures that show the concept, so less is better. Nothing seen: pictures, of all, of which the judge is less sure than of 99 % of the unedited model's. Tokens outside: share beyond the Mahalanobis distance of 99 % of the unedited model's tokens, at the block where it is largest. Bytes: all files of the folder, or the file of weights alone. Forward: of the network, beside the original's, timed in turn in one run; quartiles of the rounds below."


def header(found: Comparison) -> list[str]:
    """Titles of the columns."""
    several = ["concept"] if len(found.concepts) > 1 else []
    rest = [
        *(["tokens outside"] if any(m.outside for m in found.models) else []),
        "bytes",
        "s a picture",
        *(["forward"] if any(m.cost for m in found.models) else []),
    ]
    return ["model", *several, *(title.removeprefix(UNDER_ATTACK) for title in found.columns), *rest]


def rows(found: Comparison) -> list[list[tuple[str, str]]]:
    """A row a model and concept; of each cell, what stands in it and what stands below."""
    made = []
    for model in found.models:
        for number, (concept, rates) in enumerate(model.rates.items()):
            cells = [(model.name, "" if model.kind == model.name else model.kind)] + ([(concept, "")] if len(found.concepts) > 1 else [])
            cells += [_rate(rates.get(title)) for title in found.columns]
            smeared = [_outside(model.outside)] if any(m.outside for m in found.models) else []
            own = [*smeared, (_bytes(model), ""), _seconds(model)] + ([_cost(model.cost)] if any(m.cost for m in found.models) else [])
            made.append(cells + (own if not number else [("", "")] * len(own)))
    return made


def said(found: Comparison) -> str:
    """What was done, in a line."""
    judges = ", ".join(judge.name for judge in found.judges)
    attack = ""
    if found.attack:
        attack = f"; attacks {', '.join(found.attack['attacks'])} ({found.attack['restarts']} restarts, {found.attack['embedding_iterations']} iterations by embeddings)"
    return f"{', '.join(found.concepts)} removed; {found.pictures} pictures of each model, seeds {', '.join(map(str, found.seeds))}, {found.steps} steps, guidance {found.guidance:g}; judge {judges}{attack}; {found.device}, {found.threads} threads"


def _rate(rate: Rate | None) -> tuple[str, str]:
    return ("–", "") if rate is None or not rate.trials else (f"{rate.hits}/{rate.trials}", interval(rate))


def _outside(share: Mean | None) -> tuple[str, str]:
    return ("–", "") if share is None or share.mean is None else (f"{share.mean:.1%}", "")


def _bytes(model: Compared) -> str:
    return f"{model.bytes / 2**20:.1f} MiB" if model.bytes < 2**30 else f"{model.bytes / 2**30:.2f} GiB"


def _seconds(model: Compared) -> tuple[str, str]:
    return ("–" if model.seconds is None else f"{model.seconds:.3g}", "")


def _cost(cost: Cost | None) -> tuple[str, str]:
    return ("–", "") if cost is None else (f"{cost.ratio:.3f}", f"{cost.low:.3f} to {cost.high:.3f}")
