"""The model card that lies in every artifact."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...editor.common.names import BY_DIRECTION, BY_SAE
from ...editor.edit.gains import BY_HAND
from ...editor.edit.provenance import ways
from ...validation.artifact.manifest import GOLDEN, Licence, Manifest, ProofSummary
from ...validation.artifact.quantised import WORDS

REPORT, REPORT_PICTURES = "validation/report.md", "report-pictures"
"""where `saeuron report --into-artifact` puts the Markdown, and the folder of its pictures beside it"""


def model_card(record: Manifest, report: str = "") -> str:
    """Markdown with a YAML head.

    Args:
        record: the manifest's content.
        report: Markdown of the report that lies in the artifact, if there is one.
    """
    model = record.model
    settings = "\n".join(
        f"| {w.name} | {w.intervention} | {w.hookpoint or 'cross-attention'} | {w.said} | {'–' if w.multiplier is None else format(w.multiplier, 'g')} | {w.status} |"
        for w in record.settings
    )
    title, what = _what(record)
    decided = f"Residual: {record.residual}; gate: {record.gate}; p" if record.edit.hookpoints else "P"
    warnings = "\n".join(f"- {w}" for w in record.warnings) or "- none"
    return (
        _head(record)
        + f"""

# {model.pipeline} {title}
{_unproven(record.validation)}
{what}. The edit is part of the network's graph and weights; no hook is needed.

| concept | intervention | where | what | multiplier | settings |
|---|---|---|---|---|---|
{settings}

{decided}recision: {record.precision}.

## Open it

{_opening(record.formats, model.pipeline, _repo(record), bool(record.edit.hookpoints))}

## Proof

{_proof(record.validation, bool(record.edit.hookpoints))}{_quantised(record)}

{_evidence(record)}

## Notes

{warnings}
- {"The proof" if record.quantised else "Equality with the dynamic hook"} says that the edit was shipped as designed. It does not say that nobody can get around
  the edit, nor how well it removes the concept.
- Check it yourself: `pip install 'saeuron-export[export,cpu]'`, then `saeuron verify {_place(record)}` (files and edit; with `--public-key PEM` whose they are) and
  `saeuron validate {_validated(record)}` (does it what it should).
- Whoever edits the tensors on purpose can undo the edit. `verify --public-key` tells whether the files are still the publisher's, where the
  artifact is signed.
- {_licence(record)}
"""
        + _reported(report)
    )


def evidence_in(root: Path, record: Manifest) -> str:
    """The Markdown of the report in an artifact whose files were checked; empty where there is none."""
    return (root / REPORT).read_text(encoding="utf-8") if REPORT in record.files else ""


def _reported(report: str) -> str:
    """A report as the card's last section: headings one level lower, pictures found from the artifact's root."""
    if not report:
        return ""
    _, _, text = report.partition("\n")
    text = re.sub(r"^(#+ )", r"#\1", text, flags=re.MULTILINE)
    text = text.replace(f"]({REPORT_PICTURES}/", f"](validation/{REPORT_PICTURES}/")
    return f"\n## Evidence\n\nAs `saeuron report` wrote it; `validation/report.html` is the same as a page.\n\n{text.strip()}\n"


def _head(record: Manifest) -> str:
    """The YAML that the Hub reads. Values are JSON texts, which YAML takes as they are."""
    model, licence = record.model, record.license
    lines = ["---", "library_name: diffusers", "pipeline_tag: text-to-image"]
    if licence:
        lines += [f"{key}: {json.dumps(value)}" for key, value in _licence_fields(licence).items() if value]
    if hub_id(model.source):
        lines += [f"base_model: {json.dumps(model.source)}", "base_model_relation: finetune"]
    tags = ["saeuron", "feature-steering" if _by_hand(record) else "concept-removal"]
    tags += ["sparse-autoencoder"] if _by_sae(record) else []
    tags.append("text-to-image")
    kinds = {"onnx": "onnx", "trt": "tensorrt", "trt-rtx": "tensorrt"}
    tags += dict.fromkeys(kinds[name] for name in record.formats if name in kinds)
    return "\n".join([*lines, "tags:", *(f"- {tag}" for tag in tags), "---"])


def _licence_fields(licence: Licence) -> dict[str, Any]:
    ids = licence.id.split(", ")
    return {"license": ids if len(ids) > 1 else ids[0], "license_name": licence.name, "license_link": licence.link}


def hub_id(source: str) -> bool:
    """Whether a source on record is a Hub id; of a local folder only its name is on record."""
    return source.count("/") == 1 and not source.startswith((".", "/"))


def _licence(record: Manifest) -> str:
    licence = record.license
    if not licence:
        both = "licences of its base model and its SAE; the base model's" if _by_sae(record) else "licence of its base model, which"
        return f"An edited model stays under the {both} was not found."
    return f"Licence: `{licence.id}` ({licence.source})." + (" The SAE's licence applies too." if _by_sae(record) else "")


def _repo(record: Manifest) -> str | None:
    return record.published.repo if record.published else None


def _place(record: Manifest) -> str:
    repo = _repo(record)
    return f"{repo}@COMMIT" if repo else "THIS_FOLDER"


def _validated(record: Manifest) -> str:
    """What `validate` needs to be told."""
    return "THIS_FOLDER" if _has_golden(record) else "THIS_FOLDER --model BASE_MODEL"


def _has_golden(record: Manifest) -> bool:
    # Before the manifest is finished it lists no files; the export always writes golden vectors.
    return not record.files or GOLDEN in record.files


def _quantised(record: Manifest) -> str:
    """What was quantised, and what that leaves of the proof; empty where nothing was."""
    q = record.quantised
    if q is None:
        return ""
    made = f"The network's graph is quantised (**{q.scheme}**: {WORDS[q.scheme]}): {len(q.layers)} layers, listed in `saeuron.json`. The edit and everything else are in {record.precision}."
    proven = record.validation is not None and record.validation.passed
    drift = (
        ""
        if q.drift is None
        else f" Quantising alone moves the network's output by {100 * q.drift:.2g} % of what the edit does, so the network is not the hook's; its edit is."
    )
    lines = [f"- {one}" for one in q.removal or ()]
    judged = (
        "How well the concepts stay away was **not judged** after quantising."
        if not q.removal
        else "Pictures that ask for a concept, after and before quantising:"
    )
    verdict = f" Proven: {q.verdict}." if proven else ""
    return "\n".join(["", "", f"{made}{verdict}{drift}", "", judged, *(["", *lines] if lines else [])])


def _unproven(summary: ProofSummary | None) -> str:
    if summary is not None and summary.passed:
        return ""
    return "\n> **Unproven.** Nobody has shown that this model does what the edit says; see Proof below.\n"


def _by_sae(record: Manifest) -> bool:
    """Whether features of an SAE are in it."""
    return any(w.intervention in BY_SAE for w in record.settings)


def _by_hand(record: Manifest) -> bool:
    return all(w.status == BY_HAND for w in record.settings)


def _what(record: Manifest) -> tuple[str, str]:
    """The end of the title, and the beginning of the sentence that says what was done."""
    source, names = record.model.source, ", ".join(dict.fromkeys(w.name for w in record.settings))
    if not _by_hand(record):
        return f"without {names}", f"Removed from `{source}`: {ways(record.settings, '**')}"
    said = ", ".join(f"{w.name} ({w.select} × {w.multiplier:g})" for w in record.settings)
    return (
        f"steered: {names}",
        f"Steered in `{source}`: **{said}**. Each feature of a sparse autoencoder is multiplied where it is active (arXiv 2501.18052)",
    )


def _evidence(record: Manifest) -> str:
    summary = record.validation
    held = ["the matrix that the weights were multiplied by"] if record.edit.weights else []
    held += ["directions and their tables"] if any(s.intervention in BY_DIRECTION for s in record.settings) else []
    held += ["chosen features and their tables"] if _by_sae(record) else []
    what = "; ".join(held)
    if _has_golden(record):
        edit = (
            f"`edit/` holds the edit itself ({what}) and golden vectors: inputs with the outputs of the dynamic hook "
            "and of the unedited model, so that anyone can compare again without the original model."
        )
    else:
        edit = (
            f"`edit/` holds the edit itself ({what}). The golden vectors, which hold pictures of the unedited model, were "
            "left out, so `saeuron validate` needs the original model."
        )
    return edit if summary is None else f"{edit} `validation/report.json` holds every figure of the proof."


def _opening(formats: Sequence[str], pipeline: str, repo: str | None, own_class: bool) -> str:
    parts = []
    place = f'"{repo}", revision="COMMIT"' if repo else '"THIS_FOLDER"'
    if repo:
        parts.append(f"""Pin the revision: `COMMIT` stands for a commit's 40 digits, from this repository's history; a branch can move.
