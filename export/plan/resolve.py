"""Completes the settings by presets and a settings file, and returns the resolved `Plan`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...editor import demo
from ...editor.common.errors import SaeuronError
from ...editor.common.files import check_hub_id, read_toml
from ...editor.common.names import at_hookpoint, normalise
from ...editor.common.suggest import unknown
from ...editor.edit.edit_header import EditHeader, read_edit_header
from ...editor.edit.gains import LARGEST
from ...editor.edit.provenance import SamplingUsed
from ...editor.features.concepts import KEYS, Concept, ContrastSet, check_type, contrast_set, presets
from ...editor.features.rule import Rule
from ...validation.tuning.settings import TuneSettings
from .concepts import DEFAULT_MULTIPLIER, DEFAULT_SELECT, known_concepts, with_overrides
from .settings import Collecting, Plan, Settings, Wish


def resolve(settings: Settings) -> Plan:
    """Complete the settings.

    Raises:
        SaeuronError: an unknown name or value, a missing or contradictory setting.
    """
    settings = _completed(settings)
    if settings.edit is not None:
        return _resolve_edit(settings, settings.edit)
    settings, overrides, sets = _with_file(settings)
    _check_choices(settings)
    known = known_concepts(settings)
    explicit = [at_hookpoint(a) for a in settings.activations]
    wishes: list[Wish] = []
    chosen: dict[str, Concept] = {}
    for name in dict.fromkeys(settings.concepts):
        preset = with_overrides(name, known, overrides.get(name, {}), bool(explicit), sets)
        if preset:
            chosen[name] = preset
        # A file that says how well its settings did (of tuning) is what the command's options are compared with.
        measured = preset if "status" in overrides.get(name, {}) else known.get(name)
        wishes += _wishes(name, preset, measured, settings, explicit)
    model = settings.model or _common("model", chosen, "base models", "export them separately")
    if model is None:
        raise SaeuronError("no base model known (some models have no Hub id): give --model DIR|HUB_ID|demo")
    residual = settings.residual or _common("residual", chosen, "residual modes", "give --residual") or "keep"
    if residual != "keep" and settings.gate != "exact":
        raise SaeuronError(f"--gate {settings.gate} works with --residual keep only, not '{residual}'")
    steps = settings.steps or _common("steps", chosen, "step counts", "give --steps") or 50
    guidance = settings.guidance if settings.guidance is not None else _common("guidance", chosen, "guidance scales", "give --guidance")
    saes = _saes(settings, wishes, chosen)
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
    )


def resolve_tuning(wanted: Settings, settings: TuneSettings) -> Plan:
    """The plan with every hookpoint that is tried.

    Raises:
        SaeuronError: as `resolve`.
    """
    names = [normalise(h.strip()) for text in settings.hookpoint for h in text.split(",")]
    return resolve(replace(wanted, hookpoint=",".join(dict.fromkeys(names)) or None) if names else wanted)


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
    _check_choices(s)
    header = read_edit_header(path)
    if s.gate != "exact" and header.residual != "keep":
        raise SaeuronError(f"--gate {s.gate} works with residual keep only; '{path}' was made with '{header.residual}'")
    model = s.model or header.model
    if model is None:
        raise SaeuronError(f"'{path}' names no base model that can be found: give --model DIR|HUB_ID|demo")
    known = presets(s.preset_files)
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
    found = {h: given.get(h) or given.get(None) or header.sae(h) for h in header.latents}
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
    found = {name: what for what, name in named if name != "demo" and not os.path.exists(path_of(name))}
    for name, what in found.items():
        check_hub_id(name, what)
    return list(found)


def to_fetch(plan: Plan) -> list[str]:
    """Hub ids among the plan's sources, which would have to be fetched.

    Raises:
        SaeuronError: a file or folder that isn't there.
    """
    for wish in plan.wishes:
        if wish.activations and not os.path.isfile(path_of(wish.activations)):
            raise SaeuronError(f"activations: '{wish.activations}' does not exist or is no file")
    return check_sources([("model", plan.model), *(("SAE", source) for source in plan.saes.values())])


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
    sets = [contrast_set(table, f"settings file '{path}'") for table in contrast]
    return (replace(filled, concepts=tuple(named)) if not filled.concepts else filled), named, sets


def _check_choices(s: Settings) -> None:
    if s.edit is not None:
        # The file holds them; a second answer could only contradict it.
        said = {
            "--concepts": s.concepts, "--activations": s.activations, "--select": s.select, "--multiplier": s.multiplier, "--hookpoint": s.hookpoint,
            "--residual": s.residual, "--settings": s.settings, "--kind": s.kind, "--instead": s.instead,
        }  # fmt: skip
        for option, value in said.items():
            if value is not None and value != ():
                raise SaeuronError(f"--edit and {option} both say what is to be done; give one of them")
    elif not s.concepts:
        raise SaeuronError("no concept named: give --concepts A,B (saeuron concepts lists the presets), or --edit FILE")
    _check_stages(s)
    if s.precision == "bf16" and "onnx" in s.formats and not ("trt" in s.formats and not s.validate):
        engines = ", or --no-validate, and prove the engines on their GPU" if "trt" in s.formats else ""
        raise SaeuronError(
            f"--precision bf16 can't be proven in ONNX Runtime (its CPU has no bf16 MatMul); use --format checkpoint, or fp16 or fp32{engines}"
        )
    if s.engines is None:
        for value, option in (
            (s.target, "--target"), (s.shapes, "--shapes"), (s.optimization_level is not None, "--optimization-level"),
            (s.hardware_compatible, "--hardware-compatible"), (s.version_compatible, "--version-compatible"),
        ):  # fmt: skip
            if value:
                raise SaeuronError(f"{option} is for engines; add --format trt")


def _check_stages(s: Settings) -> None:
    if s.tune:
        said = {"--edit": s.edit, "--select": s.select, "--multiplier": s.multiplier}
        for option, value in said.items():
            if value is not None:
                raise SaeuronError(
                    f"--tune chooses what {option} says; give one of them (saeuron tune --select … --multiplier … tries what you name)"
                )
    if s.evidence and s.edit is not None:
        raise SaeuronError(
            "--evidence is by the concepts' prompts, and --edit has none; export first, then saeuron evaluate, attack and report"
        )
    for option, given in (
        ("--judge", s.judge != Settings.judge and not s.staged),
        ("--judge-anyway", s.judge_anyway and not s.tune),
        ("--budget", s.budget != Settings.budget and not s.tune),
    ):
        if given:
            raise SaeuronError(f"{option} is for --tune{' and --evidence' if option == '--judge' else ''}; add it, or leave {option} out")


def _wishes(name: str, preset: Concept | None, shipped: Concept | None, s: Settings, explicit: list[tuple[str | None, str]]) -> list[Wish]:
    rule = Rule.parse(s.select or (preset.select if preset else DEFAULT_SELECT))
    multiplier = s.multiplier if s.multiplier is not None else (preset.multiplier if preset else DEFAULT_MULTIPLIER)
    _check_multiplier(name, multiplier, s.allow_amplify)
    sources = explicit or [(None, preset.activations if preset else "")]
    found = []
    for at, path, hookpoint in _places(sources, s, preset):
        collecting = _collecting(name, preset) if not path else None
        if not hookpoint:
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
                _file_at(path, normalise(hookpoint)),
                rule,
                float(multiplier),
                shipped.status if shipped and same else "untuned",
                preset.domain if preset else "unknown",
                collecting,
            )
        )
    return found


def _check_multiplier(concept: str, multiplier: float, allow_amplify: bool) -> None:
    """`make_edit` refuses amplifying too, but only after torch is imported and the files are open."""
    if not abs(multiplier) < LARGEST:
        raise SaeuronError(f"concept '{concept}': multiplier {multiplier:g} is no finite number; give a negative one, e.g. -1")
    if multiplier > 0 and not allow_amplify:
        raise SaeuronError(
            f"concept '{concept}': a positive multiplier ({multiplier:g}) strengthens the concept; use a negative one, or --allow-amplify if you mean it"
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
    return path.replace("{hookpoint}", hookpoint)


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


def path_of(name: str) -> str:
    """`demo:…` as a path inside the package; anything else unchanged."""
    return str(demo.resolve(name)) if name.startswith("demo:") else name


FORMATS = ("checkpoint", "onnx", "trt")


_ALIASES = {"tensorrt": "trt"}
