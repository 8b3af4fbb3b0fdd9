"""The nodes, in ComfyUI's V3 schema."""

from __future__ import annotations

import hashlib
from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import ComfyExtension, io, ui

from .artifact import MANIFEST, Artifact, ArtifactError
from .guard import EditError
from .heat import over
from .model import load_clip, load_model, load_vae
from .verify import verify

_CATEGORY = "saeuron"
_TYPES = {
    "as proven": None,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}


def _artifacts() -> dict[str, Path]:
    """Name → folder of every artifact below ComfyUI's `models/diffusers`."""
    found: dict[str, Path] = {}
    for root in map(Path, folder_paths.get_folder_paths("diffusers")):
        for path in sorted(root.glob(f"*/{MANIFEST}")) + sorted(root.glob(f"*/*/{MANIFEST}")):
            found.setdefault(path.parent.relative_to(root).as_posix(), path.parent)
    return found


def _folder(name: str) -> Path:
    if name not in (known := _artifacts()):
        raise ArtifactError(f"no artifact '{name}' in ComfyUI's models/diffusers ({', '.join(known) or 'there is none'})")
    return known[name]


class LoadEditedCheckpoint(io.ComfyNode):
    """An artifact's MODEL, CLIP and VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What ComfyUI shows."""
        return io.Schema(
            node_id="SaeuronLoadEditedCheckpoint", display_name="Load edited checkpoint", category=_CATEGORY,
            description="Loads an artifact of saeuron-export from models/diffusers, after every file that it reads was held to its record.",
            inputs=[io.Combo.Input("artifact", options=list(_artifacts())), io.Combo.Input("weight_dtype", options=list(_TYPES), default="as proven")],
            outputs=[io.Model.Output(), io.Clip.Output(), io.Vae.Output()],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, artifact: str, weight_dtype: str) -> str:
        """Another one when the folder's files change, so that ComfyUI loads, and checks, again."""
        root = _folder(artifact)
        said = [f"{p.relative_to(root)}:{p.stat().st_size}:{p.stat().st_mtime_ns}" for p in sorted(root.rglob("*")) if p.is_file()]
        return hashlib.sha256("\n".join([weight_dtype, *said]).encode()).hexdigest()

    @classmethod
    def execute(cls, artifact: str, weight_dtype: str) -> io.NodeOutput:
        """Load it."""
        opened = Artifact(_folder(artifact))
        model = load_model(opened, _TYPES[weight_dtype])
        return io.NodeOutput(model, load_clip(opened, folder_paths.get_folder_paths("embeddings")), load_vae(opened))


class Verify(io.ComfyNode):
    """The golden forwards, run again."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What ComfyUI shows."""
        return io.Schema(
            node_id="SaeuronVerify", display_name="Verify edit", category=_CATEGORY, is_output_node=True,
            description="Runs the artifact's golden forwards in this MODEL. Fails, and stops the graph, where they differ from what was proven.",
            inputs=[io.Model.Input("model")], outputs=[io.Model.Output(), io.String.Output(display_name="table")],
        )  # fmt: skip

    @classmethod
    def execute(cls, model: object) -> io.NodeOutput:
        """Run them."""
        result = verify(model)
        if not result.passed:
            raise EditError(f"this MODEL fails its golden forwards:\n{result.text}")
        return io.NodeOutput(model, result.text, ui=ui.PreviewText(result.text))


class WhatFired(io.ComfyNode):
    """Heat maps of the last sampling."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What ComfyUI shows."""
        return io.Schema(
            node_id="SaeuronWhatFired", display_name="What fired", category=_CATEGORY, is_output_node=True, not_idempotent=True,
            description="Where in each picture features of each concept fired while it was sampled, as a heat map for each concept.",
            inputs=[io.Model.Input("model"), io.Image.Input("images", tooltip="the pictures of the last sampling")],
            outputs=[io.Image.Output(), io.String.Output(display_name="table")],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, **kwargs: object) -> float:
        """Never the same: what it shows is of the last sampling."""
        return float("nan")

    @classmethod
    def execute(cls, model: object, images: torch.Tensor) -> io.NodeOutput:
        """Draw them."""
        edit = getattr(model.model, "saeuron_edit", None)  # type: ignore[attr-defined]
        if edit is None:
            raise ArtifactError(
                "this MODEL has no edit in which features fire: it doesn't come from 'Load edited checkpoint', or its edit is in the weights"
            )
        pictures, table = over(images, edit.fired)
        return io.NodeOutput(pictures, table, ui=ui.PreviewText(table))


class SaeuronExtension(ComfyExtension):
    """All of them."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """In the order of the menu."""
        return [LoadEditedCheckpoint, Verify, WhatFired]
