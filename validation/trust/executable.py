"""Finds what a loader would execute or download. Reads names and JSON alone: no library that could run code opens a file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...editor.common.errors import SaeuronError
from ...editor.common.files import read_json
from ...editor.denoisers.families import FAMILIES, Family
from ..artifact import contents, manifest
from ..artifact.manifest import Manifest

_HARMLESS = (".json", ".txt", ".md", ".safetensors", ".onnx", ".onnx_data", ".engine", ".cache", ".jinja", ".png")
"""what an artifact consists of, beside its one .py file and its report; `.cache` is TensorRT's timing cache"""
_REPORT = "validation/report.html"
"""a page for people, which no loader opens; its scripts are those of `validation/page`"""
_OWN_CLASS = re.compile(rf"({'|'.join(manifest.DENOISERS)})/saeuron_edit_[0-9a-f]{{12}}\.py")
_ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "pytorch_lora_weights.safetensors")
_INDEX_OF_SHARDS = re.compile(r"\.index\.([^/]+\.)?json$")
"""of a variant too, e.g. `diffusion_pytorch_model.safetensors.index.fp16.json`"""
_LIBRARIES = ("diffusers", "transformers")
_CHECKER = ["stable_diffusion", "StableDiffusionSafetyChecker"]
"""a class of diffusers too, which an index calls by its pipeline's module; Stable Diffusion 1.4's does"""
_INDEX, _MODULAR = "model_index.json", "modular_model_index.json"
_ATTENTION = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
"""entries of a config by which transformers fetches and runs a kernel from the Hub, where they hold an owner's name"""
_UNLISTED = (".gitattributes", ".gitignore", manifest.SIGNATURE, manifest.NAME)
_CACHES = (".git/", ".cache/huggingface/")
"""what git and a download leave at the top of a folder"""


def check(root: Path, record: Manifest) -> list[str]:
    """Look for what would be executed: files by their kind, and entries of configs that name code.

    Args:
        root: artifact folder.
        record: its manifest.

    Returns:
        one line a finding.
    """
    found = []
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_dir() and not path.is_symlink():
            continue
        if path.is_symlink() and name in _UNLISTED and not contents.inside(root, name):
            found.append(f"'{name}' is a link that leaves the folder")
        if name.startswith(".") and name not in _UNLISTED and not name.startswith(_CACHES):
            found.append(f"'{name}' in '{root}' is not on record in {manifest.NAME}; remove it")
        elif name in record.files and path.name in _ADAPTERS:
            found.append(f"'{name}' is an adapter, which loaders put on top of the edited model; an artifact holds none")
        elif name in record.files and path.suffix.lower() not in _HARMLESS and name != _REPORT and not _OWN_CLASS.fullmatch(name):
            found.append(f"'{name}' is of a kind that can hold code; an artifact holds no such file")
        elif name in record.files and _of_a_checkpoint(name) and "checkpoint" not in record.formats:
            found.append(f"'{name}' belongs to a checkpoint, and the manifest says that there is none; no check would look at it")
        elif name in record.files and (path.name == _MODULAR or (path.name == _INDEX and name != _INDEX)):
            found.append(f"'{name}' would open a pipeline of its own; an artifact holds one {_INDEX}, at the top")
    for name in sorted(record.files):
        # A vocabulary or a tokenizer is no config, and large.
        if name.endswith("config.json") or name == _INDEX:
            found += _entries(root, name, record)
        elif _INDEX_OF_SHARDS.search(name) and ".safetensors.index." not in name:
            found.append(f"'{name}' is an index of weights that are no safetensors; loaders would open them as pickles")
        elif _INDEX_OF_SHARDS.search(name):
            found += _shards(root, name, record)
    return found


def _of_a_checkpoint(name: str) -> bool:
    """A code file, or weights that a loader of checkpoints takes; `edit/` holds safetensors of other kinds."""
    weights = name.endswith(".safetensors") or _INDEX_OF_SHARDS.search(name) is not None
    return name.endswith(".py") or (weights and not name.startswith("edit/"))


