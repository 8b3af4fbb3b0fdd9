"""The proof as a file for machines and a table for people."""

from __future__ import annotations

import math
from pathlib import Path

from rich.table import Table

from ...editor.common.typed import strict_json
from .forwards import Forwards
from .results import Proof, Seam


def write(proof: Proof, folder: Path) -> None:
    """Write `report.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(strict_json(proof) + "\n")


def _percent(value: float) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:.3%}" if value >= 1e-4 or value == 0 else f"{100 * value:.1e}%"


_NOT_CHECKED = "[yellow]not checked[/]"


def seam_text(seam: Seam) -> str:
    """What was compared at the seam, in one line."""
    if not seam.parts:
        return "the edit is in the weights alone" if seam.alone else seam.not_checked or "not observable"
    lines = []
    for p in seam.parts:
        turned = f"{p.turned} of {p.close} close ones turned, {p.wrong} wrong"
        tied = f"; {p.tied} tokens with ties" if p.tied else ""
        tied += f"; at {p.rounding} tokens rounding of what is read may be more than the bar, and is allowed for" if p.rounding else ""
        of = "golden tokens" if p is seam.golden_tokens else "own tokens"
        lines.append(
            f"{of}: worst {_percent(p.worst)} of a token's change (bar {_percent(p.bar)}), {p.share:.2%} of the effect kept; {p.fired} of {p.decisions} decisions fired ({p.features_fired} of {p.features} features; {p.features_measured} measured alone, at most {p.furthest:.1%} off), {turned}{tied}"
        )
    return "\n".join(lines)


def forwards_text(f: Forwards) -> str:
    """What whole forwards came to, in one line."""
    if not f.forwards:
        return "none ran"
    calm = f"{f.held} of {f.forwards} forwards" + ("" if f.held == f.forwards else " (no decision turned in them)")
    other = "" if math.isnan(f.worst_turned) else f"; where some turned, worst {_percent(f.worst_turned)}"
    return f"{_percent(f.pooled)} of the edit's effect over {calm} (allowed {_percent(f.allowed)}, drift {_percent(f.drift)}); {f.share:.1%} of it kept; worst {_percent(f.worst)}{other}; fired in {f.fired}"


def table(proof: Proof) -> Table:
    """One row a check and backend."""
    found = Table(
        title=f"Proof against the dynamic hook ({', '.join(filter(None, (proof.precision, proof.scheme, proof.scope)))})",
        title_justify="left",
    )
    for column in ("backend", "check", "result", "figures"):
        found.add_column(column, overflow="fold")

    def mark(passed: bool | None) -> str:
        return _NOT_CHECKED if passed is None else "[green]pass[/]" if passed else "[red]FAIL[/]"

    for name, parts in proof.backends.items():
        c, runs = parts.components, parts.runs
        found.add_row(name, "seam", mark(parts.seam.passed), seam_text(parts.seam))
        found.add_row(
            "", "forwards to the edit" if proof.scope == "seam" else "forwards", mark(parts.forwards.passed), forwards_text(parts.forwards)
        )
        found.add_row("", "components", mark(c.passed), ", ".join(f"{k} {v:.1e}" for k, v in c.relative.items()))
        for r in runs.rows:
            text = f"guidance {r.guidance:g}, {r.height}x{r.width}: latents {_percent(r.latents)} off (effect {r.effect:.1%}, drift {r.drift:.1e}, the hook's {r.hook_drift:.1e}), PSNR {r.psnr:.1f} dB; unedited {r.psnr_unedited:.1f} dB"
            loop = "; loop of validation/backends/lean" if runs.loop == "lean" else ""
            found.add_row("", "free run", mark(runs.passed) if r.conclusive else "[yellow]not judged[/]", text + loop)
        if runs.not_checked:
            found.add_row("", "free run", _NOT_CHECKED, runs.not_checked)
        elif not runs.rows:
            found.add_row("", "free run", "not run", f"scope '{proof.scope}'")
    control = proof.control
    found.add_row(
        "unedited",
        "control",
        mark(control.passed),
        f"must fail: caught in {control.seams_caught} of {control.seams} comparisons at the seam, {control.forwards_caught} of {control.forwards} forwards, {control.runs_caught} of {control.runs_judged} free runs that could be judged",
    )
    if control.residual_alone > 0:
        found.add_row(
            "hook",
            "residual",
            "note",
            f"without any suppression this residual mode alone moves the network's output by up to {_percent(control.residual_alone)}",
        )
    if proof.scheme:
        text = "; ".join(map(str, proof.removal)) if proof.removal is not None else "removal not judged"
        passed = None if proof.removal is None else not any(one.fault for one in proof.removal)
        found.add_row("onnx", "removal", mark(passed), text)
    if proof.surroundings:
        figures = ", ".join(f"{k} {v:.1e}" for k, v in proof.surroundings.relative.items())
        text = f"tokenizer and scheduler against the original's: {figures}"
        found.add_row("folder", "surroundings", mark(proof.surroundings.passed), text)
    if proof.record:
        text = "every weight, table and config against the original's and the edit's; shipped class, graphs' inputs and outputs, manifest"
        found.add_row("folder", "record", mark(proof.record.passed), text)
    if proof.engines:
        found.add_row("folder", "engines", mark(proof.engines.passed), "what is on record of them against files and graphs")
    for entry in proof.not_checked:
        if not entry.backend:
            found.add_row("folder", entry.check, _NOT_CHECKED, entry.reason)
    against = proof.against_topk
    if against.get("differ"):
        text = f"{against['differ']} of {against['decisions']} decisions differ from torch.topk's own pick (fired {against['fired']}, there {against['fired_topk']}): "
        found.add_row("hook", "top-k", "note", text + "ties at place k, or the threshold gate")
    return found
