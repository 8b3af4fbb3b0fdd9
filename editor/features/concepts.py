"""Presets: what is known of a concept, so that its name alone is enough on the command line."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from ..common.errors import SaeuronError
from ..common.files import read_toml
from ..common.names import BY_SAE, GAINS, NOISIEST, NORMS, READ_BY, REPLACE_BY, RESIDUALS, WIDEST, Gain, Norm, ReplaceBy, interventions
from ..common.suggest import unknown

_FOLDER = Path(__file__).parent / "presets"
STATUSES = ("tuned", "untuned")
KINDS = ("object", "style", "person", "nudity", "text")
"""what a concept is; `text`: what a phrase says"""


@dataclass(frozen=True)
class OfFeatures:
    """What a preset made for directions says of features of an SAE."""

    hookpoint: str
    multiplier: float


@dataclass(frozen=True)
class Concept:
    """One preset. Every field can be overridden on the command line."""

    name: str
    model: str
    """diffusers folder, Hub id, or `demo`; empty where the base model has no Hub id and must be given"""
    domain: str
    """`style`, `object`, …: the concepts that the score compares with"""
    sae: str
    """folder or Hub id that holds `<hookpoint>/cfg.json`"""
    hookpoint: str
    select: str
    """`percentile:P` or `count:N`"""
    multiplier: float
    """gamma; negative suppresses"""
    activations: str = ""
    """concept-activations file; `demo:…` lies inside the package; empty: collected from the prompts"""
    intervention: str = "multiply"
    """parts of `names.INTERVENTIONS`, joined by +"""
    becomes: str = ""
    """with `weights`: what its words become, as --becomes; empty: found"""
    replace_by: ReplaceBy = "nearest"
    """with `replace`: what a token becomes"""
    spread: int = 0
    """with `replace`: places around one that fires which are replaced too"""
    gain: Gain = "mean"
    """with `multiply`: what the multiplier is multiplied by"""
    norm: Norm = "free"
    """with `project`: whether tokens keep theirs"""
    start: int = NOISIEST
    """timestep from which on blocks are edited; denoising goes down from it to 0"""
    mean_tokens: str = ""
    """with `project`: a file of mean tokens, of the concept and of what it is compared with; empty: collected"""
    directions: str = ""
    """with `probe`: a file of its rows, as `saeuron harden` writes them; empty: made of what is collected"""
    features: OfFeatures | None = None
    """where `multiplier` and `hookpoint` are those of directions: these are for features of an SAE, if they are asked for instead"""
    residual: str = "keep"
    status: str = "untuned"
    """`tuned` where UA, IRA and CRA were measured with these very settings"""
    steps: int = 50
    guidance: float = 7.5
    collect_steps: int = 100
    """denoising steps of the concept activations"""
    collect_guidance: float = 9.0
    prompts: tuple[str, ...] = field(default=())
    """prompts that show the concept: for the proof, and for its activations where they are collected"""
    compared: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    """name → prompts of every concept and contrast set of the domain in the same file, this one included"""
    kind: str = "text"
    """one of `KINDS`"""
    test_prompts: tuple[str, ...] = field(default=())
    """prompts that show the concept, to judge with: nothing is chosen by them, so none is among the `prompts` of the domain"""
    tested: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    """name → test prompts, of the same sets as `compared`; empty where a set has none"""
    contrast_sets: tuple[str, ...] = field(default=(), repr=False)
    """which names of `compared` are contrast sets; the others are concepts"""

    def made_for(self, intervention: str | None) -> Concept:
        """As it is for an intervention, or None for its own: a preset made for directions has another strength, and may have other blocks, for features of an SAE."""
        if self.features is None or intervention is None or not set(BY_SAE) & set(interventions(intervention)):
            return self
        return replace(
            self,
            intervention="multiply",
            hookpoint=self.features.hookpoint,
            multiplier=self.features.multiplier,
            features=None,
            directions="",
        )


KEYS = tuple(f.name for f in fields(Concept) if f.name not in ("compared", "tested", "contrast_sets"))
"""what a table of a preset file may hold"""
_NEEDED = ("name", "model", "domain", "sae", "hookpoint", "select", "multiplier")
_WHOLE = {*_NEEDED, "activations", "mean_tokens"}
"""what a table that holds all that is needed says of a concept, whatever the intervention"""
_NAMES = {"residual": RESIDUALS, "replace_by": REPLACE_BY, "gain": GAINS, "norm": NORMS}


def load_presets(path: Path) -> dict[str, Concept]:
    """Read a preset file: `[defaults]`, one `[[concepts]]` table a concept, one `[[contrast]]` table a contrast set.

    Raises:
        SaeuronError: not TOML, unknown or missing keys, wrong types, a name twice, nothing to compare with, a prompt to collect and to judge with.
    """
    content = read_toml(path, "preset file")
    for key in content:
        if key not in ("defaults", "concepts", "contrast"):
            raise SaeuronError(f"preset file '{path}': {unknown('table', key, ['defaults', 'concepts', 'contrast'])}")
    defaults, tables, contrasts = content.get("defaults", {}), content.get("concepts", []), content.get("contrast", [])
    if not isinstance(defaults, dict) or not all(isinstance(t, list) and all(isinstance(r, dict) for r in t) for t in (tables, contrasts)):
        raise SaeuronError(f"{path}: expected a [defaults] table and [[concepts]] and [[contrast]] tables")
    concepts = [_concept({**defaults, **table}, path) for table in tables]
    for concept, table in zip(concepts, tables, strict=True):
        check_read({**dict.fromkeys(_NEEDED), **table}, interventions(concept.intervention), f"{path.name}: concept '{concept.name}'")
    sets = [contrast_set(table, path.name) for table in contrasts]
    compared: dict[str, dict[str, tuple[str, ...]]] = {}
    tested: dict[str, dict[str, tuple[str, ...]]] = {}
    parts: list[Concept | ContrastSet] = [*concepts, *sets]
    for part in parts:
        if part.name in compared.setdefault(part.domain, {}):
            raise SaeuronError(f"{path.name}: '{part.name}' is there twice in domain '{part.domain}'")
        compared[part.domain][part.name] = part.prompts
        tested.setdefault(part.domain, {})[part.name] = part.test_prompts
    for domain, held in compared.items():
        check_apart(held, tested[domain], f"{path.name}: domain '{domain}'")
    for concept in concepts:
        if not concept.activations and len(compared[concept.domain]) < 2:
            raise SaeuronError(
                f"{path.name}: concept '{concept.name}' has nothing to compare with; add a [[contrast]] set of domain '{concept.domain}'"
            )
    return {
        c.name: replace(
            c, compared=compared[c.domain], tested=tested[c.domain], contrast_sets=tuple(s.name for s in sets if s.domain == c.domain)
        )
        for c in concepts
    }


def check_apart(compared: Mapping[str, Sequence[str]], tested: Mapping[str, Sequence[str]], where: str) -> None:
    """Raise `SaeuronError` for a prompt that features would be chosen by and judged on, whatever its case and spaces.

    Args:
        compared: concept or contrast set of a domain → prompts to collect with.
        tested: the same → prompts to judge with.
        where: for the error.
    """
    chosen_by = {_bare(text): name for name, texts in compared.items() for text in texts}
    for name, texts in tested.items():
        for text in texts:
            if (other := chosen_by.get(_bare(text))) is not None:
                raise SaeuronError(
                    f"{where}: '{text}' is in the prompts of '{other}' and in the test_prompts of '{name}'; what features are chosen by can't judge them, so take it out of one"
                )


def _bare(prompt: str) -> str:
    return " ".join(prompt.split()).casefold()


def _concept(values: dict[str, Any], path: Path) -> Concept:
    where = f"{path.name}: concept '{values.get('name', '?')}'"
    for key in values:
        if key not in KEYS:
            raise SaeuronError(f"{where}: {unknown('key', key, KEYS)}")
    missing = [n for n in _NEEDED if n not in values]
    if missing:
        raise SaeuronError(f"{where}: missing {', '.join(missing)}")
    for key, value in values.items():
        check_type(key, value, where)
    if not values.get("activations") and not values.get("prompts"):
        raise SaeuronError(f"{where}: has neither activations nor prompts to collect them from")
    features = of_features(values.get("features"))
    numbers: dict[str, float] = {k: float(values[k]) for k in ("multiplier", "guidance", "collect_guidance") if k in values}
    return Concept(
        **{
            **values,
            **numbers,
            "features": features,
            **{key: expand(values.get(key, ()), values["name"]) for key in ("prompts", "test_prompts")},
        }
    )


def of_features(value: Mapping[str, Any] | None) -> OfFeatures | None:
    """A preset's `features`, which `check_type` took."""
    return None if value is None else OfFeatures(value["hookpoint"], float(value["multiplier"]))


