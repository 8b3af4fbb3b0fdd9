"""`saeuron evaluate`: is the concept gone, is the rest kept? On an artifact's own pictures."""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...editor.common.errors import SaeuronError
from ...validation.evidence.evaluation_settings import EvaluationSettings
from ...validation.evidence.picture_backends import UNEDITED
from ...validation.evidence.pipeline_subject import PipelineSettings
from ...validation.evidence.sightings import BALANCED
from ...validation.evidence.smears import CALIBRATION, calibrating
from ...validation.evidence.unlearning import FIGURES
from ...validation.page.figures import mean_cell, percent, rate_text
from ...validation.page.measured import SEEN, trust_lines
from ...validation.page.smeared import SMEARED, smear_lines, smear_rows
from ..plan.folder import check_parent
from . import options as o
from .console import err, escaped, out, print_warning, progress_line, resumable, table_of, tell, write_json
from .declared import command
from .subjects import Artifact, pipeline_lines, subject_of

if TYPE_CHECKING:
    from ...editor.common.process import Process
    from ...validation.evidence.evaluate import EvaluationPlan
    from ...validation.evidence.results import Evaluation


@command
@resumable
def evaluate(
    settings: EvaluationSettings,
    other: PipelineSettings,
    artifact: Artifact = None,
    compare: Annotated[bool, typer.Option("--compare", help="Exit code 1 unless every picture gets the verdict that it gets with the first backend.", rich_help_panel=o.WHAT)] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="DIR", help="evaluation.json, verdicts.csv and the pictures. Default: NAME-evaluation, beside the model.", rich_help_panel=o.OUTPUT)] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin anew where an evaluation is.", rich_help_panel=o.OUTPUT)] = False,
    dry_run: o.DryRun = False,
    as_json: o.Json = False,
) -> None:  # fmt: skip
    """Measure what an artifact, or any edited pipeline, removes and keeps: UA, IRA and CRA by UnlearnCanvas's protocol, beside the unedited model.

    Every object in every style and plain, with every seed; 95 % intervals (Wilson) take pictures as trials. On prompts of your own: NudeNet's
    detections, or CLIP score and FID. Killed, the same command goes on; another backend can be added to the same folder. Several processes
    share the pictures: `torchrun --nproc_per_node 2 -m saeuron evaluate …`

    Example: `saeuron evaluate without-neon --backend hook,checkpoint,onnx --seeds 188 --compare`; of an eraser's result: `saeuron evaluate
    --pipeline esd-neon --concepts Neon --model demo`

    Exit code 0: done; 1: done, and --compare found another verdict; 2: can't be done.
    """
    from ...validation.evidence.evaluate import check_output, make_plan

    original = settings.before or "unedited" in settings.backends
    subject = subject_of(artifact, other, settings.model, original)
    if artifact is not None and other.concepts:
        raise SaeuronError("--concepts goes with --pipeline or --unet; an artifact says itself what it removes, so leave it out")
    plan = make_plan(subject, settings)
    if compare and plan.protocol == "utility":
        raise SaeuronError("--compare is about verdicts, and scores are none; leave it out: differences are printed and stored anyway")
    compared = [n for n in plan.names if n != "unedited" and "[" not in n]
    if compare and len(compared) < 2:
        raise SaeuronError("--compare needs two backends or more, e.g. --backend hook,checkpoint,onnx")
    # By its own name, also where the artifact is given as '.'.
    folder = output if output is not None else subject.path.resolve().with_name(f"{subject.name}-evaluation")
    o.out_folder(folder)
    check_parent(folder)
    check_output(plan, folder, overwrite)
    if dry_run:
        _dry_run(plan, folder, as_json)
        return
    process = _process(settings.device)
    with progress_line("checking files") as say:
        from ...editor.common.writing import alone
        from ...validation.evidence.evaluate import evaluate as run
        from ..plan.progress import Remaining

        clocks: dict[str, Remaining] = defaultdict(Remaining)

        def progress(name: str, done: int, total: int) -> None:
            if process.rank == 0:
                say(f"{name}: {done} of {total} pictures{clocks[name].text(done, total)}")

        busy = f"another evaluation writes into '{folder}'; wait until it has ended"
        with alone(folder, busy) if process.rank == 0 else contextlib.nullcontext():
            found = run(plan, folder, overwrite, process, progress)
    if found is None:
        return
    if as_json:
        write_json(found)
    else:
        _print(found)
        tell(f"evaluation {folder}")
    differ = [(c, left) for c in found.comparison if (left := c.pictures - (c.same_verdicts or 0))] if compare else []
    if differ:
        for c, left in differ:
            err.print(
                f"[red]differs:[/] {c.backend}: {left} of {c.pictures} verdicts are not those of {escaped(c.beside)}",
                highlight=False,
                soft_wrap=True,
            )
        raise typer.Exit(1)


