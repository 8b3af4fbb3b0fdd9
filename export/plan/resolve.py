"""Completes the settings by presets and a settings file, and returns the resolved `Plan`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...editor.common.errors import SaeuronError
from ...editor.common.files import check_hub_id, read_toml
from ...editor.common.names import AT_BLOCKS, BY_DIRECTION, BY_SAE, DIRECTIONS, READ_BY, at_hookpoint, file_of, interventions, normalise
from ...editor.common.suggest import unknown
from ...editor.demo import MODELS, path_of
from ...editor.edit.edit_header import EditHeader, read_edit_header
from ...editor.edit.how import TOLD, How, check_blocks, check_gain_by_token
from ...editor.edit.provenance import SamplingUsed
from ...editor.features.concepts import KEYS, Concept, ContrastSet, check_read, check_type, contrast_set, presets
from ...editor.features.named import ConceptWords, known_concepts
from ...editor.features.rule import Rule
from ...validation.tuning.settings import TuneSettings
from .becomes import probed, together, weight_wish
from .checks import check_choices, check_used, said_in
from .concepts import BEGINS, DEFAULT_MULTIPLIER, DEFAULT_SELECT, STRONGEST, becomes_of, scale_of, with_overrides
from .rows import rows_files
from .settings import Collecting, Plan, Settings, WeightWish, Wish

PAIRED = {*READ_BY["becomes"]}
"""interventions that need, for each of a concept's prompts, one about something else"""


def resolve(settings: Settings, apart: bool = False, anew: bool = False) -> Plan:
    """Complete the settings.

    Args:
        settings: as the user gave them.
        apart: whether each concept gets an edit of its own.
        anew: whether rows of `probe` are made anew where a file holds them, as hardening does.

    Raises:
        SaeuronError: an unknown name or value, a missing or contradictory setting.
    """
    settings = _completed(settings)
    if settings.edit is not None:
        return _resolve_edit(settings, settings.edit)
    given = settings
    settings, overrides, sets = _with_file(settings)
    check_choices(settings)
    known = known_concepts(settings.concepts, ConceptWords(settings.kind, settings.instead), settings.model, settings.preset_files)
    known = {n: c.made_for(settings.intervention or overrides.get(n, {}).get("intervention")) for n, c in known.items()}
    explicit = [at_hookpoint(a) for a in settings.activations]
    wishes: list[Wish] = []
    weights: list[WeightWish] = []
    chosen: dict[str, Concept] = {}
    names = tuple(dict.fromkeys(settings.concepts))
    becomes = becomes_of(settings.becomes, names)
    used: list[str] = []
    for name in names:
        preset = with_overrides(name, known, overrides.get(name, {}), bool(explicit), sets)
        parts = interventions(settings.intervention if settings.intervention is not None else preset.intervention if preset else "multiply")
        # A file that says how well its settings did (of tuning) is what the command's options are compared with.
        measured = preset if "status" in overrides.get(name, {}) else known.get(name)
        own = preset
        used += parts
        elsewhere = settings.hookpoint is not None or {"hookpoint", "directions"} & set(overrides.get(name, {})) == {"hookpoint"}
        if preset:
            # A key may be for what the file says or for what the command says instead.
            either = tuple(dict.fromkeys((*parts, *interventions(preset.intervention))))
            check_read(overrides.get(name, {}), either, f"settings file '{settings.settings}', concept '{name}'")
            preset = replace(preset, directions="") if anew else preset
            said = becomes.get(name, preset.becomes) if PAIRED & set(parts) else ""
            preset = replace(preset, intervention="+".join(parts), becomes=said)
            preset = replace(preset, **{k: v for k, v in _said(settings, preset).items() if set(READ_BY[k]) & set(parts)})
            chosen[name] = preset
        if name in becomes and not PAIRED & set(parts):
            raise SaeuronError(
                f"--becomes is for interventions weights and project, and '{name}' is removed by {'+'.join(parts)}; add --intervention weights or project"
            )
        of_sae = _wishes(name, preset, measured, settings, explicit, next((p for p in parts if p in AT_BLOCKS), ""), own, elsewhere)
        wishes += [wish for wish in of_sae if wish.intervention]
        if "weights" in parts:
            if preset is None:
                raise SaeuronError(f"concept '{name}': intervention weights needs its prompts: give it a preset (--preset-file), or --kind")
            weights.append(weight_wish(preset, of_sae[0].status))
    check_used(said_in(given), dict.fromkeys(used))
    apart = apart or settings.tune
    if not apart:
        together(weights)
    model = settings.model or _common("model", chosen, "base models", "export them separately")
    if model is None:
        raise SaeuronError("no base model known (some models have no Hub id): give --model DIR|HUB_ID|demo")
    by_sae = {name: concept for name, concept in chosen.items() if set(BY_SAE) & set(interventions(concept.intervention))}
    residual = settings.residual or _common("residual", by_sae, "residual modes", "give --residual") or "keep"
    if residual != "keep" and settings.gate != "exact":
        raise SaeuronError(f"--gate {settings.gate} works with --residual keep only, not '{residual}'")
    steps = settings.steps or _common("steps", chosen, "step counts", "give --steps") or 50
    guidance = settings.guidance if settings.guidance is not None else _common("guidance", chosen, "guidance scales", "give --guidance")
    saes = _saes(settings, wishes, chosen)
    for held in [[w for w in wishes if w.concept == name] for name in names] if apart else [wishes]:
        check_blocks([(w.hookpoint, w.intervention, w.how) for w in held], residual)
    for wish in wishes:
        check_gain_by_token(wish.how, settings.gate)
    return Plan(
        settings,
        model,
        tuple(wishes),
        saes,
        residual,
        steps,
        7.5 if guidance is None else guidance,
        {n: c.prompts for n, c in chosen.items()},
        concepts=chosen,
        weights=tuple(weights),
        apart=apart,
    )


