"""Writes `[[concepts]]` tables: read by `saeuron-export --settings` and, being whole, by `--preset-file`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...editor.common.errors import SaeuronError
from ...editor.common.names import BY_DIRECTION, NOISIEST, file_of, interventions
from ...editor.common.writing import whole_file
from ...editor.edit.how import told
from ...editor.features.concepts import KEYS, Concept, presets, unread

if TYPE_CHECKING:
    from ...validation.tuning.candidates import Candidate
    from .prepare import Sources
    from .settings import Plan, Wish


def write_tables(
    path: Path, tables: Iterable[Mapping[str, Any]], comment: str, defaults: Mapping[str, Any] | None = None, contrast: Iterable[Mapping[str, Any]] = ()
) -> None:  # fmt: skip
    """Write one table a concept, whole or not at all.

    Args:
        path: the TOML file.
        tables: keys as in a preset file; empty values are left out.
        comment: lines at the top.
        defaults: a preset file's `[defaults]`; a settings file has none.
        contrast: a preset file's contrast sets.
    """
    lines = [*(f"# {line}" for line in comment.splitlines())]
    sections = [("[defaults]", defaults)] if defaults else []
    for heading, table in [*sections, *(("[[concepts]]", t) for t in tables), *(("[[contrast]]", t) for t in contrast)]:
        lines += ["", heading]
        for key, value in table.items():
            if value in ("", (), [], None):
                continue
            lines.append(f"{key} = {_toml(value)}")
    with whole_file(path) as made:
        made.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_preset(path: Path, concept: Concept) -> None:
    """Write a concept that was made from words as a preset file, which gives the same concept; whole or not at all."""
    prompts = {"prompts": concept.prompts, "test_prompts": concept.test_prompts}
    table = {key: getattr(concept, key) for key in KEYS if key not in prompts and (key != "start" or concept.start < NOISIEST)}
    for key in unread(table, interventions(concept.intervention)):
        del table[key]
    contrast = [
        {"name": n, "domain": concept.domain, "prompts": concept.compared[n], "test_prompts": concept.tested[n]}
        for n in concept.contrast_sets
    ]
    comment = f"By saeuron concepts new, from the words {json.dumps(concept.name, ensure_ascii=False)}; docs/presets.md explains the keys.\nRead by: saeuron-export --preset-file FILE --concepts NAME"
    write_tables(path, [{**table, **prompts}], comment, contrast=contrast)


def contrast_tables(plan: Plan) -> list[dict[str, Any]]:
    """The contrast sets of the plan's concepts that no shipped preset has, so that a settings file says all of them."""
    shipped = presets()
    found = {
        (c.domain, name): {"name": name, "domain": c.domain, "prompts": prompts, "test_prompts": c.tested.get(name, ())}
        for c in plan.concepts.values() if c.name not in shipped for name, prompts in c.compared.items() if name != c.name
    }  # fmt: skip
    return list(found.values())


def settings_table(plan: Plan, concept: str, wishes: Sequence[Wish], status: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The table of a concept under a setting.

    Args:
        plan: whose concept it is.
        concept: its name.
        wishes: of the concept, one a hookpoint, with the files of their activations; none where weights alone are edited.
        status: `tuned` or `untuned`.
        values: rule, multiplier, intervention and what it becomes, under their keys.

    Raises:
        SaeuronError: as `one_for_all`.
    """
    known = plan.concepts.get(concept)
    done = interventions(values.get("intervention", "multiply"))
    more = ("kind", "collect_steps", "collect_guidance", "test_prompts")
    if wishes and wishes[0].intervention in BY_DIRECTION:
        where = {
            "hookpoint": ",".join(w.hookpoint for w in wishes),
            **{key: getattr(known, key) for key in ("sae", "activations", "mean_tokens")},
            "directions": known.directions if known and wishes[0].rows else "",
        }
    elif wishes:
        where = one_for_all(concept, {w.hookpoint: w.activations for w in wishes}, plan.saes, all(w.collecting is not None for w in wishes))
    else:  # a whole preset names them
        where = {key: getattr(known, key) for key in ("sae", "hookpoint", "activations")}
    table = {
        "name": concept, "model": plan.model, "domain": known.domain if known else wishes[0].domain, **where, **values, "residual": plan.residual,
        "status": status, "steps": plan.steps, "guidance": plan.guidance, "prompts": plan.prompts.get(concept, ()),
        **({key: getattr(known, key) for key in more} if known else {}),
    }  # fmt: skip
    idle = unread(table, done)  # e.g. what a concept would become by another candidate
    return {key: value for key, value in table.items() if key not in idle}


def one_for_all(concept: str, files: Mapping[str, str], saes: Mapping[str, str], collected: bool = False) -> dict[str, str]:
    """The `hookpoint`, `sae` and `activations` of a concept that is removed at several hookpoints with one rule.

    Args:
        concept: its name, for errors.
        files: hookpoint → activations file.
        saes: hookpoint → SAE's source.
        collected: whether the files lie in the cache, where prompts alone find them again; where no one name fits all, none is given.

    Raises:
        SaeuronError: the files differ in more than the hookpoint's name, or the SAEs come from several sources; a table names one.
    """
    patterns = {path.replace(file_of(h), "{hookpoint}") if len(files) > 1 else path for h, path in files.items()}
    if len(patterns) > 1 and collected:
        patterns = {""}
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


def candidate_table(sources: Sources, chosen: Candidate, status: str, becomes: str = "") -> dict[str, Any]:
    """The table of a setting that was tried and measured; `status` and `becomes` as in a preset.

    Raises:
        SaeuronError: as `one_for_all`.
    """
    by_place = {(w.concept, w.hookpoint): w for w in sources.wishes}
    wishes = [by_place[chosen.concept, h] for h in chosen.hookpoints]
    known = sources.plan.concepts[chosen.concept]
    by_sae: dict[str, Any] = {"select": chosen.select or known.select, "multiplier": chosen.multiplier if wishes else known.multiplier}
    by_sae |= {key: getattr(chosen.how, key) for key in told(chosen.at_blocks)}
    if chosen.start < NOISIEST:
        by_sae["start"] = chosen.start
    return settings_table(sources.plan, chosen.concept, wishes, status, {**by_sae, "intervention": chosen.intervention, "becomes": becomes})


def _toml(value: Any) -> str:
    """JSON's strings, numbers and lists are TOML's; of several list items each gets a line, and a table stands in one."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(held)}" for key, held in value.items()) + " }"
    if isinstance(value, list | tuple) and len(value) > 1:
        return "[\n" + "".join(f"    {_toml(v)},\n" for v in value) + "]"
    return json.dumps(value, ensure_ascii=False)
