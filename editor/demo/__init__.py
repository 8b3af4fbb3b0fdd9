"""The embedded demo: a small Stable Diffusion pipeline that was really trained, its SAEs, activations and judges."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parent
PIPELINE = ROOT / "pipeline"
SAES = ROOT / "saes"
CLASSIFIER = ROOT / "classifier.safetensors"
CLIP = ROOT / "clip"
"""a CLIP model of its own: stock transformers files"""
STEPS = 20
GUIDANCE = 3.0


def resolve(name: str) -> Path:
    """`demo` → the pipeline's folder; `demo:saes` → a path inside the demo."""
    return PIPELINE if name == "demo" else ROOT / name.removeprefix("demo:")
