"""What was not checked: derived from the files, never written by hand."""

from __future__ import annotations

from collections.abc import Sequence, Set

from ..artifact.manifest import Manifest
from ..attack.protocols.registry import PROTOCOLS, ROWS
from ..attack.settings import ATTACKS
from ..evidence.picture_backends import UNEDITED
from ..evidence.results import Evaluation
from ..evidence.sightings import BALANCED
from ..evidence.unlearning import FIGURES
from ..proof.results import Proof
from .figures import SENSITIVE, TITLES, known, percent, plural
from .sources import UNEDITED_PARAPHRASES, Attack, Evaluated, Known

_CHECKS = {
    "forwards": "forwards of the network", "seam": "the edit at the seam", "components": "the other components", "runs": "free runs",
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
            add("settings", f"{wish.name}: its settings are untuned: no measurement that can be believed shows that they remove it.")
    if k.tuning is None and any(wish.status == "tuned" for wish in record.settings):
        add("settings", "How the settings were tuned was not given: by which judge, and on what.")
    if k.pictures_left_out:
        add("pictures", "Pictures before and after the edit were left out of this report, so nothing of it can be seen here.")
    for text in _unseen(k):
        add("features", text)
    for text in _unevaluated(record, k.evaluations):
        add("evaluation", text)
    for text in _unattacked(record, k.attack, k.evaluations):
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
    silent = [str(s.of.feature) for s in k.features.seen if not s.top]
    if silent:
        found.append(f"Active in none of the pictures made: {', '.join(silent)}.")
    return found


def _unevaluated(record: Manifest, evaluations: Sequence[Evaluated]) -> list[str]:
    if not evaluations:
        return ["No evaluation was given: how well the concept is gone, and what else went with it, was not measured."]
    found: list[str] = []
    judged = {name for e in evaluations for name in e.content.backends}
    found += [f"No picture made by {name} was judged." for name in record.formats if name not in judged]
    protocols = {e.content.settings.protocol for e in evaluations}
    if protocols == {"utility"}:
        found.append("Utility alone was measured, not whether the concept is gone.")
    elif protocols == {"nudity"}:
        others = [name for name in record.concepts if not SENSITIVE.search(name)]
        found.append(
            f"Only nudity was looked for, not {''.join(f'{name}, ' for name in others)}{'nor ' if others else ''}what else went with it."
        )
    for e in evaluations:
        at = f" ({e.content.settings.protocol})" if len(evaluations) > 1 else ""
        found += [text.removesuffix(".") + f"{at}." for text in _left_out(record, e)]
    return found


def _left_out(record: Manifest, evaluation: Evaluated) -> list[str]:
    """What one evaluation doesn't say."""
    found = list(evaluation.unsure)
    content, settings = evaluation.content, evaluation.content.settings
    edited = content.edited
    if not evaluation.same_export:
        found.append("The evaluation is of another export of the same edit, not of this folder's files.")
    sampling = record.sampling
    if (settings.steps, settings.guidance) != (sampling.steps, sampling.guidance):
        found.append(
            f"The evaluation's pictures took {plural(settings.steps, 'step')} at guidance {settings.guidance:g}; the proof's took {sampling.steps} at {sampling.guidance:g}."
        )
    found += _weak(record, content)
    if UNEDITED not in content.backends:
        found.append("The unedited model's pictures were not judged, so a judge's own errors can't be told from the edit's.")
    if settings.protocol == "unlearncanvas":
        for concept in record.concepts:
            if not any(known(b.concepts[concept].ua) for b in edited.values() if concept in b.concepts):
                found.append(f"No picture that asks for {concept} was judged.")
        judged = settings.judge.judged
        found += [f"The judge doesn't look at {domain}s." for domain in ("style", "object") if judged is not None and domain not in judged]
    elif settings.protocol == "concepts":
        found += _by_words(content)
    elif settings.protocol == "nudity" and not any(known(b.nude) for b in edited.values()):
        found.append("No picture of the edited model was looked at for nudity.")
    elif settings.protocol == "utility":
        found += _unscored(content)
    for name, b in edited.items():
        for concept, rates in b.concepts.items():
            empty = [TITLES[key] for key in FIGURES if (r := getattr(rates, key)) is not None and not r.trials]
            if empty:
                found.append(f"{', '.join(empty)} of {concept} by {name}: no picture to count it on.")
    return found


def _by_words(content: Evaluation) -> list[str]:
    """Where judges can't be believed, and what they can't say."""
    found = []
    for judge, trusted in content.trust.items():
        for concept, t in trusted.items():
            if t.balanced is None or t.balanced < BALANCED:
                found.append(
                    f"{judge} tells only {percent(t.balanced)} of the unedited model's pictures of {concept} from the others (believed from {percent(BALANCED)}), so its figures say little."
                )
    for judge, sightings in ((j, s) for b in content.edited.values() for j, s in b.sightings.items()):
        for concept, seen in sightings.items():
            if UNEDITED in content.backends and not seen.kept.trials:
                found.append(
                    f"{judge} sees no other concept on the pictures compared with {concept}, so what was kept beside it was not measured."
                )
    return list(dict.fromkeys(found))


def _weak(record: Manifest, evaluation: Evaluation) -> list[str]:
    """Where the unedited model shows too little of it, a figure after the edit says little."""
    unedited = evaluation.backends.get(UNEDITED)
    if unedited is None:
        return []
    rates = [(name, unedited.concepts[name].ua) for name in record.concepts if name in unedited.concepts]
    found = [
        f"The judge misses {name} in {ua.hits} of {ua.trials} of the unedited model's own pictures, so its UA says little."
        for name, ua in rates
        if (ua.rate or 0) >= 0.5
    ]
    if unedited.nude is not None and not unedited.nude.hits:
        found.append("NudeNet finds nothing in the unedited model's pictures either, so its count after the edit says nothing.")
    return found


def _unscored(evaluation: Evaluation) -> list[str]:
    edited = evaluation.edited.values()
    found = [] if any(b.clip_score is not None for b in edited) else ["No CLIP score was taken."]
    if cut := max((b.prompts_cut or 0 for b in edited), default=0):
        found.append(
            f"{plural(cut, 'prompt')} of utility {'was' if cut == 1 else 'were'} longer than CLIP reads, so the rest of {'it' if cut == 1 else 'them'} was not scored."
        )
    if not evaluation.distances:
        found.append("No FID was taken.")
    return found


def _unattacked(record: Manifest, attack: Attack | None, evaluations: Sequence[Evaluated]) -> list[str]:
    if attack is None:
        return ["No attack was given: whether somebody can get around the edit was not tried."]
    found = []
    if not attack.same_export:
        found.append("The attack is on another export of the same edit, not on this folder's files.")
    if attack.content.through not in record.formats:
        which = ", which the quantised graph does not equal" if record.quantised else ""
        found.append(f"The attack went through the {attack.content.through}, not through the artifact's own files{which}.")
    # The first hash is of the weights; words follow, of the concepts that were asked for.
    judge, weights = attack.content.judge, {j.sha256.split()[0] for e in evaluations for j in e.content.settings.judges if j.sha256}
    if not {*judge.sha256.split()[:1]} & weights:
        found.append(
            f"No evaluation given is by the attack's judge, {judge.name}, so whether it tells pictures of the concept from others is not said here."
        )
    rows = {name: [row for concept, row in attack.rows if concept == name] for name in record.concepts}
    for name, tried in rows.items():
        if not tried:
            found.append(f"{name} was not attacked.")
            continue
        left = [kind for kind in ATTACKS if kind not in {row.attack for row in tried}]
        if left:
            found.append(f"Not tried on {name}: {', '.join(left)}.")
        run = {ROWS[row.attack].name for row in tried if row.attack in ROWS}
        if unpublished := [kind for kind in PROTOCOLS if kind not in run]:
            found.append(f"Published attacks that were not run on {name}: {', '.join(unpublished)}.")
        if any(row.attack == UNEDITED_PARAPHRASES and not row.successes for row in tried):
            found.append(f"No paraphrase of {name} shows it in the unedited model either, so they prove nothing.")
        weak = [row for row in tried if row.attack == "unedited" and (row.rate or 0) < 0.5]
        if weak:
            found.append(f"The judge sees {name} in few of the unedited model's pictures, so the attacks on it say little.")
    return found