def resolve_tuning(wanted: Settings, settings: TuneSettings) -> Plan:
    """The plan with every hookpoint that is tried.

    Raises:
        SaeuronError: as `resolve`.
    """
    names = [normalise(h.strip()) for text in settings.hookpoint for h in text.split(",")]
    parts = dict.fromkeys(part for text in settings.intervention for part in interventions(text))
    if len(several := {"an SAE's" if part in BY_SAE else part: 0 for part in parts if part in AT_BLOCKS}) > 1:
        raise SaeuronError(f"--intervention: {' and '.join(several)} are made from other activations; tune them one after the other")
    # Of what an SAE does one stands for all: the candidates have their own.
    kinds = "+".join(dict.fromkeys("multiply" if part in BY_SAE else part for part in parts))
    plan = resolve(
        replace(wanted, hookpoint=",".join(dict.fromkeys(names)) or wanted.hookpoint, intervention=kinds or wanted.intervention), apart=True
    )
    said = {f"--{key.replace('_', '-')}": getattr(settings, key) != getattr(TuneSettings, key) for key in TOLD}
    check_used(said, parts or dict.fromkeys(part for c in plan.concepts.values() for part in interventions(c.intervention)))
    return plan


def _completed(s: Settings) -> Settings:
    """Formats as they are written, with what they need; the precision that follows from them."""
    formats = tuple(_ALIASES.get(f.lower(), f.lower()) for f in s.formats)
    for given, name in zip(s.formats, formats, strict=True):
        if name not in FORMATS:
            raise SaeuronError(unknown("format", given, FORMATS))
    if "trt" in formats and "onnx" not in formats:
        formats = (*formats, "onnx")  # engines are built from the graphs, here or later
    ordered = tuple(f for f in FORMATS if f in formats)
    return replace(s, formats=ordered, precision=s.precision or ("fp16" if "trt" in formats else "fp32"))


def _resolve_edit(s: Settings, path: Path) -> Plan:
    """A plan from an edit file: it says what is done where, and mostly with which model and SAEs."""
    check_choices(s)
    header = read_edit_header(path)
    if s.gate != "exact" and header.residual != "keep":
        raise SaeuronError(f"--gate {s.gate} works with residual keep only; '{path}' was made with '{header.residual}'")
    for how in header.how.values():
        check_gain_by_token(how, s.gate)
    model = s.model or header.model
    if model is None:
        raise SaeuronError(f"'{path}' names no base model that can be found: give --model DIR|HUB_ID|demo")
    known = presets(s.preset_files, model)
    prompts = {n: known[n].prompts for n in header.concepts if n in known and known[n].prompts}
    if not s.proof_prompts and not header.provenance.prompts and len(prompts) < len(header.concepts):
        raise SaeuronError(f"'{path}' holds no prompts: give --proof-prompt TEXT, one that shows each of {', '.join(header.concepts)}")
    held = header.provenance.sampling or SamplingUsed(50, 7.5)
    guidance = s.guidance if s.guidance is not None else held.guidance
    return Plan(
        s, model, (), _saes_of_edit(s, header, path), header.residual, s.steps or held.steps,
        guidance, {"": tuple(header.provenance.prompts)} if header.provenance.prompts else prompts, header,
    )  # fmt: skip