def _process(device: str) -> Process:
    """This process among those of `torchrun` or `accelerate launch`."""
    from ...editor.common.process import Process

    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Process()
    from accelerate import PartialState

    everyone = PartialState(cpu=device == "cpu")
    return Process(everyone.process_index, everyone.num_processes, everyone.wait_for_everyone)


def _dry_run(plan: EvaluationPlan, folder: Path, as_json: bool) -> None:
    """Numbers of what would be made; what is there already, as far as its list says."""
    from ...validation.evidence.verdicts import stored

    there = stored(folder, plan.counting.columns)
    wanted = {w.name for w in plan.wanted}
    done = {name: sum(b == name and Path(file).stem in wanted for b, file in there) for name in plan.names}
    count, steps = len(plan.wanted), plan.settings.steps
    forwards = sum((2 if w.guidance > 1 else 1) * steps for w in plan.wanted)
    left = sum(count - n for n in done.values())
    calibrated = 0 if UNEDITED not in plan.names or (folder / CALIBRATION).is_file() else calibrating(count)
    said = {
        "output": str(folder), "settings": plan.settings, "backends": {n: {"pictures": count, "done": done[n]} for n in plan.names},
        "pictures_left": left, "calibrating": calibrated, "unet_rows_left": round(forwards * left / count),
    }  # fmt: skip
    if as_json:
        write_json(said)
        return
    if calibrated:
        tell(f"calibration: {calibrated} pictures of the unedited model with other seeds, on top")
    for name in plan.names:
        tell(f"{name}: {count} pictures" + (f", {done[name]} done" if done[name] else ""))
    tell(
        f"to make    {left} pictures of {steps} steps: about {said['unet_rows_left']} rows through the UNet (with guidance, two a picture and step)"
    )
    tell(f"output     {folder}")


def _print(found: Evaluation) -> None:
    s = found.settings
    looked = ", ".join(j.name for j in s.judges) or "none"
    tell(f"{s.artifact}: {', '.join(s.concepts)} removed; judge {looked}; {s.steps} steps, guidance {s.guidance:g}")
    for said in pipeline_lines(s.pipeline):
        tell(said)
    {"concepts": _print_sightings, "nudity": _print_nudity, "utility": _print_utility}.get(s.protocol, _print_rates)(found)
    _print_smears(found)
    for line in (*found.distances, *found.comparison):
        tell(str(line))
    for name in found.left_out:
        print_warning(f"left out: {name} has pictures in this folder, but not all of them; --backend makes the others")
    for name, b in found.backends.items():
        ran = f"; {b.made} pictures made in {b.seconds:.0f} s" if b.made else ""
        tell(f"{name}: {b.runtime}, {b.device}, loop of {b.loop}{ran}")


def _print_smears(found: Evaluation) -> None:
    rows = smear_rows(found)
    if rows:
        table = table_of("pictures by", "sign", *SMEARED, left=("pictures by", "sign"))
        for row in rows:
            cells = (f"{c['text']}\n{c['interval']}".strip() for c in row["cells"])
            table.add_row(escaped(row["backend"]), escaped(row["sign"]), *cells)
        out.print(table)
    for line in smear_lines(found):
        tell(line)


