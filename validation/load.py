"""Opens an artifact's pipeline in torch, without executing the code file that lies in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..editor.errors import SaeuronError
from ..editor.quiet import quiet_loading
from . import manifest


def load(artifact: str | Path, dtype: Any = None, device: str = "cpu", check_files: bool = True) -> Any:
    """The edited pipeline of an artifact.

    Args:
        artifact: the artifact's folder.
        dtype: torch dtype; default: the artifact's own precision.
        device: torch device.
        check_files: compare every file with the manifest first.

    Returns:
        `StableDiffusionPipeline` with the edited UNet.

    Raises:
        SaeuronError: no artifact, no checkpoint in it, a changed or missing file.
        AblationIntegrityError: the edit is missing or altered.
    """
    from diffusers import StableDiffusionPipeline

    from ..editor.ablated_unet import AblatedUNet2DConditionModel
    from .reference import PRECISIONS

    root = Path(artifact)
    record = manifest.read(root)
    if "checkpoint" not in record["formats"]:
        raise SaeuronError(f"'{root}' has no checkpoint (formats: {', '.join(record['formats'])}); export it with --format checkpoint")
    if check_files:
        manifest.check_files(root, record)
    dtype = dtype or PRECISIONS[record["precision"]]
    with quiet_loading():
        unet = AblatedUNet2DConditionModel.from_pretrained(root / "unet", torch_dtype=dtype)
        # diffusers would want to run the artifact's code file for the UNet; ours is put in afterwards instead.
        rest = StableDiffusionPipeline.from_pretrained(root, unet=None, torch_dtype=dtype, local_files_only=True)
        pipeline = StableDiffusionPipeline(**{**rest.components, "unet": unet}, requires_safety_checker=rest.config.requires_safety_checker)
    return pipeline.to(device)