def _saes_of_edit(s: Settings, header: EditHeader, path: Path) -> dict[str, str]:
    given = _given_saes(s)
    for hookpoint in given:
        if hookpoint is not None and hookpoint not in header.latents:
            raise SaeuronError(f"--sae {hookpoint}=…: '{path}' does nothing at this hookpoint (it acts at {', '.join(header.latents)})")
        if hookpoint in header.directions or (hookpoint is None and len(header.directions) == len(header.latents)):
            raise SaeuronError(f"--sae: '{path}' needs no SAE{f' at {hookpoint}' if hookpoint else ''}; leave it out")
    found = {h: DIRECTIONS if h in header.directions else given.get(h) or given.get(None) or header.sae(h) for h in header.latents}
    for hookpoint, source in found.items():
        if not source:
            raise SaeuronError(
                f"'{path}' names no SAE that can be found for '{hookpoint}': give --sae PATH|HUB_ID (or --sae {hookpoint}=PATH)"
            )
    return {h: str(source) for h, source in found.items()}


def check_sources(named: Sequence[tuple[str, str]]) -> list[str]:
    """Hub ids among sources, which would have to be fetched.

    Args:
        named: (what it is, e.g. `model`; folder, Hub id or demo name).

    Raises:
        SaeuronError: neither a folder here nor a Hub id.
    """
    found = {name: what for what, name in named if name not in MODELS and not os.path.exists(path_of(name))}
    for name, what in found.items():
        check_hub_id(name, what)
    return list(found)


def to_fetch(plan: Plan) -> list[str]:
    """Hub ids among the plan's sources, which would have to be fetched.

    Raises:
        SaeuronError: a file or folder that isn't there.
    """
    for wish in plan.wishes:
        if wish.activations and not wish.pairs and not os.path.isfile(path_of(wish.activations)):
            raise SaeuronError(f"activations: '{wish.activations}' does not exist or is no file")
    return check_sources([("model", plan.model), *(("SAE", source) for source in plan.saes.values() if source != DIRECTIONS)])


def _with_file(settings: Settings) -> tuple[Settings, dict[str, dict[str, Any]], list[ContrastSet]]:
    """Fill unset options from `[export]` of a settings file; return its `[[concepts]]` by name, and its contrast sets."""
    if settings.settings is None:
        return settings, {}, []
    path = settings.settings
    content = read_toml(path, "settings file")
    for key in content:
        if key not in ("export", "concepts", "contrast"):
            raise SaeuronError(f"settings file '{path}': {unknown('table', key, ['export', 'concepts', 'contrast'])}")
    tables, options, contrast = content.get("concepts", []), content.get("export", {}), content.get("contrast", [])
    if (
        not isinstance(tables, list)
        or not isinstance(contrast, list)
        or not all(isinstance(t, dict) for t in contrast)
        or not isinstance(options, dict)
        or not all(isinstance(t, dict) and isinstance(t.get("name"), str) for t in tables)
    ):
        raise SaeuronError(f"settings file '{path}': expected [export], [[concepts]] and [[contrast]] tables, each concept with a name")
    allowed = ("model", "hookpoint", "residual", "steps", "guidance")
    for key, value in options.items():
        if key not in allowed:
            raise SaeuronError(f"settings file '{path}': {unknown('option', key, allowed, 'in [export]')}")
        check_type(key, value, f"settings file '{path}', [export]")
    concept_keys = KEYS
    for table in tables:
        for key, value in table.items():
            if key not in concept_keys:
                raise SaeuronError(f"settings file '{path}', concept '{table['name']}': {unknown('key', key, concept_keys)}")
            check_type(key, value, f"settings file '{path}', concept '{table['name']}'")
    try:
        filled = replace(settings, **{k: v for k, v in options.items() if getattr(settings, k) is None})
    except SaeuronError as error:
        raise SaeuronError(f"settings file '{path}', [export]: {error}") from None
    named = {t["name"]: {k: v for k, v in t.items() if k != "name"} for t in tables}
    if twice := [name for name in named if sum(t["name"] == name for t in tables) > 1]:
        raise SaeuronError(f"settings file '{path}': two [[concepts]] tables are named '{twice[0]}'; keep one")
    sets = [contrast_set(table, f"settings file '{path}'") for table in contrast]
    return (replace(filled, concepts=tuple(named)) if not filled.concepts else filled), named, sets


