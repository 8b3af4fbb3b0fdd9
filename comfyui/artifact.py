"""An artifact of `saeuron-export`, read and checked. Needs torch and safetensors, and neither ComfyUI nor diffusers.

None of the artifact's code is run. Only files on record in its manifest are opened, each after its size and SHA-256 were held to that record.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from .edit_module import FORMAT, SENTINEL, FeatureAblation, _Ablated

MANIFEST = "saeuron.json"
GOLDEN = "edit/golden.safetensors"
_AGAIN = "take the artifact again from its source"
_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")


class ArtifactError(RuntimeError):
    """The artifact is missing, altered, or of a kind that this node doesn't load; the message says which, where, and what to do."""


class Artifact:
    """A folder that `saeuron-export` wrote.

    Raises:
        ArtifactError: no artifact, a manifest that was altered, or a model that isn't SD 1.x, SD 2.x or SDXL.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        path = self.root / MANIFEST
        if not path.is_file():
            raise ArtifactError(f"'{self.root}' has no {MANIFEST}: it is no artifact of saeuron-export")
        content = path.read_bytes()
        self.manifest = _object(content, path)
        rest = {key: value for key, value in self.manifest.items() if key != "manifest_sha256"}
        own = hashlib.sha256(json.dumps(rest, indent=1).encode()).hexdigest()
        # Byte for byte as it is written: other readers may take the other of two entries of one name.
        if (json.dumps({**rest, "manifest_sha256": own}, indent=1) + "\n").encode() != content:
            raise ArtifactError(f"'{path}' doesn't match its own hash: it was altered; {_AGAIN}")
        if self.manifest.get("format") != "saeuron-artifact-1":
            raise ArtifactError(f"'{path}' has format {self.manifest.get('format')!r}, which this version of the node doesn't know")
        if "checkpoint" not in self.manifest["formats"]:
            raise ArtifactError(
                f"'{self.root}' holds no checkpoint, only {', '.join(self.manifest['formats'])}; export it with --format checkpoint"
            )
        if (kind := self.manifest["model"]["pipeline"]) not in _PIPELINES:
            raise ArtifactError(f"'{self.root}' is a {kind}; this node loads SD 1.x, SD 2.x and SDXL")

    @property
    def dtype(self) -> torch.dtype:
        """What it was proven at."""
        return _TYPES[self.manifest["precision"]]

    def file(self, name: str) -> Path:
        """A file's path, after it was held to the manifest.

        Raises:
            ArtifactError: not on record, outside the folder, missing or altered.
        """
        record, path = self.manifest["files"].get(name), self.root / name
        plain = PurePosixPath(name)
        if record is None:
            raise ArtifactError(f"'{name}' isn't on record in '{self.root / MANIFEST}'; {_AGAIN}")
        if str(plain) != name or plain.is_absolute() or ".." in plain.parts or "\\" in name or not self._inside(path):
            raise ArtifactError(f"'{self.root / MANIFEST}' lists '{name}', which is outside the artifact")
        if not path.is_file():
            raise ArtifactError(f"'{name}' is missing from the artifact '{self.root}'; {_AGAIN}")
        if path.stat().st_size != record["bytes"] or _sha256(path) != record["sha256"]:
            raise ArtifactError(f"'{name}' in '{self.root}' is not the file that was written: size or SHA-256 differ; {_AGAIN}")
        return path

    def _inside(self, path: Path) -> bool:
        # A download's cache links to its `blobs`.
        folder = self.root.resolve()
        homes = [folder, *([folder.parents[1] / "blobs"] if folder.parent.name == "snapshots" else [])]
        return any(path.resolve().is_relative_to(home) for home in homes)

    def json(self, name: str) -> dict[str, Any]:
        """A file of JSON that holds one object."""
        path = self.file(name)
        return _object(path.read_bytes(), path)

    def tensors(self, folder: str) -> dict[str, torch.Tensor]:
        """The weights of a component, of all shards."""
        stem = "model" if folder.startswith("text_encoder") else "diffusion_pytorch_model"
        names = [n for n in self.manifest["files"] if n.startswith(f"{folder}/{stem}") and n.endswith(".safetensors")]
        if not names:
            raise ArtifactError(f"'{self.root}' has no weights of its {folder}; {_AGAIN}")
        found: dict[str, torch.Tensor] = {}
        for name in names:
            try:
                found |= load_file(self.file(name))
            except SafetensorError as error:
                raise ArtifactError(f"'{name}' in '{self.root}' can't be read ({error}); {_AGAIN}") from None
        return found

    @cached_property
    def unet_config(self) -> dict[str, Any]:
        """`unet/config.json`, with the sentinel undone."""
        config = self.json("unet/config.json")
        said, hookpoints = config.get("ablation"), self.manifest["edit"].get("hookpoints") or {}
        where = f"'unet/config.json' in '{self.root}'"
        if said is None:
            if hookpoints or config.get("mid_block_type") == SENTINEL or not self.manifest["edit"].get("weights"):
                raise ArtifactError(f"{where} has no edit, and the manifest names one; {_AGAIN}")
            return config
        if config.get("mid_block_type") != SENTINEL or said.get("format") != FORMAT or set(said["hookpoints"]) != set(hookpoints):
            raise ArtifactError(
                f"the edit in {where} is of another format ({said.get('format')!r}; known is {FORMAT}) or was altered; {_AGAIN}"
            )
        return {**config, "mid_block_type": said["stock"]}

    def unet(self) -> tuple[dict[str, torch.Tensor], dict[str, FeatureAblation]]:
        """Weights under the stock names of diffusers, and the edit of each hookpoint, on the CPU.

        Raises:
            ArtifactError: weights or edit that aren't those on record.
        """
        state, said = self.tensors("unet"), self.unet_config.get("ablation")
        if said is None:
            return state, {}
        edit = {name.removeprefix("ablations."): state.pop(name) for name in list(state) if name.startswith("ablations.")}
        barrier = state.pop("conv_in.bias", None)
        if barrier is None or barrier.shape != (1,) or not {"edited_conv_in.weight", "edited_conv_in.bias"} <= state.keys():
            raise ArtifactError(f"the UNet's weights in '{self.root}' aren't those of an edited UNet; {_AGAIN}")
        state = {name.removeprefix("edited_") if name.startswith("edited_conv_in.") else name: value for name, value in state.items()}
        digest = _Ablated._digest({key: value for key, value in said.items() if key != "sha256"}, edit)
        if not digest == said.get("sha256") == self.manifest["edit"]["tensors_sha256"]:
            raise ArtifactError(f"the edit's tensors in '{self.root}' don't match their recorded hash: altered or truncated; {_AGAIN}")
        made = {}
        for hookpoint, shape in said["hookpoints"].items():
            block, _, stream = hookpoint.partition(":")
            start = f"{hookpoint.replace('.', '-')}."
            own = {name.removeprefix(start): edit.pop(name) for name in list(edit) if name.startswith(start)}
            try:
                made[block] = FeatureAblation(**shape, stream=stream, residual=said["residual"], gate=said["gate"])
                made[block].load_state_dict(own)
            except (RuntimeError, TypeError, ValueError) as error:
                raise ArtifactError(
                    f"the edit at {hookpoint} in '{self.root}' can't be read ({str(error).splitlines()[0]}); {_AGAIN}"
                ) from None
            if any(value.is_floating_point() and bool(value.isnan().any()) for value in own.values()):
                raise ArtifactError(f"the edit at {hookpoint} in '{self.root}' holds NaN; {_AGAIN}")
        if edit:
            raise ArtifactError(f"'{self.root}' has surplus tensors of an edit: {', '.join(sorted(edit)[:4])}; {_AGAIN}")
        return state, made

    def chosen(self) -> dict[str, dict[str, list[list[int]]]]:
        """Hookpoint → concept → features at each timestep of the tables."""
        path = self.file("edit/edit.safetensors")
        with safe_open(path, "pt") as file:
            return json.loads((file.metadata() or {}).get("chosen", "{}"))


def _object(content: bytes, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError as error:
        raise ArtifactError(f"'{path}' is no JSON ({error}); {_AGAIN}") from None
    if not isinstance(found, dict):
        raise ArtifactError(f"'{path}' holds no object; {_AGAIN}")
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
