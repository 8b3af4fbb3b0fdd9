"""Writes `[[concepts]]` tables: read by `saeuron-export --settings` and, being whole, by `--preset-file`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...editor.common.errors import SaeuronError
from ...editor.common.writing import whole_file

if TYPE_CHECKING:
    from ...validation.tuning.candidates import Candidate
    from .prepare import Sources


def write_tables(path: Path, tables: Iterable[Mapping[str, Any]], comment: str, defaults: Mapping[str, Any] | None = None) -> None:
    """Write one table a concept, whole or not at all.

    Args:
        path: the TOML file.
        tables: keys as in a preset file; empty values are left out.
        comment: lines at the top.
        defaults: a preset file's `[defaults]`; a settings file has none.
    """
    lines = [*(f"# {line}" for line in comment.splitlines())]
    sections = [("[defaults]", defaults)] if defaults else []
    for heading, table in [*sections, *(("[[concepts]]", t) for t in tables)]:
        lines += ["", heading]
        for key, value in table.items():
            if value in ("", (), [], None):
                continue
            lines.append(f"{key} = {_toml(value)}")
    with whole_file(path) as made:
        made.write_text("\n".join(lines) + "\n", encoding="utf-8")


def one_for_all(concept: str, files: Mapping[str, str], saes: Mapping[str, str]) -> dict[str, str]:
    """The `hookpoint`, `sae` and `activations` of a concept that is removed at several hookpoints with one rule.

    Args:
        concept: its name, for errors.
        files: hookpoint → activations file.
        saes: hookpoint → SAE's source.

    Raises:
        SaeuronError: the files differ in more than the hookpoint's name, or the SAEs come from several sources; a table names one.
    """
    patterns = {path.replace(h, "{hookpoint}") if len(files) > 1 else path for h, path in files.items()}
    if len(patterns) > 1:
        raise SaeuronError(
            f"concept '{concept}': the activations of its hookpoints differ in more than the hookpoint's name ({', '.join(files.values())}); name the files alike"
        )
    sources = {saes[h] for h in files}
    if len(sources) > 1:
        raise SaeuronError(
            f"concept '{concept}': an SAE of its own for each hookpoint can't be written into one settings table; put them into one folder, by hookpoint"
        )
    return {"sae": sources.pop(), "hookpoint": ",".join(files), "activations": patterns.pop()}


def candidate_table(sources: Sources, chosen: Candidate) -> dict[str, Any]:
    """The table of a setting that was tried and measured.

    Raises:
        SaeuronError: as `one_for_all`.
    """
    plan = sources.plan
    by_place = {(w.concept, w.hookpoint): w for w in sources.wishes}
    files = {h: by_place[chosen.concept, h].activations for h in chosen.hookpoints}
    known = plan.concepts.get(chosen.concept)
    return {
        "name": chosen.concept, "model": plan.model, "domain": by_place[chosen.concept, chosen.hookpoints[0]].domain,
        **one_for_all(chosen.concept, files, plan.saes), "select": chosen.select, "multiplier": chosen.multiplier, "residual": plan.residual,
        "status": "tuned", "steps": plan.steps, "guidance": plan.guidance, "prompts": plan.prompts.get(chosen.concept, ()),
        "kind": known.kind if known else "", "test_prompts": known.test_prompts if known else (),
    }  # fmt: skip


def _toml(value: Any) -> str:
    """JSON's strings, numbers and lists are TOML's; of several list items each gets a line."""
    if isinstance(value, list | tuple) and len(value) > 1:
        return "[\n" + "".join(f"    {_toml(v)},\n" for v in value) + "]"
    return json.dumps(value, ensure_ascii=False)