def _wishes(
    name: str, preset: Concept | None, shipped: Concept | None, s: Settings, explicit: list[tuple[str | None, str]], at_blocks: str,
    own: Concept | None, elsewhere: bool
) -> list[Wish]:  # fmt: skip
    """A wish a hookpoint; of a concept that no SAE removes, one that says whether its settings are the measured ones. `elsewhere`: other blocks may be asked for than
    those of its rows."""
    said = _said(s, preset)
    rule = Rule.parse(s.select or (preset.select if preset else DEFAULT_SELECT))
    multiplier = s.multiplier if s.multiplier is not None else preset.multiplier if preset else DEFAULT_MULTIPLIER
    scale = scale_of(at_blocks, said["gain"])
    if s.multiplier is None and scale in BEGINS and not (own and scale == scale_of(own.intervention, own.gain)):
        multiplier = BEGINS[scale]  # the preset's is of another scale
    _check_multiplier(name, multiplier, s.allow_amplify, 1 if at_blocks in BY_DIRECTION else 0)
    sources = explicit or [(None, preset.activations if preset else "")]
    found, places = [], list(_places(sources, s, preset))
    served = rows_files(preset, [h for *_, h in places], elsewhere) if preset and at_blocks == "probe" else {}
    for at, path, hookpoint in places:
        collecting, pairs = None, None
        if at_blocks in BY_DIRECTION:
            if preset is None or explicit:
                raise SaeuronError(
                    f"concept '{name}': intervention {at_blocks} collects mean tokens by the concept's prompts; leave --activations out, and give it a preset or --kind"
                )
            pairs = weight_wish(preset, "untuned") if at_blocks == "project" else None
            collecting = probed(preset) if at_blocks == "probe" and not served else None
        elif at_blocks and not path:
            collecting = _collecting(name, preset)
        if at_blocks and not hookpoint:
            raise SaeuronError(f"concept '{name}': no hookpoint known; give --hookpoint NAME (SD 1.x: up_blocks.1.attentions.1)")
        # Only the shipped settings, whole, were measured.
        same = (
            shipped is not None and preset is not None and not explicit and not s.sae and s.gate != "threshold" and s.model in (None, shipped.model) and s.residual in (None, shipped.residual)
            and replace(preset, steps=shipped.steps, guidance=shipped.guidance, prompts=shipped.prompts) == shipped
            and str(rule) == str(Rule.parse(shipped.select)) and multiplier == shipped.multiplier and at is None and s.hookpoint in (None, shipped.hookpoint)
        )  # fmt: skip
        found.append(
            Wish(
                name,
                normalise(hookpoint),
                "" if at_blocks == "probe" else _file_at(preset.mean_tokens if pairs and preset else path, normalise(hookpoint)),
                rule,
                float(multiplier),
                shipped.status if shipped and same else "untuned",
                preset.domain if preset else "unknown",
                collecting,
                at_blocks,
                pairs,
                how=How.of(at_blocks, said),
                start=said["start"],
                rows=served.get(normalise(hookpoint), ""),
            )
        )
    return found


def _said(s: Settings, preset: Concept | None) -> dict[str, Any]:
    """What the command says of how and when blocks are edited, or the preset, or else what is usual."""
    return {k: getattr(s, k) if getattr(s, k) is not None else getattr(preset or Concept, k) for k in (*TOLD, "start")}


