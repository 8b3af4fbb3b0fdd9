"""Names of hookpoints. Needs no torch: settings are checked before torch is imported."""

from __future__ import annotations


def normalise(name: str) -> str:
    """`unet.up_blocks.1.attentions.1` → `up_blocks.1.attentions.1`; folder names on the Hub carry the prefix."""
    return name.removeprefix("unet.")
