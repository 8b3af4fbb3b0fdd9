"""Readers of evidence: evaluations, their lists of pictures, attacks, the state of a run of all stages."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from saeuron.editor.common.files import file_sha256
from saeuron.editor.common.typed import plain
from saeuron.editor.features.prompt_sets import ConceptPrompts, ContrastPrompts
from saeuron.validation.artifact.concepts import write_concepts
from saeuron.validation.evidence import by_words
from saeuron.validation.evidence.counting import Counting
from saeuron.validation.evidence.intervals import Rate

from . import mutations as m
from .readers import _artifact, _put, reader

_COLUMNS = ("backend", "object", "style", "seed", "prompt", "file", "sha256", "sure", "tokens", "seen_object", "seen_style")


def _list_of_pictures(folder: Path, backends: Sequence[str]) -> dict[str, list[dict[str, str]]]:
    """Two pictures a backend and what was seen on them, in `verdicts.csv`."""
    rows = {}
    for backend in backends:
        rows[backend] = []
        for seed in ("1", "2"):
            file = f"pictures/{backend}/{seed}.png"
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (2, 2)).save(folder / file)
            values = (
                backend,
                "House",
                "A",
                seed,
                "a house",
                file,
                file_sha256(folder / file),
                "{}",
                "",
                "House",
                "A" if seed == "1" else "B",
            )
            rows[backend].append(dict(zip(_COLUMNS, values, strict=True)))
    lines = [_COLUMNS, *(row.values() for made in rows.values() for row in made)]
    _put(folder, "verdicts.csv", "".join(",".join(line) + "\n" for line in lines))
    return rows


def _evidence(folder: Path) -> None:
    _artifact(folder)
    from saeuron.validation.artifact import manifest

    edit, sha = manifest.read(folder).edit.sha256, file_sha256(folder / "saeuron.json")
    judge = {"name": "demo", "sha256": "0", "judged": ["style", "object"]}
    rows = _list_of_pictures(folder / "e", ("unedited", "hook", "onnx"))
    figures = Counting("unlearncanvas", {"A": "style"}, judge["judged"]).figures(rows, {})
    rate = plain(Rate.of(1, 2))
    evaluation = {
        "format": "saeuron-evaluation-2", "finished": True,
        "settings": {"artifact": "a", "manifest_sha256": sha, "edit_sha256": edit, "protocol": "unlearncanvas", "judges": [judge], "steps": 4, "guidance": 3.0, "seeds": [1, 2], "objects": ["House"], "styles": ["A"], "precision": "fp32"},
        "backends": {n: {**plain(figures[n]), "pictures": 2, "runtime": "r", "device": "cpu", "loop": "lean"} for n in rows},
        "distances": [{"name": "F", "backend": "onnx", "against": "unedited", "all": 1.0, "rest": None}],
        "comparison": [{"backend": "onnx", "with": "hook", "pictures": 2, "identical": 2, "max_abs": 0, "least_psnr": None, "same_verdicts": 2}],
    }  # fmt: skip
    row = {
        "attack": "prefix",
        "successes": 1,
        "budget": {"pictures": 2, "iterations": 2},
        "prompts": ["a"],
        **rate,
        "found": {"text": "x"},
        "each": [{"prompt": "a", "seed": seed, "shows_concept": seed == 1} for seed in (1, 2)],
    }
    attack = {"format": "saeuron-attack-1", "artifact": "a", "manifest_sha256": sha, "edit_sha256": edit, "through": "checkpoint", "judge": judge, "settings": {"steps": 4, "guidance": 3.0, "report_seeds": [1, 2], "search_seeds": [1]}, "concepts": {"A": {"domain": "style", "rows": [{**row, "attack": n} for n in ("unedited", "edited", "prefix")]}}}  # fmt: skip
    _put(folder, "e/evaluation.json", json.dumps(evaluation))
    _put(folder, "attack.json", json.dumps(attack))
    _by_words(folder / "w", evaluation)


def _by_words(folder: Path, other: dict[str, Any]) -> None:
    """An evaluation by words, of the same artifact and backends, on the prompts that the artifact holds."""
    words = ConceptPrompts("A", "style", ["A"], ["A here"], {"B": ContrastPrompts(["B"], ["B here"], True)})
    write_concepts(folder.parent, {"A": words})
    judge, compared = {"name": "CLIP x", "sha256": "1", "concepts": ["A", "B"]}, {"A": ["B"]}
    rows: dict[str, list[dict[str, str]]] = {}
    for backend in other["backends"]:
        rows[backend] = []
        for name in ("A", "B"):
            file = f"pictures/{backend}/{name}.png"
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (2, 2)).save(folder / file)
            seen = json.dumps({"CLIP x": [name]}), json.dumps({"CLIP x": {"A": 0.5}})
            values = (backend, name, "1", f"{name} here", file, file_sha256(folder / file), '{"CLIP x": 0.5}', "", *seen)
            rows[backend].append(dict(zip(by_words.COLUMNS, values, strict=True)))
    with io.StringIO(newline="") as text:
        writer = csv.DictWriter(text, by_words.COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(row for made in rows.values() for row in made)
        _put(folder, "verdicts.csv", text.getvalue())
    counting = Counting("concepts", {"A": "style"}, compared=compared, judges={"CLIP x": judge["concepts"]})
    figures = counting.figures(rows, {})
    settings = {k: v for k, v in other["settings"].items() if k not in ("judges", "objects", "styles", "protocol", "seeds")}
    evaluation = {
        **other, "settings": {**settings, "protocol": "concepts", "judges": [judge], "seeds": [1], "sets": {"A": 1, "B": 1}, "compared": compared},
        "backends": {n: {**plain(figures[n]), "pictures": 2, "runtime": "r", "device": "cpu", "loop": "lean"} for n in rows},
        "trust": plain(counting.trust(rows)),
    }  # fmt: skip
    _put(folder, "evaluation.json", json.dumps(evaluation))


@reader(
    _evidence,
    {
        "e/evaluation.json": m.as_json,
        "e/verdicts.csv": m.as_lines,
        "w/evaluation.json": m.as_json,
        "w/verdicts.csv": m.as_lines,
        "attack.json": m.as_json,
        "validation/report.json": m.as_json,
    },
    0.2,
)
def _evidence_of_a_report(folder: Path) -> None:
    from saeuron.validation.page.content import make_content
    from saeuron.validation.page.render import render

    render(make_content(folder, [folder / "e", folder / "w"], folder / "attack.json"), "pictures")


def _verdict_files(folder: Path) -> None:
    from saeuron.validation.evidence.verdicts import FORMAT, RESULT

    _put(folder, RESULT, json.dumps({"format": FORMAT, "finished": False, "settings": {"a": 1, "b": [1]}}))
    _list_of_pictures(folder, ("onnx",))


@reader(_verdict_files, {"evaluation.json": m.as_json, "verdicts.csv": m.as_lines}, 1)
def _evaluation_folder(folder: Path) -> None:
    from saeuron.validation.evidence.evaluate import _held
    from saeuron.validation.evidence.verdicts import Store, Wanted, check_folder, stored

    stored(folder, _COLUMNS)
    check_folder(folder, {"a": 1, "b": [1]}, False)
    _held(folder)
    Store(folder, _COLUMNS, {"a": 1, "b": [1]}).have("onnx", Wanted("1", "a house", 1, 3.0))


@reader(
    lambda f: _put(f, "a-work/stages.json", json.dumps({"settings_sha256": "0", "content_sha256": "1", "finished": False})),
    {"a-work/stages.json": m.as_json},
)
def _state_of_the_stages(folder: Path) -> None:
    from saeuron.export.plan import stage_state

    stage_state.read(folder / "a")


def _unfinished(folder: Path) -> None:
    _evidence(folder)
    content = json.loads((folder / "attack.json").read_text())
    _put(folder, "attack.json", json.dumps({**content, "finished": False}))


@reader(_unfinished, {"attack.json": m.as_json}, 0.5)
def _an_attack_that_goes_on(folder: Path) -> None:
    from saeuron.validation.attack.run import unfinished

    unfinished(folder / "attack.json")
