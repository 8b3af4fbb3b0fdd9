"""What was not checked: derived from the files, never written by hand."""

from __future__ import annotations

from collections.abc import Sequence, Set

from ..artifact.manifest import Manifest
from ..attack.attack import ATTACKS
from ..evidence.makers import UNEDITED
from ..proof.results import Proof
from .figures import SENSITIVE, TITLES, known, plural
from .sources import FIGURES, UNEDITED_PARAPHRASES, Attack, Evaluation, Known, Stage

_CHECKS = {
    "forwards": "forwards of the UNet", "seam": "the edit at the seam", "components": "the other components", "runs": "free runs",
    "record": "weights, tables and configs against the record", "surroundings": "tokenizer and scheduler",
}  # fmt: skip


def not_checked(k: Known) -> list[dict[str, str]]:
    """Each with where it is from: `proof`, `another proof`, `engines`, `settings`, `pictures`, `features`, `evaluation` or `attack`."""
    record = k.record
    elsewhere = {} if k.proof is None else k.proof.backends
    found: list[dict[str, str]] = []

    def add(about: str, text: str) -> None:
        entry = {"about": about, "text": text}
        if entry not in found:
            found.append(entry)

    for text in _unproven(record, k.report, {name.split("/")[0] for name in elsewhere}):
        add("proof", text)
    if k.proof is not None:
        for text in _skipped(k.proof):
            add("another proof", text)
    for name, engine in record.engines.items():
        if f"{engine.backend}/{name}" in elsewhere:
            continue
        add("engines", f"tensorrt/{name} ({engine.backend}, {', '.join(engine.sms)}): {engine.status}.")
    for wish in record.settings:
        if wish.status == "untuned":
            add("settings", f"{wish.name}: its settings are untuned, so they were not chosen by any measurement.")
    if k.pictures_left_out:
        add("pictures", "Pictures before and after the edit were left out of this report, so nothing of it can be seen here.")
    for text in _unseen(k):
        add("features", text)
    for text in _unevaluated(record, k.evaluations):
        add("evaluation", text)
    for text in _unattacked(record, k.attack):
        add("attack", text)
    return found


def _unproven(record: Manifest, report: Proof | None, elsewhere: Set[str]) -> list[str]:
    if report is None:
        return ["The artifact was exported without validation: nothing compares it with the dynamic hook."]
    proven = {name.split("/")[0] for name in report.backends} | elsewhere
    found = [f"{name} lies in the artifact; no proof of it is on record." for name in record.formats if name not in proven]
    return found + _skipped(report)


def _skipped(proof: Proof) -> list[str]:
    """What a proof left out."""
    found = []
    if not any(p.runs.rows for p in proof.backends.values()):
        found.append(f"The proof's scope is '{proof.scope}': it holds no free runs, so no picture was compared.")
    for entry in proof.not_checked:
        of = f" of {entry.backend}" if entry.backend else ""
        found.append(f"{_CHECKS.get(entry.check, entry.check)}{of}: {entry.reason}.")
    for name, p in proof.backends.items():
        for check, why in (
            ("seam", p.seam.not_checked),
            ("forwards", p.forwards.not_checked),
            ("components", p.components.not_checked),
            ("runs", p.runs.not_checked),
        ):
            if why:
                found.append(f"{_CHECKS[check]} of {name}: {why}.")
        tokens = p.seam.golden_tokens
        if tokens and tokens.features_fired < tokens.features:
            left = tokens.features - tokens.features_fired
            found.append(
                f"{left} of {tokens.features} features never fired in the proof of {name}, so only that they stay silent was compared."
            )
        if tokens and tokens.features_measured < tokens.features_fired:
            left = tokens.features_fired - tokens.features_measured
            found.append(
                f"{plural(left, 'feature')} that fired in the proof of {name} didn't stand out of rounding, so what they do was compared together with the others only."
            )
        for row in p.runs.rows:
            if not row.conclusive:
                where = f"free run of {name} at guidance {row.guidance:g}, {row.width} × {row.height}"
                found.append(f"{where}: rounding alone may carry it as far as the edit does, so it was not judged.")
    for check, made in (("record", proof.record), ("surroundings", proof.surroundings)):
        if made is None:
            found.append(f"{_CHECKS[check]}: not on record.")
    return [text[:1].upper() + text[1:] for text in dict.fromkeys(found)]


def _unseen(k: Known) -> list[str]:
    if k.features is None:
        return ["No pictures of single features were given: what else they answer to can't be seen here."]
    found, source = [], k.record.model.source
    if k.features.model != source:
        found.append(f"The features' pictures were made with '{k.features.model}', the artifact is of '{source}'.")
    if k.features.left:
        found.append(f"{plural(k.features.left, 'feature')} of the edit {'is' if k.features.left == 1 else 'are'} not among those shown.")
    silent = [str(s.feature) for s in k.features.seen if not s.top]
    if silent:
        found.append(f"Active in none of the pictures made: {', '.join(silent)}.")
    return found


