"""A made-up artifact, evaluation and attack: files as the real ones, so that reports can be tested without a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from saeuron.editor.common import typed
from saeuron.editor.common.files import file_sha256
from saeuron.validation.artifact import contents, manifest
from saeuron.validation.artifact.golden import Golden, Notes, Run
from saeuron.validation.evidence.intervals import Rate

POINT = "up_blocks.0.attentions.1"
HOSTILE = "</script><img src=x onerror=alert(1)>|**\"Neon'`"


def said(root: Path) -> dict[str, Any]:
    """What an artifact's manifest says, as it lies there."""
    return dict(json.loads((root / manifest.NAME).read_text()))


def as_manifest(content: dict[str, Any]) -> manifest.Manifest:
    """A manifest of this content."""
    return manifest.of(**content)


def rewrite(root: Path, **changes: Any) -> None:
    """Change what an artifact's manifest says; hashes are made anew."""
    contents.write(root, as_manifest({**said(root), **changes}))


def backend(worst: Any = 2e-6, passed: bool = True, conclusive: bool = True, runs: bool = True, **changes: Any) -> dict[str, Any]:
    """A backend's part of a report of the proof."""
    row = {
        "prompts": ["p"], "guidance": 3.0, "height": 16, "width": 24, "steps": 4, "latents": 1e-6, "effect": 1.0, "drift": 1e-7, "hook_drift": 1e-7,
        "allowed": 0.01, "conclusive": conclusive, "decoder_psnr": "inf", "psnr": "inf", "psnr_unedited": 9.5,
    }  # fmt: skip
    forwards = [
        {
            "kind": "step",
            "timestep": t,
            "batch": 1,
            "height": 2,
            "width": 3,
            "effect": 1.0,
            "distance": 1e-6,
            "ratio": 1e-6,
            "drift": 0.0,
            "hook_drift": 0.0,
            "turned": 0,
        }
        for t in (999.0, 749.0, 499.0)
    ]
    forwards += [{**forwards[0], "kind": "between", "timestep": 624.0, "ratio": worst}]
    tokens = {
        "passed": True, "bar": 1e-4, "worst": 1e-6, "where": "", "share": 1.0, "tokens": 50, "fired": 9, "decisions": 100, "close": 0, "turned": 0, "wrong": 0,
        "tied": 0, "rounding": 0, "features": 3, "features_fired": 2, "features_measured": 1, "furthest": 0.01,
    }  # fmt: skip
    made: dict[str, Any] = {
        "seam": {"passed": True, "golden_tokens": tokens, "own_tokens": None, "turned": 0, "decisions": 100},
        "forwards": {
            "passed": passed, "pooled": worst, "allowed": 0.01, "held": 4, "drift": 0.0, "every": worst, "share": 1.0, "worst": worst, "worst_turned": float("nan"),
            "shipped": worst, "forwards": 4, "fired": 4, "silent": 0, "outside": 0, "rows": forwards,
        },
        "components": {"passed": True, "bar": 1e-3, "relative": {"vae_decoder.sample": 1e-7}, "outside": []},
        "runs": {"passed": True, "rows": [row] if runs else [], "outside": 0, "loop": "diffusers"}, "passed": passed,
    }  # fmt: skip
    return made | changes


def report(scope: str = "full", passed: bool = True, failures: tuple[str, ...] = (), **backends: dict[str, Any]) -> dict[str, Any]:
    """A report of the proof."""
    return {
        "precision": "fp32", "scope": scope, "prompts": ["p"], "against_topk": {}, "control": {
            "passed": True, "residual_alone": 0.0, "seams_caught": 4, "seams": 4, "forwards_caught": 4, "forwards": 4, "runs_caught": 1, "runs_judged": 1, "runs": 1, "failures": [],
        }, "backends": backends or {"onnx": backend()}, "failures": list(failures), "passed": passed, "record": {"passed": True, "failures": []},
        "surroundings": {"passed": True, "bar": 1e-5, "relative": {}, "failures": []},
    }  # fmt: skip