def _print_rates(found: Evaluation) -> None:
    table = table_of("backend", "concept", "UA", "IRA", "CRA", "CRA unstyled", "CRA on target", left=("backend", "concept"))
    for name, b in found.backends.items():
        for concept, rates in b.concepts.items():
            table.add_row(escaped(name), escaped(concept), *(rate_text(getattr(rates, key)) for key in FIGURES))
        if len(b.concepts) > 1:
            table.add_row(escaped(name), "mean", *map(percent, b.mean.values()))
    out.print(table)
    stages = {name: b for name, b in found.backends.items() if b.kept is not None}
    if stages:
        columns = ("stage", "kept of the artifact's concepts", "styles kept", "objects kept")
        table = table_of(*columns, left=columns[:2])
        for name, b in stages.items():
            kept = ", ".join(f"{escaped(c)} {rate_text(r, ' / ')}" for c, r in (b.kept or {}).items()) or "-"
            table.add_row(escaped(name), kept, rate_text(b.retained.get("style")), rate_text(b.retained.get("object")))
        out.print(table)
    tell(
        "UA: not recognised any more; IRA, CRA: recognised, on pictures that ask for none of the removed. Every picture counts once; CRA unstyled: unstyled pictures alone (released rule of styles). CRA on target: on the concept's own pictures. Below a rate: its 95 % interval (Wilson), pictures as trials."
    )


def _print_sightings(found: Evaluation) -> None:
    table = table_of("backend", "judge", "concept", *SEEN, left=("backend", "judge", "concept"))
    for name, b in found.backends.items():
        for judge, concepts in b.sightings.items():
            for concept, r in concepts.items():
                cells = (rate_text(rate) for rate in (r.removed, r.kept, r.beside, r.elsewhere))
                table.add_row(escaped(name), escaped(judge), escaped(concept), *cells)
    out.print(table)
    tell("Below a rate: its 95 % interval (Wilson), pictures as trials. What is counted: docs/evaluation.md.")
    for line in trust_lines(found.trust):
        tell(line)
    if any(t.balanced is None or t.balanced < BALANCED for concepts in found.trust.values() for t in concepts.values()):
        print_warning("a judge doesn't tell the unedited model's pictures apart well enough to be believed; its figures say little")


def _print_nudity(found: Evaluation) -> None:
    seen = [b.detections or {} for b in found.backends.values()]
    table = table_of("class", *found.backends, left=("class",))
    for c in sorted({c for detections in seen for c in detections}):
        table.add_row(c, *(str(detections.get(c, 0)) for detections in seen))
    table.add_row("pictures with a nude class", *(rate_text(b.nude) for b in found.backends.values()))
    out.print(table)
    tell(f"detections of score {found.threshold:g} or more; nude: {', '.join(found.nude_classes)}")


def _print_utility(found: Evaluation) -> None:
    if not any(b.clip_score is not None for b in found.backends.values()):
        return
    table = table_of("backend", "CLIP score", "change", "pictures", left=("backend",))
    for name, b in found.backends.items():
        cells = mean_cell(b.clip_score), mean_cell(b.clip_change, "+")
        table.add_row(escaped(name), *(f"{c['text']}\n{c['interval']}".strip() for c in cells), str(b.pictures))
    out.print(table)
    tell(
        "CLIP score: 100 times the cosine between CLIP's embeddings of picture and prompt. Change: from the unedited model's picture of the same prompt and seed. Below: 95 % intervals of the means, pictures as independent; too narrow for fewer than some 30."
    )
    if cut := max(b.prompts_cut or 0 for b in found.backends.values()):
        tell(f"{cut} {'prompt was' if cut == 1 else 'prompts were'} longer than CLIP reads, and cut for the score")
