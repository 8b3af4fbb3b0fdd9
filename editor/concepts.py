"""Presets: what is known of a concept, so that its name alone is enough on the command line."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from .errors import SaeuronError
from .suggest import unknown

_FOLDER = Path(__file__).parent / "presets"
STATUSES = ("tuned", "untuned")


@dataclass(frozen=True)
class Concept:
    """One preset. Every field can be overridden on the command line."""

    name: str
    model: str
    """diffusers folder, Hub id, or `demo`"""
    domain: str
    """`style`, `object`, …: the concepts that the score compares with"""
    sae: str
    """folder or Hub id that holds `<hookpoint>/cfg.json`"""
    hookpoint: str
    activations: str
    """concept-activations file; `demo:…` lies inside the package"""
    select: str
    """`percentile:P` or `count:N`"""
    multiplier: float
    """gamma; negative suppresses"""
    residual: str = "keep"
    status: str = "untuned"
    """`tuned` where UA, IRA and CRA were measured with these very settings"""
    steps: int = 50
    guidance: float = 7.5
    prompts: tuple[str, ...] = field(default=())
    """prompts that show the concept; the proof runs on them"""


def load_presets(path: Path) -> dict[str, Concept]:
    """Read a preset file: `[defaults]` and one `[[concepts]]` table a concept.

    Raises:
        SaeuronError: not TOML, unknown or missing keys, wrong types.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SaeuronError(f"preset file '{path}' does not exist") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise SaeuronError(f"preset file '{path}' can't be read as TOML: {error}") from None
    defaults, tables = content.get("defaults", {}), content.get("concepts", [])
    if not isinstance(defaults, dict) or not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
        raise SaeuronError(f"{path}: expected a [defaults] table and [[concepts]] tables")
    found: dict[str, Concept] = {}
    for table in tables:
        concept = _concept({**defaults, **table}, path)
        found[concept.name] = concept
    return found


def _concept(values: dict[str, Any], path: Path) -> Concept:
    known = {f.name: f for f in fields(Concept)}
    where = f"{path.name}: concept '{values.get('name', '?')}'"
    for key in values:
        if key not in known:
            raise SaeuronError(f"{where}: {unknown('key', key, known)}")
    missing = [n for n in ("name", "model", "domain", "sae", "hookpoint", "activations", "select", "multiplier") if n not in values]
    if missing:
        raise SaeuronError(f"{where}: missing {', '.join(missing)}")
    for key, value in values.items():
        check_type(key, value, where)
    name = values["name"]
    prompts = tuple(str(p).replace("{name}", name) for p in values.get("prompts", ()))
    return Concept(
        **{**values, "multiplier": float(values["multiplier"]), "guidance": float(values.get("guidance", 7.5)), "prompts": prompts}
    )


def check_type(key: str, value: Any, where: str) -> None:
    """Raise unless `value` can be a preset's `key`."""
    types: dict[str, Any] = {"multiplier": (int, float), "guidance": (int, float), "steps": int, "prompts": list}
    if (
        not isinstance(value, types.get(key, str))
        or isinstance(value, bool)
        or (key == "prompts" and not all(isinstance(v, str) for v in value))
    ):
        raise SaeuronError(f"{where}: '{key}' = {value!r} has the wrong type ({type(value).__name__})")
    if key == "status" and value not in STATUSES:
        raise SaeuronError(f"{where}: status is one of {', '.join(STATUSES)}")


def presets() -> dict[str, Concept]:
    """All shipped presets, name → preset."""
    found: dict[str, Concept] = {}
    for path in sorted(_FOLDER.glob("*.toml")):
        found |= load_presets(path)
    return found
