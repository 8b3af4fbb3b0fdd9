"""Checks that the code file in `unet/`, which diffusers runs, is the one that this package writes. Needs no torch."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open

from ...editor.common.files import file_sha256, read_json
from ...editor.common.names import SENTINEL
from ...editor.edit import edit_header

CLASS = "AblatedUNet2DConditionModel"
RELEASED: tuple[str, ...] = ()
"""SHA-256 of the files that released versions wrote, besides this version's own; there is no release yet"""


def own_file() -> Path:
    """The class's file in this installation, without importing it."""
    return Path(edit_header.__file__).with_name("ablated_unet.py")


def name_of(sha256: str) -> str:
    """Module name of a class file of that hash."""
    return f"saeuron_unet_{sha256[:12]}"


def check(root: Path) -> list[str]:
    """Compare the file and its entry in the index.

    Args:
        root: artifact folder with a checkpoint.

    Returns:
        one line a difference.
    """
    known = (file_sha256(own_file()), *RELEASED)
    there = sorted(p.name for p in (root / "unet").glob("*.py"))
    found = []
    if len(there) != 1 or there[0] not in [f"{name_of(h)}.py" for h in known]:
        return [
            f"unet/ holds {', '.join(there) or 'no .py file'}; this version of saeuron knows {' and '.join(f'{name_of(h)}.py' for h in known)} (check with the version that made the artifact)"
        ]
    if file_sha256(root / "unet" / there[0]) not in known:
        found.append(f"unet/{there[0]} is not the class that was proven: its text differs from this version's")
    index = read_json(root / "model_index.json")
    if index.get("unet") != [there[0].removesuffix(".py"), CLASS]:
        found.append(f"model_index.json opens the UNet as {index.get('unet')}, not as {[there[0].removesuffix('.py'), CLASS]}")
    return found + _measures(root, there[0].removesuffix(".py"))


def _measures(root: Path, module: str) -> list[str]:
    """What makes other loaders fail instead of giving the unedited model: the config's sentinel and the names of the first convolution."""
    found = []
    config = read_json(root / "unet" / "config.json")
    for key, wanted in {"_class_name": CLASS, "mid_block_type": SENTINEL, "auto_map": {"AutoModel": f"{module}.{CLASS}"}}.items():
        if config.get(key) != wanted:
            found.append(f"unet/config.json: '{key}' is {config.get(key)!r}, not {wanted!r}: loaders could pass over the edit")
    shapes: dict[str, list[int]] = {}
    for file in sorted((root / "unet").glob("*.safetensors")):
        with safe_open(file, "np") as tensors:
            shapes |= {name: tensors.get_slice(name).get_shape() for name in tensors.keys() if "conv_in." in name}  # noqa: SIM118 - safe_open has no iterator
    if "conv_in.weight" in shapes or "edited_conv_in.weight" not in shapes or shapes.get("conv_in.bias") != [1]:
        held = ", ".join(f"{name} {shape}" for name, shape in sorted(shapes.items())) or "none"
        found.append(
            f"checkpoint: conv_in lies under stock names, or without its barrier ({held}): stock loaders would give the unedited model"
        )
    return found
