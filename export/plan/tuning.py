"""Opens what tuning needs, and runs it: from a plan to a settings file and a report."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from ...editor.common.errors import SaeuronError
from ...editor.common.files import read_json
from ...editor.common.names import AT_BLOCKS, normalise
from ...editor.common.typed import strict_json
from ...editor.common.writing import whole_file
from ...editor.denoisers.families import network_of
from ...editor.denoisers.pipelines import load_pipeline
from ...editor.edit.bake import refuse_edited
from ...editor.edit.how import How, told
from ...editor.features.cache import model_sha256
from ...editor.features.prompt_sets import ConceptPrompts, prompts_of
from ...validation.attack.attack import check_kind
from ...validation.attack.victims import bare
from ...validation.evidence.results import JudgeRecord
from ...validation.judges.choose import open_judges
from ...validation.tuning.attacked import Attack, attacker
from ...validation.tuning.bench import Bench
from ...validation.tuning.candidates import Candidate, grid
from ...validation.tuning.results import FORMAT, TuningReport
from ...validation.tuning.settings import TuneSettings
from ...validation.tuning.tune import Scorers, Task, believe, make_task, tune
from .becomes import solve
from .concept_tables import candidate_table, contrast_tables, write_tables
from .prepare import Sources, open_model, open_sources
from .progress import Remaining
from .resolve import public_name
from .settings import Plan

REPORT, SETTINGS = "report.json", "settings.toml"
Say = Callable[[str], None]


@dataclass
class Tuning:
    """A tuning that is ready to run; nothing was drawn yet."""

    sources: Sources
    bench: Bench
    tasks: list[Task]
    attacks: dict[str, Attack]
    """concept → what attacks its candidates, where that is wished for"""
    scorers: Scorers
    output: Path

    def run(self, say: Say = lambda text: None) -> TuningReport:
        """Tune concept by concept; after each one settings.toml and report.json are written, so that a killed run leaves what it found.

        Raises:
            SaeuronError: a judge that can't be believed.
        """
        began, s = time.monotonic(), self.bench.settings
        trusted, believed = believe(self.bench, self.tasks, say)
        # A candidate's pictures of earlier rounds are looked at again, which takes no time to speak of.
        total, clock = sum(t.looks for t in self.tasks), Remaining()

        def told(text: str) -> None:
            say(f"{text}{clock.text(self.bench.looked, total)}")

        report = TuningReport(
            format=FORMAT, judges=[JudgeRecord(j.name, j.sha256) for j in self.bench.judges], believed=believed, settings=s,
            model=public_name(self.sources.plan.model),
        )  # fmt: skip
        tables = []
        for task in self.tasks:
            name = task.words.name
            found = tune(self.bench, task, trusted[name], self.attacks.get(name), self.scorers, told)
            report.concepts[name] = found
            # What a judge chose that can't be believed is not called tuned, nor what leaves the concept where it was.
            # What was found to lie nearest is left to the export, which knows what is removed beside it.
            becomes = self.sources.plan.concepts[name].becomes
            tables.append(candidate_table(self.sources, found.chosen, "tuned" if believed and found.removes else "untuned", becomes))
            report.seconds = time.monotonic() - began
            write_tables(
                self.output / SETTINGS,
                tables,
                f"By saeuron tune, judged by {', '.join(j.name for j in self.bench.judges)}; figures in {REPORT}.\nRead by: saeuron-export --settings FILE --output DIR",
                contrast=contrast_tables(self.sources.plan),
            )
            with whole_file(self.output / REPORT) as file:
                file.write_text(strict_json(report) + "\n", encoding="utf-8")
        return report


def plan_tasks(plan: Plan, settings: TuneSettings) -> list[Task]:
    """What is drawn for each concept; opens nothing.

    Raises:
        SaeuronError: a concept without prompts, or too small a budget.
    """
    return [
        make_task(words, _candidates(name, plan, settings), settings, _before(name, plan)) for name, words in judged_words(plan).items()
    ]


def open_tuning(plan: Plan, settings: TuneSettings, output: Path, say: Say = lambda text: None) -> Tuning:
    """Plan each concept, and open judges, sources and pipeline; activations that are missing are collected, once everything else is known to fit.

    Args:
        plan: the concepts, with a hookpoint for each place that is tried.
        settings: the candidates, and how they are compared.
        output: of results.
        say: told what goes on.

    Raises:
        SaeuronError: as `plan_tasks`; a judge without a concept, files that can't be read, a candidate that can't be made, …
    """
    device, variant = plan.settings.device, plan.settings.variant
    tasks = plan_tasks(plan, settings)
    say("opening the judges")
    judges = open_judges(settings.judge, {t.words.name: t.words for t in tasks}, device)
    scorers = Scorers.of(settings, device)
    if settings.attack:
        kind = read_json(open_model(plan) / "model_index.json").get("_class_name")
        check_kind(str(kind))
    sources = open_sources(plan, say)
    say(f"loading {plan.model}")
    pipeline = load_pipeline(plan.model, None, device, variant=variant)
    refuse_edited(network_of(pipeline))
    bench = Bench(
        bare(pipeline), sources.saes, sources.by_place, judges,
        replace(settings, steps=plan.steps, guidance=plan.guidance, residual=plan.residual), output / "results",
        model_sha256(sources.model_folder, pictures=True, variant=variant),
        {w.concept: solve([w], sources.model_folder, variant, device) for w in plan.weights}, sources.rows,
    )  # fmt: skip
    for candidate in (c for task in tasks for c in task.candidates):
        bench.edit(candidate)
    attacks = {t.words.name: attacker(bench, t.words, settings.attack) for t in tasks} if settings.attack else {}
    return Tuning(sources, bench, tasks, attacks, scorers, output)


def judged_words(plan: Plan) -> dict[str, ConceptPrompts]:
    """Concept → the prompts that it is judged on; raises `SaeuronError` for one that has none."""
    for name in plan.settings.concepts:
        if name not in plan.concepts:
            raise SaeuronError(f"concept '{name}' has no prompts to be judged on: give it a preset (--preset-file), or --kind")
    return {name: prompts_of(plan.concepts[name]) for name in dict.fromkeys(plan.settings.concepts)}


def _candidates(concept: str, plan: Plan, tried: TuneSettings) -> list[Candidate]:
    places: list[tuple[str, ...]] = [tuple(normalise(h.strip()) for h in text.split(",")) for text in tried.hookpoint]
    if not places:
        own = tuple(dict.fromkeys(w.hookpoint for w in plan.wishes if w.concept == concept))
        places = list(dict.fromkeys([*((h,) for h in own), own]))
    ways = {
        part: [How(**dict(zip(keys, values, strict=True))) for values in product(*(getattr(tried, key) for key in keys))]
        for part in AT_BLOCKS
        for keys in [told(part)]
    }
    known = plan.concepts[concept]
    return grid(concept, places, tried.select, tried.multiplier, tried.intervention or (known.intervention,), ways, known.start)


def _before(concept: str, plan: Plan) -> Candidate | None:
    """The plan's own setting of a concept, where its hookpoints share one and all of them are tried."""
    wishes, kind = [w for w in plan.wishes if w.concept == concept], plan.concepts[concept].intervention
    if not wishes:
        return Candidate(concept, intervention=kind)
    setting = wishes[0].setting
    if len({(str(w.rule), w.multiplier) for w in wishes}) != 1 or plan.settings.hookpoint is not None:
        return None
    return Candidate(
        concept,
        tuple(dict.fromkeys(w.hookpoint for w in wishes)),
        setting.select,
        setting.multiplier or 0.0,
        kind,
        setting.how,
        setting.start,
    )
