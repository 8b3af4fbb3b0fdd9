"""Networks of a pipeline's folder: which files hold them, and whether every weight is there and has a place."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..common.errors import SaeuronError, first_line, panics_as_errors
from ..common.files import read_header, read_json, refuse_cut_zip, refuse_pointer
from ..common.quiet import quiet_loading
from .families import Family

# Names that diffusers and transformers look for, e.g. `model.safetensors`, `diffusion_pytorch_model.fp16-00001-of-00002.safetensors`.
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:\.(?P<variant>\w+))?(?:-\d{5}-of-\d{5})?(?:\.(?P<older>\w+))?\.(?P<ending>safetensors|bin)"
)
_INDEX = re.compile(r".*\.(?:safetensors|bin)\.index\.(?:(?P<variant>\w+)\.)?json")
# Whole numbers that stand for weights mean nothing without their scales; what diffusers saves in them are positions, which it makes itself.
_NUMBERS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
ADAPTER = re.compile(r"base_layer|lora_|_lora|\.lora\.|hada_|lokr_|ip_adapter|to_[kv]_ip|^base_model\.")


def weight_files(folder: Path, variant: str | None = None) -> tuple[str | None, list[Path]]:
    """The variant that a component's weights are loaded from, and their files (safetensors before .bin).

    As in diffusers, a component without files of `variant` is loaded from its plain ones.

    Raises:
        SaeuronError: no weights, or only those of another variant.
    """
    found: dict[str | None, dict[str, list[Path]]] = {}
    for path in sorted(folder.iterdir()):
        if match := _WEIGHTS.fullmatch(path.name):
            found.setdefault(match["variant"] or match["older"], {}).setdefault(match["ending"], []).append(path)
    if not found:
        raise SaeuronError(f"'{folder.parent}' is incomplete: '{folder.name}' has no weights")
    used = variant if variant in found else None
    if used not in found:
        names = ", ".join(sorted(str(v) for v in found))
        raise SaeuronError(f"'{folder}' holds only weights of a variant ({names}); give --variant {next(iter(found))}")
    return used, found[used].get("safetensors") or found[used]["bin"]


def named(index: Mapping[str, Any], family: Family, without: Sequence[str] = ()) -> dict[str, str]:
    """Network → name of its class, of those that a `model_index.json` names, some left out.

    Raises:
        SaeuronError: another class than the family's.
    """
    found = {}
    for name, wanted in family.classes.items():
        entry = index.get(name)
        if name in without:
            continue
        if name in family.optional and not (isinstance(entry, list) and entry and entry[0]):
            continue
        given = entry[1] if isinstance(entry, list) and len(entry) == 2 else entry
        if not given:
            raise SaeuronError(f"it has no {name}; only whole base models can be edited")
        if given != wanted:
            raise SaeuronError(f"its {name} is a {given}; only a {wanted} is supported in a {family.pipeline}")
        found[name] = wanted
    return found


def check_files(folder: Path, variant: str | None) -> None:
    """Raise `SaeuronError` unless a component's safetensors files are whole, and hold what their index says."""
    used, files = weight_files(folder, variant)
    for path in files:
        if not path.is_file():
            raise SaeuronError(f"'{path}' is no file that can be read; take the folder again from its source")
        refuse_pointer(path)
        refuse_cut_zip(path)
    if all("-of-" in path.name for path in files) and not any(
        (match := _INDEX.fullmatch(path.name)) and match["variant"] == used for path in folder.iterdir()
    ):
        raise SaeuronError(f"'{folder}' is incomplete: its weights lie in {len(files)} files, and the index that says which is missing")
    held = {path.name: read_header(path)[1] for path in files if path.suffix == ".safetensors"}
    for file, tensors in held.items():
        for key, (dtype, _) in tensors.items():
            if dtype not in _NUMBERS and not key.endswith("position_ids"):
                raise SaeuronError(f"{folder / file}: '{key}' is {dtype}; quantised weights can't be edited, only float ones")
    for path in folder.glob("*.index*.json"):
        match = _INDEX.fullmatch(path.name)
        if match is None or match["variant"] != used or (".safetensors." in path.name) != bool(held):
            continue
        table = read_json(path).get("weight_map")
        if not isinstance(table, dict) or not all(isinstance(file, str) for file in table.values()):
            raise SaeuronError(f"{path} holds no 'weight_map' from weights to files")
        for file in sorted(set(table.values())):
            if not (folder / file).is_file():
                raise SaeuronError(f"'{folder}' is incomplete: {path.name} names '{file}', which is missing")
        if held:
            lacking = [key for key, file in table.items() if key not in held.get(file, {})]
            surplus = [key for keys in held.values() for key in keys if key not in table]
            for file in set(table.values()):
                # It would be taken from whichever file is read last.
                if twice := [key for key in held.get(file, {}) if table.get(key, file) != file]:
                    raise SaeuronError(f"'{folder}': the weight {twice[0]} is in '{file}' and in '{table[twice[0]]}'")
            refuse_odd(lacking, surplus, (), f"{path}: its files")


