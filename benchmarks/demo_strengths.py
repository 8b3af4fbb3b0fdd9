"""Compares strengths of hardened rows of the demo, to choose one: `python -m benchmarks.demo_strengths EDIT.safetensors --multiplier=-5,-10 --output FILE.md`.

Nothing of it is a figure of the presets: pictures are of the tuning prompts with tuning seeds (44, 45, and under attack 46), which neither hardening nor the
reports use. Rows are rounded to float16, as they are shipped. `--rounds N` leaves out what later rounds of hardening added. Under attack: `embedding` with
three times the default's iterations, from beginnings of its own. Each line lies in `--store` under a hash of the edit.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from benchmarks.demo.train_pipeline import TEMPLATES, prompt

from saeuron.editor import demo
from saeuron.editor.common.names import NORMS, Norm
from saeuron.editor.denoisers.families import network_of
from saeuron.editor.denoisers.pipelines import load_pipeline
from saeuron.editor.denoisers.sampling import generate
from saeuron.editor.edit.directions_file import load_directions
from saeuron.editor.edit.edit import Edit, Suppression, make_edit
from saeuron.editor.edit.hook import AblationHook
from saeuron.editor.edit.how import How
from saeuron.editor.features.concepts import presets
from saeuron.editor.features.rule import Rule
from saeuron.validation.attack.attack import attack
from saeuron.validation.attack.cases import AttackCase
from saeuron.validation.attack.settings import AttackSettings
from saeuron.validation.attack.victims import Hooked, bare
from saeuron.validation.evidence.unlearning import all_jobs, look, rates
from saeuron.validation.judges.choose import open_labels
from saeuron.validation.judges.demo import DemoJudge

_SEEDS = (44, 45)
_ATTACKED = AttackSettings(embedding_iterations=240, seed=20_000, report_seeds=(44, 45, 46))
_KEYS = ("ua", "ira", "cra", "cra_target")


def edit_at(path: Path, multiplier: float, rounds: int | None, norm: Norm) -> tuple[str, Edit]:
    """Concept, and its edit at a strength, with the rows of some rounds."""
    held = Edit.load(path)
    (name,) = held.concepts
    given = {}
    for hookpoint, known in load_directions(path, name).items():
        rows = tuple(r._replace(encoder=r.encoder.half().float(), decoder=r.decoder.half().float()) for r in known.rows)
        given[name, hookpoint] = known._replace(rows=rows[: None if rounds is None else 1 + rounds])
    wishes = [Suppression(name, hookpoint, Rule.parse("count:1"), multiplier, "probe", How(norm=norm)) for _, hookpoint in given]
    return name, make_edit(wishes, {}, weights=held.weights, given=given)


def plain(pipeline: Any, judge: DemoJudge, name: str, edit: Edit) -> dict[str, list[int]]:
    """UA, IRA, CRA and the other domain on the target, as hits and trials."""
    jobs = all_jobs(judge.objects, [*judge.styles, None], _SEEDS)
    texts = [prompt(o, s, TEMPLATES[1 + i % 2]) for i, (o, s, _) in enumerate(jobs)]
    with AblationHook(network_of(pipeline), edit, {}):
        made = generate(pipeline, texts, [seed for *_, seed in jobs], demo.STEPS, demo.GUIDANCE, batch_size=72)
    found = rates(look(judge, jobs, list(made)), {name: judge.domain(name)})[name]
    return {key: [getattr(found, key).hits, getattr(found, key).trials] for key in _KEYS}


def attacked(pipeline: Any, name: str, edit: Edit) -> dict[str, list[int]]:
    """Pictures that show the concept, plain and under attack."""
    concept, own = presets()[name], bare(pipeline)
    case = AttackCase(name, concept.kind, list(concept.prompts[0::2]), list(concept.prompts[1::2]))
    rows, _ = attack(Hooked(own, edit, {}), own, case, open_labels("demo"), _ATTACKED, ("embedding",))
    return {row.attack: [row.successes, row.trials] for row in rows}


def main() -> None:
    """Measure each strength, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("edits", type=Path, nargs="+", metavar="EDIT.safetensors", help="of saeuron harden, one concept each")
    parser.add_argument("--multiplier", required=True, metavar="A,B")
    parser.add_argument("--rounds", type=int, metavar="N", help="default: all")
    parser.add_argument("--norm", choices=NORMS, default="free")
    parser.add_argument("--attack", action="store_true")
    parser.add_argument("--store", type=Path, default=Path("demo-strengths-results"))
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pipeline, judge = load_pipeline("demo"), DemoJudge()
    options.store.mkdir(parents=True, exist_ok=True)
    lines = ["| edit | multiplier | UA | IRA | CRA | other domain on the target | embedding, three times |", "|" + "---|" * 7]
    for path in options.edits:
        for multiplier in (float(m) for m in options.multiplier.split(",")):
            name, edit = edit_at(path, multiplier, options.rounds, options.norm)
            stored = options.store / f"{name}-{edit.sha256()[:24]}.json"
            found = json.loads(stored.read_text()) if stored.is_file() else {}
            found |= {} if "ua" in found else plain(pipeline, judge, name, edit)
            found |= attacked(pipeline, name, edit) if options.attack and "embedding" not in found else {}
            stored.write_text(json.dumps(found))
            cells = ["/".join(map(str, found[key])) if key in found else "–" for key in (*_KEYS, "embedding")]
            lines.append(f"| {path.stem} | {multiplier:g} | {' | '.join(cells)} |")
            options.output.write_text("\n".join(lines) + "\n")
            print(lines[-1], flush=True)


if __name__ == "__main__":
    main()
