"""A report's first sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..attack.protocols.registry import ROWS
from ..attack.results import AttackRow
from ..evidence.picture_backends import HOOK, UNEDITED
from ..evidence.results import Evaluation
from ..evidence.sightings import BALANCED, Removal
from ..proof.results import Proof
from .figures import interval, percent, plural, share
from .proofs import by_size
from .sources import EDITED_ROW, UNEDITED_PARAPHRASES, UNEDITED_ROW, Attack, Known, is_plain

_FAILED, _PROVEN, _OPEN = "failed", "proven", "open"


def verdict(k: Known) -> dict[str, Any]:
    """State, word and what was measured, the worst of each kind: as `facts`, and as one sentence."""
    what = f"{k.names} {'steered in' if k.by_hand else 'removed from'} {k.record.model.source}"
    facts: list[tuple[str, str]] = []
    if k.report is None:
        state, word = _OPEN, "not proven"
        facts.append(("proof", "nothing was proven, since the artifact was exported without validation"))
    else:
        shown = k.record.quantised.verdict if k.record.quantised else "equal to the dynamic hook"
        state, word = (_PROVEN, f"proven {shown}{reach(k.report)}") if k.report.passed else (_FAILED, "proof failed")
        facts.append(("proof", _compared(k.report, "the proof")))
    if k.proof is not None:
        if not k.proof.passed:
            state, word = _FAILED, "proof failed" if state == _FAILED else "another proof failed"
        elif state == _OPEN:
            word = "not proven at export"
        facts.append(("another proof", _compared(k.proof, "it")))
    gone = [text for e in k.evaluations if (text := _told(e.content))]
    facts.append(("gone", "; ".join(gone) or "how well the concept is gone was not measured here"))
    facts += [("utility", text) for e in k.evaluations if (text := _utility(e.content))]
    if told := _attacked(k.attack):
        facts.append(("attacked", told))
    if told := _given(k.attack):
        facts.append(("other attacks", told))
    parts = [f"in another proof, {text}" if about == "another proof" else text for about, text in facts]
    return {
        "state": state, "word": word, "text": f"{what}: {'; '.join(parts)}.",
        "facts": [{"about": about, "text": f"{_begun(text, k)}."} for about, text in facts],
    }  # fmt: skip


def reach(proof: Proof) -> str:
    """How much of the network a proof is about, where that is not all."""
    return " up to its last edited block" if proof.scope == "seam" else ""


def _begun(text: str, k: Known) -> str:
    """With a capital, unless it begins with a backend's name."""
    names = [name for report in (k.report, k.proof) if report for name in report.backends]
    return text if text.startswith(tuple(names)) else text[:1].upper() + text[1:]


def _compared(proof: Proof, which: str) -> str:
    """What a proof found, by the backend that is farthest off."""
    text = "no forward of the UNet was compared"
    ran = {name: p for name, p in proof.backends.items() if p.forwards.forwards}
    if ran:
        farthest = max((p.forwards for p in ran.values()), key=lambda f: by_size(f.pooled))
        count = sum(p.forwards.forwards for p in ran.values())
        text = f"{', '.join(ran)} differ{'s' if len(ran) == 1 else ''} from the dynamic hook by at most {share(farthest.pooled)} of what the edit does{reach(proof)} (allowed {share(farthest.allowed)}, {count} forwards)"
    seams = [part for p in ran.values() for part in p.seam.parts]
    if seams:
        worst = max(seams, key=lambda part: by_size(part.worst))
        text += f"; the edit itself, on the same tokens, by at most {share(worst.worst)} of a token's change (bar {share(worst.bar)})"
    return text if proof.passed else f"{text}; {which} failed in {plural(len(proof.failures), 'point')}"


def _utility(evaluation: Evaluation) -> str:
    """The change of the CLIP score, by the backend that loses most."""
    changed = [(c.mean, c, name) for name, b in evaluation.edited.items() if (c := b.clip_change) is not None and c.mean is not None]
    if not changed:
        scored = [(s.mean, name) for name, b in evaluation.edited.items() if (s := b.clip_score) is not None and s.mean is not None]
        if not scored:
            return ""
        score, name = min(scored, key=lambda found: found[0])
        return f"the CLIP score is {score:.2f} on average ({name}; the unedited model's was not measured)"
    change, of, name = min(changed, key=lambda found: found[0])
    span = "" if of.low is None or of.high is None else f"95 % interval {of.low:+.2f} to {of.high:+.2f}; "
    return f"the CLIP score changes by {change:+.2f} on average ({span}{plural(of.count, 'picture')}; {name})"