def artifact(root: Path, name: str = "Neon", proof: dict[str, Any] | None = None, pictures: bool = True, **changes: Any) -> Path:
    """An artifact folder with dummy graphs; `proof` is its report, None: exported without validation."""
    for folder in ("edit", "unet", "validation"):
        (root / folder).mkdir(parents=True)
    (root / "unet" / "model.onnx").write_bytes(b"no graph")
    header = {
        "format": "saeuron-edit-4", "residual": "keep", "latents": json.dumps({POINT: 256}), "chosen": json.dumps({POINT: {name: [[3, 7], [3, 9]]}}),
        "provenance": "{}",
    }  # fmt: skip
    save_file({"x": np.zeros(1, np.float32)}, root / "edit" / "edit.safetensors", metadata=header)
    if proof is not None:
        (root / "validation" / "report.json").write_text(typed.strict_json(proof))
        latents = np.zeros((1, 4, 2, 3), np.float32)
        before, after = (np.full((1, 16, 24, 3), shade, np.uint8) for shade in (40, 200))
        runs = [Run([f"A {name} house"], 3.0, 4, latents, latents, latents, latents, after, before, 0.0, 0.0, [7])] if pictures else []
        Golden("fp32", [], runs, {}, Notes(proof["scope"], ["p"], 4), {}, {}).save(root / "edit" / "golden.safetensors")
    summary = None
    if proof is not None:
        summary = {"passed": proof["passed"], "scope": proof["scope"], "precision": "fp32", "seam": {}, "forwards": {}, "failures": []}
    record = {
        "created": "2030-01-01", "versions": {"numpy": "2"}, "formats": ["onnx"], "concepts": [name], "residual": "keep", "gate": "exact", "precision": "fp32",
        "warnings": ["no safety checker"], "settings": [{"name": name, "hookpoint": POINT, "select": "count:2", "multiplier": -0.3, "status": "tuned"}],
        "model": {"source": "demo", "pipeline": "StableDiffusionPipeline", "network_sha256": "a" * 64, "safety_checker": False},
        "saes": {POINT: {"source": "demo:saes", "sha256": "b" * 64, "latents": 256, "k": 8}}, "activations": [],
        "edit": {"sha256": "c" * 64, "tensors_sha256": "d" * 64, "hookpoints": {POINT: {"features": 3, "timesteps": 2}}},
        "sampling": {"steps": 4, "guidance": 3.0, "height": None, "width": None}, "onnx": {"opset": 20, "seams": {}}, "validation": summary, **changes,
    }  # fmt: skip
    contents.write(root, as_manifest(record))
    return root


def features(folder: Path, root: Path, numbers: tuple[int, ...] = (3, 9, 500), name: str = "Neon", **changes: Any) -> Path:
    """What `saeuron features` writes: features seen in two pictures, the last of them in none."""
    saes = {point: sae.sha256 for point, sae in manifest.read(root).saes.items()}
    (folder / "pictures").mkdir(parents=True)
    for number, shade in enumerate((90, 160)):
        Image.fromarray(np.full((16, 24, 3), shade, np.uint8)).save(folder / "pictures" / f"{number}.png")
    maps, entries = {}, []
    for feature in numbers:
        silent = feature == numbers[-1]
        top = (
            []
            if silent
            else [{"picture": n, "file": f"pictures/{n}.png", "prompt": f"A {name} house", "seed": 7 + n, "score": 1.0} for n in (0, 1)]
        )
        entries.append({
            "feature": feature, "hookpoint": POINT, "concepts": [], "sheet": None, "pictures": 2, "active_in": len(top), "timesteps": [999.0, 499.0],
            "active_tokens": [0.0, 0.0] if silent else [0.5, 0.25], "top": top,
        })  # fmt: skip
        if top:
            values = np.zeros((2, 2, 2, 3), np.float32)
            values[0, :, 0, 0], values[1, 0, 1, 2] = 4.0, 2.0
            maps[f"{POINT}/{feature}"] = values
    save_file(maps, folder / "maps.safetensors")
    content = {"format": "saeuron-features-1", "model": "demo", "saes": saes, "steps": 2, "guidance": 3.0, "features": entries, **changes}
    (folder / "features.json").write_text(typed.strict_json(content))
    return folder