class ContrastSet(NamedTuple):
    """What concepts of a domain are compared with, and can't be removed itself."""

    name: str
    domain: str
    prompts: tuple[str, ...]
    test_prompts: tuple[str, ...]


def contrast_set(values: dict[str, Any], file: str) -> ContrastSet:
    """A `[[contrast]]` table, checked; raises `SaeuronError`."""
    where = f"{file}: contrast set '{values.get('name', '?')}'"
    if set(values) - {"test_prompts"} != {"name", "domain", "prompts"} or not values["prompts"]:
        raise SaeuronError(f"{where}: it holds name, domain, prompts and perhaps test_prompts, nothing else")
    for key, value in values.items():
        check_type(key, value, where)
    name = values["name"]
    return ContrastSet(name, values["domain"], expand(values["prompts"], name), expand(values.get("test_prompts", ()), name))


def expand(prompts: Sequence[str], name: str) -> tuple[str, ...]:
    """Prompts with `{name}` as it is written and `{title}` with spaces for underscores."""
    return tuple(p.replace("{name}", name).replace("{title}", name.replace("_", " ")) for p in prompts)


def check_type(key: str, value: Any, where: str) -> None:
    """Raise unless `value` can be a preset's `key`."""
    number: dict[str, Any] = dict.fromkeys(("multiplier", "guidance", "collect_guidance"), (int, float))
    types: dict[str, Any] = {
        **number,
        "steps": int,
        "spread": int,
        "start": int,
        "collect_steps": int,
        "prompts": list,
        "test_prompts": list,
        "features": dict,
    }
    if (
        not isinstance(value, types.get(key, str))
        or isinstance(value, bool)
        or (types.get(key) is list and not all(isinstance(v, str) for v in value))
    ):
        raise SaeuronError(f"{where}: '{key}' = {value!r} has the wrong type ({type(value).__name__})")
    if key == "features":
        if set(value) != {"hookpoint", "multiplier"}:
            raise SaeuronError(f"{where}: 'features' holds hookpoint and multiplier, nothing else")
        for own, held in value.items():
            check_type(own, held, f"{where}, features")
    if key == "status" and value not in STATUSES:
        raise SaeuronError(f"{where}: status is one of {', '.join(STATUSES)}")
    if key == "kind" and value not in KINDS:
        raise SaeuronError(f"{where}: {unknown('kind', value, KINDS)}")
    if key == "intervention":
        try:
            interventions(value)
        except SaeuronError as error:
            raise SaeuronError(f"{where}: {error}") from None
    if (names := _NAMES.get(key)) and value not in names:
        raise SaeuronError(f"{where}: {unknown(key, value, names)}")
    if key == "spread":
        if not 0 <= value <= WIDEST:
            raise SaeuronError(f"{where}: 'spread' is {value}; it must be 0 to {WIDEST}")
    elif key == "start" and not 0 <= value <= NOISIEST:
        raise SaeuronError(f"{where}: 'start' is {value}; it must be 0 to {NOISIEST}")
    elif types.get(key) is int and key != "start" and value < 1:
        raise SaeuronError(f"{where}: '{key}' is {value}; it must be at least 1")