def _told(evaluation: Evaluation) -> str:
    """What an evaluation says in a few words, by the backend and concept that fare worst."""
    edited, judge = evaluation.edited, evaluation.settings.judge.name
    rates = [(of, concept, name) for name, b in edited.items() for concept, of in b.concepts.items()]
    counted = [(of.ua, concept, name) for of, concept, name in rates if of.ua.trials]
    if counted:
        # At a tie the artifact's own pictures say more than the hook's.
        ua, name, backend = min(counted, key=lambda found: (found[0].rate or 0.0, found[2] == HOOK))
        text = f"the judge '{judge}' no longer sees {name} in {ua.hits} of {ua.trials} pictures that ask for it ({percent(ua.rate)}, 95 % interval {interval(ua)}; {backend}{_before(evaluation, name)})"
        others = [r for of, _, _ in rates for r in (of.ira, of.cra) if r.rate is not None]
        least = min(others, key=lambda r: r.rate or 0.0, default=None)
        if least is None:
            return text
        return f"{text}, with IRA and CRA {'of' if least.rate == 1 else 'no less than'} {percent(least.rate)} ({least.hits} of {least.trials}, 95 % interval {interval(least)})"
    sightings = [
        (of, concept, name, by) for name, b in edited.items() for by, concepts in b.sightings.items() for concept, of in concepts.items()
    ]
    if sightings:
        return _sighted(
            evaluation, *min(sightings, key=lambda found: (found[0].removed.rate or 0.0, found[2] == HOOK)), [of for of, *_ in sightings]
        )
    nude = [(rate, name) for name, b in edited.items() if (rate := b.nude) is not None and rate.trials]
    if nude:
        rate, backend = max(nude, key=lambda found: found[0].rate or 0.0)
        unedited = evaluation.backends.get(UNEDITED)
        before = f"; {unedited.nude.hits} of {unedited.nude.trials} before the edit" if unedited and unedited.nude else ""
        return f"'{judge}' finds nudity in {rate.hits} of {rate.trials} pictures ({percent(rate.rate)}, 95 % interval {interval(rate)}; {backend}; scores of {evaluation.threshold} or more{before})"
    return ""


def _sighted(evaluation: Evaluation, of: Removal, concept: str, backend: str, judge: str, everything: Sequence[Removal]) -> str:
    """The concept that is seen most, and what was kept least."""
    gone = of.removed
    unedited = evaluation.backends.get(UNEDITED)
    earlier = unedited.sightings[judge][concept].removed if unedited else None
    before = f"; {earlier.hits} of {earlier.trials} before the edit" if earlier else ""
    text = f"the judge '{judge}' no longer sees {concept} in {gone.hits} of {gone.trials} pictures that ask for it ({percent(gone.rate)}, 95 % interval {interval(gone)}; {backend}{before})"
    trusted = evaluation.trust.get(judge, {}).get(concept)
    if trusted is not None and (trusted.balanced is None or trusted.balanced < BALANCED):
        text += f", which says little: it tells only {percent(trusted.balanced)} of the unedited model's pictures apart"
    least = min((r.kept for r in everything if r.kept.trials), key=lambda r: r.rate or 0.0, default=None)
    if least is None:
        return text
    return f"{text}; of the other concepts that it saw elsewhere it still sees {'' if least.rate == 1 else 'no less than '}{percent(least.rate)} ({least.hits} of {least.trials}, 95 % interval {interval(least)})"


def _before(evaluation: Evaluation, concept: str) -> str:
    """What the same judge says of the unedited model: where it sees nothing there either, the figure after says nothing."""
    unedited = evaluation.backends.get(UNEDITED)
    if unedited is None or concept not in unedited.concepts:
        return ""
    ua = unedited.concepts[concept].ua
    return f"; {ua.hits} of {ua.trials} before the edit"


def _attacked(attack: Attack | None) -> str:
    """What came back most, under any attack or without one: whoever attacks has the plain prompts too."""
    known = attack.rows if attack else []
    rows = [(c, row) for c, row in known if row.attack == EDITED_ROW or not is_plain(row.attack) and _by_prompts(row)]
    rows = [(concept, row) for concept, row in rows if row.rate is not None]
    # Paraphrases that show nothing in the unedited model say nothing of the edit.
    empty = {concept for concept, row in known if row.attack == UNEDITED_PARAPHRASES and not row.successes}
    rows = [(concept, row) for concept, row in rows if row.attack != "paraphrases" or concept not in empty]
    tried = [(concept, row) for concept, row in rows if not is_plain(row.attack)]
    if not tried:
        return ""
    if not any(row.successes for _, row in rows):
        names = ", ".join(dict.fromkeys(row.attack for _, row in tried))
        concepts = " or ".join(dict.fromkeys(concept for concept, _ in tried))
        r = max((row.share for _, row in tried), key=lambda rate: rate.high or 0.0)
        weak = dict.fromkeys(concept for concept, row in known if row.attack == UNEDITED_ROW and (row.rate or 0) < 0.5)
        little = f", which says little of {' and '.join(weak)}: the judge sees it in few of the unedited model's pictures" if weak else ""
        return f"no attack tried ({names}) brought {concepts} back: at the fewest trials {r.hits} of {r.trials} ({percent(r.rate)}, 95 % interval {interval(r)}){little}"
    # At a tie the attack says more than the plain prompts.
    concept, worst = max(rows, key=lambda found: (found[1].rate or 0.0, not is_plain(found[1].attack)))
    if is_plain(worst.attack):
        return f"plain prompts alone, without an attack, brought {concept} back in {_figures(worst)}, more than any attack tried"
    return f"the strongest attack tried ({worst.attack}) brought {concept} back in {_figures(worst)}"


def _by_prompts(row: AttackRow) -> bool:
    return row.attack not in ROWS or ROWS[row.attack].given == "prompts"


def _figures(row: AttackRow) -> str:
    r = row.share
    return f"{r.hits} of {r.trials} trials ({percent(r.rate)}, 95 % interval {interval(r)})"


def _given(attack: Attack | None) -> str:
    """What came back most where the attacker had pictures of the concept to begin from, or changed weights; the two are no attack by prompts."""
    said = []
    for given, what in (("pictures", "began from a picture of it"), ("weights", "changed weights")):
        rows = [
            (c, row)
            for c, row in (attack.rows if attack else [])
            if not is_plain(row.attack) and row.attack in ROWS and ROWS[row.attack].given == given
        ]
        if rows:
            concept, worst = max(rows, key=lambda found: found[1].rate or 0.0)
            said.append(f"who {what} ({worst.attack}) had {concept} in {_figures(worst)}")
    return "; ".join(said)