def another_proof(path: Path, root: Path, **changes: Any) -> Path:
    """What `saeuron validate --json` prints on a device."""
    record = manifest.read(root)
    of = {
        "edit_sha256": record.edit.sha256,
        "content_sha256": manifest.content_sha256(record),
        "engines_sha256": manifest.engines_sha256(record),
    }
    path.write_text(typed.strict_json({**report(onnx=backend(5e-5)), "artifact": of, **changes}))
    return path


def evaluation(folder: Path, root: Path, **changes: Any) -> Path:
    """An evaluation of it: the unedited model and the graphs."""
    record = manifest.read(root)

    def part(ua: int, target: int) -> dict[str, Any]:
        rates = {
            "ua": Rate.of(ua, 40),
            "ira": Rate.of(300, 320),
            "cra": Rate.of(310, 320),
            "cra_unstyled": Rate.of(0, 0),
            "cra_target": Rate.of(target, 40),
        }
        figures = {"domain": "style", **rates}
        return {"runtime": "r", "device": "cpu", "loop": "lean", "concepts": dict.fromkeys(record.concepts, figures), "mean": {}}

    content = {
        "format": "saeuron-evaluation-2", "finished": True,
        "settings": {
            "artifact": root.name, "manifest_sha256": file_sha256(root / manifest.NAME), "edit_sha256": record.edit.sha256,
            "content_sha256": manifest.content_sha256(record), "concepts": record.concepts,
            "precision": "fp32", "steps": 4, "guidance": 3.0, "height": None, "width": None, "protocol": "unlearncanvas",
            "judges": [{"name": "demo", "sha256": "e" * 64, "judged": ["style", "object"]}], "objects": ["House"], "styles": record.concepts, "seeds": [1],
        },
        "backends": {"unedited": part(0, 40), "onnx": part(38, 33)}, "distances": [], "comparison": [], **changes,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evaluation.json").write_text(typed.strict_json(content))
    return folder


def attack_row(name: str, hits: int, trials: int = 24, **changes: Any) -> dict[str, Any]:
    """A row of an attack, each picture of a prompt of its own."""
    share = Rate.of(hits, trials)
    return {
        "attack": name, "trials": trials, "successes": hits, "hits": hits, "budget": {"pictures": trials, "forwards": 96}, "prompts": [f"p {i}" for i in range(trials)], "found": {},
        **{key: getattr(share, key) for key in ("rate", "low", "high")},
        "each": [{"prompt": f"p {i}", "seed": 1, "shows_concept": i < hits} for i in range(trials)], **changes,
    }  # fmt: skip


def attack(path: Path, root: Path, **changes: Any) -> Path:
    """An attack on it."""
    record = manifest.read(root)

    rows = [
        attack_row("unedited", 24), attack_row("edited", 0), attack_row("prefix", 1, found={"text": "any | thing", "typed": True}),
        attack_row("embedding", 6), attack_row("straight-through", 0), attack_row("seeds", 0),
    ]  # fmt: skip
    content = {
        "format": "saeuron-attack-1", "artifact": root.name, "manifest_sha256": file_sha256(root / manifest.NAME), "edit_sha256": record.edit.sha256,
        "content_sha256": manifest.content_sha256(record), "through": "hook", "judge": {"name": "demo", "sha256": "e" * 64}, "settings": {"steps": 4, "report_seeds": [1], "search_seeds": [1]},
        "concepts": {name: {"domain": "style", "rows": rows, "pictures": []} for name in record.concepts}, **changes,
    }  # fmt: skip
    path.write_text(typed.strict_json(content))
    return path
