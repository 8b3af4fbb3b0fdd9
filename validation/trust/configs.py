"""Config files of an artifact against the original's, key by key, and copies of files that only some clients read.

Forwards don't read most settings (`sample_size`, a scheduler's last steps), and no forward reads a client's own copy.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...editor.common.files import read_json
from ...editor.common.names import SENTINEL
from ...editor.denoisers.denoiser import Denoiser
from ...editor.denoisers.families import Family, family_in, family_of

_CLASS = "class"
"""key under which a config's class is kept beside its settings"""
_NOTES = (_CLASS, "ablation", "auto_map", "dtype", "torch_dtype")
"""keys of a config that are no settings of the model, like those with an underscore"""


def configs_of(pipeline: Any) -> dict[str, dict[str, Any]]:
    """Stock configs of an open pipeline, in JSON's types, each with its `class`."""
    denoiser = family_of(pipeline).denoiser
    parts = {name: getattr(pipeline, name) for name in _files(denoiser)}
    kinds = {name: denoiser.cls if name == denoiser.component else type(part).__name__ for name, part in parts.items()}
    return {name: {**_plain(_stock(dict(part.config), denoiser)), _CLASS: kinds[name]} for name, part in parts.items()}


def _files(denoiser: Denoiser) -> dict[str, str]:
    """Component → its config, of those that pictures depend on."""
    others = {name: f"{name}/config.json" for name in (denoiser.component, "vae")}
    return {"scheduler": "scheduler/scheduler_config.json", **others}


def _plain(value: Any) -> Any:
    """In JSON's types, as a saver would write it."""
    return json.loads(json.dumps(value, default=lambda v: v.tolist() if hasattr(v, "tolist") else str(v)))


def _stock(config: Mapping[str, Any], denoiser: Denoiser) -> dict[str, Any]:
    """Without notes of the saver, and with the stock entry where an edited network has the sentinel."""
    own = dict(config)
    if own.get(denoiser.sentinel) == SENTINEL:
        own[denoiser.sentinel] = (own.get("ablation") or {}).get("stock")
    return {k: v for k, v in own.items() if not k.startswith("_") and k not in _NOTES}


def _defaults(kind: Any) -> dict[str, Any]:
    """What the installed diffusers takes for keys that a config leaves out."""
    import diffusers

    cls = getattr(diffusers, kind, None) if isinstance(kind, str) else None
    parameters = inspect.signature(cls.__init__).parameters if cls is not None else {}
    return _plain({name: p.default for name, p in parameters.items() if p.default is not p.empty and name not in _NOTES})


def compare_configs(root: Path, reference: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Compare an artifact's config files with the original's, key by key.

    A missing key stands for the class's default on either side: versions of diffusers differ in the defaults that they write
    down, but a setting that was taken out of a file is a changed one.

    Returns:
        one line a difference.
    """
    denoiser = family_in(root).denoiser
    files = _files(denoiser)
    found = [f"the golden vectors hold no config of the original's {name}" for name in files if not reference.get(name)]
    index = read_json(root / "model_index.json")
    for name, file in files.items():
        if not reference.get(name):
            continue
        config = read_json(root / file)
        # Whatever the file says of these keys, diffusers' loader takes their defaults.
        ignored = config.get("_use_default_values")
        held = {k: v for k, v in _stock(config, denoiser).items() if not (isinstance(ignored, list) and k in ignored)}
        entry = index.get(name)
        opened = entry[1] if isinstance(entry, list) and len(entry) == 2 else entry
        defaults = _defaults(reference[name].get(_CLASS))
        held = {**defaults, **held, _CLASS: denoiser.cls if name == denoiser.component else opened}
        expected = {**defaults, **reference[name]}
        for key in sorted({*held, *expected}):
            if key not in held or key not in expected or not _same(held[key], expected[key]):
                said = [_shown(side[key]) if key in side else "not set" for side in (held, expected)]
                found.append(f"{file}: '{key}' is {said[0]}, the original's is {said[1]}")
    return found


def _same(a: Any, b: Any) -> bool:
    """Equality of two JSON values; NaN equals itself, and 1 equals 1.0 but not true."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    return isinstance(a, bool) == isinstance(b, bool) and (a == b or (a != a and b != b))  # noqa: PLR0124


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def compare_copies(root: Path, family: Family, onnx: bool) -> list[str]:
    """Do optimum's configs and the older tokenizers' files say what the files say that the proof reads?

    Args:
        root: artifact folder.
        family: of the pipeline.
        onnx: whether the artifact holds graphs, which want a config each.

    Returns:
        one line a difference, a missing copy included.
    """
    found = []
    own = read_json(root / "vae" / "config.json")
    for name in ("vae_decoder", "vae_encoder") if onnx else ():
        if not (root / name / "config.json").is_file():
            found.append(f"{name}/config.json is missing")
            continue
        other = read_json(root / name / "config.json")
        differing = sorted(k for k in {*own, *other} if not k.startswith("_") and own.get(k) != other.get(k))
        found += [f"{name}/config.json: '{k}' is {other.get(k)!r}, in vae/config.json {own.get(k)!r}" for k in differing]
    for text in family.text_encoders:
        folder = root / text.tokenizer
        missing = [f"{text.tokenizer}/{name} is missing" for name in ("tokenizer.json", *text.copies) if not (folder / name).is_file()]
        found += missing
        if missing or not text.copies:
            continue
        model = read_json(folder / "tokenizer.json")["model"]
        if read_json(folder / "vocab.json") != model["vocab"]:
            found.append(f"{text.tokenizer}/vocab.json holds another vocabulary than tokenizer.json")
        # The older tokenizers skip the first line, whatever it holds.
        head, *merges = (folder / "merges.txt").read_text(encoding="utf-8").rstrip("\n").split("\n")
        if not head.startswith("#version") or merges != [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]:
            found.append(f"{text.tokenizer}/merges.txt holds other merges than tokenizer.json")
    return found
