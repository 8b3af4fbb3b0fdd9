"""The code file that plain diffusers will run: is it the one that this package writes? Reads text alone, so it needs no torch."""

from __future__ import annotations

from pathlib import Path

from ..editor import edit_header
from ..editor.files import file_sha256, read_json

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
    return found
