"""The golden forwards of an artifact, run again in ComfyUI's model."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch
from safetensors import safe_open

from .artifact import GOLDEN, Artifact, ArtifactError
from .convert import TIME_IDS
from .guard import EditError

BARS = {torch.float32: 0.01, torch.float16: 0.02, torch.bfloat16: 0.05}
"""largest share of the edit's effect by the coarsest type in play, over the forwards in which no decision turned; the proof's own bars"""
TURNED_BAR, HALF, SHARE = 0.2, 0.5, 0.1
"""the same where decisions turned in every forward; over all forwards, beyond which nothing is told from half an edit; how far the share of the edit's
effect that is kept may lie from 1"""
DRIFT_FACTOR = 10.0
"""a single forward in fp32 may lie from the hook by this many times the distance that the rounding of its input alone makes, as in the proof"""
_FORMAT = "saeuron-golden-10"


@dataclass
class Row:
    """One golden forward: norms of differences in float64."""

    kind: str
    timestep: float
    effect: float
    """`|hook - neutral|`"""
    distance: float
    """`|found - hook|`"""
    unedited: float
    """`|unedited - hook|`"""
    kept: float
    """`<found - neutral, hook - neutral>`"""
    turned: int
    """decisions that came out otherwise"""
    decisions: int
    drift: float = 0.0
    """`|hook - hook with its input rounded otherwise|`"""
    share: float = math.nan
    """distance by effect; where the edit doesn't fire, by the least effect seen"""


@dataclass
class Result:
    """All of them."""

    rows: list[Row]
    pooled: float
    """over the forwards in which no decision turned (over all, where there are none), as a share of the edit's effect"""
    failures: list[str]
    text: str
    """a table"""

    @property
    def passed(self) -> bool:
        """Whether the edit is what was proven."""
        return not self.failures


def verify(patcher: Any) -> Result:
    """Run every golden forward of the artifact that a MODEL was loaded from.

    Raises:
        ArtifactError: not loaded from an artifact, or one without golden vectors.
        EditError: changed by other nodes since, or in a type that no bar is known for.
    """
    artifact = patcher.get_attachment("saeuron")
    if not isinstance(artifact, Artifact):
        raise ArtifactError("this MODEL doesn't come from 'Load edited checkpoint'; there is nothing to verify it with")
    model = patcher.model
    if patcher.patches or patcher.object_patches or patcher.hook_patches:
        raise EditError(
            "other nodes changed this MODEL (a LoRA, a merge, a patch): its golden forwards hold for the one that 'Load edited checkpoint' gives; verify that"
        )
    if GOLDEN not in artifact.manifest["files"]:
        raise ArtifactError(f"'{artifact.root}' was published without its golden vectors, so it can't be verified here")
    stored, dtype = model.get_dtype(), model.manual_cast_dtype or model.get_dtype()
    if dtype not in BARS or stored not in BARS:
        raise EditError(
            f"the weights were loaded as {stored}, which changes the whole UNet beyond what its proof allows; verify with weight_dtype 'as proven'"
        )
    comfy.model_management.load_models_gpu([patcher], force_full_load=False)
    edit = getattr(model, "saeuron_edit", None)
    with safe_open(artifact.file(GOLDEN), "pt") as file:
        header = file.metadata() or {}
        if header.get("format") != _FORMAT:
            raise ArtifactError(f"'{GOLDEN}' in '{artifact.root}' has format {header.get('format')!r}; this node knows {_FORMAT!r}")
        content = json.loads(header["content"])
        rows = [_row(model, edit, case, file.get_tensor, patcher.load_device, dtype) for case in content["cases"]]
    return judged(rows, max((dtype, stored, artifact.dtype), key=BARS.__getitem__))


