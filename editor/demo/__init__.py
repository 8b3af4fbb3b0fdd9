"""The embedded demo: two small pipelines that were really trained, a Stable Diffusion and an SD3, their SAEs, activations and judges."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parent
PIPELINE = ROOT / "pipeline"
MODELS = {"demo": PIPELINE, "demo:dit": ROOT / "dit" / "pipeline"}
"""name → folder of a diffusers pipeline; `demo:dit` is a transformer (SD3)"""
SAES = ROOT / "saes"
CLASSIFIER = ROOT / "classifier.safetensors"
CLIP = ROOT / "clip"
"""a CLIP model of its own: stock transformers files"""
STEPS = 20
GUIDANCE = 3.0


def resolve(name: str) -> Path:
    """One of `MODELS` → its folder; `demo:saes` → a path inside the demo."""
    return MODELS.get(name) or ROOT / name.removeprefix("demo:")


def path_of(name: str) -> str:
    """`demo:…` as a path inside the package; anything else unchanged."""
    return str(resolve(name)) if name.startswith("demo:") else name
