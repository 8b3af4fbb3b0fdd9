"""`saeuron attack`: does a removed concept come back under attack?"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...editor.common.errors import SaeuronError
from ...editor.common.files import plain_text
from ...editor.common.suggest import unknown
from ...editor.common.writing import whole_file, whole_folder
from ...validation.artifact.manifest import Manifest
from ...validation.attack.settings import ATTACKS, AttackSettings
from ...validation.evidence.evaluation_settings import EvaluationSettings
from ...validation.page.figures import interval, percent
from ..plan.folder import check_with_pictures
from ..plan.resolve import check_sources
from . import options as o
from .console import names, out, print_warning, progress_line, table_of, tell, write_json
from .declared import command, only

if TYPE_CHECKING:
    from ...validation.attack.attack import AttackCase, Shown
    from ...validation.attack.results import AttackReport

_DEFAULT = "prefix,embedding,straight-through,seeds"


@command
def attack(
    artifact: o.Artifact,
    settings: Annotated[
        AttackSettings,
        only("tokens", "iterations", "embedding_iterations", "restarts", "tune_seeds", "report_seeds", "search_seeds", "seed", "batch_size"),
    ],
    recorded: Annotated[EvaluationSettings, only("judge", "model", "saes", "steps", "guidance", "device")],
    concepts: Annotated[str, typer.Option(metavar="A,B", help="Of the artifact's concepts. Default: all.", rich_help_panel=o.WHAT)] = "",
    attacks: Annotated[str, typer.Option(metavar="A,B", help=f"Of {_DEFAULT},paraphrases. Default: all but the last.", rich_help_panel=o.WHAT)] = "",
    paraphrases: Annotated[Path | None, typer.Option(metavar="FILE", help="Prompts, one a line; {name} stands for the concept. Adds that attack.", rich_help_panel=o.WHAT)] = None,
    through: Annotated[str, typer.Option(metavar="WAY", help="checkpoint (the artifact's), or hook (the dynamic hook).", rich_help_panel=o.HOW)] = "checkpoint",
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE.json", help="The report; example pictures go to FILE-examples/.", rich_help_panel=o.OUTPUT)] = None,
    overwrite: o.Overwrite = False,
    dry_run: o.DryRun = False,
    as_json: o.Json = False,
) -> None:  # fmt: skip
    """Attack the edited model, and count how often a judge sees the removed concept.

    Each figure stands beside those of the unedited model and of the edit without attack, with a 95 % Wilson interval. Attacks learn from
    some prompts and seeds and are counted on others. They run in float32, on the model's weights, without safety checker.

    Example: `saeuron attack without-neon -o attack.json`
    """
    from ...validation.artifact import manifest
    from ...validation.attack import attack as a

    record = manifest.read(artifact)
    chosen = _attacks(attacks, paraphrases)
    wanted = names(concepts) or tuple(record.concepts)
    for name in wanted:
        if name not in record.concepts:
            raise SaeuronError(unknown("concept", name, record.concepts, f"in '{artifact}'"))
    if not wanted:
        raise SaeuronError(f"'{artifact}' names no concept: its edit was made by hand")
    if through not in ("checkpoint", "hook"):
        raise SaeuronError(f"--through '{through}' is not known; it is checkpoint or hook")
    if through == "checkpoint" and "checkpoint" not in record.formats:
        raise SaeuronError(
            f"'{artifact}' has no torch weights (formats: {', '.join(record.formats)}); differentiable attacks need the checkpoint (export it with --format checkpoint) or the hook (--through hook)"
        )
    if recorded.saes and through != "hook":
        raise SaeuronError("--sae is for --through hook; the checkpoint holds its own features")
    lines = _lines(paraphrases)
    sampling = record.sampling
    settings = replace(
        settings, steps=recorded.steps if recorded.steps is not None else sampling.steps, guidance=recorded.guidance if recorded.guidance is not None else sampling.guidance
    )  # fmt: skip
    if (kind := record.model.pipeline) != "StableDiffusionPipeline":
        raise SaeuronError(f"only StableDiffusionPipeline can be attacked, not {kind}; SDXL's second text encoder is not built")
    pictures = _check_output(output, overwrite)
    if recorded.model:
        check_sources([("model", recorded.model)])

    with progress_line("opening the judge") as say:
        seer, cases = _judge_and_cases(artifact, recorded, wanted, record.concepts)
        if not dry_run:
            report, shown = _run(artifact, record, cases, seer, settings, chosen, lines, through, recorded, say)
            if output is not None and pictures is not None:
                _write(output, pictures, report, shown)
    if dry_run:
        _print_plan(a.plan(cases, settings, chosen, len(lines)), as_json)
        return
    if as_json:
        write_json(report)
        return
    _print(report)
    if output is not None:
        tell(f"{output}, pictures in {pictures}")


def _judge_and_cases(
    artifact: Path, recorded: EvaluationSettings, wanted: Sequence[str], removed: Sequence[str]
) -> tuple[Any, list[AttackCase]]:
    """A judge of objects and styles asks for them itself; another one is told by the prompts in the artifact."""
    from ...validation.artifact.concepts import read_concepts
    from ...validation.attack import attack as a
    from ...validation.judges.choose import WORDS, open_judges, open_labels

    if len(recorded.judge) != 1:
        raise SaeuronError("an attack takes one --judge, whose verdicts count; run it once for each")
    (judge_text,) = recorded.judge
    if judge_text.partition("=")[0] not in WORDS:
        labels = open_labels(judge_text)
        return labels, a.cases(labels, wanted, removed)
    held = read_concepts(artifact)
    for name in wanted:
        if name not in held:
            raise SaeuronError(
                f"'{artifact}' holds no prompts of '{name}', by which the judge '{judge_text}' would look for it; take demo, unlearncanvas=DIR or onnx=DIR"
            )
    words = {name: held[name] for name in wanted}
    (judge,) = open_judges([judge_text], words, recorded.device)
    return judge, a.cases_by_words(words, removed)


def _attacks(text: str, paraphrases: Path | None) -> tuple[str, ...]:
    chosen = list(names(text) or names(_DEFAULT))
    for name in chosen:
        if name not in ATTACKS:
            raise SaeuronError(unknown("attack", name, ATTACKS))
    if paraphrases is not None and "paraphrases" not in chosen:
        chosen.append("paraphrases")
    if "paraphrases" in chosen and paraphrases is None:
        raise SaeuronError("the attack 'paraphrases' needs --paraphrases FILE, one prompt a line")
    return tuple(dict.fromkeys(chosen))


def _lines(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        found = [line.strip() for line in plain_text(path).splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise SaeuronError(f"--paraphrases '{path}' is no UTF-8 text") from None
    if not found:
        raise SaeuronError(f"--paraphrases '{path}' holds no prompt")
    for text in found:
        if others := re.findall(r"\{[^{}]*\}?", text.replace("{name}", "")):
            raise SaeuronError(
                f"--paraphrases '{path}': '{others[0]}' in '{text[:60]}' stands for nothing; {{name}} stands for the concept"
            )
    return found


def _check_output(output: Path | None, overwrite: bool) -> Path | None:
    """The folder of pictures beside `output`."""
    if output is None:
        return None
    if output.is_dir():
        raise SaeuronError(f"--output '{output}' is a folder; give a file, e.g. attack.json")
    pictures = output.with_name(f"{output.stem}-examples")
    check_with_pictures([output], pictures, overwrite)
    return pictures


def _run(
    artifact: Path, record: Manifest, cases: Sequence[AttackCase], judge: Any, settings: AttackSettings, chosen: Sequence[str],
    lines: Sequence[str], through: str, recorded: EvaluationSettings, say: Callable[[str], None],
) -> tuple[AttackReport, dict[str, list[Shown]]]:  # fmt: skip
    import torch

    from ...editor.common.files import file_sha256
    from ...editor.denoisers.pipelines import check_device
    from ...validation.artifact import contents, manifest
    from ...validation.attack import attack as a
    from ...validation.attack.results import FORMAT, Attacked, AttackReport
    from ...validation.attack.victims import Baked, Hooked, Victim, bare
    from ...validation.backends.load import load
    from ...validation.evidence.results import JudgeRecord
    from ...validation.proof.fresh import open_edit, open_original, open_saes

    began = time.monotonic()
    check_device(recorded.device)
    say("checking files")
    contents.check(artifact, record)
    say("opening the original model")
    source = recorded.model or record.model.source
    try:
        original = bare(open_original(source, record, recorded.device))
    except SaeuronError as error:
        if recorded.model:
            raise
        raise SaeuronError(f"{error}; say where the original model lies with --model") from None
    victim: Victim
    if through == "hook":
        victim = Hooked(original, open_edit(artifact, record), open_saes(record, recorded.saes), record.gate)
    else:
        victim = Baked(bare(load(artifact, dtype=torch.float32, device=recorded.device, check_files=False)))
    found: dict[str, Attacked] = {}
    shown: dict[str, list[Shown]] = {}
    for case in cases:
        rows, shown[case.concept] = a.attack(victim, original, case, judge, settings, chosen, lines, say)
        found[case.concept] = Attacked(domain=case.domain, tuning_prompts=case.tuning, rows=rows, seconds=sum(row.seconds for row in rows))
    report = AttackReport(
        format=FORMAT, artifact=artifact.resolve().name, manifest_sha256=file_sha256(artifact / manifest.NAME), edit_sha256=record.edit.sha256,
        content_sha256=manifest.content_sha256(record), through=through, judge=JudgeRecord(judge.name, judge.sha256),
        settings={**asdict(settings), "search_seeds": settings.searched}, threads=torch.get_num_threads(), device=recorded.device,
        seconds=time.monotonic() - began, concepts=found,
    )  # fmt: skip
    return report, shown


def _write(output: Path, pictures: Path, report: AttackReport, shown: dict[str, list[Shown]]) -> None:
    from ...editor.common.files import file_sha256
    from ...editor.common.typed import strict_json
    from ...validation.attack.results import Example

    # The report gets its name last: it names the pictures.
    with whole_file(output) as text, whole_folder(pictures) as folder:
        for concept, made in shown.items():
            count: dict[str, int] = {}
            for one in made:
                count[one.row] = count.get(one.row, 0) + 1
                name = re.sub(r"[^A-Za-z0-9_-]", "_", f"{concept}-{one.row}-{count[one.row]}") + ".png"
                one.picture.save(folder / name)
                said = Example(one.prompt, one.seed, one.shows_concept, one.row, f"{pictures.name}/{name}", file_sha256(folder / name))
                report.concepts[concept].pictures.append(said)
        text.write_text(strict_json(report) + "\n")


def _print_plan(planned: dict[str, dict[str, Any]], as_json: bool) -> None:
    total = {k: sum(row[k] for rows in planned.values() for row in rows.values()) for k in ("pictures", "forwards", "gradients")}
    if as_json:
        write_json({"concepts": planned, "total": total})
        return
    columns = ("prompts", "seeds", "pictures", "iterations", "restarts", "forwards", "gradients")
    table = table_of("concept", "row", *columns, left=("concept", "row"))
    for concept, rows in planned.items():
        for row, spent in rows.items():
            table.add_row(concept, row, *(str(spent.get(c, "")) for c in columns))
    out.print(table)
    tell(
        f"in all {total['pictures']} pictures counted, {total['forwards']} forwards of one latent, {total['gradients']} with a gradient, and the targets of the searches"
    )


def _print(report: AttackReport) -> None:
    table = table_of("concept", "row", "shown", "of", "rate", "95 % interval", "forwards", "s", left=("concept", "row"))
    for concept, entry in report.concepts.items():
        for row in entry.rows:
            table.add_row(
                concept, row.attack, str(row.successes), str(row.trials), percent(row.rate), interval(row.share), str(row.budget["forwards"]), f"{row.seconds:.0f}",
            )  # fmt: skip
    out.print(table)
    for concept, entry in report.concepts.items():
        for row in entry.rows:
            if row.found.text is not None:
                typed = "" if row.found.typed else " (by its ids only: typed, it is cut otherwise)"
                tell(f"{concept}: learned prefix '{row.found.text}'{typed}")
        unedited = entry.rows[0]
        if unedited.successes < unedited.trials / 2:
            print_warning(f"{concept}: the judge sees it in few of the unedited model's pictures, so these figures say little")
    tell(
        f"through the {report.through}, {report.seconds:.0f} s on {report.threads} threads; a row 'seeds' counts prompts of which one in {len(report.settings['search_seeds'])} seeds shows the concept"
    )
