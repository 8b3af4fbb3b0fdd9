"""The proof as a file for machines and a table for people."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from rich.table import Table

from ..artifact.manifest import strict_json


def write(report: dict[str, Any], folder: Path) -> None:
    """Write `report.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(strict_json(report) + "\n")


def _percent(value: float) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:.3%}" if value >= 1e-4 or value == 0 else f"{100 * value:.1e}%"


_NOT_CHECKED = "[yellow]not checked[/]"


def seam_text(seam: dict[str, Any]) -> str:
    """What was compared at the seam, in one line."""
    parts = [(name, seam[name]) for name in ("golden_tokens", "own_tokens") if seam[name]]
    if not parts:
        return seam.get("not_checked", "not observable")
    lines = []
    for name, p in parts:
        turned = f"{p['turned']} of {p['close']} close ones turned, {p['wrong']} wrong"
        tied = f"; {p['tied']} tokens with ties" if p["tied"] else ""
        of = "golden tokens" if name == "golden_tokens" else "own tokens"
        lines.append(
            f"{of}: worst {_percent(p['worst'])} of a token's change (bar {_percent(p['bar'])}), {p['share']:.2%} of the effect kept; {p['fired']} of {p['decisions']} decisions fired ({p['features_fired']} of {p['features']} features; {p['features_measured']} measured alone, at most {p['furthest']:.1%} off), {turned}{tied}"
        )
    return "\n".join(lines)


def forwards_text(f: dict[str, Any]) -> str:
    """What whole forwards came to, in one line."""
    if not f["forwards"]:
        return "none ran"
    calm = f"{f['held']} of {f['forwards']} forwards" + ("" if f["held"] == f["forwards"] else " (no decision turned in them)")
    other = "" if math.isnan(f["worst_turned"]) else f"; where some turned, worst {_percent(f['worst_turned'])}"
    return f"{_percent(f['pooled'])} of the edit's effect over {calm} (allowed {_percent(f['allowed'])}, drift {_percent(f['drift'])}); {f['share']:.1%} of it kept; worst {_percent(f['worst'])}{other}; fired in {f['fired']}"


def table(report: dict[str, Any]) -> Table:
    """One row a check and backend."""
    found = Table(title=f"Proof against the dynamic hook ({report['precision']}, {report['scope']})", title_justify="left")
    for column in ("backend", "check", "result", "figures"):
        found.add_column(column, overflow="fold")

    def mark(passed: bool) -> str:
        return "[green]pass[/]" if passed else "[red]FAIL[/]"

    for name, parts in report["backends"].items():
        f, seam, c = parts["forwards"], parts["seam"], parts["components"]
        found.add_row(name, "seam", _NOT_CHECKED if seam["passed"] is None else mark(seam["passed"]), seam_text(seam))
        found.add_row("", "forwards", mark(f["passed"]), forwards_text(f))
        found.add_row("", "components", mark(c["passed"]), ", ".join(f"{k} {v:.1e}" for k, v in c["relative"].items()))
        runs = parts["runs"]
        for row in runs["rows"]:
            text = f"guidance {row['guidance']:g}, {row['height']}x{row['width']}: latents {_percent(row['latents'])} off (effect {row['effect']:.1%}, drift {row['drift']:.1e}, the hook's {row['hook_drift']:.1e}), PSNR {row['psnr']:.1f} dB; unedited {row['psnr_unedited']:.1f} dB"
            loop = "; loop of validation/backends/lean" if runs.get("loop") == "lean" else ""
            found.add_row("", "free run", mark(runs["passed"]) if row["conclusive"] else "[yellow]not judged[/]", text + loop)
        if "not_checked" in runs:
            found.add_row("", "free run", _NOT_CHECKED, runs["not_checked"])
        elif not runs["rows"]:
            found.add_row("", "free run", "not run", "scope 'short'")
    control = report["control"]
    found.add_row(
        "unedited",
        "control",
        mark(control["passed"]),
        f"must fail: caught in {control['seams_caught']} of {control['seams']} comparisons at the seam, {control['forwards_caught']} of {control['forwards']} forwards, {control['runs_caught']} of {control['runs_judged']} free runs that could be judged",
    )
    if control["residual_alone"] > 0:
        found.add_row(
            "hook",
            "residual",
            "note",
            f"without any suppression this residual mode alone moves the UNet's output by up to {_percent(control['residual_alone'])}",
        )
    around = report.get("surroundings")
    if around:
        figures = ", ".join(f"{k} {v:.1e}" for k, v in around["relative"].items())
        found.add_row("folder", "surroundings", mark(around["passed"]), f"tokenizer and scheduler against the original's: {figures}")
    if "record" in report:
        text = "every weight, table and config against the original's and the edit's; shipped class, graphs' inputs and outputs, manifest"
        found.add_row("folder", "record", mark(report["record"]["passed"]), text)
    if "engines" in report:
        found.add_row("folder", "engines", mark(report["engines"]["passed"]), "what is on record of them against files and graphs")
    for entry in report.get("not_checked", ()):
        if "backend" not in entry:
            found.add_row("folder", entry["check"], _NOT_CHECKED, entry["reason"])
    against = report.get("against_topk") or {}
    if against.get("differ"):
        text = f"{against['differ']} of {against['decisions']} decisions differ from torch.topk's own pick (fired {against['fired']}, there {against['fired_topk']}): "
        found.add_row("hook", "top-k", "note", text + "ties at place k, or the threshold gate")
    return found
