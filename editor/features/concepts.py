"""Presets: what is known of a concept, so that its name alone is enough on the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..common.errors import SaeuronError
from ..common.files import read_toml
from ..common.names import RESIDUALS
from ..common.suggest import unknown
from .prompt_sets import ConceptPrompts, ContrastPrompts

_FOLDER = Path(__file__).parent / "presets"
STATUSES = ("tuned", "untuned")
KINDS = ("object", "style", "person", "nudity", "text")


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
    residual: str = "keep"
    kind: str = "text"
    """of `KINDS`"""
    status: str = "untuned"
    """`tuned` where what is removed and kept was measured with these very settings"""
    steps: int = 50
    guidance: float = 7.5
    collect_steps: int = 100
    """denoising steps of the concept activations"""
    collect_guidance: float = 9.0
    prompts: tuple[str, ...] = field(default=())
    """prompts that show the concept: for the proof, for its activations where they are collected, and to tune with"""
    test_prompts: tuple[str, ...] = field(default=())
    """others that show it, to judge by; none of them is among any prompts of the domain"""
    compared: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    """name → prompts of every concept and contrast set of the domain in the same file, this one included"""
    tested: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    """likewise → test prompts"""
    contrasts: tuple[str, ...] = field(default=(), repr=False)
    """those of these names that are contrast sets"""

    @property
    def words(self) -> ConceptPrompts:
        """Its prompts and those of what it is compared with."""
        others = {
            name: ContrastPrompts(list(prompts), list(self.tested.get(name, ())), name not in self.contrasts)
            for name, prompts in self.compared.items() if name != self.name
        }  # fmt: skip
        return ConceptPrompts(self.name, self.kind, list(self.prompts), list(self.test_prompts), others)


KEYS = tuple(f.name for f in fields(Concept) if f.name not in ("compared", "tested", "contrasts"))
"""what a table of a preset file may hold"""
_NEEDED = ("name", "model", "domain", "sae", "hookpoint", "select", "multiplier")


def load_presets(path: Path) -> dict[str, Concept]:
    """Read a preset file: `[defaults]`, one `[[concepts]]` table a concept, one `[[contrast]]` table a contrast set.

    Raises:
        SaeuronError: not TOML, unknown or missing keys, wrong types, a name twice, nothing to compare with.
    """
    content = read_toml(path, "preset file")
    for key in content:
        if key not in ("defaults", "concepts", "contrast"):
            raise SaeuronError(f"preset file '{path}': {unknown('table', key, ['defaults', 'concepts', 'contrast'])}")
    defaults, tables, contrasts = content.get("defaults", {}), content.get("concepts", []), content.get("contrast", [])
    if not isinstance(defaults, dict) or not all(isinstance(t, list) and all(isinstance(r, dict) for r in t) for t in (tables, contrasts)):
        raise SaeuronError(f"{path}: expected a [defaults] table and [[concepts]] and [[contrast]] tables")
    concepts = [_concept({**defaults, **table}, path) for table in tables]
    domains: dict[str, dict[str, tuple[str, ...]]] = {}
    tested: dict[str, dict[str, tuple[str, ...]]] = {}
    sets = [_contrast(t, path) for t in contrasts]
    for name, domain, prompts, test_prompts in [*((c.name, c.domain, c.prompts, c.test_prompts) for c in concepts), *sets]:
        if name in domains.setdefault(domain, {}):
            raise SaeuronError(f"{path.name}: '{name}' is there twice in domain '{domain}'")
        domains[domain][name] = prompts
        tested.setdefault(domain, {})[name] = test_prompts
    for domain, known in domains.items():
        _check_apart(path, known, tested[domain])
    for concept in concepts:
        if not concept.activations and len(domains[concept.domain]) < 2:
            raise SaeuronError(
                f"{path.name}: concept '{concept.name}' has nothing to compare with; add a [[contrast]] set of domain '{concept.domain}'"
            )
    only = {domain: tuple(n for n, d, *_ in sets if d == domain) for domain in domains}
    return {c.name: replace(c, compared=domains[c.domain], tested=tested[c.domain], contrasts=only[c.domain]) for c in concepts}


def _check_apart(path: Path, prompts: Mapping[str, Sequence[str]], tested: Mapping[str, Sequence[str]]) -> None:
    """Raise where a domain's test prompt is one of its prompts: figures on it would flatter."""
    spelt = {" ".join(text.casefold().split()): name for name, texts in prompts.items() for text in texts}
    for name, texts in tested.items():
        for text in texts:
            if (where := spelt.get(" ".join(text.casefold().split()))) is not None:
                raise SaeuronError(
                    f"{path.name}: '{text}' is among the test_prompts of '{name}' and the prompts of '{where}'; what settings are chosen by can't judge them"
                )


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
    numbers: dict[str, float] = {k: float(values[k]) for k in ("multiplier", "guidance", "collect_guidance") if k in values}
    lists = {key: expand(values.get(key, ()), values["name"]) for key in ("prompts", "test_prompts")}
    return Concept(**{**values, **numbers, **lists})


def _contrast(values: dict[str, Any], path: Path) -> tuple[str, str, tuple[str, ...], tuple[str, ...]]:
    where = f"{path.name}: contrast set '{values.get('name', '?')}'"
    if set(values) - {"test_prompts"} != {"name", "domain", "prompts"} or not values["prompts"]:
        raise SaeuronError(f"{where}: it holds name, domain, prompts and perhaps test_prompts, nothing else")
    for key, value in values.items():
        check_type(key, value, where)
    name = values["name"]
    return name, values["domain"], expand(values["prompts"], name), expand(values.get("test_prompts", ()), name)


def expand(prompts: Sequence[str], name: str) -> tuple[str, ...]:
    """Prompts with `{name}` as it is written and `{title}` with spaces for underscores."""
    return tuple(p.replace("{name}", name).replace("{title}", name.replace("_", " ")) for p in prompts)


def check_type(key: str, value: Any, where: str) -> None:
    """Raise unless `value` can be a preset's `key`."""
    number: dict[str, Any] = dict.fromkeys(("multiplier", "guidance", "collect_guidance"), (int, float))
    types: dict[str, Any] = {**number, "steps": int, "collect_steps": int, "prompts": list, "test_prompts": list}
    if (
        not isinstance(value, types.get(key, str))
        or isinstance(value, bool)
        or (types.get(key) is list and not all(isinstance(v, str) for v in value))
    ):
        raise SaeuronError(f"{where}: '{key}' = {value!r} has the wrong type ({type(value).__name__})")
    if key == "status" and value not in STATUSES:
        raise SaeuronError(f"{where}: status is one of {', '.join(STATUSES)}")
    if key == "kind" and value not in KINDS:
        raise SaeuronError(f"{where}: {unknown('kind', value, KINDS)}")
    if key == "residual" and value not in RESIDUALS:
        raise SaeuronError(f"{where}: {unknown('residual', value, RESIDUALS)}")
    if types.get(key) is int and value < 1:
        raise SaeuronError(f"{where}: '{key}' is {value}; it must be at least 1")


def presets(files: Sequence[Path | str] = ()) -> dict[str, Concept]:
    """All shipped presets and those of `files`, name → preset; a later file's name wins."""
    found: dict[str, Concept] = {}
    for path in (*sorted(_FOLDER.glob("*.toml")), *(Path(f) for f in files)):
        found |= load_presets(path)
    return found