def _shards(root: Path, name: str, record: Manifest) -> list[str]:
    """An index of shards: loaders open whatever path it names."""
    try:
        weights = read_json(root / name).get("weight_map")
    except SaeuronError as error:
        return [str(error)]
    folder = name.rpartition("/")[0]
    named = set(map(str, weights.values())) if isinstance(weights, dict) else {"no weight_map"}
    return [
        f"{name}: it names '{file}', which is no safetensors file beside it on record"
        for file in sorted(named)
        if "/" in file or "\\" in file or not file.endswith(".safetensors") or f"{folder}/{file}" not in record.files
    ]


def _entries(root: Path, name: str, record: Manifest) -> list[str]:
    try:
        config = read_json(root / name)
    except SaeuronError as error:
        return [str(error)]
    found = _index(config, record) if name == _INDEX else []
    modules = _modules(record)
    for key, value in _auto_map(config):
        if not any(value == f"{module}.{value.rpartition('.')[2]}" for module in modules):
            found.append(f"{name}: 'auto_map' takes {key} from '{value}', which is not the class in this artifact")
    found += [f"{name}: '{key}' is '{value}', a kernel that would be fetched and run" for key, value in _kernels(config)]
    kind = config.get("_class_name")
    if kind is not None and not isinstance(kind, str):
        found.append(f"{name}: '_class_name' is {kind}, which names a module of its own")
    return found


def _modules(record: Manifest) -> list[str]:
    """Names of the class file, with and without its folder."""
    names = [n.removesuffix(".py") for n in record.files if _OWN_CLASS.fullmatch(n)]
    return [form for n in names for form in (n.rpartition("/")[2], n.replace("/", "."))]


def _index(index: dict[str, Any], record: Manifest) -> list[str]:
    """`model_index.json`: each component of a library's class, the network that is edited of ours, and the pipeline a known one."""
    family: Family | None = next((f for f in FAMILIES if f.pipeline == index.get("_class_name")), None)
    if family is None:
        return [
            f"model_index.json: the pipeline is {index.get('_class_name')!r}; an artifact's is {' or '.join(f.pipeline for f in FAMILIES)}"
        ]
    found = []
    for name, entry in index.items():
        if not isinstance(entry, list) or entry == [None, None] or (name == "safety_checker" and entry == _CHECKER):
            continue
        # Without a checkpoint there is no such file, and the index still names it.
        modules = _modules(record) or [e for e in entry[:1] if isinstance(e, str) and re.fullmatch(r"saeuron_edit_[0-9a-f]{12}", e)]
        own = name == family.denoiser.component and len(entry) == 2 and entry[0] in modules and isinstance(entry[1], str)
        if not own and (len(entry) != 2 or entry[0] not in _LIBRARIES or not isinstance(entry[1], str)):
            found.append(f"model_index.json: '{name}' is opened by {entry}, which is no class of {' or '.join(_LIBRARIES)}")
    return found


def _kernels(config: Any) -> Iterator[tuple[str, str]]:
    """Every attention implementation in a config, however deep, that lies on the Hub."""
    if isinstance(config, dict):
        for key, value in config.items():
            if key in _ATTENTION and "/" in str(value):
                yield key, str(value)
            yield from _kernels(value)
    elif isinstance(config, list):
        for value in config:
            yield from _kernels(value)


def _auto_map(config: Any) -> Iterator[tuple[str, str]]:
    """Every `auto_map` in a config, however deep: what it serves, and the class that it names."""
    if isinstance(config, dict):
        for key, value in config.items():
            if key == "auto_map" and isinstance(value, dict):
                for wanted, names in value.items():
                    # A tokenizer's entry is a pair: the slow class and the fast one.
                    yield from ((wanted, str(n)) for n in (names if isinstance(names, list) else [names]) if n is not None)
            elif key == "auto_map":
                yield key, str(value)
            else:
                yield from _auto_map(value)
    elif isinstance(config, list):
        for value in config:
            yield from _auto_map(value)