def refuse_odd(lacking: Iterable[str], surplus: Iterable[str], mismatched: Iterable[str], what: str) -> None:
    """Raise `SaeuronError` where weights are missing, have no place, or have another shape.

    Libraries start a missing one at random and drop one without a place, with no more than a note.
    """
    lacking, surplus, mismatched = sorted(lacking), sorted(surplus), sorted(mismatched)
    if adapter := [key for key in surplus if ADAPTER.search(key)]:
        raise SaeuronError(
            f"{what} hold an adapter (LoRA) that is not fused: {some(adapter)}; fuse it first (pipeline.fuse_lora(), pipeline.unload_lora_weights(), pipeline.save_pretrained(DIR)) and give that folder"
        )
    said = [
        text
        for keys, text in (
            (lacking, f"lack {some(lacking)}"),
            (surplus, f"hold {some(surplus)}, for which the network has no place"),
            (mismatched, f"have other shapes than the config says: {some(mismatched)}"),
        )
        if keys
    ]
    if said:
        raise SaeuronError(f"{what} {'; they '.join(said)}; take the folder again from its source, or save the whole pipeline anew")


def some(keys: list[str]) -> str:
    """The first three, and how many more there are."""
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def open_network(
    folder: Path, cls: Any, dtype: Any = None, variant: str | None = None, device: str | None = None, streams: bool = False
) -> Any:  # fmt: skip
    """A network with all its weights.

    Args:
        folder: the component's.
        cls: its class, of diffusers or transformers.
        dtype: torch dtype; None: as the library has it.
        variant: of the weight files.
        device: `meta` reads no values, only names and shapes.
        streams: leave the weights in their files if they are too large for memory, see `streamed`; then values are checked as they are read.

    Raises:
        SaeuronError: a weight too few or too many, of another shape or not finite; or the files can't be read.
    """
    from torch import nn

    from .streamed import empty, fits, is_large, stream

    used, files = weight_files(folder, variant)
    if (streams or device == "meta") and is_large(files, dtype):
        if hasattr(cls, "load_config") and not cls._keep_in_fp32_modules:
            # diffusers would read and cast all values, for none to stay.
            with empty(cls):
                network = nn.Module.to(cls.from_config(cls.load_config(folder)), dtype).eval()
            if stream(network, files) if streams else fits(network, files):
                return network
        # Also says what is missing or surplus.
        if streams and stream(network := open_network(folder, cls, dtype, variant, "meta"), files):
            return network
    options: dict[str, Any] = {"use_safetensors": files[0].suffix == ".safetensors"}
    if dtype is not None:
        options["torch_dtype"] = dtype
    if device is not None:
        options["device_map"] = {"": device}
    building = empty(cls) if device == "meta" else contextlib.nullcontext()
    try:
        with quiet_loading(), panics_as_errors(), building:
            network, info = cls.from_pretrained(
                folder, variant=used, local_files_only=True, output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
    except Exception as error:  # diffusers and transformers raise many types
        defaults = inspect.signature(cls.__init__).parameters
        nulls = [
            f"'{key}'"
            for key, value in read_json(folder / "config.json").items()
            if value is None and key in defaults and defaults[key].default is not None
        ]
        hint = f"; its config.json has null as {', '.join(nulls)}" if nulls else ""
        raise SaeuronError(f"'{folder}' can't be loaded by diffusers: {first_line(error)}{hint}") from None
    odd = {key for key, *_ in info["mismatched_keys"]}
    # A weight that an index promises and its file lacks is in no list, but stays without values.
    valueless = [] if device == "meta" else [key for key, value in network.state_dict().items() if value.is_meta and key not in odd]
    shapes = [f"{key} {list(held)} instead of {list(wanted)}" for key, held, wanted in info["mismatched_keys"]]
    refuse_odd({*info["missing_keys"], *valueless}, info["unexpected_keys"], shapes, f"{folder}: the weights in {files[0].name}")
    for key, value in network.state_dict().items():
        if not value.is_meta and not value.isfinite().all():
            raise SaeuronError(
                f"{folder}: the weight {key} holds values that are not finite in {str(value.dtype).removeprefix('torch.')}; take the folder again from its source, or another --precision"
            )
    return network


def open_networks(
    folder: Path, index: Mapping[str, Any], family: Family, dtype: Any = None, variant: str | None = None, device: str | None = None,
    streams: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Every network that the index names; arguments and errors as those of `open_network`."""
    return {name: open_network(folder / name, family.class_of(name), dtype, variant, device, streams) for name in named(index, family)}
