"""The proof as a file for machines and a table for people."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from rich.table import Table

from .manifest import strict_json


def write(report: dict[str, Any], folder: Path) -> None:
    """Write `report.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(strict_json(report) + "\n")


def _percent(value: float) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:.3%}" if value >= 1e-4 or value == 0 else f"{100 * value:.1e}%"


def _ssim(value: float | None) -> str:
    return "SSIM – (no scikit-image)" if value is None else f"SSIM {value:.4f}"


_NOT_CHECKED = "[yellow]not checked[/]"


def table(report: dict[str, Any]) -> Table:
    """One row a check and backend."""
    found = Table(title=f"Proof against the dynamic hook ({report['precision']}, {report['scope']})", title_justify="left")
    for column in ("backend", "check", "result", "figures"):
        found.add_column(column, overflow="fold")

    def mark(passed: bool) -> str:
        return "[green]pass[/]" if passed else "[red]FAIL[/]"

    for name, parts in report["backends"].items():
        f, g, c = parts["forwards"], parts["gates"], parts["components"]
        found.add_row(
            name,
            "forwards",
            mark(f["passed"]),
            f"worst {_percent(f['worst'])} of the edit's effect (bar {f['bar']:.0%}); {f['forwards']} forwards, edit fired in {f['fired']}",
        )
        gates = (
            f"{g['equal']:.4%} of {g['decisions']} equal, {g['fired']} fired ({g['features_fired']} of {g['features']} features), flips {g['flips_within_rounding']} within rounding, {g['flips_beyond_rounding']} beyond"
            if g["observable"]
            else g.get("not_checked", "not observable")
        )
        found.add_row("", "gates", _NOT_CHECKED if g["passed"] is None else mark(g["passed"]), gates)
        found.add_row("", "components", mark(c["passed"]), ", ".join(f"{k} {v:.1e}" for k, v in c["relative"].items()))
        runs = parts["runs"]
        for row in runs["rows"]:
            text = f"guidance {row['guidance']:g}, {row['height']}x{row['width']}: latents {_percent(row['latents'])} off (effect {row['effect']:.1%}, drift {row['drift']:.1e}, the hook's {row['hook_drift']:.1e}), PSNR {row['psnr']:.1f} dB, {_ssim(row['ssim'])}; unedited {row['psnr_unedited']:.1f} dB"
            loop = "; loop of validation/lean" if runs.get("loop") == "lean" else ""
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
        f"must fail: caught in {control['forwards_caught']} of {control['forwards']} forwards, {control['runs_caught']} of {control['runs_judged']} free runs that could be judged",
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
