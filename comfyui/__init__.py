"""Nodes for ComfyUI that load artifacts of `saeuron-export`: SD 1.x, SD 2.x and SDXL with concepts removed, and with proof that they are."""

from __future__ import annotations

from typing import Any


async def comfy_entrypoint() -> Any:
    """What ComfyUI asks for."""
    # Only here: the checks of an artifact can be imported without ComfyUI.
    from .nodes import SaeuronExtension

    return SaeuronExtension()