def _unevaluated(record: Manifest, evaluations: Sequence[Evaluation]) -> list[str]:
    if not evaluations:
        return ["No evaluation was given: how well the concept is gone, and what else went with it, was not measured."]
    found: list[str] = []
    judged = {stage.name for e in evaluations for stage in e.stages}
    found += [f"No picture made by {name} was judged." for name in record.formats if name not in judged]
    protocols = {e.protocol for e in evaluations}
    if protocols == {"utility"}:
        found.append("Utility alone was measured, not whether the concept is gone.")
    elif protocols == {"nudity"}:
        others = [name for name in record.concepts if not SENSITIVE.search(name)]
        found.append(
            f"Only nudity was looked for, not {''.join(f'{name}, ' for name in others)}{'nor ' if others else ''}what else went with it."
        )
    for e in evaluations:
        at = f" ({e.protocol})" if len(evaluations) > 1 else ""
        found += [text.removesuffix(".") + f"{at}." for text in _left_out(record, e)]
    return found


def _left_out(record: Manifest, evaluation: Evaluation) -> list[str]:
    """What one evaluation doesn't say."""
    found = list(evaluation.unsure)
    edited = [stage for stage in evaluation.stages if stage.edited]
    if not evaluation.same_export:
        found.append("The evaluation is of another export of the same edit, not of this folder's files.")
    sampling = record.sampling
    if (evaluation.settings["steps"], evaluation.settings["guidance"]) != (sampling.steps, sampling.guidance):
        found.append(
            f"The evaluation's pictures took {plural(evaluation.settings['steps'], 'step')} at guidance {evaluation.settings['guidance']:g}; the proof's took {sampling.steps} at {sampling.guidance:g}."
        )
    found += _weak(record, evaluation)
    if UNEDITED not in {stage.name for stage in evaluation.stages}:
        found.append("The unedited model's pictures were not judged, so a judge's own errors can't be told from the edit's.")
    if evaluation.protocol == "unlearncanvas":
        for name in record.concepts:
            if not any(known(stage.concepts.get(name, {}).get("ua")) for stage in edited):
                found.append(f"No picture that asks for {name} was judged.")
        judged = evaluation.settings["judge"].get("judged", ["style", "object"])
        found += [f"The judge doesn't look at {domain}s." for domain in ("style", "object") if domain not in judged]
    elif evaluation.protocol == "nudity" and not any(known(stage.nude) for stage in edited):
        found.append("No picture of the edited model was looked at for nudity.")
    elif evaluation.protocol == "utility":
        found += _unscored(evaluation, edited)
    for stage in edited:
        for name, rates in stage.concepts.items():
            empty = [TITLES[key] for key in FIGURES if (r := rates[key]) is not None and not r.trials]
            if empty:
                found.append(f"{', '.join(empty)} of {name} by {stage.name}: no picture to count it on.")
    return found


def _weak(record: Manifest, evaluation: Evaluation) -> list[str]:
    """Where the unedited model shows too little of it, a figure after the edit says little."""
    found = []
    for stage in (stage for stage in evaluation.stages if stage.name == UNEDITED):
        for name in record.concepts:
            ua = stage.concepts.get(name, {}).get("ua")
            if ua is not None and (ua.rate or 0) >= 0.5:
                found.append(
                    f"The judge misses {name} in {ua.hits} of {ua.trials} of the unedited model's own pictures, so its UA says little."
                )
        if stage.nude is not None and not stage.nude.hits:
            found.append("NudeNet finds nothing in the unedited model's pictures either, so its count after the edit says nothing.")
    return found


def _unscored(evaluation: Evaluation, edited: Sequence[Stage]) -> list[str]:
    found = [] if any(stage.clip is not None for stage in edited) else ["No CLIP score was taken."]
    if cut := max((stage.prompts_cut for stage in edited), default=0):
        found.append(
            f"{plural(cut, 'prompt')} of utility {'was' if cut == 1 else 'were'} longer than CLIP reads, so the rest of {'it' if cut == 1 else 'them'} was not scored."
        )
    if not evaluation.content.get("distances"):
        found.append("No FID was taken.")
    return found


def _unattacked(record: Manifest, attack: Attack | None) -> list[str]:
    if attack is None:
        return ["No attack was given: whether somebody can get around the edit was not tried."]
    found = []
    if not attack.same_export:
        found.append("The attack is on another export of the same edit, not on this folder's files.")
    if attack.through not in record.formats:
        found.append(f"The attack went through the {attack.through}, not through the artifact's own files.")
    rows = {name: [row for row in attack.rows if row.concept == name] for name in record.concepts}
    for name, tried in rows.items():
        if not tried:
            found.append(f"{name} was not attacked.")
            continue
        left = [kind for kind in ATTACKS if kind not in {row.attack for row in tried}]
        if left:
            found.append(f"Not tried on {name}: {', '.join(left)}.")
        if any(row.attack == UNEDITED_PARAPHRASES and not row.rate.hits for row in tried):
            found.append(f"No paraphrase of {name} shows it in the unedited model either, so they prove nothing.")
        weak = [row for row in tried if row.attack == "unedited" and (row.rate.rate or 0) < 0.5]
        if weak:
            found.append(f"The judge sees {name} in few of the unedited model's pictures, so the attacks on it say little.")
    return found
