"""What is attacked: a concept, and the prompts that ask for it. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ...editor.common.errors import SaeuronError
from ...editor.features.prompt_sets import ConceptPrompts

if TYPE_CHECKING:
    from ..judges.judge import LabelJudge


class AttackCase(NamedTuple):
    """A concept and the prompts that ask for it."""

    concept: str
    domain: str
    """`style` or `object`; of a concept in words, its kind"""
    tuning: list[str]
    """prompts that are learned from"""
    reporting: list[str]
    """prompts that are counted"""
    pairs: Sequence[tuple[str, str]] = ()
    """prompts that show it, each with one that shows the same without it"""


def cases(judge: LabelJudge, concepts: Sequence[str], removed: Sequence[str]) -> list[AttackCase]:
    """Prompts for each concept: its partners of the other domain in turn for learning and for counting; removed ones left out.

    Raises:
        SaeuronError: a concept that the judge can't see.
    """
    from ...editor.common.suggest import unknown

    known = {name: domain for domain, names in (("object", judge.objects), ("style", judge.styles)) for name in names}
    made = []
    for concept in concepts:
        if concept not in known:
            raise SaeuronError(unknown("concept", concept, known, f"to the judge '{judge.name}'"))
        domain = known[concept]
        if domain == "style":
            texts = [judge.prompt(o, concept) for o in judge.objects if o not in removed]
            pairs = [(judge.prompt(o, concept), judge.prompt(o, None)) for o in judge.objects if o not in removed]
        else:
            styles, others = (
                [s for s in (*judge.styles, None) if s not in removed],
                [o for o in judge.objects if o not in (*removed, concept)],
            )
            texts = [judge.prompt(concept, s) for s in styles]
            pairs = [(judge.prompt(concept, s), judge.prompt(o, s)) for s in styles for o in others]
        if len(texts) < 2:
            raise SaeuronError(f"{concept}: the judge knows too few other names to learn from some prompts and count on others")
        made.append(AttackCase(concept, domain, texts[0::2], texts[1::2], pairs))
    return made


def cases_by_words(words: Mapping[str, ConceptPrompts], removed: Sequence[str]) -> list[AttackCase]:
    """The same from test prompts, in turn for learning and for counting; those that name another removed concept are left out.

    Raises:
        SaeuronError: fewer than two prompts of a concept.
    """
    made = []
    for name, concept in words.items():
        others = [other.replace("_", " ").casefold() for other in removed if other != name]
        texts = [text for text in concept.test_prompts if not any(other in text.casefold() for other in others)]
        if len(texts) < 2:
            raise SaeuronError(f"{name}: it has too few test prompts to learn from some and count on others ({len(texts)})")
        # Line j of a paired set shows what line j of the concept shows, without it.
        paired = [c.prompts for c in concept.contrast.values() if len(c.prompts) == len(concept.prompts)]
        pairs = [pair for other in paired for pair in zip(concept.prompts, other, strict=True)]
        made.append(AttackCase(name, concept.kind, texts[0::2], texts[1::2], pairs))
    return made