def _check_multiplier(concept: str, multiplier: float, allow_amplify: bool, most: float) -> None:
    """`make_edit` refuses amplifying too, but only after torch is imported and the files are open."""
    if not abs(multiplier) <= STRONGEST:
        raise SaeuronError(
            f"concept '{concept}': multiplier {multiplier:g} is no strength that a model bears; give a negative one, e.g. -1"
        )
    if most and abs(multiplier - 1) < 2**-24:
        raise SaeuronError(f"concept '{concept}': multiplier 1 changes nothing; use a smaller one, e.g. {BEGINS['project']:g}")
    if multiplier > most and not allow_amplify:
        raise SaeuronError(
            f"concept '{concept}': a {'positive multiplier' if not most else 'multiplier above 1'} ({multiplier:g}) strengthens the concept; use a negative one, or --allow-amplify if you mean it"
        )


def _places(sources: list[tuple[str | None, str]], s: Settings, preset: Concept | None) -> Iterator[tuple[str | None, str, str]]:
    """(hookpoint named with the file, file, hookpoint); a preset or --hookpoint may name several, comma-separated."""
    for at, path in sources:
        for hookpoint in (at or s.hookpoint or (preset.hookpoint if preset else "")).split(","):
            yield at, path, hookpoint.strip()


def _file_at(path: str, hookpoint: str) -> str:
    """The activations file of a hookpoint: `path` itself, with its `{hookpoint}` filled in, or in the folder that `saeuron collect` wrote."""
    # `os.path` says no to a name that no file can have; `Path.is_dir` raises.
    if path and os.path.isdir(path_of(path)):
        path = f"{path.rstrip('/')}/{{hookpoint}}.safetensors"
    return path.replace("{hookpoint}", file_of(hookpoint))


def _collecting(name: str, preset: Concept | None) -> Collecting:
    if preset is None or not preset.prompts or len(preset.compared) < 2:
        raise SaeuronError(f"concept '{name}': no activations known, and no prompts to collect them from; give --activations FILE")
    return Collecting(preset.domain, preset.compared, preset.collect_steps, preset.collect_guidance)


def _common(key: str, chosen: dict[str, Concept], what: str, mend: str) -> Any:
    values = {getattr(c, key) for c in chosen.values()} - {""}
    if len(values) > 1:
        by = "; ".join(f"{n}: {getattr(c, key)}" for n, c in chosen.items())
        raise SaeuronError(f"the concepts' presets name different {what} ({by}); {mend}")
    return values.pop() if values else None


def _given_saes(s: Settings) -> dict[str | None, str]:
    """Hookpoint, or None for all → source, from --sae."""
    pairs = [at_hookpoint(v) for v in s.sae]
    given = dict(pairs)
    if len(given) != len(pairs):
        raise SaeuronError("--sae names one hookpoint twice (or gives two paths without one); write --sae HOOKPOINT=PATH for each")
    return given


def _saes(s: Settings, wishes: list[Wish], chosen: dict[str, Concept]) -> dict[str, str]:
    given = _given_saes(s)
    found: dict[str, str] = {}
    for wish in wishes:
        preset = chosen.get(wish.concept)
        source = given.get(wish.hookpoint) or given.get(None) or (preset.sae if preset else None)
        if wish.intervention in BY_DIRECTION:
            source = DIRECTIONS
        if found.get(wish.hookpoint, source) != source and DIRECTIONS in (source, found[wish.hookpoint]):
            raise SaeuronError(
                f"hookpoint '{wish.hookpoint}': {' or '.join(BY_DIRECTION)} and an SAE can't act at one block; give all concepts one --intervention, or one of them another 'hookpoint' in a settings file, or export them apart"
            )
        if not source:
            raise SaeuronError(f"hookpoint '{wish.hookpoint}': no SAE known; give --sae PATH|HUB_ID (or --sae {wish.hookpoint}=PATH)")
        found[wish.hookpoint] = source
    for hookpoint in given:
        if hookpoint is not None and hookpoint not in found:
            raise SaeuronError(
                f"--sae {hookpoint}=…: no concept is suppressed at this hookpoint (used: {', '.join(found)}); give --activations {hookpoint}=FILE too"
            )
    return found


def public_name(source: str) -> str:
    """What a published file may say of a source: a Hub id or a demo name whole, of a local path only its last part."""
    return Path(source).name if os.path.exists(source) or source.startswith(("/", ".")) else source


FORMATS = ("checkpoint", "onnx", "trt")


_ALIASES = {"tensorrt": "trt"}