`THIS_FOLDER` is what `hf download {repo} --revision COMMIT --local-dir THIS_FOLDER` writes.""")
    if "checkpoint" in formats:
        parts.append(f"""`pip install diffusers transformers accelerate`, then:

```python
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained({place}{", trust_remote_code=True)   # runs saeuron_edit_*.py" if own_class else ")"}
```""")
    if "onnx" in formats:
        parts.append(f"""The ONNX graphs hold no safety checker, and optimum loads none from a folder.

```python
from optimum.onnxruntime import ORT{pipeline}
pipeline = ORT{pipeline}.from_pretrained({place})
```

Without torch and diffusers: `saeuron generate THIS_FOLDER --prompt "TEXT" --output picture.png` (`saeuron-export[cpu]`).""")
    if any(name.startswith("trt") for name in formats):
        parts.append("""TensorRT engines lie in `tensorrt/`, one folder a target. `saeuron.json` says for which GPUs and library version each
was built; no GPU had run them then. Prove them on the device: `saeuron validate THIS_FOLDER --backend trt-rtx` (or `trt`).""")
    return "\n\n".join(parts)


def _proof(summary: ProofSummary | None, at_blocks: bool) -> str:
    if summary is None:
        return "**Not validated.** This artifact was written with `--no-validate`."
    verdict = "Passed" if summary.passed else "**FAILED**"
    ran = f" It ran on a GPU ({summary.gpu})." if summary.gpu else " It ran on a CPU; no GPU has run this artifact."
    seams, forwards = (
        "; ".join(f"{name}: {v if isinstance(v, str) else f'{100 * v:.2g} %'}" for name, v in shares.items())
        for shares in (summary.seam, summary.forwards)
    )
    tokens = (
        f"Largest distance of an edited token to the dynamic hook's on the same input, as a share of its change: {seams or 'not observable'}."
        if at_blocks
        else "The edit is in the weights alone, so there are no edited tokens to compare."
    )
    outputs = (
        "edited blocks' tokens, behind which the network was left (its end and pictures were not compared)"
        if summary.scope == "seam"
        else "network's outputs"
    )
    lines = [
        f"{verdict} ({summary.scope}, {summary.precision}). {tokens} Distance of the {outputs}, as a share of what the edit does: {forwards}.{ran}"
    ]
    return "\n".join(lines + [f"- {line}" for line in summary.failures])