@torch.inference_mode()
def _row(model: Any, edit: Any, case: dict[str, Any], tensor: Any, device: torch.device, dtype: torch.dtype) -> Row:
    given = {name: tensor(where).to(device) for name, where in case["inputs"].items()}
    x = given["sample"].to(dtype)
    levels = given["timestep"].float().reshape(-1).expand(len(x))
    more: dict[str, Any] = {}
    if "text_embeds" in given:
        sizes = model.embedder(given["time_ids"].flatten().float()).reshape(len(x), -1)
        if sizes.shape[1] != given["time_ids"].shape[1] * TIME_IDS:
            raise ArtifactError(f"this ComfyUI embeds SDXL's sizes in {sizes.shape[1]} numbers, which the golden forwards don't")
        more["y"] = torch.cat([given["text_embeds"].float(), sizes], 1).to(dtype)
    seen: dict[str, torch.Tensor] = {}
    if edit is not None:
        edit.watching = seen.__setitem__
    try:
        found = model.diffusion_model(x, levels, context=given["encoder_hidden_states"].to(dtype), transformer_options={}, **more)
    finally:
        if edit is not None:
            edit.watching = None
    hook, neutral, unedited = (tensor(case[name]).double() for name in ("hook", "neutral", "unedited"))
    found = found.double().cpu()
    turned = sum(int((seen[name].cpu() != tensor(where)).sum()) for name, where in case["fires"].items())
    return Row(
        case["kind"], float(case["timestep"]), float((hook - neutral).norm()), float((found - hook).norm()), float((unedited - hook).norm()),
        float(((found - neutral) * (hook - neutral)).sum()), turned, sum(fires.numel() for fires in seen.values()),
        case["hook_drift"],
    )  # fmt: skip


def judged(rows: list[Row], dtype: torch.dtype) -> Result:
    """Hold them to the bars of a type."""
    least = min((row.effect for row in rows if row.effect), default=math.nan)
    for row in rows:
        row.share = row.distance / (row.effect or least)
    calm = [row for row in rows if not row.turned]
    held, bar = (calm, BARS[dtype]) if any(row.effect for row in calm) else (rows, TURNED_BAR)
    pooled, every, other = _pooled(held, "distance"), _pooled(rows, "distance"), _pooled(held, "unedited")
    kept = sum(row.kept for row in rows if row.effect) / sum(row.effect**2 for row in rows) if least > 0 else math.nan
    failures = []
    if not least > 0:
        failures.append("in none of them does the edit do anything, so they show nothing")
    elif not pooled <= bar:
        failures.append(f"{pooled:.2%} of the edit's effect from the hook, {bar:.0%} are allowed")
    elif not other > bar:
        failures.append("the unedited model would pass too, so they show nothing")
    if least > 0 and not every <= HALF:
        failures.append(f"all together {every:.1%} of the edit's effect from the hook, {HALF:.0%} are allowed")
    if least > 0 and not abs(kept - 1) <= SHARE:
        failures.append(f"{kept:.1%} of the edit's effect are kept, {1 - SHARE:.0%} to {1 + SHARE:.0%} are allowed")
    if dtype == torch.float32:
        # An edit that does next to nothing in a forward may be all rounding there.
        wrong = [row for row in calm if not row.distance <= max(BARS[dtype] * (row.effect or least), DRIFT_FACTOR * row.drift)]
        failures += [f"{row.share:.2%} of the edit's effect from the hook at timestep {row.timestep:g}" for row in wrong]
    lines = ["kind        timestep  of the edit's effect  unedited  decisions turned"]
    for row in rows:
        unedited = f"{row.unedited / row.effect:8.0%}" if row.effect else "  silent"
        lines.append(f"{row.kind:10}  {row.timestep:8.2f}  {row.share:20.5%}  {unedited}  {row.turned} of {row.decisions}")
    said = "the edit is NOT what was proven" if failures else "the edit is what was proven"
    lines.append(
        f"{len(rows)} golden forwards, {pooled:.1e} of the edit's effect from the hook (allowed {bar:.0%}), {kept:.1%} of it kept: {said}"
    )
    return Result(rows, pooled, failures, "\n".join(lines + failures))


def _pooled(rows: list[Row], what: str) -> float:
    effect = math.sqrt(sum(row.effect**2 for row in rows))
    return math.sqrt(sum(getattr(row, what) ** 2 for row in rows)) / effect if effect else math.nan
