"""Opens what hardening needs, and runs it: from a plan to an edit file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from msgspec.structs import replace

from ...editor.common.errors import SaeuronError
from ...editor.common.files import read_json
from ...editor.common.names import interventions
from ...editor.common.suggest import unknown
from ...editor.common.writing import alone, whole_file
from ...editor.denoisers.families import network_of
from ...editor.denoisers.pipelines import load_pipeline
from ...editor.edit.bake import refuse_edited
from ...editor.edit.provenance import SaeUsed, Setting
from ...validation.attack.attack import check_kind
from ...validation.attack.cases import AttackCase
from ...validation.attack.harden import Round, harden
from ...validation.attack.settings import HardenSettings
from ...validation.attack.victims import bare
from ...validation.judges.choose import open_judges
from .prepare import open_model, open_sources, prepare
from .resolve import public_name
from .settings import Plan
from .tuning import judged_words

Say = Callable[[str], None]


def check(plan: Plan, settings: HardenSettings) -> None:
    """Raise `SaeuronError` for what can't be hardened; opens nothing."""
    if len(settings.judge) != 1:
        raise SaeuronError("hardening takes one --judge, which says what an attack brought back")
    for name in dict.fromkeys(plan.settings.concepts):
        concept = plan.concepts.get(name)
        if concept is None or "probe" not in interventions(concept.intervention):
            done = concept.intervention if concept else "features of its activations"
            raise SaeuronError(
                f"concept '{name}': hardening adds to the discriminants of probe, and it is removed by {done}; give --intervention probe or weights+probe"
            )


def run(plan: Plan, settings: HardenSettings, output: Path, say: Say = lambda text: None) -> list[Round]:
    """Harden each concept in turn; the edit is written once all are done.

    Args:
        plan: the concepts.
        settings: judge and budget.
        output: the edit file.
        say: told what goes on.

    Raises:
        SaeuronError: see `check`; a model that can't be attacked, files that can't be opened.
    """
    check(plan, settings)
    with alone(output.with_name(f".{output.name}.hardening"), f"'{output}' is being made by another process; choose another --output"):
        return _run(plan, settings, output, say)


def _run(plan: Plan, settings: HardenSettings, output: Path, say: Say) -> list[Round]:
    device = plan.settings.device
    words = judged_words(plan)
    say("opening the judge")
    (judge,) = open_judges(settings.judge, words, device)
    kind = read_json(open_model(plan) / "model_index.json").get("_class_name")
    check_kind(str(kind))
    for name in words:
        if name not in judge.concepts:
            raise SaeuronError(unknown("concept", name, judge.concepts, f"to the judge '{judge.name}'"))
    sources = open_sources(plan, say)
    prepared = prepare(plan, say, sources)
    edit = prepared.edit
    say(f"loading {plan.model}")
    pipeline = load_pipeline(plan.model, None, device, variant=plan.settings.variant)
    refuse_edited(network_of(pipeline))
    pipeline = bare(pipeline)
    rounds: list[Round] = []
    for name, concept in words.items():
        case = AttackCase(name, concept.kind, list(concept.prompts[0::2]), list(concept.prompts[1::2]))
        statistics = {w.hookpoint: sources.of(w) for w in sources.wishes if w.concept == name}
        edit, found = harden(pipeline, edit, statistics, case, judge, settings, (plan.steps, plan.guidance), say)
        rounds += found
    edit.provenance.concepts = [_said(setting, rounds) for setting in edit.provenance.concepts]
    edit.provenance.saes = {h: SaeUsed.of(sae) for h, sae in edit.saes(prepared.saes).items()}
    edit.provenance.named(public_name(plan.model), {h: public_name(plan.saes[h]) for h in edit.provenance.saes})
    with whole_file(output) as made:
        edit.save(made)
    return rounds


def _said(setting: Setting, rounds: list[Round]) -> Setting:
    """How a concept is removed, with what was added."""
    if setting.intervention != "probe":
        return setting
    return replace(setting, added=sum(found.concept == setting.name and found.shown > 0 for found in rounds))
