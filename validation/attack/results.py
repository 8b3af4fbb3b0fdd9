"""What an attack found, as types; `saeuron attack` writes an `AttackReport`. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import field

from ...editor.common.typed import Number, Record, Whole
from ..evidence.intervals import Rate
from ..evidence.results import JudgeRecord, PipelineRecord

FORMAT = "saeuron-attack-1"
CONTROL = "control-"
"""begins the names of rows that attack nothing, and stand beside a protocol's own"""


class Seeds(Record):
    """What a report's settings have to say."""

    report_seeds: list[Whole]
    search_seeds: list[Whole]


class Verdict(Record):
    """A picture that was counted."""

    prompt: str
    seed: Whole
    shows_concept: bool
    """whether the judge named it"""


class Learned(Record, kw_only=True, omit_defaults=True):
    """What was found for one prompt, by a protocol that attacks prompts one at a time."""

    prompt: str
    seed: Whole | None = None
    """None: for every seed"""
    ids: list[Whole]
    """of the tokens before the prompt, or in its place"""
    text: str
    typed: bool
    """whether the text, typed, gives these ids"""
    iterations: Whole


class LearnedIn(Record, kw_only=True, omit_defaults=True):
    """What was learned in one of several text encoders."""

    ids: list[Whole] | None = None
    text: str | None = None
    typed: bool | None = None
    """as of `Finding`"""
    vectors: list[list[Number]] | None = None


class Finding(Record, kw_only=True, omit_defaults=True):
    """What an attack found; each kind has its own."""

    seeds: dict[str, list[Whole]] | None = None
    """prompt → seeds that show the concept"""
    loss: Number | None = None
    tuning_successes: Whole | None = None
    tuning_trials: Whole | None = None
    ids: list[Whole] | None = None
    """of the learned tokens"""
    text: str | None = None
    typed: bool | None = None
    """whether the text, typed, gives these ids"""
    vectors: list[list[Number]] | None = None
    """learned embeddings"""
    encoders: dict[str, LearnedIn] = {}
    """of a pipeline with several text encoders: each one's ids, text or vectors"""
    learned: list[Learned] | None = None
    cut: Whole | None = None
    """prompts that were longer than the text encoder reads"""
    without_attack: Whole | None = None
    """of the successes, those of the plain prompts, which such a protocol doesn't attack"""

    @property
    def prefixes(self) -> dict[str, Finding | LearnedIn]:
        """Text encoder (of a single one: an empty name) → what was learned before the prompts, as a text."""
        every: dict[str, Finding | LearnedIn] = {"": self, **self.encoders}
        return {name: one for name, one in every.items() if one.text is not None}


class AttackRow(Record, kw_only=True):
    """One attack on one concept."""

    attack: str
    budget: dict[str, Whole]
    prompts: list[str]
    """as they were drawn"""
    found: Finding = field(default_factory=Finding)
    seconds: Number = 0.0
    each: list[Verdict]
    trials: Whole
    successes: Whole
    hits: Whole
    """pictures that show the concept: the successes, except for `seeds`, whose trials are prompts, and one picture is enough"""
    rate: Number | None
    low: Number | None
    high: Number | None
    """of the successes"""

    @classmethod
    def of(cls, attack: str, each: Sequence[Verdict], **fields: Any) -> AttackRow:
        """With the counts that follow from its pictures."""
        shown = [(one.prompt, one.seed) for one in each if one.shows_concept]
        if attack == "seeds":
            share = Rate.of(len({prompt for prompt, _ in shown}), len({one.prompt for one in each}))
        else:
            share = Rate.of(len(shown), len(each))
        return cls(
            attack=attack, each=list(each), trials=share.trials, successes=share.hits, hits=len(shown), rate=share.rate, low=share.low, high=share.high, **fields
        )  # fmt: skip

    @property
    def share(self) -> Rate:
        """Successes of trials."""
        return Rate(self.rate, self.low, self.high, self.successes, self.trials)

    def __post_init__(self) -> None:
        _ = self.share  # refuses one that doesn't follow from its counts


class Example(Verdict):
    """A picture in the folder beside the report."""

    row: str
    file: str
    sha256: str


class Attacked(Record, kw_only=True):
    """All attacks on one concept."""

    domain: str
    tuning_prompts: list[str] = []
    """that were learned from"""
    rows: list[AttackRow]
    pictures: list[Example] = []
    seconds: Number = 0.0


class AttackReport(Record, kw_only=True):
    """All that an attack's file says."""

    format: str
    finished: bool = True
    """False in what a run has written so far"""
    artifact: str
    """name of its folder, or of the pipeline's"""
    manifest_sha256: str = ""
    edit_sha256: str = ""
    """of an artifact"""
    pipeline: PipelineRecord | None = None
    """of what is no artifact"""
    content_sha256: str | None = None
    through: str
    """`checkpoint` or `hook`; `pipeline` of what is no artifact"""
    judge: JudgeRecord
    settings: dict[str, Any]
    """as in `AttackSettings`, with the seeds themselves; attacks and paraphrases"""
    confidence: Number = 0.95
    threads: Whole | None = None
    device: str = ""
    seconds: Number = 0.0
    concepts: dict[str, Attacked]
