"""What a report says, as plain text and numbers: no HTML, no Markdown. Every statement is derived from the files it is about."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...editor.by_hand import BY_HAND
from ...editor.edit_header import EditHeader, read_edit_header
from ...editor.errors import SaeuronError
from ...editor.files import file_sha256, read_json
from .. import manifest
from ..attack import ATTACKS
from ..golden import Shown, read_pictures
from ..makers import HOOK, UNEDITED
from .curve import make_curve, number
from .sources import FIGURES, PLAIN_ROWS, Attack, AttackRow, Evaluation, Rate, Stage, read_attack, read_evaluation

TITLES = {"ua": "UA", "ira": "IRA", "cra": "CRA", "cra_unstyled": "CRA unstyled", "cra_target": "CRA on target"}
_SENSITIVE = re.compile(r"nud|naked|nsfw|porn|sexual|erotic", re.IGNORECASE)
_CHECKS = {
    "forwards": "forwards of the UNet", "gates": "gate decisions", "components": "the other components", "runs": "free runs",
    "record": "weights, tables and configs against the record", "surroundings": "tokenizer and scheduler",
}  # fmt: skip
_FAILED, _PROVEN, _OPEN = "failed", "proven", "open"


def share(value: Any) -> str:
    """A ratio as percent with two digits that count."""
    found = number(value)
    if math.isnan(found):
        return "no number"
    if not math.isfinite(found):
        return "infinite"
    size = abs(100 * found)
    if size and not 1e-6 <= size < 1e6:
        return f"{100 * found:.1e} %"
    places = max(0, 1 - math.floor(math.log10(size))) if size else 0
    text = f"{100 * found:.{places}f}"
    return (text.rstrip("0").rstrip(".") if places else text) + " %"


def percent(value: float | None) -> str:
    """A rate as percent; a dash where nothing was counted. Only a whole is 100 %, only nothing is 0 %."""
    if value is None:
        return "–"
    text = f"{100 * value:.1f}".removesuffix(".0")
    text = "> 99.9" if text == "100" and value < 1 else "< 0.1" if text == "0" and value > 0 else text
    return f"{text} %"


def interval(rate: Rate | None) -> str:
    """Both ends of a 95 % interval."""
    return "–" if rate is None or rate.low is None else f"{percent(rate.low).removesuffix(' %')} to {percent(rate.high)}"


def make_content(root: Path, evaluation: Path | None = None, attack: Path | None = None) -> dict[str, Any]:
    """Everything that a report says.

    Args:
        root: artifact folder, whose files were checked.
        evaluation: folder that `saeuron evaluate` wrote.
        attack: file that `saeuron attack` wrote.

    Raises:
        SaeuronError: no artifact, files of another one, or damaged ones.
    """
    record = manifest.read(root)
    sha256 = file_sha256(root / manifest.NAME)
    evaluated = None if evaluation is None else read_evaluation(evaluation, record, sha256)
    attacked = None if attack is None else read_attack(attack, record, sha256)
    header = read_edit_header(root / "edit" / "edit.safetensors")
    golden, proof = root / "edit" / "golden.safetensors", root / "validation" / "report.json"
    report = read_json(proof) if record.get("validation") is not None else None
    shown = read_pictures(golden) if golden.is_file() else []
    try:
        return _content(root, record, header, report, shown, evaluated, attacked, sha256)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SaeuronError(f"{proof}: its form is not known ({type(error).__name__}: {error}); prove the artifact again") from None


def _content(
    root: Path, record: dict[str, Any], header: EditHeader, report: dict[str, Any] | None, shown: Sequence[Shown],
    evaluation: Evaluation | None, attack: Attack | None, sha256: str,
) -> dict[str, Any]:  # fmt: skip
    by_hand = bool(record["settings"]) and all(w["status"] == BY_HAND for w in record["settings"])
    names = ", ".join(record["concepts"]) or ", ".join(dict.fromkeys(w["name"] for w in record["settings"]))
    sensitive = any(_SENSITIVE.search(name) for name in [names, *(w["name"] for w in record["settings"])])
    sensitive |= evaluation is not None and evaluation.settings["protocol"] == "nudity"
    return {
        "artifact": root.resolve().name, "title": f"{record['model']['source']} {'steered' if by_hand else 'without'} {names}",
        "verdict": _verdict(record, report, names, by_hand, evaluation, attack), "removed": _removed(record, header, names, by_hand),
        "pictures": _pictures(shown, record, sensitive), "parity": _parity(report), "evaluation": _evaluation(evaluation), "attack": _attack(attack),
        "settings": _settings(record, evaluation, attack, sha256), "warnings": record["warnings"], "failures": [str(f) for f in (report or {}).get("failures", [])],
        "not_checked": _not_checked(record, report, shown, evaluation, attack),
    }  # fmt: skip


def _verdict(
    record: dict[str, Any], report: dict[str, Any] | None, names: str, by_hand: bool, evaluation: Evaluation | None, attack: Attack | None
) -> dict[str, str]:
    what = f"{names} {'steered in' if by_hand else 'removed from'} {record['model']['source']}"
    parts = []
    if report is None:
        state, word = _OPEN, "not proven"
        parts.append("nothing was proven, since the artifact was exported without validation")
    else:
        state, word = (_PROVEN, "proven") if report["passed"] else (_FAILED, "proof failed")
        ran = {name: p for name, p in report["backends"].items() if p["forwards"]["forwards"]}
        if ran:
            worst = max((number(p["forwards"]["worst"]) for p in ran.values()), key=lambda w: math.inf if math.isnan(w) else w)
            bar = min(number(p["forwards"]["bar"]) for p in ran.values())
            count = sum(p["forwards"]["forwards"] for p in ran.values())
            parts.append(
                f"{', '.join(ran)} differ{'s' if len(ran) == 1 else ''} from the dynamic hook by at most {share(worst)} of what the edit does (bar {share(bar)}, {count} forwards)"
            )
        else:
            parts.append("no forward of the UNet was compared")
        if not report["passed"]:
            parts.append(f"the proof failed in {_plural(len(report['failures']), 'point')}")
    told = _told(evaluation)
    parts.append(told if told else "how well the concept is gone was not measured here")
    worst_row = _strongest(attack)
    if worst_row is not None:
        r = worst_row.rate
        parts.append(
            f"the strongest attack tried ({worst_row.attack}) brought {worst_row.concept} back in {r.hits} of {r.trials} trials ({percent(r.rate)}, 95 % interval {interval(r)})"
        )
    return {"state": state, "word": word, "text": f"{what}: {'; '.join(parts)}."}


def _told(evaluation: Evaluation | None) -> str:
    """What an evaluation says in a few words, by the backend and concept that fare worst."""
    if evaluation is None:
        return ""
    edited = [stage for stage in evaluation.stages if stage.edited]
    counted = [
        (ua, name, stage.name)
        for stage in edited
        for name, rates in stage.concepts.items()
        if (ua := rates["ua"]) is not None and ua.trials
    ]
    if counted:
        # At a tie the artifact's own pictures say more than the hook's.
        ua, name, backend = min(counted, key=lambda found: (found[0].rate or 0.0, found[2] == HOOK))
        text = f"the judge '{evaluation.judge}' no longer sees {name} in {ua.hits} of {ua.trials} pictures that ask for it ({percent(ua.rate)}, 95 % interval {interval(ua)}; {backend})"
        others = [
            r.rate for stage in edited for rates in stage.concepts.values() for key in ("ira", "cra") if (r := rates[key]) is not None
        ]
        least = min((found for found in others if found is not None), default=None)
        return text if least is None else f"{text}, with IRA and CRA {'of' if least == 1 else 'no less than'} {percent(least)}"
    nude = [(rate, stage.name) for stage in edited if (rate := stage.nude) is not None and rate.trials]
    if nude:
        rate, backend = max(nude, key=lambda found: found[0].rate or 0.0)
        return f"'{evaluation.judge}' finds nudity in {rate.hits} of {rate.trials} pictures ({percent(rate.rate)}, 95 % interval {interval(rate)}; {backend})"
    return ""


def _plural(count: int, word: str) -> str:
    return f"{count} {word}" + ("" if count == 1 else "s")


def _known(rate: Rate | None) -> Any:
    return rate is not None and rate.rate is not None


def _strongest(attack: Attack | None) -> AttackRow | None:
    rows = [row for row in (attack.rows if attack else ()) if row.attack not in PLAIN_ROWS and row.rate.rate is not None]
    return max(rows, key=lambda row: row.rate.rate or 0.0, default=None)


def _removed(record: dict[str, Any], header: EditHeader, names: str, by_hand: bool) -> dict[str, Any]:
    points = record["edit"].get("hookpoints") or {}
    rows = []
    for wish in record["settings"]:
        steps = header.chosen.get(wish["hookpoint"], {}).get(wish["name"], [])
        union = sorted({feature for step in steps for feature in step})
        rows.append({
            "concept": wish["name"], "hookpoint": wish["hookpoint"], "select": wish["select"], "count": len(union), "features": ", ".join(map(str, union)),
            "multiplier": "–" if wish["multiplier"] is None else f"{wish['multiplier']:g}", "timesteps": len(steps), "status": wish["status"],
        })  # fmt: skip
    totals = [
        {"hookpoint": name, "features": entry.get("features", "–"), "latents": header.latents.get(name, "–"), "timesteps": entry.get("timesteps", "–")}
        for name, entry in points.items()
    ]  # fmt: skip
    return {"names": names, "verb": "Steered" if by_hand else "Removed", "model": record["model"], "rows": rows, "hookpoints": totals}


def _pictures(shown: Sequence[Shown], record: dict[str, Any], sensitive: bool) -> dict[str, Any] | None:
    pairs = [
        {
            "prompt": prompt, "guidance": f"{run.guidance:g}", "steps": run.steps, "before": run.unedited[i], "after": run.hook[i],
            "height": run.hook.shape[1], "width": run.hook.shape[2],
        }
        for run in shown for i, prompt in enumerate(run.prompts)
    ]  # fmt: skip
    if not pairs:
        return None
    return {"pairs": pairs, "sensitive": sensitive, "formats": record["formats"]}


def _parity(report: dict[str, Any] | None) -> dict[str, Any] | None:
    if report is None:
        return None
    rows = []
    for name, p in report["backends"].items():
        f, g, c, runs = p["forwards"], p["gates"], p["components"], p["runs"]
        judged = [r for r in runs["rows"] if r["conclusive"]]
        cells = {
            "forwards": f"worst {share(f['worst'])} (bar {share(f['bar'])}) in {f['forwards']}; the edit fired in {f['fired']}" if f["forwards"] else "–",
            "gates": f"{g['decisions']} decisions, {percent(number(g['equal']))} equal, {g['flips_beyond_rounding']} flipped beyond rounding" if g.get("observable") else "–",
            "components": f"worst {share(max(map(number, c['relative'].values())))} (bar {share(c['bar'])})" if c.get("relative") else "–",
            "runs": _runs(runs["rows"], judged),
        }  # fmt: skip
        for key, part in (("forwards", f), ("gates", g), ("components", c), ("runs", runs)):
            if "not_checked" in part:
                cells[key] = f"not checked: {part['not_checked']}"
        marks = {key: _mark(part["passed"], "not_checked" in part) for key, part in (("forwards", f), ("gates", g), ("components", c))}
        marks["runs"] = "none" if not judged and runs["passed"] else _mark(runs["passed"], "not_checked" in runs)
        rows.append({"backend": name, "passed": bool(p["passed"]), "cells": cells, "marks": marks, "loop": runs.get("loop", "")})
    control = report["control"]
    said = f"As a control, the unedited model must fail the same comparison: it was caught in {control['forwards_caught']} of {control['forwards']} forwards and {control['runs_caught']} of {control['runs_judged']} free runs."
    return {
        "rows": rows, "scope": str(report["scope"]), "precision": report["precision"], "control": said, "control_passed": bool(control["passed"]),
        "curve": make_curve(report["backends"], share),
    }  # fmt: skip


def _runs(rows: Sequence[Mapping[str, Any]], judged: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "none made"
    if not judged:
        return f"{len(rows)} made, none could be judged"
    latents, effect = max(number(r["latents"]) for r in judged), min(number(r["effect"]) for r in judged)
    least = min(number(r["psnr"]) for r in judged)
    pictures = "pictures identical" if math.isinf(least) else f"pictures at least {least:.1f} dB alike"
    return f"{len(judged)} of {len(rows)} judged: latents at most {share(latents)} off (the edit moves them by at least {share(effect)}), {pictures}"


def _mark(passed: bool | None, skipped: bool) -> str:
    return "none" if passed is None or skipped else "pass" if passed else "fail"


def _rate_cell(rate: Rate | None) -> dict[str, Any]:
    if rate is None:
        return {"text": "–", "interval": "", "count": "", "bar": None}
    bar = None if rate.rate is None else {key: round(100 * getattr(rate, key), 2) for key in ("low", "rate", "high")}
    count = f"{rate.hits} of {rate.trials}" if rate.trials else "0 trials"
    return {"text": percent(rate.rate), "interval": interval(rate) if rate.trials else "", "count": count, "bar": bar}


def _evaluation(evaluation: Evaluation | None) -> dict[str, Any] | None:
    if evaluation is None:
        return None
    keys = [k for k in FIGURES if any(_known(rates[k]) for stage in evaluation.stages for rates in stage.concepts.values())] or list(
        FIGURES
    )
    rows = [
        {"backend": stage.name, "concept": name, "edited": stage.name != UNEDITED, "cells": [_rate_cell(rates[key]) for key in keys]}
        for stage in evaluation.stages for name, rates in stage.concepts.items()
    ]  # fmt: skip
    nude = [{"backend": stage.name, "cell": _rate_cell(stage.nude)} for stage in evaluation.stages if stage.nude is not None]
    content = evaluation.content
    lines = []
    for c in content.get("comparison", []):
        near = "" if c["least_psnr"] is None else f", least PSNR {c['least_psnr']:.1f} dB"
        lines.append(
            f"{c['backend']} beside {c['with']}: {c['identical']} of {c['pictures']} pictures identical, largest difference {c['max_abs']} of 255{near}; same verdict on {c['same_verdicts']}."
        )
    for d in content.get("distances", []):
        rest = "" if d["rest"] is None else f", {d['rest']:.3f} on those that ask for nothing removed"
        lines.append(f"{d['name']} of {d['backend']} from {d['against']}: {'–' if d['all'] is None else format(d['all'], '.3f')}{rest}.")
    return {
        "judge": evaluation.judge, "titles": [TITLES[k] for k in keys], "rows": rows, "nude": nude, "lines": lines,
        "ran": [f"{stage.name}: {stage.ran}" for stage in evaluation.stages if stage.ran], "same_export": evaluation.same_export,
    }  # fmt: skip


def _attack(attack: Attack | None) -> dict[str, Any] | None:
    if attack is None:
        return None
    rows = [
        {
            "concept": row.concept, "attack": row.attack, "plain": row.attack in PLAIN_ROWS, "cell": _rate_cell(row.rate), "text": row.text,
            "budget": ", ".join(f"{row.budget[k]} {k}" for k in ("pictures", "iterations", "restarts", "forwards") if row.budget.get(k)),
        }
        for row in attack.rows
    ]  # fmt: skip
    return {"judge": attack.judge, "through": attack.through, "rows": rows, "same_export": attack.same_export}


def _settings(record: dict[str, Any], evaluation: Evaluation | None, attack: Attack | None, sha256: str) -> list[dict[str, Any]]:
    s = record["sampling"]
    size = "the model's" if s["height"] is None or s["width"] is None else f"{s['width']} × {s['height']}"
    groups = [
        ("Artifact", [
            ("formats", ", ".join(record["formats"])), ("precision", record["precision"]), ("gate", record["gate"]), ("residual", record["residual"]),
            ("steps", str(s["steps"])), ("guidance", f"{s['guidance']:g}"), ("picture size", size), ("created", str(record.get("created", "–"))),
        ]),
        ("Sources", [
            ("model", record["model"]["source"]), ("pipeline", record["model"]["pipeline"]),
            ("safety checker", "yes" if record["model"]["safety_checker"] else "no"), *((f"SAE at {name}", e["source"]) for name, e in record["saes"].items()),
        ]),
        ("SHA-256", [
            ("saeuron.json", sha256), ("edit", record["edit"]["sha256"]), ("original UNet", record["model"]["unet_sha256"]),
            *((f"SAE at {name}", e["sha256"]) for name, e in record["saes"].items()),
        ]),
        ("Versions", [(str(k), str(v)) for k, v in (record.get("versions") or {}).items()]),
    ]  # fmt: skip
    if evaluation is not None:
        e = evaluation.settings
        entries = [
            ("protocol", e["protocol"]), ("judge", evaluation.judge), ("judge's hash", e["judge"]["sha256"]), ("steps", str(e["steps"])),
            ("guidance", f"{e['guidance']:g}"), ("seeds", _list(e["seeds"])), *((k, _list(e[k])) for k in ("objects", "styles") if k in e),
        ]  # fmt: skip
        groups.append(("Evaluation", entries))
    if attack is not None:
        entries = [("through", attack.through), ("judge", attack.judge), ("judge's hash", attack.content["judge"]["sha256"])]
        groups.append(("Attack", entries + [(k.replace("_", " "), _list(v)) for k, v in attack.content["settings"].items()]))
    return [{"title": title, "entries": entries} for title, entries in groups if entries]


def _list(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else f"{value:g}" if isinstance(value, float) else str(value)


def _not_checked(
    record: dict[str, Any], report: dict[str, Any] | None, shown: Sequence[Shown], evaluation: Evaluation | None, attack: Attack | None
) -> list[dict[str, str]]:
    """Each with where it is from: `proof`, `engines`, `settings`, `evaluation` or `attack`."""
    found: list[dict[str, str]] = []

    def add(about: str, text: str) -> None:
        entry = {"about": about, "text": text}
        if entry not in found:
            found.append(entry)

    for text in _unproven(record, report, shown):
        add("proof", text)
    for name, engine in (record.get("engines") or {}).items():
        add("engines", f"tensorrt/{name} ({engine['backend']}, {', '.join(engine['sms'])}): {engine['status']}.")
    for wish in record["settings"]:
        if wish["status"] == "untuned":
            add("settings", f"{wish['name']}: its settings are untuned, so they were not chosen by any measurement.")
    for text in _unevaluated(record, evaluation):
        add("evaluation", text)
    for text in _unattacked(record, attack):
        add("attack", text)
    return found


def _unproven(record: dict[str, Any], report: dict[str, Any] | None, shown: Sequence[Shown]) -> list[str]:
    if report is None:
        return ["The artifact was exported without validation: nothing compares it with the dynamic hook."]
    found = []
    proven = {name.split("/")[0] for name in report["backends"]}
    for name in record["formats"]:
        if name not in proven:
            found.append(f"{name} lies in the artifact; no proof of it is on record.")
    if not shown:
        found.append(f"The proof's scope is '{report['scope']}': it holds no free runs, so no picture was compared.")
    for entry in report.get("not_checked", ()):
        of = f" of {entry['backend']}" if "backend" in entry else ""
        found.append(f"{_CHECKS.get(entry['check'], entry['check'])}{of}: {entry['reason']}.")
    for name, p in report["backends"].items():
        for check in ("forwards", "gates", "components", "runs"):
            if "not_checked" in p[check]:
                found.append(f"{_CHECKS[check]} of {name}: {p[check]['not_checked']}.")
        g = p["gates"]
        if g.get("observable") and g["features_fired"] < g["features"]:
            left = g["features"] - g["features_fired"]
            found.append(
                f"{left} of {g['features']} features never fired in the proof of {name}, so only that they stay silent was compared."
            )
        for row in p["runs"]["rows"]:
            where = f"free run of {name} at guidance {row['guidance']:g}, {row['width']} × {row['height']}"
            if not row["conclusive"]:
                found.append(f"{where}: rounding alone may carry it as far as the edit does, so it was not judged.")
            elif row.get("ssim") is None:
                found.append(f"{where}: no SSIM, since scikit-image was not there.")
    for check in ("record", "surroundings"):
        if check not in report:
            found.append(f"{_CHECKS[check]}: not on record.")
    return [text[:1].upper() + text[1:] for text in dict.fromkeys(found)]


def _unevaluated(record: dict[str, Any], evaluation: Evaluation | None) -> list[str]:
    if evaluation is None:
        return ["No evaluation was given: how well the concept is gone, and what else went with it, was not measured."]
    found = []
    stages = evaluation.stages
    edited = [stage for stage in stages if stage.edited]
    by_name = {stage.name for stage in stages}
    if not evaluation.same_export:
        found.append("The evaluation is of another export of the same edit, not of this folder's files.")
    for name in record["formats"]:
        if name not in by_name:
            found.append(f"No picture made by {name} was judged.")
    if UNEDITED not in by_name:
        found.append("The unedited model's pictures were not judged, so a judge's own errors can't be told from the edit's.")
    if evaluation.settings["protocol"] != "nudity":
        for name in record["concepts"]:
            if not any(_known(stage.concepts.get(name, {}).get("ua")) for stage in edited):
                found.append(f"No picture that asks for {name} was judged.")
        judged = evaluation.settings["judge"].get("judged", ["style", "object"])
        found += [f"The judge doesn't look at {domain}s." for domain in ("style", "object") if domain not in judged]
    else:
        found += _uncounted_nude(edited)
    for stage in edited:
        for name, rates in stage.concepts.items():
            empty = [TITLES[key] for key in FIGURES if (r := rates[key]) is not None and not r.trials]
            if empty:
                found.append(f"{', '.join(empty)} of {name} by {stage.name}: no picture to count it on.")
    return found


def _uncounted_nude(edited: Sequence[Stage]) -> list[str]:
    missing = [] if any(_known(stage.nude) for stage in edited) else ["No picture of the edited model was looked at for nudity."]
    return [*missing, "Only nudity was looked for, not what else went with it."]


def _unattacked(record: dict[str, Any], attack: Attack | None) -> list[str]:
    if attack is None:
        return ["No attack was given: whether somebody can get around the edit was not tried."]
    found = []
    if not attack.same_export:
        found.append("The attack is on another export of the same edit, not on this folder's files.")
    if attack.through not in record["formats"]:
        found.append(f"The attack went through the {attack.through}, not through the artifact's own files.")
    rows = {name: [row for row in attack.rows if row.concept == name] for name in record["concepts"]}
    for name, tried in rows.items():
        if not tried:
            found.append(f"{name} was not attacked.")
            continue
        left = [kind for kind in ATTACKS if kind not in {row.attack for row in tried}]
        if left:
            found.append(f"Not tried on {name}: {', '.join(left)}.")
        weak = [row for row in tried if row.attack == "unedited" and (row.rate.rate or 0) < 0.5]
        if weak:
            found.append(f"The judge sees {name} in few of the unedited model's pictures, so the attacks on it say little.")
    return found
