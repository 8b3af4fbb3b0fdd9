"""Checks that the code file beside the edited network, which diffusers runs, is the one that this package writes. Needs no torch."""

from __future__ import annotations

import hashlib
from pathlib import Path

from safetensors import safe_open

from ...editor.common.files import file_sha256, read_json
from ...editor.common.names import SENTINEL
from ...editor.denoisers.denoiser import Denoiser
from ...editor.denoisers.families import Family, family_in
from ...editor.edit.shipped import SHIPPED

RELEASED: tuple[str, ...] = ()
"""SHA-256 of the files that released versions wrote, besides this version's own; there is no release yet"""


def name_of(sha256: str) -> str:
    """Module name of a class file of that hash."""
    return f"saeuron_edit_{sha256[:12]}"


def check(root: Path) -> list[str]:
    """Compare the file and its entry in the index.

    Args:
        root: artifact folder with a checkpoint.

    Returns:
        one line a difference.
    """
    known = (hashlib.sha256(SHIPPED).hexdigest(), *RELEASED)
    denoiser = family_in(root).denoiser
    folder = denoiser.component
    there = sorted(p.name for p in (root / folder).glob("*.py"))
    found = []
    if len(there) != 1 or there[0] not in [f"{name_of(h)}.py" for h in known]:
        return [
            f"{folder}/ holds {', '.join(there) or 'no .py file'}; this version of saeuron knows {' and '.join(f'{name_of(h)}.py' for h in known)} (check with the version that made the artifact)"
        ]
    if file_sha256(root / folder / there[0]) not in known:
        found.append(f"{folder}/{there[0]} is not the class that was proven: its text differs from this version's")
    index = read_json(root / "model_index.json")
    if (said := index.get(folder)) != (wanted := [there[0].removesuffix(".py"), denoiser.edited_class]):
        found.append(f"model_index.json opens the {denoiser.noun} as {said}, not as {wanted}")
    return found + _measures(root, denoiser, there[0].removesuffix(".py"))


def check_stock(root: Path, family: Family) -> list[str]:
    """Of an edit in the weights alone: diffusers opens the denoiser by its own class, and there is no code; one line a difference."""
    wanted, index = ["diffusers", family.denoiser.cls], read_json(root / "model_index.json")
    there = sorted(p.name for p in (root / family.denoiser.component).glob("*.py"))
    found = [f"{family.denoiser.component}/ holds {', '.join(there)}, and an edit in the weights alone needs no code"] if there else []
    if (said := index.get(family.denoiser.component)) != wanted:
        found.append(f"model_index.json opens the {family.denoiser.noun} as {said}, not as {wanted}")
    return found


def _measures(root: Path, denoiser: Denoiser, module: str) -> list[str]:
    """What makes other loaders fail instead of giving the unedited model: the config's sentinel and the names of one layer."""
    found, folder, layer = [], denoiser.component, denoiser.renamed
    config = read_json(root / folder / "config.json")
    own = {"AutoModel": f"{module}.{denoiser.edited_class}"}
    for key, wanted in {"_class_name": denoiser.edited_class, denoiser.sentinel: SENTINEL, "auto_map": own}.items():
        if config.get(key) != wanted:
            found.append(f"{folder}/config.json: '{key}' is {config.get(key)!r}, not {wanted!r}: loaders could pass over the edit")
    shapes: dict[str, list[int]] = {}
    for file in sorted((root / folder).glob("*.safetensors")):
        with safe_open(file, "np") as tensors:
            names = [name for name in tensors.keys() if name.startswith((f"{layer}.", f"edited_{layer}."))]  # noqa: SIM118 - safe_open has no iterator
            shapes |= {name: tensors.get_slice(name).get_shape() for name in names}
    if f"{layer}.weight" in shapes or f"edited_{layer}.weight" not in shapes or shapes.get(f"{layer}.bias") != [1]:
        held = ", ".join(f"{name} {shape}" for name, shape in sorted(shapes.items())) or "none"
        found.append(
            f"checkpoint: {layer} lies under stock names, or without its barrier ({held}): stock loaders would give the unedited model"
        )
    return found
