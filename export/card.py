"""The model card that lies in every artifact."""

from __future__ import annotations

from typing import Any

from ..editor.by_hand import BY_HAND


def model_card(record: dict[str, Any]) -> str:
    """Markdown with a YAML head, from the manifest's content."""
    model = record["model"]
    tag = "feature-steering" if _by_hand(record) else "concept-removal"
    head = ["---", "library_name: diffusers", "tags:", "- saeuron", f"- {tag}", "- text-to-image"]
    if model["source"].count("/") == 1 and not model["source"].startswith((".", "/")):
        head.append(f"base_model: {model['source']}")
    head.append("---")
    settings = "\n".join(
        f"| {w['name']} | {w['hookpoint']} | {w['select']} | {'–' if w['multiplier'] is None else format(w['multiplier'], 'g')} | {w['status']} |"
        for w in record["settings"]
    )
    title, what = _what(record)
    warnings = "\n".join(f"- {w}" for w in record["warnings"]) or "- none"
    return (
        "\n".join(head)
        + f"""

# {model["pipeline"]} {title}

{what} while the
model denoises (SAeUron, arXiv 2501.18052). The edit is part of the UNet's graph and weights; no hook is needed.

| concept | hookpoint | features | multiplier | settings |
|---|---|---|---|---|
{settings}

Residual: {record["residual"]}; gate: {record["gate"]}; precision: {record["precision"]}.

## Open it

{_opening(record["formats"], model["pipeline"])}

## Proof

{_proof(record.get("validation"))}

{_evidence(record.get("validation"))}

## Notes

{warnings}
- Equality with the dynamic hook says that the edit was shipped as designed. It does not say that nobody can get around
  the edit, nor how well it removes the concept.
- Check it yourself, from this folder alone: `pip install 'saeuron-export[export,cpu]'`, then `saeuron validate THIS_FOLDER`.
- Whoever edits the tensors on purpose can undo the edit; compare the files with `saeuron.json`.
"""
    )


def _by_hand(record: dict[str, Any]) -> bool:
    return all(w["status"] == BY_HAND for w in record["settings"])


def _what(record: dict[str, Any]) -> tuple[str, str]:
    """The end of the title, and the beginning of the sentence that says what was done."""
    source, names = record["model"]["source"], ", ".join(dict.fromkeys(w["name"] for w in record["settings"]))
    if not _by_hand(record):
        return f"without {names}", f"Removed from `{source}`: **{names}**, by suppressing features of a sparse autoencoder"
    said = ", ".join(f"{w['name']} ({w['select']} × {w['multiplier']:g})" for w in record["settings"])
    return f"steered: {names}", f"Steered in `{source}`: **{said}**. Each feature of a sparse autoencoder is multiplied where it is active"


def _evidence(summary: dict[str, Any] | None) -> str:
    edit = (
        "`edit/` holds the edit itself (chosen features and their tables) and golden vectors: inputs with the outputs of the dynamic hook "
        "and of the unedited model, so that anyone can compare again without the original model."
    )
    return edit if summary is None else f"{edit} `validation/report.json` holds every figure of the proof."


def _opening(formats: list[str], pipeline: str) -> str:
    parts = []
    if "checkpoint" in formats:
        parts.append("""`pip install diffusers transformers accelerate`, then:

```python
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained("THIS_FOLDER", trust_remote_code=True)   # runs unet/saeuron_unet_*.py
```""")
    if "onnx" in formats:
        parts.append(f"""The ONNX graphs hold no safety checker, and optimum loads none from a folder.

```python
from optimum.onnxruntime import ORT{pipeline}
pipeline = ORT{pipeline}.from_pretrained("THIS_FOLDER")
```

Without torch and diffusers: `saeuron generate THIS_FOLDER --prompt "TEXT" --output picture.png` (`saeuron-export[cpu]`).""")
    if any(name.startswith("trt") for name in formats):
        parts.append("""TensorRT engines lie in `tensorrt/`, one folder a target. `saeuron.json` says for which GPUs and library version each
was built; no GPU had run them then. Prove them on the device: `saeuron validate THIS_FOLDER --backend trt-rtx` (or `trt`).""")
    return "\n\n".join(parts)


def _proof(summary: dict[str, Any] | None) -> str:
    if summary is None:
        return "**Not validated.** This artifact was written with `--no-validate`."
    verdict = "Passed" if summary["passed"] else "**FAILED**"
    shares = "; ".join(
        f"{name}: {worst if isinstance(worst, str) else f'{100 * worst:.2g} %'}" for name, worst in summary["worst_share_of_effect"].items()
    )
    lines = [
        f"{verdict} ({summary['scope']}, {summary['precision']}). Largest distance to the dynamic hook, as a share of what the edit does: {shares}."
    ]
    return "\n".join(lines + [f"- {line}" for line in summary["failures"]])