def unread(table: Mapping[str, Any], parts: Collection[str]) -> list[str]:
    """Keys of a concept's table that none of the interventions reads.

    A table that holds all that a preset needs says what is known of the concept, so that another intervention can be asked for: of it only what an
    intervention alone is told counts. A residual of `keep` is everyone's.
    """
    known = _WHOLE if set(table) >= set(_NEEDED) - {"name"} else ()
    idle = [key for key in table if key in READ_BY and key not in known and not set(READ_BY[key]) & set(parts)]
    return [key for key in idle if table[key] not in ("", None) and (key, table[key]) != ("residual", "keep")]


def check_read(table: Mapping[str, Any], parts: Collection[str], where: str) -> None:
    """Raise `SaeuronError` for the first of `unread`, as the command line does for an option."""
    for key in unread(table, parts):
        raise SaeuronError(f"{where}: '{key}' is for {', '.join(READ_BY[key])}, and it is removed by {', '.join(parts)}; leave it out")


def presets(files: Sequence[Path | str] = (), model: str | None = None) -> dict[str, Concept]:
    """All shipped presets and those of `files`, name → preset; a later file's name wins.

    Args:
        files: of presets of one's own.
        model: whose presets are meant where several shipped models have one of a name (`demo` and `demo:dit`); None, or one that has none of it: the first's.
    """
    found: dict[str, Concept] = {}
    for concept in shipped():
        if concept.name not in found or concept.model == model:
            found[concept.name] = concept
    for path in files:
        found |= load_presets(Path(path))
    return found


def shipped() -> list[Concept]:
    """All shipped presets, in the order of their files; a name may be there once a model."""
    return [concept for path in sorted(_FOLDER.glob("*.toml")) for concept in load_presets(path).values()]
